"""The command `evaluate`: its table, JSON and chart, other packages' scores, and what it refuses."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builders
import pytest
import torch
from PIL import Image
from shortcut_pack.shortcut import shipped
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.chart import SIZE
from shortcut_pack.shortcut.cli import evaluate as cli_evaluate
from shortcut_pack.shortcut.cli.evaluate import quality_commands
from shortcut_pack.shortcut.train import pictures

from experiments import quality, text_quality
from experiments.quality_rows import Row

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[..., tuple[int, str, str]]
HOW = ("--steps", "4", "--full-steps", "1", "2", "--num-images", "2", "--seeds", "1", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classes")
    base = builders.model()
    builders.write(path / "model.safetensors", base)
    for name, seed in (("a", 1), ("b", 2)):
        head = builders.head(seed=seed, model_fingerprint=base.fingerprint)
        builders.write(path / f"{name}.safetensors", head)
    other = builders.head(model_fingerprint="another")
    builders.write(path / "other.safetensors", other)
    wide = replace(builders.HEAD_CONFIG, model_width=64)
    builders.write(path / "wide.safetensors", builders.head(wide))
    return path


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    path = builders.write_text(tmp_path_factory.mktemp("text"))
    (path / "prompts.txt").write_text("a red house\ntrees\n")
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `evaluate`; returns exit status, stdout, stderr."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        status = main(["evaluate", *map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def files(folder: Path, *heads: str) -> list[Any]:
    chosen = ["--head", *(folder / f"{name}.safetensors" for name in heads)] if heads else []
    return ["--model", folder / "model.safetensors", *chosen]


def test_table_json_and_chart(run: Run, folder: Path, tmp_path: Path) -> None:
    outputs = ("--json", tmp_path / "e.json", "--chart", tmp_path / "e.png")
    status, out, error = run(*files(folder, "a", "b"), *HOW, *outputs)
    assert (status, error) == (0, "")
    tables = [part.splitlines() for part in out.split("\n\n") if part.startswith("|")]
    by_budget, by_chain = tables
    assert len(by_budget) == 2 + 1 + 2 * 3 and len(by_chain) == 2 + 3 * 3
    assert all(len({line.count("|") for line in lines}) == 1 for lines in tables)
    assert "| vanilla | 4 | 4 |" in by_budget[2] and "100.0% (100.0%, 100.0%)" in by_budget[2]
    assert "seeds" not in by_budget[0] and "(seed 1, seed 2)" in by_budget[0]
    found = json.loads((tmp_path / "e.json").read_text())
    names = [row["name"] for row in found["rows"]]
    assert names[1:4] == names[4:] == ["features reused, no head", "a.safetensors", "b.safetensors"]
    assert found["setting"]["heads"].keys() == found["chains"].keys() - {names[1]}
    assert found["setting"]["full_steps"] == [1, 2]
    assert all(0 <= row["same"] <= 1 and len(row["same_of_seeds"]) == 2 for row in found["rows"])
    with Image.open(tmp_path / "e.png") as picture:
        assert picture.size == SIZE


def test_two_processes_share_the_images(run: Run, folder: Path) -> None:
    how = ("--steps", "4", "--full-steps", "2", "--num-images", "3", "--batch-size", "1", "--json")
    arguments = ["evaluate", *map(str, files(folder, "a")), *how]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "shortcut", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    together, alone = json.loads(done.stdout), json.loads(run(*arguments[1:])[1])
    assert (together["setting"]["processes"], alone["setting"]["processes"]) == (2, 1)
    for one, other in zip(together["rows"], alone["rows"], strict=True):
        assert one["same_of_seeds"] == other["same_of_seeds"]
        assert one["divergence"] == other["divergence"]


def test_spread_changes_what_is_not_full(run: Run, folder: Path) -> None:
    usual, spread = (
        json.loads(run(*files(folder, "a"), *HOW, "--spread", n, "--json")[1]) for n in (0, 1)
    )
    vanilla, *short = zip(usual["rows"], spread["rows"], strict=True)
    assert vanilla[0]["same_of_seeds"] == vanilla[1]["same_of_seeds"]
    assert any(one["divergence"] != other["divergence"] for one, other in short)
    assert spread["setting"]["settings"]["spread"] == 1


def test_json_as_the_only_line_and_budgets_of_the_presets(run: Run, folder: Path) -> None:
    how = ("--steps", "8", "--num", "1", "--seeds", "3", "--dtype", "bfloat16", "--json")
    status, out, _ = run(*files(folder, "a"), *how)
    assert status == 0
    found = json.loads(out)
    # 8, 9 and 12 of 32 steps in proportion.
    assert found["setting"]["full_steps"] == [2, 3]
    assert found["setting"]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("heads", "arguments", "message"),
    [
        ((), (), "there is no head to judge: give --head FILE"),
        (("other",), (), "was trained for the model another, not"),
        (("wide",), (), "is for a width of 64, not 32"),
        (("model",), (), "expected a shortcut head"),
        (("a", "a"), (), "--head names a file twice"),
        (("a",), ("--num", "0"), "images must be at least 1, got 0"),
        (("a",), ("--batch-size", "0"), "batch size must be at least 1, got 0"),
        (("a",), ("--seeds", "-1"), "seeds must be at least 0"),
        (("a",), ("--full-steps", "0"), "between 1 and 3, so that a head has a part"),
        (("a",), ("--full-steps", "4"), "between 1 and 3, so that a head has a part"),
        (("a",), ("--steps", "1"), "between 1 and 0"),
        (("a",), ("--steps", "0"), "steps must be at least 1"),
        (("a",), ("--steps", "4,8"), "one number of steps at a time"),
        (("a",), ("--scorer", "clip"), "give --prompts FILE and a text model"),
    ],
)
def test_what_is_refused(
    run: Run, folder: Path, heads: tuple[str, ...], arguments: tuple[str, ...], message: str
) -> None:
    status, out, error = run(*files(folder, *heads), *HOW, *arguments)
    assert (status, out) == (1, "") and message in error


def test_a_head_that_is_not_there(run: Run, folder: Path) -> None:
    status, _, error = run(*files(folder, "none"), *HOW)
    assert status == 1 and "none.safetensors" in error


@pytest.mark.parametrize("option", ["--json", "--chart"])
def test_a_place_that_cannot_be_written_is_named_before_anything_is_loaded(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(cli_evaluate, "load_teacher", None)
    status, _, error = run(*files(folder, "a"), option, tmp_path)
    assert status == 1 and f"{tmp_path} is a folder" in error
    (tmp_path / "taken").touch()
    status, _, error = run(*files(folder, "a"), option, tmp_path / "taken" / "e")
    assert status == 1 and f"{tmp_path / 'taken'} is a file, not a folder" in error


class Ruler:
    """Stands for the network of a scorer: the longer the prompt the better."""

    shown: list[tuple[str, Any]] = []  # noqa: RUF012 - of all instances

    def __init__(self, **options: Any):
        pass

    def to(self, device: Any) -> Ruler:
        return self

    def score(self, prompt: str, picture: Any) -> float:
        self.shown.append((prompt, picture))
        return float(len(prompt))

    def __call__(self, pixels_CYX: torch.Tensor, prompt: str) -> torch.Tensor:
        assert pixels_CYX.dtype == torch.uint8
        return torch.tensor(self.score(prompt, pixels_CYX.shape))


@pytest.mark.parametrize("name", ["clip", "image-reward"])
def test_scores_of_other_packages(
    run: Run, text_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module, content in (
        ("torchmetrics", {}),
        ("torchmetrics.multimodal", {}),
        ("torchmetrics.multimodal.clip_score", {"CLIPScore": Ruler}),
        ("ImageReward", {"load": lambda model, device: Ruler()}),
    ):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**content))
    monkeypatch.setattr(Ruler, "shown", [])
    prompts = ("--prompts", text_folder / "prompts.txt", "--scorer", name)
    what = ("--model", text_folder, "--head", text_folder, *prompts)
    how = ("--steps", "4", "--full-steps", "2", "--num", "4", "--seeds", "1", "--batch-size", "1")
    status, out, error = run(*what, *how)
    assert (status, error) == (0, "")
    title = {"clip": "CLIPScore", "image-reward": "ImageReward"}[name]
    assert out.splitlines()[0].endswith(f"| {title} |")
    assert len(Ruler.shown) == 4 * 3
    assert {prompt for prompt, _ in Ruler.shown} <= {"a red house", "trees"}
    sizes = {picture if name == "clip" else picture.size for _, picture in Ruler.shown}
    assert sizes == {torch.Size((3, 8, 8)) if name == "clip" else (8, 8)}
    scores = [float(line.split("|")[-2]) for line in out.splitlines()[2:5]]
    assert scores == [sum(len(prompt) for prompt, _ in Ruler.shown) / len(Ruler.shown)] * 3


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("clip", "torchmetrics", "pip install torchmetrics transformers"),
        ("image-reward", "ImageReward", "pip install image-reward"),
    ],
)
def test_a_scorer_that_is_not_installed(
    run: Run,
    text_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    module: str,
    package: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    prompts = ("--prompts", text_folder / "prompts.txt", "--scorer", name)
    status, out, error = run("--model", text_folder, "--head", text_folder, *prompts)
    assert (status, out) == (1, "") and f"--scorer {name} needs" in error and package in error


def test_pictures_of_the_shipped_model_are_looked_at(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "NUM_REFERENCE", 8)
    drawn, draw = [], pictures.chart

    def chart(series: Any, *arguments: Any, **options: Any) -> Any:
        drawn.extend(series)
        return draw(series, *arguments, **options)

    monkeypatch.setattr(pictures, "chart", chart)
    how = ("--steps", "3", "--full-steps", "2", "--num", "1", "--seeds", "1", "--quality", "4")
    status, out, error = run(*how, "--json", tmp_path / "e.json", "--chart", tmp_path / "e.png")
    assert (status, error) == (0, "")
    assert "| features reused, no head | 3 | 2 |" in out and "4 pictures per row" in out
    assert "experiments" not in out
    found = json.loads((tmp_path / "e.json").read_text())["quality"]
    assert (found["images"], found["reference"]) == (4, 8)
    assert [(row["name"], row["kind"], row["num_steps"]) for row in found["rows"]] == [
        ("vanilla", "vanilla", 3),
        ("vanilla", "vanilla", 2),
        ("features reused, no head", "reuse", 3),
        (shipped.HEAD.name, "shortcut", 3),
    ]
    assert all(row["distance"] > 0 and row["operations"] > 0 for row in found["rows"])
    assert found["rows"][3]["operations_head"] > 0
    (cheap, whole), head, reuse = (series.points for series in drawn)
    two, three = found["rows"][1], found["rows"][0]
    assert cheap == (two["operations"] / 1e9, pytest.approx(two["vq_distance"]))
    assert whole == (three["operations"] / 1e9, pytest.approx(three["vq_distance"]))
    assert [series.name for series in drawn[1:]] == [
        shipped.HEAD.name,
        "features reused, no head",
    ]
    assert (len(head), len(reuse)) == (1, 1)
    with Image.open(tmp_path / "e.png") as picture:
        assert picture.size == SIZE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--quality",), "not with --model"),
        (("--quality", "1"), "at least 2 pictures, got 1"),
    ],
)
def test_pictures_that_no_judge_knows(
    run: Run, folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    status, out, error = run(*files(folder, "a"), *HOW, *arguments)
    assert (status, out) == (1, "") and message in error


def test_the_shipped_models_quality_tables_are_named_as_they_are_called() -> None:
    for prompts, module in ((None, quality), (Path("p.txt"), text_quality)):
        given = argparse.Namespace(head=[Path("a.safetensors")], prompts=prompts)
        setting = {"settings": {"num_steps": 32}, "full_steps": [6, 8]}
        (command,) = quality_commands(given, setting)
        parser = argparse.ArgumentParser()
        module.add_parser(parser.add_subparsers())
        options = parser.parse_args(command.removeprefix("python -m experiments ").split())
        assert options.head == Path("a.safetensors")
        assert [Row.parse(row).full_steps for row in options.rows] == [32, 6, 8]
        shipped_head = {quality: shipped.HEAD, text_quality: shipped.TEXT_HEAD}[module]
        (command,) = quality_commands(argparse.Namespace(head=None, prompts=prompts), setting)
        options = parser.parse_args(command.removeprefix("python -m experiments ").split())
        assert options.head == shipped_head
