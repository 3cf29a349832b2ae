"""Recorded runs, on a CPU: a tape of their operations reads its inputs where they were, as a CUDA graph does."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from shortcut_pack.shortcut import Pipeline, memory, pipeline
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.accelerators.choice import named
from shortcut_pack.shortcut.cuda_graph import MOST, Recordings
from shortcut_pack.shortcut.generate import Made, Result, Run, generate
from test_partial import WAYS, conditions_of, head_of, model_of, settings_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CASES = ("maskgit", "lumina", "lumina in turn")


class Operations(TorchDispatchMode):
    """Notes every operation. One whose result the host reads is an error, as in a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not func.name().startswith("aten::_local_scalar_dense"), "the host reads a value"
        found = func(*args, **(kwargs or {}))
        self.noted.append((func, (args, kwargs or {}), found))
        return found

    def again(self) -> dict[int, Tensor]:
        """Do them again, with what lies in their inputs now. Returns tensor of the first time (id) -> of this time."""
        now: dict[int, Tensor] = {}
        for func, given, found in self.noted:
            args, kwargs = tree_map_only(Tensor, lambda x: now.get(id(x), x), given)
            for old, new in zip(
                tree_leaves(found), tree_leaves(func(*args, **kwargs)), strict=True
            ):
                now[id(old)] = new
        return now


class Tape:
    """Records operations. What a run makes is overwritten by the next one."""

    def __init__(self) -> None:
        self.num_recorded = 0

    def __call__(self, run: Run, inputs: tuple[Tensor, ...]) -> Callable[[], Made]:
        self.num_recorded += 1
        with Operations() as operations:
            made = run(*inputs)

        @torch.no_grad()
        def replay() -> Made:
            now = operations.again()
            for mine in (made.codes_BL, made.is_finite):
                mine.copy_(now[id(mine)])
            return made

        return replay


def run(
    case: str, way: str | None, seed: int, recordings: Recordings | None = None, **changes: Any
) -> Result:
    model, (settings, rules) = model_of(case), settings_of(case, **changes)
    more = {} if recordings is None else {"start": recordings.start(None)}
    return generate(
        model,
        conditions_of(case, [seed % 3, 3]),
        settings,
        rules,
        seed=seed,
        image_indices=[0, 1],
        num_tokens=model.grid[0] * model.grid[1],
        accelerator=None if way is None else named(way, head_of(case)),
        **more,
    )


@pytest.mark.parametrize("way", [None, "head", *WAYS])
@pytest.mark.parametrize("case", CASES)
def test_a_recording_makes_the_codes_of_other_seeds_and_conditions(case: str, way: str | None):
    recordings = Recordings(tape := Tape())
    for seed in (5, 7, 9):
        made, expected = run(case, way, seed, recordings), run(case, way, seed)
        assert torch.equal(made.codes_BL, expected.codes_BL)
        assert (made.num_steps, made.num_full) == (expected.num_steps, expected.num_full)
    assert tape.num_recorded == 1


@pytest.mark.parametrize("order", ["halton", "corrected"])
def test_other_orders_are_recorded_too(order: str):
    recordings = Recordings(Tape())
    for seed in (5, 7):
        made = run("maskgit", "partial", seed, recordings, order=order)
        assert torch.equal(made.codes_BL, run("maskgit", "partial", seed, order=order).codes_BL)


def test_what_a_recording_reads_stays_as_long_as_it_does():
    """The ranks of Halton's order are made outside of the run, and a graph alone would not keep them."""
    ranks = []

    def record(run: Any, inputs: tuple[Tensor, ...]) -> Callable[[], Made]:
        ranks.append(weakref.ref(run.order.rank_L))
        made = run(*inputs)
        return lambda: made

    recordings = Recordings(record)
    run("maskgit", None, 5, recordings, order="halton")
    assert ranks[0]() is not None
    recordings.kept.clear()
    assert ranks[0]() is None


def test_what_was_made_stays_when_the_recording_runs_again():
    recordings = Recordings(Tape())
    first = run("maskgit", "head", 5, recordings).codes_BL
    kept = first.clone()
    assert not torch.equal(run("maskgit", "head", 7, recordings).codes_BL, kept)
    assert torch.equal(first, kept)


