"""The tables: distances, what counts as right, resuming, the commands at the least size."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from experiments.scenes.facts import facts_of
from experiments.scenes.prompts import NUMBERS
from experiments.scenes.scene import ATTRIBUTE_SIZES, compose_varied
from experiments.tables import frontier, frontier_measure, text_measure, text_quality
from experiments.tables.frechet import Gaussian, frechet_distance
from experiments.tables.rows import Row, Subject, measured_rows
from shortcut import Pipeline, checkpoint
from shortcut.schedule import Settings

ROWS = ("real", "vq", "vanilla-2", "head-4-2", "reuse-4-2")
CLASS_ROWS = ("vanilla-4", "head-4-2", "partial+neighbours-4-2@halton")


def parsed(module: Any, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_parser(parser.add_subparsers())
    return parser.parse_args(list(arguments))


def test_the_distance_of_gaussians_whose_covariances_do_not_commute() -> None:
    a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    # In two dimensions tr(M^(1/2)) = sqrt(tr M + 2 sqrt(det M)).
    root_trace = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = 0.25 + np.trace(a) + np.trace(b) - 2 * root_trace
    means = np.zeros(2), np.array([0.3, 0.4])
    found = frechet_distance(Gaussian(means[0], a), Gaussian(means[1], b))
    assert found == pytest.approx(expected, rel=1e-12)


def test_fewer_vectors_than_dimensions_are_measured_and_nan_is_refused() -> None:
    features = np.random.default_rng(0).normal(size=(8, 64))
    assert frechet_distance(Gaussian.of(features), Gaussian.of(features)) < 1e-4
    with pytest.raises(ValueError, match="1 values that are NaN"):
        Gaussian.of(np.array([[0.0, 1.0], [np.nan, 0.0]]))


@pytest.mark.parametrize("name", [*frontier.ROWS, *text_quality.ROWS, "head-32-8@spread"])
def test_a_row_is_known_by_its_name(name: str) -> None:
    assert Row.parse(name).name == name


@pytest.mark.parametrize(
    "name", ["", "vanila-8", "vanilla-8-8", "head-32", "head-a-8", "head-32-8@up"]
)
def test_a_row_that_does_not_exist_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"no row '{name}'"):
        Row.parse(name)


def test_every_row_comes_once_before_the_first_is_finished(tmp_path: Path) -> None:
    rows, done = [Row.parse(name) for name in ("vanilla-2", "head-4-2")], []

    def measure(row: Row, seed: int) -> dict[str, int]:
        done.append((row.kind, seed))
        return {"seed": seed}

    found = measured_rows(tmp_path, "", rows, (1, 2, 3), measure)
    first, second = (("vanilla", 1), ("head", 1)), [("vanilla", 2), ("vanilla", 3)]
    assert done == [*first, *second, ("head", 2), ("head", 3)]
    assert measured_rows(tmp_path, "", rows, (1, 2, 3), measure) == found and len(done) == 6


# The class model


def codes_shown(pixels_BCYX: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A judge that reads the class from the brightness, as `Painter` paints it."""
    code_B = (pixels_BCYX[:, 0, 0, 0] * 32).round().long()
    values = {"time": code_B // 4, "biome": code_B % 4}
    logits = {
        name: torch.nn.functional.one_hot(values.get(name, torch.zeros_like(code_B)), size).float()
        for name, size in ATTRIBUTE_SIZES.items()
    }
    return torch.nn.functional.one_hot(code_B, 64).float(), logits


class Painter:
    """A pipeline whose pictures of code c have the brightness c / 32."""

    device = torch.device("cpu")

    def decode(self, codes_Bhw: torch.Tensor) -> torch.Tensor:
        return (codes_Bhw[:, :1, :1] / 32).unsqueeze(1).expand(-1, 3, 4, 4)


@pytest.mark.parametrize(("shift", "right"), [(0, 1.0), (4, 0.0), (1, 0.0)])
def test_accuracy_is_the_share_of_samples_that_show_their_class(
    shift: int, right: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def class_and_shift(subject: Any, row: Row, conditions: Any, *rest: Any) -> Any:
        return ((conditions[0] + shift) % 16).view(-1, 1, 1).expand(-1, 2, 2), 0.5

    monkeypatch.setattr(Subject, "sample", class_and_shift)
    monkeypatch.setattr(frontier_measure, "surprise", lambda *_: np.zeros(len(_[-1])))
    painter: Any = Painter()
    subject = Subject(painter, codes_shown, Settings(), batch_size=5)
    found = frontier_measure.measure(Row.parse("vanilla-2"), 1, 32, subject)
    assert np.mean(found["right"]) == right and len(found["features"]) == 32


def test_the_distance_of_few_pictures_is_not_larger_than_that_of_many() -> None:
    features = np.random.default_rng(0).normal(size=(200, 256, 8))
    reference = Gaussian(np.zeros(8), np.eye(8))
    biased = np.mean([frechet_distance(Gaussian.of(part), reference) for part in features])
    found = [frontier_measure.distance(part, reference) for part in features]
    error = np.std(found) / len(found) ** 0.5
    assert biased > 0.08 and abs(np.mean(found)) < 3 * error < 0.02


def test_standard_errors_are_those_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=4096)
    found, error = frontier_measure.jackknifed(lambda kept: float(values[kept].mean()), 4096)
    assert found == values.mean() and error == pytest.approx(1 / 64, rel=0.4)


def class_command(files: dict[str, Path], work: Path, *more: str) -> argparse.Namespace:
    sizes = ("--num", "32", "--batch", "32", "--dtype", "float32", "--seeds", "1", "2")
    rows = ("--rows", *CLASS_ROWS, "--work", str(work))
    return parsed(frontier, "frontier", *sizes, *tiny.arguments(files), *rows, *more)


def test_the_class_table_resumes_and_measures_only_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files, done = tiny.classes(tmp_path), []
    monkeypatch.setattr(frontier, "BASELINE", ("vanilla", 4))
    monkeypatch.setattr(frontier, "REFERENCE_SEEDS", range(1, 3))

    def counted(row: Row, seed: int, *rest: Any) -> Any:
        if len(done) == 6:
            raise KeyboardInterrupt
        done.append((row.name, seed))
        return frontier_measure.measure(row, seed, *rest)

    options = class_command(files, tmp_path, "--chart", str(tmp_path / "q.png"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(frontier, "measure", counted)
        options.run(options)
    assert options.run(options) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(lines) == 3 + len(CLASS_ROWS) and len({line.count("|") for line in lines}) == 1
    assert (
        torch.__version__ in printed and [line.split("|")[6] for line in lines[3:]] == [" 2 "] * 3
    )
    assert (tmp_path / "q.png").read_bytes()[:4] == b"\x89PNG"
    seen: list[str] = []
    monkeypatch.setattr(
        frontier,
        "measure",
        lambda row, *rest: seen.append(row.name) or frontier_measure.measure(row, *rest),
    )
    assert options.run(options) == 0
    assert capsys.readouterr().out == printed and not seen
    checkpoint.save(files["head"], tiny.head(tiny.model(), seed=9))
    options.run(options)
    assert seen == ["head-4-2"] * 2


def test_pictures_follow_from_the_seed_whatever_the_batch(tmp_path: Path) -> None:
    subject = frontier.subject_of(class_command(tiny.classes(tmp_path), tmp_path, "--spread", "3"))
    assert subject.settings.spread == 3
    row = Row.parse("head-4-2")
    found = frontier_measure.measure(row, 1, 16, subject)
    again = frontier_measure.measure(row, 1, 16, replace(subject, batch_size=5))
    other = frontier_measure.measure(row, 2, 16, subject)
    for name in ("features", "surprise"):
        np.testing.assert_allclose(found[name], again[name], atol=1e-3)
        assert not np.allclose(found[name], other[name], atol=1e-3)
    full, short = (
        subject.cost(Row.parse(n), 0.0, 2 * (torch.zeros(1).long(),)) for n in CLASS_ROWS[:2]
    )
    assert full["flops_head"] == 0 < short["flops_head"] and short["flops"] < full["flops"]


def test_a_picture_of_unlikely_codes_is_a_surprise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = frontier.subject_of(class_command(tiny.classes(tmp_path), tmp_path))

    def mostly_code_3(model: Any, features: Any, weights: Any, index_BN: Any) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full_like(index_BN, 3), 16) * 4.0

    monkeypatch.setattr(frontier_measure, "guided_logits", mostly_code_3)
    codes_Bhw = torch.tensor([3, 2]).view(2, 1, 1).expand(2, 4, 4)
    likely, unlikely = frontier_measure.surprise(subject, codes_Bhw, range(2))
    assert likely == pytest.approx(np.log(1 + 15 * np.exp(-4)), rel=1e-5)
    assert unlikely - likely == pytest.approx(4, rel=1e-5)


# The text model


@pytest.fixture(scope="module")
def text_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("transformers")
    return tiny.text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def pipeline(text_files: dict[str, Path]) -> Pipeline:
    return Pipeline.load(text_files["model"], text_files["vq"])


def text_command(files: dict[str, Path], work: Path, *more: str) -> argparse.Namespace:
    sizes = ["--per-task", "1", "--batch", "3", "--dtype", "float32", "--work", str(work)]
    rows = ["--rows", *ROWS, "--seeds", "1"]
    return parsed(text_quality, "text-quality", *sizes, *tiny.arguments(files), *rows, *more)


def test_a_picture_of_the_scene_that_a_prompt_came_from_is_right(pipeline: Pipeline) -> None:
    cases = text_measure.text_cases(pipeline, 3)
    own = [facts_of(case.scene) for case in cases]
    found = text_measure.scores(cases, own)
    assert found["accuracy"] == 1 and set(found["tasks"]) == set(NUMBERS)
    assert text_measure.scores(cases, own[1:] + own[:1])["accuracy"] < 0.5


def test_an_edit_is_right_if_it_does_what_was_asked_and_nothing_else(pipeline: Pipeline) -> None:
    cases = text_measure.edit_cases(pipeline, 2)
    done = text_measure.scores(cases, [facts_of(case.scene) for case in cases])
    assert (done["accuracy"], set(done["labels"].values())) == (1, {1.0})
    sources = []
    for case in cases:
        pair = [compose_varied(case.prompt.seed), text_measure.altered(case.prompt.seed)]
        sources += [facts_of(scene) for scene in pair if scene != case.scene]
    unchanged = text_measure.scores(cases, sources)
    assert unchanged["labels"] == {"what was asked for": 0.0, "all else kept": 1.0}
    wanted, unwanted, without_source = cases[0].conditions
    assert wanted.shape[1] - without_source.shape[1] == 12 * 13 + 2 == unwanted.shape[1] - 6


def test_the_text_tables_are_printed_and_resumed(
    text_files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = text_command(text_files, tmp_path, "--chart", str(tmp_path / "q.png"))
    assert options.run(options) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(lines) == 2 * (2 + len(ROWS)) and all(task in lines[0] for task in NUMBERS)
    assert "8 prompts" in printed
    before = (tmp_path / "rows.jsonl").read_text()
    assert options.run(options) == 0
    assert capsys.readouterr().out == printed
    assert (tmp_path / "rows.jsonl").read_text() == before
    edits = ("--task", "edit", "--rows", "vanilla-2", "--cfg", "2.5", "0")
    options = text_command(text_files, tmp_path, *edits)
    options.run(options)
    printed = capsys.readouterr().out
    assert "all else kept" in printed and "guidance (2.5, 0.0)" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--cfg", "1", "2"), r"--cfg needs 1 numbers"),
        (("--rows", "head-4-9"), "full steps must be between 1 and"),
    ],
)
def test_bad_options_are_named(
    text_files: dict[str, Path], tmp_path: Path, change: tuple[str, ...], message: str
) -> None:
    options = text_command(text_files, tmp_path, *change)
    with pytest.raises(ValueError, match=message):
        options.run(options)
