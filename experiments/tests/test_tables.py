"""The table of ways to run: distances, what counts as met, resuming, the command at the least size."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from experiments.scenes.edits import altered
from experiments.scenes.facts import facts_of
from experiments.scenes.scene import compose
from experiments.tables import frontier, frontier_measure
from experiments.tables.cases import FIRST_SEED, Case, cases_of, edits_of
from experiments.tables.frechet import Gaussian, frechet_distance
from experiments.tables.rows import Row, measured_rows
from shortcut import Pipeline, checkpoint

ROWS = ("vanilla-4", "head-4-2", "partial+neighbours-4-2@halton")


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


@pytest.mark.parametrize("name", [*frontier.ROWS, "vq"])
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
    # A line whose writing was cut off is measured again.
    path = tmp_path / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    for count in (7, 7):
        assert measured_rows(tmp_path, "", rows, (1, 2, 3), measure) == found
        assert len(done) == count


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


def command(files: dict[str, Path], work: Path, *more: str) -> argparse.Namespace:
    sizes = ("--num", "8", "--batch", "4", "--dtype", "float32", "--seeds", "1", "2")
    rows = ("--rows", *ROWS, "--minus", ROWS[0], "--work", str(work))
    return parsed(frontier, "frontier", *sizes, *tiny.arguments(files), *rows, *more)


def test_the_class_table_resumes_and_measures_only_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files, done = tiny.classes(tmp_path), []

    def counted(row: Row, seed: int, *rest: Any) -> Any:
        if len(done) == 6:
            raise KeyboardInterrupt
        done.append((row.name, seed))
        return frontier_measure.measure(row, seed, *rest)

    options = command(files, tmp_path, "--chart", str(tmp_path / "q.png"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(frontier, "measure", counted)
        options.run(options)
    assert options.run(options) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(lines) == 3 + len(ROWS) and len({line.count("|") for line in lines}) == 1
    assert torch.__version__ in printed
    assert [line.split("|")[6] for line in lines[3:]] == [" 2 "] * 3
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


def test_differences_are_taken_from_the_row_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, found = tiny.classes(tmp_path), {}
    for baseline, other in (ROWS[:2], ROWS[1::-1]):
        options = command(files, tmp_path, "--rows", *ROWS[:2], "--minus", baseline)
        assert options.run(options) == 0
        lines = [line.split("|") for line in capsys.readouterr().out.splitlines()]
        titles = [cell.strip() for cell in lines[0]]
        assert titles[4] == f"of {baseline.replace('-', ' ')}"
        rows = {"-".join(cell.strip() for cell in line[1:3]): line for line in lines[2:5]}
        row = rows[other.removesuffix("-2")]
        found[baseline] = [float(cell.split("±")[0]) for cell in (*row[8:10], row[12])]
        assert not "".join(rows[baseline.removesuffix("-2")][8:10]).strip()
    assert found[ROWS[0]] == [-number for number in found[ROWS[1]]] != [0, 0, 0]


def test_pictures_follow_from_the_seed_whatever_the_batch(tmp_path: Path) -> None:
    subject = frontier.subject_of(command(tiny.classes(tmp_path), tmp_path))
    cases = cases_of(subject.pipeline, range(FIRST_SEED, FIRST_SEED + 6))
    row = Row.parse("head-4-2")
    found = frontier_measure.measure(row, 1, cases, subject)
    again = frontier_measure.measure(row, 1, cases, replace(subject, batch_size=5))
    other = frontier_measure.measure(row, 2, cases, subject)
    for name in ("features", "surprise"):
        np.testing.assert_allclose(found[name], again[name], atol=1e-3)
        assert not np.allclose(found[name], other[name], atol=1e-3)
    full, short = (
        subject.cost(Row.parse(name), 0.0, cases[0].conditions)["flops"] for name in ROWS[:2]
    )
    assert short < full


def test_a_picture_of_unlikely_codes_is_a_surprise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = frontier.subject_of(command(tiny.classes(tmp_path), tmp_path))

    def mostly_code_3(model: Any, features: Any, weights: Any, index_BN: Any) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full_like(index_BN, 3), 16) * 4.0

    monkeypatch.setattr(frontier_measure, "guided_logits", mostly_code_3)
    codes_Bhw = torch.tensor([3, 2]).view(2, 1, 1).expand(2, 16, 16)
    conditions = (torch.zeros(2).long(),)
    likely, unlikely = frontier_measure.surprise(subject, codes_Bhw, conditions, range(2))
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


def share_met(cases: list[Case], scenes: list[Any]) -> float:
    pairs = zip(cases, scenes, strict=True)
    return sum(case.is_met(facts_of(scene)) for case, scene in pairs) / len(cases)


def test_a_picture_of_the_scene_that_a_prompt_came_from_is_right(pipeline: Pipeline) -> None:
    cases = cases_of(pipeline, range(40))
    own = [case.scene for case in cases]
    assert share_met(cases, own) == 1
    assert share_met(cases, own[1:] + own[:1]) < 0.3


def test_an_edit_is_right_if_it_does_what_was_asked_and_nothing_else(pipeline: Pipeline) -> None:
    cases = edits_of(pipeline, range(8))
    assert share_met(cases, [case.scene for case in cases]) == 1
    pairs = [(compose(seed), case.scene) for seed, case in enumerate(cases)]
    unchanged = [scene if scene != after else altered(n) for n, (scene, after) in enumerate(pairs)]
    assert share_met(cases, unchanged) == 0
    wanted, unwanted, without_source = cases[0].conditions
    assert wanted.shape[1] - without_source.shape[1] == 16 * 17 + 2 == unwanted.shape[1] - 6


def test_the_text_table_is_printed_and_resumed(
    text_files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ("--task", "text", "--rows", "vanilla-2", "head-4-2", "reuse-4-2")
    options = command(text_files, tmp_path, *text)
    assert options.run(options) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4
    before = (tmp_path / "rows.jsonl").read_text()
    assert options.run(options) == 0
    assert capsys.readouterr().out == printed
    assert (tmp_path / "rows.jsonl").read_text() == before
    edits = ("--task", "edit", "--rows", "vanilla-2", "--cfg", "2.5", "0", "--num", "3")
    options = command(text_files, tmp_path, *edits)
    options.run(options)
    assert "guidance (2.5, 0.0)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--cfg", "1", "2"), r"--cfg needs 1 numbers"),
        (("--rows", "head-4-9"), "full steps must be between 1 and"),
        (("--task", "class"), "Use --task class for a class model, text or edit"),
    ],
)
def test_bad_options_are_named(
    text_files: dict[str, Path], tmp_path: Path, change: tuple[str, ...], message: str
) -> None:
    options = command(text_files, tmp_path, "--task", "text", *change)
    with pytest.raises(ValueError, match=message):
        options.run(options)
