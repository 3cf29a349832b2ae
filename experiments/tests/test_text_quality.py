"""The table of the text model: what counts as right, operations, resuming, the command."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from PIL import Image

from experiments import text_judge, text_measure, text_quality
from experiments.scenes.facts import facts_of, holds
from experiments.scenes.prompts import NUMBERS
from experiments.scenes.scene import compose_varied
from experiments.tables.rows import Row
from experiments.tables.text_measure import EDIT_TASKS, Question, scores
from shortcut import shipped, weights
from shortcut.chart import SIZE
from shortcut.models.lumina_dimoo.prompts import load_tokenizer
from shortcut.models.lumina_dimoo.tokenizer import copy_tokenizer

pytest.importorskip("transformers")

GRID = (12, 12)
VQ_CONFIG = replace(
    builders.VQ_CONFIG, multipliers=(1, 1, 1, 1), attention_levels=()
)  # 8 pixels a code
ROWS = ("real", "vq", "vanilla-2", "vanilla-4", "shortcut-4-2", "reuse-4-2")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("text")
    model = builders.text_model(grid=GRID)
    copy_tokenizer(shipped.TEXT_FOLDER, folder / "model.safetensors")
    text_judge.save(folder / "judge.safetensors", text_judge.initialised(0, (8,) * 5), {})
    head = builders.text_head(model_fingerprint=model.fingerprint)
    return {
        "model": builders.write(folder / "model.safetensors", model),
        "head": builders.write(folder / "head.safetensors", head),
        "vq": builders.write(folder / "vq.safetensors", builders.vq(VQ_CONFIG)),
        "judge": folder / "judge.safetensors",
    }


def command(files: dict[str, Path], work: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    text_quality.add_parser(parser.add_subparsers())
    paths = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    sizes = ["--per-task", "1", "--batch", "3", "--dtype", "float32", "--work", str(work)]
    return parser.parse_args(["text-quality", *sizes, *paths, "--rows", *ROWS, *more])


@cache
def tokenizer() -> Any:
    return load_tokenizer(shipped.TEXT_FOLDER, builders.TEXT_CONFIG)


def kit_of(files: dict[str, Path], work: Path, *more: str) -> Any:
    options = command(files, work, *more)
    return text_quality.load_kit(options, weights.load(files["model"], kind="model"))


def test_spread_is_as_asked_for(files, tmp_path):
    assert kit_of(files, tmp_path).defaults.spread == 0
    assert kit_of(files, tmp_path, "--spread", "3").defaults.spread == 3


# What counts as right


def test_a_picture_of_the_scene_that_a_prompt_came_from_is_right() -> None:
    questions = text_measure.text_questions(tokenizer(), builders.TEXT_CONFIG, 3)
    assert len(questions) == 3 * len(NUMBERS)
    found = scores(questions, [facts_of(q.scene) for q in questions])
    assert found["accuracy"] == 1 and set(found["tasks"]) == set(NUMBERS)
    assert set(found["labels"].values()) == {1.0}
    others = [facts_of(q.scene) for q in questions[1:] + questions[:1]]  # the control
    assert scores(questions, others)["accuracy"] < 0.5


@pytest.fixture(scope="module")
def edits(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    kit = kit_of(files, tmp_path_factory.mktemp("work"), "--task", "edit")
    return text_measure.edit_questions(kit, tokenizer(), 4)


def test_an_edit_is_right_if_it_does_what_was_asked_and_nothing_else(edits: list[Question]) -> None:
    assert {q.prompt.task for q in edits} == set(EDIT_TASKS) and len(edits) == 20
    done = scores(edits, [facts_of(q.scene) for q in edits])
    assert done["accuracy"] == 1
    assert done["labels"] == {"what was asked for": 1.0, "all else kept": 1.0}
    # The source image unchanged: all is kept, nothing is done.
    sources = [source_of(q) for q in edits]
    unchanged = scores(edits, sources)
    assert unchanged["accuracy"] == 0
    assert unchanged["labels"] == {"what was asked for": 0.0, "all else kept": 1.0}
    # Another scene that shows what was asked for.
    others = [
        next(
            facts
            for seed in range(1000)
            if all(holds(c, facts := facts_of(compose_varied(seed))) for c in q.prompt.claims)
        )
        for q in edits
    ]
    assert scores(edits, others)["labels"]["all else kept"] < 0.5


def source_of(question: Question) -> Any:
    """The facts of the source image, which differs from the result in one thing."""
    seed = question.prompt.seed
    scenes = [compose_varied(seed), text_measure.altered(seed)]
    (before,) = (scene for scene in scenes if scene != question.scene)
    return facts_of(before)


def test_an_edit_has_three_branches_two_with_its_source(edits: list[Question]) -> None:
    for question in edits:
        wanted, unwanted, without_source = question.conditions
        num_source = GRID[0] * (GRID[1] + 1) + 2
        assert wanted.shape[1] == without_source.shape[1] + num_source
        assert unwanted.shape[1] == 6 + num_source


# The command


def test_the_command_prints_tables_and_writes_figures_and_chart(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = ["--json", str(tmp_path / "q.json"), "--chart", str(tmp_path / "q.png")]
    options = command(files, tmp_path, *outputs)
    assert options.run(options) == 0
    printed = capsys.readouterr().out
    tables = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(tables) == 2 * (2 + len(ROWS))
    assert all(task in tables[0] for task in NUMBERS)
    assert "A pass of the head takes" in printed and "8 prompts" in printed
    rows = json.loads((tmp_path / "q.json").read_text())["rows"]
    real, _, vanilla_2, vanilla_4, shortcut, reuse = rows
    assert real["operations"] == 0 and real["seconds"] == 0
    assert vanilla_2["operations"] < shortcut["operations"] < vanilla_4["operations"]
    assert reuse["operations"] < shortcut["operations"]
    assert all(0 <= row["accuracy"] <= 1 and len(row["accuracies"]) == 2 for row in rows)
    assert vanilla_2["seconds"] > 0
    with Image.open(tmp_path / "q.png") as picture:
        assert picture.size == SIZE
    before = (tmp_path / "rows.jsonl").read_text()
    assert options.run(options) == 0  # nothing is measured again
    assert capsys.readouterr().out == printed
    assert (tmp_path / "rows.jsonl").read_text() == before
    other = command(files, tmp_path, "--cfg", "2", "--rows", "vanilla-2", "--seeds", "1")
    other.run(other)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2 * len(ROWS) + 1


def test_edits_are_measured_alike(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["--rows", "vanilla-2", "shortcut-4-2", "--seeds", "1", "--task", "edit"]
    options = command(files, tmp_path, *rows)
    assert options.run(options) == 0
    printed = capsys.readouterr().out
    assert "all else kept" in printed and "5 edits" in printed
    assert "guidance (2.5, 4.0)" in printed
    # Without guidance by the image one branch less.
    options = command(files, tmp_path, *rows, "--cfg", "2.5", "0")
    options.run(options)
    assert "guidance (2.5,)" in capsys.readouterr().out


def test_a_picture_follows_from_its_seed_whatever_the_batch(
    files: dict[str, Path], tmp_path: Path
) -> None:
    kit, row = kit_of(files, tmp_path), Row.parse("shortcut-4-2")
    questions = text_measure.text_questions(tokenizer(), builders.TEXT_CONFIG, 1)
    together = [questions[0]] * 3

    def codes(seed: int, numbers: list[int]) -> torch.Tensor:
        return text_measure.sample_codes(kit, row, seed, together, numbers, GRID)[0]

    assert torch.equal(codes(1, [0, 1, 2])[1:], codes(1, [1, 2]))
    assert not torch.equal(codes(1, [0]), codes(1, [1]))
    assert not torch.equal(codes(1, [0]), codes(2, [0]))


def test_facts_come_in_the_order_of_the_questions(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = text_measure.text_questions(tokenizer(), builders.TEXT_CONFIG, 2)
    kit, row = kit_of(files, tmp_path), Row.parse("vanilla-2")

    def sampled(kit: Any, row: Any, seed: int, asked: Any, numbers: Any, grid: Any) -> Any:
        lengths = {asked[n].conditions[0].shape[1] for n in numbers}
        assert len(lengths) == 1 and len(numbers) <= kit.batch_size
        return torch.tensor(numbers), 0.5

    monkeypatch.setattr(text_measure, "sample_codes", sampled)
    monkeypatch.setattr(text_measure, "decoded", lambda vq, codes: codes)
    monkeypatch.setattr(text_measure, "read", lambda judge, shown: shown.tolist())
    facts, _ = text_measure.read_samples(kit, row, 1, questions, GRID)
    assert facts == list(range(len(questions)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--cfg", "1", "2"), r"--cfg needs 1 numbers .* got 2"),
        (("--task", "edit", "--cfg", "1"), r"--cfg needs 2 numbers for the task 'edit', got 1"),
        (("--rows", "shortcut-4-9"), "full steps must be between 1 and"),
        (("--rows", "vanila-4"), "no row 'vanila-4'"),
    ],
)
def test_bad_options_are_named(
    files: dict[str, Path], tmp_path: Path, change: tuple[str, ...], message: str
) -> None:
    options = command(files, tmp_path, *change)
    with pytest.raises(ValueError, match=message):
        options.run(options)


def test_other_models_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    classes = builders.write(tmp_path / "classes.safetensors", builders.model())
    small = builders.write(
        tmp_path / "vq.safetensors", builders.vq(replace(VQ_CONFIG, num_codes=8))
    )
    options = command(files, tmp_path, "--vq", str(small))
    with pytest.raises(ValueError, match=r"has 8 codes, and model\.safetensors makes 16"):
        options.run(options)
    with pytest.raises(ValueError, match="expected a text model"):
        text_quality.load_kit(command(files, tmp_path), weights.load(classes))
