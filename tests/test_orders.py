"""Orders of revealing: the Halton sequence by hand, and what a run makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes import L, classes
from golden_sets import tiny_maskgit
from shortcut_pack.shortcut.accelerators.partial import Partial
from shortcut_pack.shortcut.generate import generate
from shortcut_pack.shortcut.noise import Noise
from shortcut_pack.shortcut.orders import BY_NAME, halton_ranks
from shortcut_pack.shortcut.schedule import ORDERS, SamplerRules, Settings


def test_a_small_halton_sequence_by_hand():
    # Of bases 2 and 3: (0, 0), (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), (5/8, 7/9).
    assert halton_ranks(2, 3) == [0, 4, 2, 3, 1, 5]


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (7, 1), (16, 16), (24, 40)])
def test_the_sequence_has_every_token_once(grid):
    assert sorted(halton_ranks(*grid)) == list(range(grid[0] * grid[1]))


def test_every_order_has_a_name():
    assert tuple(BY_NAME) == ORDERS


def revealed(
    settings: Settings, images: list[int], **more
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the tokens that each step reveals, and the codes."""
    model, _ = tiny_maskgit()
    grid, found = model.on_grid(6, 6), []
    result = generate(
        grid,
        classes(*(1 for _ in images)),
        settings,
        SamplerRules(),
        seed=3,
        image_indices=images,
        num_tokens=L,
        on_step=lambda trace: found.append(trace.revealed.index_BK),
        **more,
    )
    return found, result.codes_BL


@pytest.mark.parametrize("full_steps", [None, 2])
def test_tokens_follow_the_sequence_from_a_place_of_each_image(full_steps):
    settings = Settings(num_steps=5, order="halton", full_steps=full_steps)
    images, ranks = list(range(8)), torch.tensor(halton_ranks(6, 6))
    found, _ = revealed(settings, images, accelerator=Partial)
    starts = (Noise.draw(3, images, 5, L, "cpu").choice_TBL[0, :, 0] * L).long()
    assert len(set(starts.tolist())) > 2
    for image, start in enumerate(starts.tolist()):
        place = 0
        for index_BK in found:
            here = (ranks[index_BK[image]] - start) % L
            assert sorted(here.tolist()) == list(range(place, place + len(here)))
            place += len(here)


def test_an_image_in_halton_order_does_not_depend_on_its_batch_and_known_tokens_stay():
    settings = Settings(num_steps=4, order="halton")
    together, alone = revealed(settings, [0, 1, 2])[1], revealed(settings, [2])[1]
    assert torch.equal(together[2:], alone)
    assert not torch.equal(revealed(replace(settings, order="confidence"), [2])[1], alone)
    known = torch.full((1, L), 5)
    is_editable = torch.arange(L).unsqueeze(0) >= 8
    _, codes = revealed(settings, [2], known_codes_BL=known, is_editable_BL=is_editable)
    assert codes[0, :8].tolist() == [5] * 8


def test_an_unknown_order_is_named():
    with pytest.raises(
        ValueError, match="order must be one of confidence, halton, corrected, got 'spiral'"
    ):
        Settings(order="spiral").check()
