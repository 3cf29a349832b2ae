"""The ablation: what its rows change, its table, resuming."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from experiments.tables import ablation, ablation_heads, rows
from experiments.training import heads
from shortcut import checkpoint as checkpoints
from shortcut.models.lumina_dimoo import head as lumina_head
from shortcut.train.learn import HeadPlan, learn

ITERATIONS = 6


def flat(plan: HeadPlan) -> dict[str, Any]:
    """Return all fields of a plan by name."""
    fields = {
        f"{part}.{name}": value
        for part in ("config", "recipe", "rollouts", "objective")
        for name, value in asdict(getattr(plan, part)).items()
    }
    steps = tuple(settings.num_steps for settings in plan.rollouts.runs)
    return {**fields, "rollouts.runs": steps}


STEPWISE = {"config.from_full": False}
ONE_CHANGE = {
    "base": {},
    "another-seed": {"recipe.seed": 1},
    **{f"stepwise-{n}": {**STEPWISE, "rollouts.max_chain": n} for n in (1, 2, 4, 8)},
    **{f"from-full-{n}": {"rollouts.max_chain": n} for n in (1, 2, 4, 8)},
    "small-batches": {
        "recipe.iterations": 2400,
        "recipe.lr": 1.5e-3,
        "recipe.warmup": 240,
        "recipe.ema": pytest.approx(1 - 0.0065 * 2000 / 600 / 4),
        "rollouts.iterations_per_run": 240,
        "rollouts.windows_per_batch": 1,
    },
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
    **{f"teacher-{n}": {"rollouts.runs": (n,)} for n in (16, 32, 64)},
}


def test_each_row_changes_what_it_says_and_nothing_else() -> None:
    width, iterations = heads.PLAN.config.model_width, heads.PLAN.recipe.iterations
    assert ablation_heads.cut(ablation_heads.widened(heads.PLAN, width), iterations) == heads.PLAN
    base = ablation_heads.cut(heads.PLAN, 600)
    before, found = flat(base), {}
    for name, change in ablation.CHANGES.items():
        found[name] = {k: v for k, v in flat(change(base)).items() if v != before[k]}
    assert found == ONE_CHANGE


@dataclass
class Command:
    """A folder with tiny files, what was trained and measured in it, and the command's output."""

    folder: Path
    capsys: Any
    trained: list[HeadPlan] = field(default_factory=list)
    measured: list[tuple[str, int]] = field(default_factory=list)  # kind, seed
    real_cost: Any = None

    def tables(self, *names: str, more: tuple[str, ...] = ()) -> list[dict[str, list[str]]]:
        """Return the cells of the printed tables, by their first columns."""
        parser = argparse.ArgumentParser()
        ablation.add_parser(parser.add_subparsers())
        files = {name: self.folder / f"{name}.safetensors" for name in ("model", "vq", "judge")}
        sizes = f"--num 8 --num-reference 16 --batch 4 --dtype float32 --iterations {ITERATIONS}"
        line = ["ablation", *sizes.split(), *tiny.arguments(files), "--rows", *names, *more]
        options = parser.parse_args([*line, "--work", str(self.folder / "work")])
        assert options.run(options) == 0
        parts = [p for p in self.capsys.readouterr().out.split("\n\n") if p[:1] == "|"]
        cells = [[[c.strip() for c in x.split("|")[1:-1]] for x in p.splitlines()] for p in parts]
        return [{first: rest for first, *rest in lines} for lines in cells]


@pytest.fixture
def bare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Nothing is replaced, but the teacher's runs are few and short."""
    tiny.classes(tmp_path)
    runs = tuple(replace(settings, num_steps=8) for settings in heads.PLAN.rollouts.runs[:1])
    sizes = {"images_per_run": 4, "images_per_window": 2, "runs_kept": 2, "iterations_per_run": 4}
    rollouts = replace(heads.PLAN.rollouts, runs=runs, **sizes)
    monkeypatch.setattr(heads, "PLAN", replace(heads.PLAN, rollouts=rollouts))
    monkeypatch.setattr(ablation, "USED", (4, 8))
    return Command(tmp_path, capsys)