def test_another_plan_is_another_recording_and_only_the_last_are_kept():
    recordings = Recordings(tape := Tape())
    steps = range(2, 3 + MOST)  # one more than are kept
    for num_steps in (*steps, steps[-1], steps[0]):
        made = run("maskgit", "head", 5, recordings, num_steps=num_steps)
        assert made.num_steps == num_steps
    assert tape.num_recorded == len(steps) + 1
    assert len(recordings.kept) == MOST


def test_logits_that_are_not_finite_are_found_behind_a_recording():
    recordings = Recordings(Tape())
    model = model_of("maskgit")
    run("maskgit", "head", 5, recordings)
    weight = model.token.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0] = torch.nan
        with pytest.raises(FloatingPointError, match="not finite"):
            run("maskgit", "head", 7, recordings)
    finally:
        with torch.no_grad():
            weight.copy_(before)


def test_conditions_of_several_tensors_are_refused():
    with pytest.raises(ValueError, match="not single tensors"):
        run("amused", None, 5, Recordings(Tape()))


# --- in a pipeline ---


def test_a_pipeline_records_for_each_accelerator_and_number_of_images(tmp_path: Path):
    builders.write(tmp_path / "model.safetensors", builders.model())
    builders.write(tmp_path / "vq.safetensors", builders.vq())
    builders.write(tmp_path / "head.safetensors", builders.head())
    plain = Pipeline.load(tmp_path, head=tmp_path / "head.safetensors")
    recorded = replace(plain, recordings=Recordings(tape := Tape()))
    wanted: dict[str, Any] = {"steps": 4, "full_steps": 2}
    expected = []
    for more, num_recorded in (
        ({"label": "1", "seed": 1}, 1),
        ({"label": "2", "seed": 2}, 1),
        ({"label": "2", "seed": 2, "accelerator": "partial"}, 2),
        ({"label": "2", "seed": 2, "num_images": 2}, 3),
        ({"label": "1", "seed": 3}, 3),
        ({"label": "1", "seed": 3, "on_step": expected.append}, 3),
    ):
        pictures = [p.generate(**wanted, **more) for p in (plain, recorded)]
        assert [p.tobytes() for p in pictures[0]] == [p.tobytes() for p in pictures[1]]
        assert tape.num_recorded == num_recorded
    assert len(expected) == 8  # the hook saw all steps of both


def test_a_recording_takes_memory_of_its_own(monkeypatch: pytest.MonkeyPatch):
    plain, asked = Pipeline.load("scenes"), []

    def all_at_once(needed: Callable[[int], float], num_images: int, device: torch.device) -> int:
        asked.append(needed(num_images))
        return num_images

    monkeypatch.setattr(pipeline, "images_at_once", all_at_once)
    for each in (plain, replace(plain, recordings=Recordings(Tape()))):
        each.generate(label="0", steps=1)
    assert asked[1] == 2 * asked[0] > 0


@pytest.mark.parametrize("names", [("cpu",), ("cuda:0", "cuda:1")])
def test_a_cpu_and_several_devices_record_nothing(
    names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    devices = [torch.device(name) for name in names]
    monkeypatch.setattr(pipeline, "checked_devices", lambda names: devices)
    wanted = rf"one NVIDIA GPU, got {', '.join(names)}. Leave it out \(--cuda-graph\)"
    with pytest.raises(ValueError, match=wanted):
        Pipeline.load("scenes", device=names[0], more_devices=names[1:], cuda_graph=True)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["generate", "--out", str(tmp_path / "a.png"), "--cuda-graph"]) == 1
    assert "--cuda-graph is for --prompts" in capsys.readouterr().err
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"class": "0"}\n')
    many = ["generate", "--prompts", str(prompts), "--out-dir", str(tmp_path / "out")]
    assert main([*many, "--model", "scenes", "--cuda-graph"]) == 1
    assert "one NVIDIA GPU, got cpu" in capsys.readouterr().err


def test_memory_that_torch_keeps_for_the_next_run_is_free(monkeypatch: pytest.MonkeyPatch):
    """Counts that of recordings too: else a batch would be split the second time it is made."""
    for name, value in (
        ("mem_get_info", (100, 1000)),
        ("memory_reserved", 70),
        ("memory_allocated", 20),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.memory_of(torch.device("cuda")) == (150, 1000)
