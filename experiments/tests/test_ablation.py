"""The ablation command of the demo model: what its rows change, its table, resuming."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import builders
import pytest
from PIL import Image

from experiments import (
    ablation,
    ablation_bench,
    ablation_report,
    classifier,
    quality_rows,
    train_head,
    train_text_head,
)
from shortcut import shipped, weights
from shortcut.train.learn import HeadPlan, learn

MODEL_CONFIG = replace(builders.MODEL_CONFIG, num_classes=16, width=64)
ITERATIONS = 6


# What rows change


@pytest.fixture(scope="module")
def model_file() -> weights.Checkpoint:
    return weights.load(shipped.MODEL, kind="model")


def flat(plan: HeadPlan) -> dict[str, Any]:
    """All figures of a plan by name."""
    figures = {
        f"{part}.{name}": value
        for part in ("config", "recipe", "teaching", "objective")
        for name, value in asdict(getattr(plan, part)).items()
    }
    steps = tuple(settings.num_steps for settings in plan.teaching.runs)
    return figures | {"teaching.runs": plan.teaching.runs, "steps": steps}


ONE_CHANGE = {
    "base": {},
    "another-seed": {"recipe.seed": 1},
    "stepwise-1": {"config.from_full": False, "teaching.max_chain": 1},
    "stepwise-2": {"config.from_full": False, "teaching.max_chain": 2},
    "stepwise-4": {"config.from_full": False, "teaching.max_chain": 4},
    "stepwise-8": {"config.from_full": False, "teaching.max_chain": 8},
    "from-full-1": {"teaching.max_chain": 1},
    "from-full-2": {"teaching.max_chain": 2},
    "from-full-4": {"teaching.max_chain": 4},
    "from-full-8": {"teaching.max_chain": 8},
    "student-stepwise-4": {
        "config.from_full": False,
        "teaching.max_chain": 4,
        "teaching.student_rollouts": True,
    },
    "student-from-full-4": {"teaching.max_chain": 4, "teaching.student_rollouts": True},
    "small-batches": {
        "recipe.iterations": 2400,
        "recipe.lr": 1.5e-3,
        "recipe.warmup": 240,
        "recipe.ema": pytest.approx(1 - 0.0065 * 2000 / 600 / 4),
        "teaching.iterations_per_run": 240,
        "teaching.windows_per_batch": 1,
    },
    "all-positions": {"objective.only_masked": False},
    "no-kl": {"objective.guided_kl": 0.0},
    "kl-0.3": {"objective.guided_kl": 0.3},
    "kl-alone": {"objective.mse": 0.0},
    "no-kernel": {"config.kernel": 0, "config.attends": True},
    "self-attention": {"config.attends": True},
    "kernel-3": {"config.kernel": 3},
    "blocks-2": {"config.num_blocks": 2},
    "bottleneck-1.5": {"config.width": 128},
    "bottleneck-4": {"config.width": 48},
    "no-time": {"config.has_time": False},
    "teacher-16": {"steps": (16,)},
    "teacher-32": {"steps": (32,)},
    "teacher-64": {"steps": (64,)},
}


def test_each_row_changes_what_it_says_and_nothing_else(model_file):
    base = ablation_bench.base_plan(model_file, 600)
    before = flat(base)
    found = {}
    for name, change in ablation.CHANGES.items():
        after = flat(change(base))
        if after["steps"] != before["steps"]:
            # Beside their steps the teacher's runs are as they were.
            first = before["teaching.runs"][0]
            runs = tuple(replace(first, num_steps=n) for n in after["steps"])
            assert after["teaching.runs"] == runs
            del after["teaching.runs"]
        found[name] = {k: value for k, value in after.items() if value != before[k]}
    assert found == ONE_CHANGE


def test_the_base_is_the_recipe_of_the_shipped_head_in_fewer_iterations(model_file):
    whole = ablation_bench.base_plan(model_file, train_head.RECIPE.iterations)
    assert (whole.config, whole.recipe) == (train_head.CONFIG, train_head.RECIPE)
    assert (whole.teaching, whole.objective) == (train_head.TEACHING, train_head.OBJECTIVE)
    cut = ablation_bench.base_plan(model_file, 800)
    assert cut.recipe == replace(
        whole.recipe, iterations=800, ema=pytest.approx(1 - 0.0065 * 2000 / 800)
    )
    assert cut.teaching == whole.teaching


# The command


@dataclass
class Place:
    """A folder with tiny files, what was trained and measured in it, and the command's output."""

    folder: Path
    capsys: Any
    trained: list[HeadPlan] = field(default_factory=list)
    measured: list[tuple[str, int]] = field(default_factory=list)  # kind, seed

    def options(self, *rows: str, iterations: int = ITERATIONS, more: tuple[str, ...] = ()) -> Any:
        parser = argparse.ArgumentParser()
        ablation.add_parser(parser.add_subparsers())
        sizes = f"--num 8 --num-reference 16 --batch 4 --dtype float32 --iterations {iterations}"
        files = [f"--{name} {self.folder / name}.safetensors" for name in ("model", "vq", "judge")]
        named = ["--rows", *rows] if rows else []
        line = f"{sizes} {' '.join(files)} --work {self.folder / 'work'}"
        return parser.parse_args(["ablation", *line.split(), *named, *more])

    def tables(self, *rows: str, **how: Any) -> list[dict[str, list[str]]]:
        """Cells of the printed tables, by their first columns."""
        options = self.options(*rows, **how)
        assert options.run(options) == 0
        tables = [part for part in self.capsys.readouterr().out.split("\n\n") if part[:1] == "|"]
        cells = [
            [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines()]
            for part in tables
        ]
        return [{first: rest for first, *rest in lines} for lines in cells]

    def table(self, *rows: str, **how: Any) -> dict[str, list[str]]:
        """The first of the tables."""
        return self.tables(*rows, **how)[0]


