"""The draws of a run: the right distribution, and each image's own."""

from __future__ import annotations

import math

import pytest
import torch
from shortcut_pack.shortcut.noise import Noise, seeded

SMALLEST, LARGEST = 2**-25, 1 - 2**-24  # what `Noise.draw` can give


def drawn_codes(logits_V: torch.Tensor, num_draws: int, seed: int = 0) -> torch.Tensor:
    noise = Noise.draw(seed, [0], 1, num_draws, "cpu")
    return noise.codes(0, torch.arange(num_draws)[None], logits_V.expand(1, num_draws, -1))[0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_codes_are_drawn_from_the_softmax(seed):
    logits_V, num_draws = torch.tensor([0.0, 2.0, -1.0, 1.0, -3.0, 0.5]), 40_000
    counts_V = drawn_codes(logits_V, num_draws, seed).bincount(minlength=6)
    expected_V = logits_V.softmax(-1) * num_draws
    chi_square = ((counts_V - expected_V) ** 2 / expected_V).sum()
    assert chi_square < 20.5  # 99.9 % of correct draws stay below, for 5 degrees of freedom


def test_control_a_slightly_wrong_distribution_is_told_apart():
    logits_V, num_draws = torch.tensor([0.0, 2.0, -1.0, 1.0, -3.0, 0.5]), 40_000
    counts_V = drawn_codes(logits_V / 1.05, num_draws).bincount(minlength=6)
    expected_V = logits_V.softmax(-1) * num_draws
    assert ((counts_V - expected_V) ** 2 / expected_V).sum() > 20.5


def test_codes_of_probability_zero_are_never_drawn():
    logits_V = torch.tensor([-math.inf, 1.0, -math.inf, 0.0, -math.inf, -math.inf])
    assert set(drawn_codes(logits_V, 10_000).tolist()) == {1, 3}
    extremes_TBL = torch.tensor([[[SMALLEST, LARGEST]]])
    noise = Noise(extremes_TBL, extremes_TBL)
    for seed in range(200):  # rounding of the cumulative sum differs from one to the next
        some_V = torch.randn(50, generator=seeded(seed))
        logits_V = torch.cat([torch.full((3,), -math.inf), some_V, torch.full((3,), -math.inf)])
        low, high = noise.codes(0, torch.tensor([[0, 1]]), logits_V.expand(1, 2, -1))[0].tolist()
        assert (low, high) == (3, 52)


def test_a_draw_is_a_code_even_of_logits_that_are_not_finite():
    codes_V = drawn_codes(torch.full((6,), math.nan), 100)
    assert codes_V.min() >= 0
    assert codes_V.max() < 6


def test_uniforms_stay_inside_their_open_interval():
    noise = Noise.draw(3, range(4), 10, 20_000, "cpu")
    for draws_TBL in (noise.code_TBL, noise.choice_TBL):
        assert draws_TBL.shape == (10, 4, 20_000)
        assert draws_TBL.min() >= SMALLEST
        assert draws_TBL.max() <= LARGEST
        assert abs(draws_TBL.mean() - 0.5) < 2e-3
        # The generator's values are multiples of 2**-24, also 0: ours lie half way between.
        assert ((draws_TBL[draws_TBL < 0.25] * 2**24) % 1 == 0.5).all()


def test_choice_noise_is_standard_gumbel():
    num_draws = 100_000
    gumbel_L = Noise.draw(0, [0], 1, num_draws, "cpu").choice(0, torch.arange(num_draws)[None])[0]
    assert abs(gumbel_L.mean() - 0.5772) < 0.02
    assert abs(gumbel_L.var() - math.pi**2 / 6) < 0.04
    assert gumbel_L.isfinite().all()


def test_choice_noise_is_finite_at_the_ends():
    extremes_TBL = torch.tensor([[[SMALLEST, LARGEST]]])
    gumbel_L = Noise(extremes_TBL, extremes_TBL).choice(0, torch.tensor([[0, 1]]))
    assert gumbel_L.isfinite().all()


def test_draws_belong_to_positions_not_to_their_rank():
    noise = Noise.draw(0, [0], 2, 10, "cpu")
    everywhere = noise.choice(1, torch.arange(10)[None])
    assert torch.equal(noise.choice(1, torch.tensor([[2, 7]])), everywhere[:, [2, 7]])


def test_an_image_has_the_same_noise_in_any_batch():
    batch = Noise.draw(5, [0, 1, 2], 4, 9, "cpu")
    for place in range(3):
        alone = Noise.draw(5, [place], 4, 9, "cpu")
        assert torch.equal(alone.code_TBL[:, 0], batch.code_TBL[:, place])
        assert torch.equal(alone.choice_TBL[:, 0], batch.choice_TBL[:, place])


def test_seeds_and_places_differ_and_repeat():
    draws = {
        (seed, place): tuple(Noise.draw(seed, [place], 1, 4, "cpu").code_TBL.flatten().tolist())
        for seed in (0, 1, 2**32, 2**63)
        for place in (0, 1)
    }
    assert len(set(draws.values())) == len(draws)
    for (seed, place), values in draws.items():
        assert tuple(Noise.draw(seed, [place], 1, 4, "cpu").code_TBL.flatten().tolist()) == values
    noise = Noise.draw(0, [0], 2, 4, "cpu")
    assert not torch.equal(noise.code_TBL, noise.choice_TBL)
    assert not torch.equal(noise.code_TBL[0], noise.code_TBL[1])


def test_seeds_are_told_apart_by_every_number_and_in_64_bits():
    seeds = [
        (7,),
        (7, 1),
        (7, 1, 1),
        (1, 7),
        (0, 1),
        (2**32, 0),
        (2**32, 1),
        (1, 2**32),
        (2**64 - 1,),
    ]
    streams = {tuple(torch.rand(3, generator=seeded(*seed)).tolist()) for seed in seeds}
    assert len(streams) == len(seeds)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError):
        seeded(-1)