@pytest.fixture
def command(bare: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Heads are random, pictures are not made: their distance is the seed. FLOPs are not counted."""

    def learn_nothing(teacher: Any, model_file: Any, plan: Any, **_: Any) -> checkpoints.Checkpoint:
        bare.trained.append(plan)
        if hasattr(plan.config, "sees_new"):
            return tiny.checkpoint(lumina_head.LAYOUT, plan.config, 4)
        return tiny.head(model_file, plan.config)

    def measure(row: Any, seed: int, *rest: Any) -> dict[str, float]:
        bare.measured.append((row.kind, seed))
        return {"seconds": 0.1, "distance": float(seed)}

    def cost(subject: Any, row: Any, *rest: Any) -> dict[str, Any]:
        sizes = {"num_steps": row.num_steps, "num_full": row.full_steps, "seconds": 0.0}
        return {"kind": row.kind, **sizes, "flops": 1, "flops_full": 1, "flops_head": 1}

    monkeypatch.setattr(ablation_heads, "learn", learn_nothing)
    monkeypatch.setattr(ablation, "measure", measure)
    monkeypatch.setattr(bare, "real_cost", rows.Subject.cost)
    monkeypatch.setattr(rows.Subject, "cost", cost)
    monkeypatch.setattr(ablation.Pictures, "reference", None)
    return bare


def test_the_table_has_every_figure_and_larger_heads_have_fewer_full_passes(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows.Subject, "cost", command.real_cost)
    monkeypatch.setattr(ablation, "BUDGET", 14)  # heads are large beside so small a model
    names = ("vanilla", "reuse", "bottleneck-4", "no-kernel")
    found = command.tables(*names)[0]
    columns = found.pop("")
    assert columns == list(ablation.COLUMNS[1:]) and list(found)[1:] == list(names)
    of = {name: dict(zip(columns, found[name], strict=True)) for name in names}
    assert all(cells["distance (each seed)"] == "1.5 (1.0, 2.0)" for cells in of.values())
    chains = [name for name in columns if name.startswith(("error", "divergence"))]
    assert {of["vanilla"][name] for name in chains} == {""}
    assert {of["reuse"][name] for name in chains} == {"1.000"}
    assert all(of["no-kernel"][name] not in ("", "1.000") for name in chains)
    small, large = of["no-kernel"], of["bottleneck-4"]
    assert float(small["head pass"].rstrip("%")) < float(large["head pass"].rstrip("%"))
    assert int(small["full"]) > int(large["full"])


def test_heads_are_compared_in_runs_of_other_steps_and_nothing_is_made_twice(
    command: Command,
) -> None:
    first, used = command.tables("base", "teacher-64", "no-kl")
    assert used.pop("error at use in") == ["4 steps", "8 steps"]
    assert list(used)[1:] == ["base", "teacher-64"]
    command.trained.clear()
    command.measured.clear()
    again, used_again = command.tables("teacher-64", "base")
    assert again["base"] == first["base"] and used_again["base"] == used["base"]
    assert not command.trained and not command.measured
    command.tables("base", more=("--seeds", "2", "3"))
    assert command.measured == [("head", 3)] and not command.trained


def test_the_text_model_has_a_row_whose_head_does_not_see_new_tokens(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(ablation, "NUM_STEPS", 8)
    rollouts = replace(heads.TEXT_PLAN.rollouts, images_per_run=2, max_chain=2)
    monkeypatch.setattr(heads, "TEXT_PLAN", replace(heads.TEXT_PLAN, rollouts=rollouts))
    monkeypatch.setattr(heads, "NUM_CAPTIONS", 1)
    row = rows.Row("head", 8, 2)
    monkeypatch.setattr(ablation.TextErrors, "row_within", lambda *_: row)
    found = command.tables("text", "text-blind")[0]
    assert [getattr(plan.config, "sees_new", None) for plan in command.trained] == [True, False]
    of = {name: dict(zip(found[""], found[name], strict=True)) for name in ("text", "text-blind")}
    assert all(not cells["distance (each seed)"] for cells in of.values())
    assert of["text"]["error 1"] != of["text-blind"]["error 1"]


def test_a_row_that_does_not_exist_is_named_before_anything_is_made(command: Command) -> None:
    with pytest.raises(ValueError, match=r"no row 'blocks-9'.*blocks-2, bottleneck"):
        command.tables("base", "blocks-9")
    assert not command.trained


def interrupted_at(iteration: int) -> Callable[..., Any]:
    """Return `learn`, interrupted before an iteration."""

    def stop(done: int) -> None:
        if done == iteration:
            raise KeyboardInterrupt

    return lambda *arguments, **how: learn(*arguments, **how, on_iteration=stop)


def test_an_interrupted_training_resumes_to_the_same_row(
    bare: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ablation_heads, "learn", interrupted_at(4))
        bare.tables("no-kl", more=("--seeds", "1"))
    work = bare.folder / "work"
    assert [path.stem.split("-")[:2] for path in work.glob("*.ckpt")] == [["no", "kl"]]
    resumed = bare.tables("no-kl", more=("--seeds", "1"))
    work.rename(bare.folder / "resumed")
    assert bare.tables("no-kl", more=("--seeds", "1")) == resumed
    (head,) = work.glob("no-kl-*.safetensors")
    assert head.read_bytes() == (bare.folder / "resumed" / head.name).read_bytes()
