"""Guidance, and where the features of a step come from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes import UNGUIDED, L, V, Watcher, classes, logits_of, run, some_masked, tiny_run, varied
from golden_sets import tiny_maskgit
from shortcut_pack.shortcut.accelerators.reuse import Reuse
from shortcut_pack.shortcut.denoiser import count_near
from shortcut_pack.shortcut.schedule import Settings, plan

CLASS_0 = [torch.tensor([0])]

# --- guidance ---


def test_guidance_moves_the_logits_away_from_every_other_branch():
    model = varied(3, L, V)
    conditions = [torch.tensor([0]), torch.tensor([1]), torch.tensor([2])]
    settings = Settings(num_steps=1, guidance=(2.0, 0.5), guidance_ramp=False)
    _, traces = run(model, conditions, settings, num_tokens=L)
    cond, first, second = model.table_CLV
    expected_LV = cond + 2.0 * (cond - first) + 0.5 * (cond - second)
    torch.testing.assert_close(logits_of(traces[0])[0], expected_LV)


def test_guidance_of_weight_zero_looks_at_no_branch_and_changes_nothing():
    settings = Settings(num_steps=4, guidance=(0.0,))
    model = varied(2, L, V)
    guided, traces = run(model, [torch.tensor([0]), torch.tensor([1])], settings, num_tokens=L)
    assert model.num_branches == len(traces) == 4
    alone = varied(2, L, V)
    unguided, _ = run(alone, [torch.tensor([0])], Settings(num_steps=4, **UNGUIDED), num_tokens=L)
    assert torch.equal(guided, unguided)


def test_guidance_weights_must_match_the_branches():
    with pytest.raises(ValueError):
        run(varied(2, L, V), [torch.tensor([0])], Settings(num_steps=2), num_tokens=L)


# --- full steps and accelerators ---


def test_more_steps_than_tokens_cost_as_many_passes_as_there_are_tokens():
    settings = Settings(num_steps=24, schedule="lumina", **UNGUIDED)
    model = varied(1, L, V)
    _, traces = run(model, CLASS_0, settings, num_tokens=L, is_masked_BL=some_masked(1, 16))
    assert model.num_passes == len(traces) == 16


def test_the_full_pass_of_a_step_that_reveals_nothing_is_spent_on_the_next():
    """40 tokens, 64 steps, 14 full passes: no step is predicted where exact features would be at hand."""
    settings = Settings(num_steps=64, full_steps=14, schedule="lumina", **UNGUIDED)
    steps = plan(settings, 40, 40)
    wanted = settings.full_indices(64)
    assert all(step.num_revealed > 0 for step in steps)
    spent_on = {min(s.index for s in steps if s.index >= i) for i in wanted}
    assert {s.index for s in steps if s.is_full} == spent_on
    table = varied(1, 40, V)
    watcher = Watcher(Reuse())
    model = type("Model", (type(table),), {"grid": (5, 8)})(table.table_CLV)
    run(model, CLASS_0, steps, num_tokens=40, accelerator=watcher)
    assert model.num_passes == len(spent_on)
    # Between any prediction and the last full pass some tokens were revealed.
    assert all(full.step.num_masked > 0 for full in watcher.full)
    assert all(revealed.codes_BK.shape[1] > 0 for _, revealed in watcher.asked)


@pytest.mark.parametrize("guidance", [(), (0.0,), (2.8,)])
def test_all_full_with_a_head_is_bit_identical_to_vanilla(guidance):
    settings = Settings(num_steps=8, full_steps=8, guidance=guidance)
    with_head, traces = tiny_run((1, 2), settings)
    vanilla, expected = tiny_run((1, 2), settings, use_head=False)
    assert torch.equal(with_head, vanilla)
    for trace, other in zip(traces, expected, strict=True):
        assert torch.equal(logits_of(trace), logits_of(other))
        assert trace.denoised.was_full


def test_without_an_accelerator_every_step_is_full_whatever_the_plan_says():
    settings = Settings(num_steps=8, full_steps=2)
    made, traces = tiny_run((1, 2), settings, use_head=False)
    vanilla, _ = tiny_run((1, 2), Settings(num_steps=8), use_head=False)
    assert all(t.denoised.was_full for t in traces)
    assert torch.equal(made, vanilla)


@pytest.mark.parametrize("guidance", [(), (0.0,), (2.8,)])
@pytest.mark.parametrize("full_steps", [1, 3, (0, 1, 5)])
def test_full_steps_are_those_planned(full_steps, guidance):
    made, traces = tiny_run((1, 2), Settings(num_steps=8, full_steps=full_steps, guidance=guidance))
    expected = {1: [0], 3: [0, 3, 5]}.get(full_steps, [0, 1, 5])
    assert [t.step.index for t in traces if t.denoised.was_full] == expected
    assert made.min() >= 0
    assert made.max() < V
    assert all(logits_of(t).isfinite().all() for t in traces)


def test_an_accelerator_is_asked_with_the_last_full_pass_and_the_tokens_just_revealed():
    model, watcher = varied(1, L, V), Watcher(Reuse())
    settings = Settings(num_steps=6, full_steps=(0, 3), **UNGUIDED)
    _, traces = run(model, [torch.tensor([0])], settings, num_tokens=L, accelerator=watcher)
    assert [index for index, _ in watcher.asked] == [1, 2, 4, 5]
    for (index, revealed), full in zip(watcher.asked, watcher.full, strict=True):
        expected = traces[index - 1].revealed
        assert torch.equal(revealed.index_BK, expected.index_BK)
        assert torch.equal(revealed.codes_BK, expected.codes_BK)
        assert full.features is traces[0 if index < 3 else 3].denoised.features
    assert model.num_passes == 2


def test_reuse_keeps_the_features_of_the_last_full_pass():
    model, _ = tiny_maskgit()
    settings = Settings(num_steps=6, full_steps=(0, 3))
    _, traces = run(model, classes(1, 2), settings, num_tokens=L, accelerator=Reuse())
    for index, source in ((1, 0), (2, 0), (4, 3), (5, 3)):
        for kept, full in zip(
            traces[index].denoised.features, traces[source].denoised.features, strict=True
        ):
            assert torch.equal(kept, full)
    assert not torch.equal(traces[3].denoised.features[0], traces[0].denoised.features[0])


def test_an_accelerator_that_declines_gets_a_full_step_and_the_trace_says_so():
    watcher = Watcher()
    model, _ = tiny_maskgit()
    settings = Settings(num_steps=6, full_steps=2)
    made, traces = run(model, classes(1, 2), settings, num_tokens=L, accelerator=watcher)
    assert [t.step.is_full for t in traces] == [True, False, False, True, False, False]
    assert all(t.denoised.was_full for t in traces)
    assert len(watcher.asked) == 4
    assert torch.equal(made, tiny_run((1, 2), Settings(num_steps=6), use_head=False)[0])


def test_a_plan_that_does_not_begin_full_begins_full_all_the_same():
    steps = [replace(s, is_full=False) for s in plan(Settings(num_steps=3, **UNGUIDED), L, L)]
    _, traces = run(varied(1, L, V), [torch.tensor([0])], steps, num_tokens=L, accelerator=Reuse())
    assert [t.denoised.was_full for t in traces] == [True, False, False]


# --- what the last full pass did not see ---


@pytest.mark.parametrize(
    ("radius", "expected"),
    [
        (1, [[1, 1, 2, 1], [1, 1, 2, 1], [0, 0, 1, 1]]),
        (2, [[1, 2, 2, 2], [1, 2, 2, 2], [1, 2, 2, 2]]),
        (10**12, [[2] * 4] * 3),
    ],
)
def test_tokens_near_are_counted_in_rows_and_columns(radius, expected):
    is_counted_BL = torch.zeros(2, 12, dtype=torch.bool)
    is_counted_BL[0, [1, 7]] = True  # of a grid of 3 x 4
    near_BL = count_near(is_counted_BL, (3, 4), radius)
    assert near_BL[0].tolist() == [count for row in expected for count in row]
    assert not near_BL[1].any()
