"""Guidance branches on devices of their own: the same codes, and every device does its share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import random_checkpoint
from shortcut_pack.shortcut import Pipeline
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.accelerators.choice import named
from shortcut_pack.shortcut.generate import Result, generate
from shortcut_pack.shortcut.models.maskgit import ARCHITECTURE as MASKGIT
from shortcut_pack.shortcut.split import Copy, split
from test_partial import CASES, WAYS, conditions_of, head_of, model_of, settings_of
from third_architecture.transformer import OnGrid

CPU = torch.device("cpu")


class Watched:
    """A model that notes how many branches each of its passes has."""

    def __init__(self, model: Any):
        self.model, self.passes = model, []

    def features(self, codes_BL: Any, is_masked_BL: Any, conditions: Any, step: Any) -> Any:
        self.passes.append(len(conditions))
        return self.model.features(codes_BL, is_masked_BL, conditions, step)

    def kept_features(self, codes_BL: Any, is_masked_BL: Any, conditions: Any, *more: Any) -> Any:
        self.passes.append(len(conditions))
        return self.model.kept_features(codes_BL, is_masked_BL, conditions, *more)

    def partial_features(self, *given: Any) -> Any:
        return self.model.partial_features(*given)


def run(case: str, way: str | None, copies: list[Copy], **changes: Any) -> Result:
    model, (settings, rules) = model_of(case), settings_of(case, **changes)
    conditions = conditions_of(case, [0, 1])
    return generate(
        model,
        conditions[: len(settings.guidance) + 1],
        settings,
        rules,
        seed=5,
        image_indices=[0, 1],
        num_tokens=model.grid[0] * model.grid[1],
        accelerator=None if way is None else named(way, head_of(case)),
        copies=copies,
    )


@pytest.mark.parametrize("way", [None, "head", *WAYS])
@pytest.mark.parametrize("case", CASES)
def test_the_codes_are_those_of_one_device(case: str, way: str | None):
    copy = Watched(model_of(case))
    shared = run(case, way, [Copy(copy, CPU)])
    assert torch.equal(shared.codes_BL, run(case, way, []).codes_BL)
    num_branches = len(settings_of(case)[0].guidance) + 1
    # Of an odd number the run's own device has one more.
    assert copy.passes == shared.num_full * [num_branches // 2]


@pytest.mark.parametrize(("num_copies", "expected"), [(1, [1]), (2, [1, 1]), (3, [1, 1, 0])])
def test_three_branches_are_dealt_out_in_turn(num_copies: int, expected: list[int]):
    copies = [Watched(model_of("lumina")) for _ in range(num_copies)]
    shared = run("lumina", None, [Copy(copy, CPU) for copy in copies], num_steps=1, full_steps=1)
    assert [sum(copy.passes) for copy in copies] == expected
    assert torch.equal(shared.codes_BL, run("lumina", None, [], num_steps=1, full_steps=1).codes_BL)


def test_a_copy_makes_a_branch():
    other = checkpoints.build(random_checkpoint(MASKGIT.model, model_of("maskgit").config, seed=9))
    shared = run("maskgit", None, [Copy(other, CPU)])
    assert not torch.equal(shared.codes_BL, run("maskgit", None, []).codes_BL)


def test_an_architecture_without_partial_passes_is_refused_as_on_one_device():
    network: Any = None
    model: Any = OnGrid(network, 4, 4)
    with pytest.raises(ValueError, match="makes no partial passes"):
        named("partial", None)(split(model, CPU, [Copy(model, CPU)]), ())


def test_a_pipeline_shares_its_branches_and_says_who_is_idle(caplog: pytest.LogCaptureFixture):
    alone = Pipeline.load("scenes text")
    shared = replace(alone, copies=((Pipeline.load("scenes text").model, CPU),))
    wanted: dict[str, Any] = {"prompt": "two pines at dawn", "steps": 6, "full_steps": 2, "seed": 3}
    pictures = [p.generate(**wanted)[0].tobytes() for p in (alone, shared)]
    assert pictures[0] == pictures[1]
    assert not caplog.records
    shared.generate(**wanted, cfg=0)
    assert "1 of the devices stay idle" in caplog.text


def test_a_device_that_is_named_twice_is_an_error():
    with pytest.raises(ValueError, match=r"'cpu' is named twice.*--more-devices"):
        Pipeline.load("scenes", more_devices=["cpu"])


def test_more_devices_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["generate", "--class", "0", "--out", str(tmp_path / "a.png"), "--more-devices"]
    assert main([*command, "cpu"]) == 1
    assert "device 'cpu' is named twice" in capsys.readouterr().err
    asked = ["--task", "understand", "--prompt", "What is it?", "--more-devices", "cuda:1"]
    assert main(["generate", *asked]) == 1
    assert "--more-devices has no effect with --task understand" in capsys.readouterr().err
