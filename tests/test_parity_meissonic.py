"""Meissonic against what its own code computed: forward passes, whole runs, and its key table. With controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import uvit_sets
from golden_sets import load
from shortcut_pack.shortcut.models.meissonic import ARCHITECTURE, transformer
from shortcut_pack.shortcut.models.uvit_parts import TextCondition
from shortcut_pack.shortcut.schedule import AMUSED, AMUSED_LINEAR
from torch import nn
from uvit_sets import Run, replay

FORWARD = ("meissonic_transformer_1024", "meissonic_transformer_512")
MADE = tuple(f"meissonic_sampling_{name}" for name in ("1024", "wide", "512", "g1"))
PAINTED = "meissonic_inpaint"


def check_forward(
    name: str,
    spoil: Callable[[nn.Module], None] = lambda network: None,
    steps_left: int | None = None,
) -> None:
    golden = load(name)
    network = uvit_sets.network(golden)
    spoil(network)
    condition = TextCondition(
        golden["encoder_hidden_states"], golden["pooled_projections"], golden["micro_conds"]
    )
    left = golden.args["timestep"] if steps_left is None else steps_left
    uvit_sets.check_pass(golden, network, condition, left)


@pytest.mark.parametrize("name", FORWARD)
def test_a_pass_equals_the_original(name: str) -> None:
    check_forward(name)


def shift_and_scale_swapped(network: Any) -> None:
    for block in network.single_blocks:
        shift, scale, gate = block.modulation.weight.chunk(3)
        block.modulation.weight = nn.Parameter(torch.cat([scale, shift, gate]))


def rows_and_columns_swapped(network: Any) -> None:
    nothing, row, column = network.config.rope_axes
    axes = (nothing + 2, row - 2, column)
    network.config = replace(network.config, rope_axes=axes)


@pytest.mark.parametrize("spoil", [shift_and_scale_swapped, rows_and_columns_swapped])
@pytest.mark.parametrize("name", FORWARD)
def test_control_a_wrong_pass_is_told_apart(name: str, spoil: Any) -> None:
    with pytest.raises(AssertionError):
        check_forward(name, spoil)


@pytest.mark.parametrize("name", FORWARD)
def test_control_another_step_is_told_apart(name: str) -> None:
    with pytest.raises(AssertionError):
        check_forward(name, steps_left=load(name).args["timestep"] + 1)


def run_of(name: str) -> Run:
    schedule = AMUSED_LINEAR if name == PAINTED else AMUSED
    return replay(load(name), ARCHITECTURE.settings, ARCHITECTURE.rules, schedule)


@pytest.mark.parametrize("name", (*MADE, PAINTED))
def test_a_run_equals_the_original(name: str) -> None:
    run_of(name).check()


@pytest.mark.parametrize("name", (*MADE, PAINTED))
def test_control_a_run_by_another_text_is_told_apart(name: str) -> None:
    run = run_of(name)
    uvit_sets.other_text(run)
    with pytest.raises(AssertionError):
        run.check()


def steps_counted_up(run: Run) -> None:
    run.steps = [replace(step, steps_left=step.index) for step in run.steps]


def other_guidance(run: Run) -> None:
    run.steps = [replace(s, guidance=tuple(g + 0.1 for g in s.guidance)) for s in run.steps]


@pytest.mark.parametrize("spoil", [steps_counted_up, other_guidance])
def test_control_a_wrong_run_is_told_apart(spoil: Callable[[Run], None]) -> None:
    run = run_of("meissonic_sampling_wide")
    spoil(run)
    with pytest.raises(AssertionError):
        run.check()


def test_the_key_table_is_that_of_the_published_file() -> None:
    config = uvit_sets.check_key_table("meissonic_transformer", transformer.LAYOUT)
    assert config == ARCHITECTURE.sizes["meissonic-1024"].model
