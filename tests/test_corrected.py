"""The order that hides again what full passes find least probable."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import builders
import pytest
import torch
from builders import MODEL_CONFIG
from fakes import L
from golden_sets import tiny_maskgit
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.accelerators.choice import named
from shortcut_pack.shortcut.denoiser import guided_logits
from shortcut_pack.shortcut.flops import count_flops
from shortcut_pack.shortcut.generate import Result, generate
from shortcut_pack.shortcut.sampler import Trace
from shortcut_pack.shortcut.schedule import ORDERS, SamplerRules, Settings, plan
from test_flops import pass_by_hand
from torch import Tensor

FULL = (
    0,
    4,
    9,
    11,
    14,
)  # of 16 steps: the third, in 9, and the fourth hide tokens; the last comes too late
SETTINGS = Settings(num_steps=16, full_steps=FULL, order="corrected", guidance=(2.8,))
WAYS = ("partial", "partial+neighbours", "head", "ml-cache", "taylor", "reuse", None)


def made(
    way: str | None, images: tuple[int, ...] = (0, 1, 2), settings: Settings = SETTINGS, **more
) -> tuple[Result, list[Trace]]:
    model, head = tiny_maskgit()
    traces: list[Trace] = []
    class_B = torch.tensor([image + 1 for image in images])
    result = generate(
        model,
        (class_B, torch.full_like(class_B, 10)),
        settings,
        SamplerRules(),
        seed=4,
        image_indices=images,
        num_tokens=L,
        accelerator=way and named(way, head),
        on_step=traces.append,
        **more,
    )
    return result, traces


def test_only_full_passes_in_the_middle_hide_and_all_counts_add_up():
    steps = plan(SETTINGS, 144, 144)
    usual = plan(replace(SETTINGS, order=ORDERS[0]), 144, 144)
    assert [step.index for step in steps if step.num_hidden] == [9, 11]
    assert [step.num_masked for step in steps] == [step.num_masked for step in usual]
    assert all(a.num_masked_after == b.num_masked for a, b in pairwise(steps))
    assert steps[-1].num_masked_after == 0 and not any(step.num_hidden for step in usual)
    # A quarter of as many as the steps since the full pass before have revealed.
    assert steps[9].num_hidden == round((steps[4].num_masked - steps[9].num_masked) / 4) > 1


@pytest.mark.parametrize("way", WAYS)
def test_the_least_probable_of_the_tokens_made_are_hidden_and_made_again(way):
    known, editable = torch.full((3, L), 5), (torch.arange(L) >= 6).expand(3, -1)
    result, traces = made(way, known_codes_BL=known, is_editable_BL=editable)
    assert (result.codes_BL[:, :6] == 5).all() and not traces[-1].is_masked_BL.any()
    assert any(trace.step.num_hidden for trace in traces)
    for before, trace in pairwise(traces):
        is_hidden_BL = trace.is_masked_BL & ~before.is_masked_BL
        assert (is_hidden_BL.sum(1) == trace.step.num_hidden).all()
        assert not is_hidden_BL[:, :6].any()
        revealed_BL = torch.zeros_like(is_hidden_BL).scatter(1, trace.revealed.index_BK, True)
        assert (revealed_BL.sum(1) == trace.step.num_revealed).all()
        assert torch.equal(revealed_BL, before.is_masked_BL & ~trace.is_masked_BL)
        if trace.step.num_hidden:
            check_least_probable(before, trace, is_hidden_BL, editable)


def check_least_probable(
    before: Trace, trace: Trace, is_hidden_BL: Tensor, editable_BL: Tensor
) -> None:
    index_BL = torch.arange(L).expand(3, -1)
    model, guidance = tiny_maskgit()[0], trace.step.guidance
    logits_BLV = guided_logits(model, trace.denoised.features, guidance, index_BL)
    logp_BL = logits_BLV.log_softmax(-1).gather(-1, before.codes_BL.unsqueeze(-1)).squeeze(-1)
    for row in range(3):
        could = editable_BL[row] & ~before.is_masked_BL[row] & ~is_hidden_BL[row]
        assert logp_BL[row][is_hidden_BL[row]].max() <= logp_BL[row][could].min()


@pytest.mark.parametrize("way", WAYS)
def test_an_image_is_the_same_in_a_batch_and_alone(way):
    together = made(way)[0].codes_BL
    assert torch.equal(made(way, (2,))[0].codes_BL[0], together[2])
    usual = replace(SETTINGS, order=ORDERS[0])
    assert not torch.equal(made(way, settings=usual)[0].codes_BL, together)


def test_all_full_is_bit_identical_to_vanilla():
    settings = replace(SETTINGS, full_steps=None)
    expected = made(None, settings=settings)[0].codes_BL
    assert torch.equal(made("partial", settings=settings)[0].codes_BL, expected)


@pytest.mark.parametrize("way", ["partial", "partial+neighbours"])
def test_a_partial_pass_runs_what_was_just_hidden(way):
    _, traces = made(way)
    for (before, full), after in zip(pairwise(traces), traces[2:], strict=False):
        if full.step.num_hidden and not after.denoised.was_full:
            is_hidden_BL = full.is_masked_BL & ~before.is_masked_BL
            pairs = zip(full.denoised.features, after.denoised.features, strict=True)
            for old_BSD, new_BSD in pairs:
                is_fresh_BL = (old_BSD != new_BSD).any(-1)[:, :L]
                assert is_fresh_BL[is_hidden_BL].all()
            return
    raise AssertionError("no partial pass comes after one that hides tokens")


def test_operations_are_those_of_the_tokens_run_and_looked_at():
    model = checkpoints.build(builders.model(MODEL_CONFIG))
    settings = replace(SETTINGS, num_steps=12, full_steps=(0, 3, 6, 8))
    classes = (torch.zeros(1, dtype=torch.long),) * 2
    found = count_flops(
        model, None, settings, classes, (4, 4), rules=SamplerRules(), accelerator="partial"
    )
    steps = plan(settings, 16, 16)
    assert any(step.num_hidden for step in steps)
    num_run, num_logits = 0, sum(step.num_masked for step in steps)
    for before, step in pairwise(steps):
        if step.num_hidden:
            num_logits += 16 - step.num_masked  # what is known
        if not step.is_full:
            num_run += before.num_revealed + before.num_hidden + step.num_revealed
            num_logits += step.num_revealed
    assert found.partial * 17 == 2 * num_run * pass_by_hand(MODEL_CONFIG, sequences=1)
    assert found.logits == 2 * num_logits * MODEL_CONFIG.width * MODEL_CONFIG.num_codes