@pytest.fixture
def bare(tmp_path, capsys, monkeypatch) -> Place:
    """Nothing is stubbed, but the teacher's runs are few and short."""
    model = builders.model(MODEL_CONFIG, defaults={"guidance": [2.0], "num_steps": 4})
    builders.write(tmp_path / "model.safetensors", model)
    builders.write(tmp_path / "vq.safetensors", builders.vq())
    classifier.save(tmp_path / "judge.safetensors", classifier.initialised(0, (8, 8, 8, 16)), {})
    runs = tuple(replace(settings, num_steps=8) for settings in train_head.TEACHING.runs[:1])
    sizes = {"images_per_run": 4, "images_per_window": 2, "runs_kept": 2, "iterations_per_run": 4}
    monkeypatch.setattr(train_head, "TEACHING", replace(train_head.TEACHING, runs=runs, **sizes))
    monkeypatch.setattr(ablation, "USED", (4, 8))
    return Place(tmp_path, capsys)


@pytest.fixture
def place(bare, monkeypatch) -> Place:
    """Heads are random, pictures are not made: their distance is the seed. Operations are not counted."""

    def learn_nothing(teacher, model_file, plan, *, is_judged, **_: Any) -> weights.Checkpoint:
        assert not is_judged, "the row judges it, alike for all"
        bare.trained.append(plan)
        build = builders.text_head if hasattr(plan.config, "sees_new") else builders.head
        return build(plan.config, model_fingerprint=model_file.fingerprint)

    def measure(row, seed, num, kit, reference) -> dict[str, float]:
        bare.measured.append((row.kind, seed))
        return {"seconds": 0.1, "distance": float(seed)}

    monkeypatch.setattr(ablation_bench, "learn", learn_nothing)
    monkeypatch.setattr(ablation, "measure", measure)

    def work_of(row, seconds, *rest) -> dict[str, Any]:
        sizes = {"num_steps": row.num_steps, "num_full": row.full_steps, "seconds": seconds}
        parts = ("operations", "operations_full", "operations_head", "operations_logits")
        return {"kind": row.kind, **sizes, **dict.fromkeys(parts, 1)}

    monkeypatch.setattr(ablation, "work_of", work_of)
    monkeypatch.setattr(ablation.Pictures, "reference", None)
    return bare


SOME = ("vanilla", "vanilla-10", "reuse", "base", "blocks-2")


def test_the_table_has_a_row_for_each_name_and_every_figure(place, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "work_of", quality_rows.work_of)
    files = ("--json", str(tmp_path / "a.json"), "--chart", str(tmp_path / "a.png"))
    found = place.table(*SOME, more=files)
    columns = found.pop("")
    assert columns == list(ablation_report.COLUMNS[1:])
    assert list(found)[1:] == list(SOME)
    of = {name: dict(zip(columns, found[name], strict=True)) for name in SOME}
    assert all(cells["distance (each seed)"] == "1.5 (1.0, 2.0)" for cells in of.values())
    followed = [name for name in columns if name.startswith(("error", "divergence"))]
    assert followed == [f"{name} {n}" for name in ("error", "divergence") for n in (1, 3, 6)]
    assert {of["vanilla"][name] for name in followed} == {""}
    assert {of["reuse"][name] for name in followed} == {"1.000"}
    assert all(of["base"][name] not in ("", "1.000") for name in followed)
    shares = [float(of[name]["head pass"].rstrip("%")) for name in ("base", "blocks-2")]
    assert shares[0] < shares[1]
    assert of["reuse"]["head pass"] == of["vanilla"]["head pass"] == ""
    work = [float(of[name]["GFLOP / image"]) for name in ("vanilla-10", "base", "vanilla")]
    assert work == sorted(work)
    assert json.loads((tmp_path / "a.json").read_text())["rows"][3]["name"] == "base"
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == ablation_report.CHART_SIZE


def test_heads_are_used_for_about_the_same_operations(place, tmp_path, monkeypatch):
    """A larger head has fewer full passes."""
    monkeypatch.setattr(ablation, "work_of", quality_rows.work_of)
    monkeypatch.setattr(ablation, "BUDGET", 14)  # heads are large beside so small a model
    rows = ("vanilla-10", "no-kernel", "bottleneck-4")
    place.table(*rows, more=("--json", str(tmp_path / "a.json")))
    lines = json.loads((tmp_path / "a.json").read_text())["rows"]
    for line in lines:
        full = line["operations_full"] / line["num_full"]
        budget = (1 if line is lines[0] else 1.4) * lines[0]["operations"]
        assert abs(line["operations"] - budget) <= full, line["name"]
    counts = [line["num_full"] for line in lines[1:]]
    assert counts == sorted(set(counts))


def test_all_rows_are_made_by_default(place):
    heads = [*ONE_CHANGE, "text", "text-blind"]
    assert place.options().rows == list(ablation.ROWS) == [*ablation.REFERENCES, *heads]


def test_heads_are_held_against_runs_of_other_steps_than_they_learned_from(place):
    first, used = place.tables("base", "reuse", "teacher-64", "no-kl")
    assert list(first)[2:] == ["base", "reuse", "teacher-64", "no-kl"]
    assert used.pop("error at use in") == ["4 steps", "8 steps"]
    assert list(used)[1:] == ["base", "teacher-64"]
    assert len({value for name in ("base", "teacher-64") for value in used[name]}) > 1
    place.trained.clear()
    assert place.tables("base", "teacher-64")[1]["base"] == used["base"]
    assert not place.trained


def test_the_text_model_has_a_row_whose_head_does_not_see_new_tokens(place, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(ablation, "work_of", quality_rows.work_of)
    monkeypatch.setattr(ablation, "NUM_STEPS", 8)
    monkeypatch.setattr(ablation, "BUDGET", 4)
    sizes = {"images_per_run": 2, "max_chain": 2}
    monkeypatch.setattr(train_text_head, "TEACHING", replace(train_text_head.TEACHING, **sizes))
    monkeypatch.setattr(train_text_head, "captions", lambda: ["two pine trees"])
    found = place.table("reuse", "text", "text-blind")
    of = {name: dict(zip(found[""], found[name], strict=True)) for name in ("text", "text-blind")}
    assert [plan.config.sees_new for plan in place.trained] == [True, False]
    assert all(not cells["distance (each seed)"] for cells in of.values())
    assert all(float(cells["error 1"]) > 0 for cells in of.values())
    shares = [float(of[name]["head pass"].rstrip("%")) for name in ("text-blind", "text")]
    assert 0 < shares[0] != shares[1] > 0


def test_what_is_finished_is_not_made_again(place):
    first = place.table("base", "reuse")
    place.trained.clear(), place.measured.clear()
    again = place.table("reuse", "base")
    assert (again["base"], again["reuse"]) == (first["base"], first["reuse"])
    assert not place.trained and not place.measured
    place.table("no-time", "base")
    assert [plan.config.has_time for plan in place.trained] == [False]
    assert place.measured == [("shortcut", 1), ("shortcut", 2)]


def test_other_seeds_are_measured_with_the_head_that_is_there(place):
    place.table("base")
    place.table("base", more=("--seeds", "2", "3"))
    assert len(place.trained) == 1
    assert place.measured == [("shortcut", seed) for seed in (1, 2, 3)]


def test_heads_of_fewer_iterations_are_not_taken_over(place):
    place.table("base", "reuse")
    place.table("base", "reuse", iterations=ITERATIONS + 1)
    assert [plan.recipe.iterations for plan in place.trained] == [ITERATIONS, ITERATIONS + 1]
    assert [kind for kind, _ in place.measured].count("reuse") == 2, "reuse has no head to train"


def test_a_row_that_does_not_exist_is_named_before_anything_is_made(place):
    with pytest.raises(ValueError, match=r"no row 'blocks-9'.*blocks-2, bottleneck"):
        place.table("base", "blocks-9")
    assert not place.trained


def test_a_model_of_other_classes_is_refused(place):
    builders.write(place.folder / "model.safetensors", builders.model())
    with pytest.raises(ValueError, match="has no 16 classes of scenes"):
        place.table("base")


# Without stubs


def interrupted_at(iteration: int) -> Callable[..., Any]:
    """`learn`, interrupted before an iteration."""

    def stop(done: int) -> None:
        if done == iteration:
            raise KeyboardInterrupt

    return lambda *arguments, **how: learn(*arguments, **how, on_iteration=stop)


def test_an_interrupted_training_goes_on_to_the_same_row(bare, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ablation_bench, "learn", interrupted_at(4))
        bare.table("no-kl")
    work = bare.folder / "work"
    assert [path.stem.split("-")[:2] for path in work.glob("*.ckpt")] == [["no", "kl"]]
    resumed = bare.table("no-kl")
    work.rename(bare.folder / "resumed")
    assert bare.table("no-kl") == resumed
    (head,) = work.glob("no-kl-*.safetensors")
    assert head.read_bytes() == (bare.folder / "resumed" / head.name).read_bytes()
    trained = weights.load(head, kind="head").metadata.trained
    assert trained["loss"]["guided_kl"] == 0 and trained["recipe"]["iterations"] == ITERATIONS
    assert bare.table("base")["base"] != resumed["no-kl"]
