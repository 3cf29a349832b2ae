"""Lumina-DiMOO beyond its originals: batches, branches of any length, and what edge inputs do."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import builders
import pytest
import torch
from golden_sets import load
from lumina_sets import head, network
from shortcut_pack.shortcut.accelerators.choice import named
from shortcut_pack.shortcut.denoiser import Revealed
from shortcut_pack.shortcut.gather import tokens_at
from shortcut_pack.shortcut.generate import Result, generate
from shortcut_pack.shortcut.models.layers import Bare, Rotary
from shortcut_pack.shortcut.models.lumina_dimoo import ARCHITECTURE
from shortcut_pack.shortcut.models.lumina_dimoo import head as lumina_head
from shortcut_pack.shortcut.models.lumina_dimoo import transformer as lumina
from shortcut_pack.shortcut.schedule import Settings
from shortcut_pack.shortcut.settings import usual_settings
from torch import Tensor

ROWS, COLUMNS = 3, 5
L = ROWS * COLUMNS
SETTINGS = replace(ARCHITECTURE.settings, num_steps=6, full_steps=3)
WITHIN = {"rtol": 1e-5, "atol": 1e-5}


def tiny(is_sequential: bool = False) -> lumina.OnGrid:
    return network("dimoo_backbone").on_grid(ROWS, COLUMNS, is_sequential=is_sequential)


def random_ids(*shape: int, below: int = 28, seed: int = 0) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def conditions(num_images: int, lengths: tuple[int, ...] = (7, 4, 11)) -> tuple[Tensor, ...]:
    """Random prompts: one branch for each length."""
    return tuple(random_ids(num_images, n, seed=n) for n in lengths)


def run(
    model: Any,
    prompts: tuple[Tensor, ...],
    settings: Settings = SETTINGS,
    *,
    with_head: bool = True,
    places: list[int] | None = None,
    **options: Any,
) -> Result:
    places = list(range(len(prompts[0]))) if places is None else places
    accelerator = named("head", head("dimoo_sampling_t0_shortcut"))
    settings = replace(settings, guidance=settings.guidance[: len(prompts) - 1])
    return generate(
        model,
        prompts,
        settings,
        ARCHITECTURE.rules,
        seed=3,
        image_indices=places,
        num_tokens=model.num_tokens,
        accelerator=accelerator if with_head else None,
        **options,
    )


THREE = replace(SETTINGS, guidance=(2.5, 4.0))


@torch.no_grad()
def test_branches_side_by_side_equal_branches_in_turn():
    codes_BL = random_ids(2, L, below=64)
    is_masked_BL = random_ids(2, L, below=2).bool()
    packed = tiny().features(codes_BL, is_masked_BL, conditions(2))
    in_turn = tiny(is_sequential=True).features(codes_BL, is_masked_BL, conditions(2))
    assert [f.shape for f in packed] == [f.shape for f in in_turn]
    for a_BSD, b_BSD in zip(packed, in_turn, strict=True):
        torch.testing.assert_close(a_BSD, b_BSD, **WITHIN)
    a, b = (run(tiny(is_sequential), conditions(2), THREE) for is_sequential in (False, True))
    assert torch.equal(a.codes_BL, b.codes_BL)
    assert (a.num_steps, a.num_full) == (6, 3)


def test_an_image_does_not_depend_on_its_batch():
    together = run(tiny(), conditions(3), THREE).codes_BL
    for i in range(3):
        alone = run(tiny(), tuple(c[i : i + 1] for c in conditions(3)), THREE, places=[i]).codes_BL
        assert torch.equal(together[i : i + 1], alone)
    assert not torch.equal(together[0], together[1])


def test_branches_do_not_see_each_other():
    codes_BL, is_masked_BL = random_ids(1, L, below=64), torch.ones(1, L, dtype=torch.bool)
    prompts = conditions(1)
    other = (prompts[0], random_ids(1, 20, seed=9), prompts[2])
    with torch.no_grad():
        first = tiny().features(codes_BL, is_masked_BL, prompts)
        second = tiny().features(codes_BL, is_masked_BL, other)
    torch.testing.assert_close(first[0], second[0], **WITHIN)
    torch.testing.assert_close(first[2], second[2], **WITHIN)
    assert not torch.allclose(first[1][:, -L:], second[1][:, -L:], atol=1e-2)


def test_codes_at_masked_positions_do_not_matter():
    is_masked_BL = random_ids(1, L, below=2).bool()
    codes_BL = random_ids(1, L, below=64)
    with torch.no_grad():
        a, b = (
            tiny().features(codes, is_masked_BL, conditions(1))[0]
            for codes in (codes_BL, codes_BL.masked_fill(is_masked_BL, 5))
        )
    assert torch.equal(a, b)


def test_all_steps_full_is_the_run_without_a_head():
    every_step = run(tiny(), conditions(2, (7, 4)), replace(SETTINGS, full_steps=None))
    vanilla = run(tiny(), conditions(2, (7, 4)), with_head=False)
    assert torch.equal(every_step.codes_BL, vanilla.codes_BL)
    assert not torch.equal(vanilla.codes_BL, run(tiny(), conditions(2, (7, 4))).codes_BL)


def test_guidance_zero_is_the_run_without_a_second_branch():
    zero = run(tiny(), conditions(2, (7, 4)), replace(SETTINGS, guidance=(0.0,)))
    assert torch.equal(zero.codes_BL, run(tiny(), conditions(2, (7,))).codes_BL)


def test_known_codes_stay_and_a_mask_may_differ_from_image_to_image():
    known_BL = random_ids(2, L, below=64)
    is_editable_BL = torch.zeros(2, L, dtype=torch.bool)
    is_editable_BL[0, 3:7], is_editable_BL[1, 1:] = True, True
    result = run(
        tiny(), conditions(2, (7, 4)), known_codes_BL=known_BL, is_editable_BL=is_editable_BL
    )
    assert torch.equal(result.codes_BL[~is_editable_BL], known_BL[~is_editable_BL])
    assert result.codes_BL.max() < 64


def test_no_masked_token_at_all_is_answered_without_a_pass():
    known_BL = random_ids(1, L, below=64)
    result = run(
        tiny(),
        conditions(1, (7, 4)),
        known_codes_BL=known_BL,
        is_editable_BL=torch.zeros(1, L, dtype=torch.bool),
    )
    assert torch.equal(result.codes_BL, known_BL)
    assert (result.num_steps, result.num_full) == (0, 0)


def test_every_option_of_the_original_works_where_it_crashes_too():
    outcomes = load("dimoo_mode_outcomes").info["outcomes"]
    crashed = {label for label, outcome in outcomes.items() if "Error" in outcome}
    assert {"batch of 2", "timesteps 4, budget 1", "timesteps 4, budget 5"} <= crashed
    for label in outcomes:
        if label.startswith("timesteps"):
            num_steps, budget = (int(part.split()[1]) for part in label.split(", "))
            settings = replace(SETTINGS, num_steps=num_steps, full_steps=budget)
            if budget > num_steps:
                with pytest.raises(ValueError, match="full steps must be between 1 and steps"):
                    run(tiny(), conditions(2, (7, 4)), settings)
            else:
                assert run(tiny(), conditions(2, (7, 4)), settings).num_full == budget


def random_network(seed: int = 0, **sizes: Any) -> lumina.LuminaDiMOO:
    """A network of random weights."""
    config = replace(network("dimoo_backbone").config, width=32, depth=2, mlp_width=48, **sizes)
    return filled(lumina.LuminaDiMOO(config, operations=Bare), seed)


def random_head(model: Any, seed: int = 1, **sizes: Any) -> lumina_head.LuminaHead:
    """A head of random weights for `model`."""
    shared = {
        name: value
        for name, value in asdict(model.config).items()
        if name in ("num_heads", "num_kv_heads", "mlp_width", "rope_theta", "norm_eps")
    }
    defaults = {"width": 16, "num_blocks": 1, "has_time": True, "sees_new": True}
    config = lumina_head.Config(model_width=model.config.width, **{**defaults, **shared, **sizes})
    return filled(lumina_head.LuminaHead(config, operations=Bare), seed)


def filled(net: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for value in net.parameters():
        value.data = torch.randn(value.shape, generator=generator) * 0.3 + (value.ndim == 1)
    return net.requires_grad_(False)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_heads_may_share_keys_and_values(num_kv_heads):
    """Each key and value serves as many query heads in a row as if it were repeated."""
    model = random_network(num_kv_heads=num_kv_heads)
    whole = random_network(num_kv_heads=4)
    state = model.state_dict()
    for name in state:
        if ".key." in name or ".value." in name:
            rows = state[name].unflatten(0, (num_kv_heads, -1))
            state[name] = rows.repeat_interleave(4 // num_kv_heads, 0).flatten(0, 1)
    whole.load_state_dict(state)
    tokens_BS = random_ids(2, 9)
    torch.testing.assert_close(model([tokens_BS])[0], whole([tokens_BS])[0], **WITHIN)


def next_features(
    net: Any, model: Any, ratio: float = 0.5, codes: int = 0, wanted_BM: Tensor | None = None
) -> tuple[Tensor, ...]:
    """What a head predicts after two tokens were revealed in each of two images."""
    prompts = conditions(2, (7, 4))
    codes_BL, is_masked_BL = random_ids(2, L, below=64), torch.ones(2, L, dtype=torch.bool)
    features = model.features(codes_BL, is_masked_BL, prompts)
    revealed = Revealed(torch.tensor([[1, 2], [3, 4]]) + codes, torch.tensor([[0, 6], [2, 13]]))
    return net.next_features(model, features, prompts, revealed, ratio, wanted_BM)


@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("sees_new", [True, False])
@pytest.mark.parametrize("has_time", [True, False])
def test_every_kind_of_head(width, sees_new, has_time):
    model = random_network()
    net = random_head(model, width=width, num_blocks=2, sees_new=sees_new, has_time=has_time)
    grid = model.on_grid(ROWS, COLUMNS)
    base = next_features(net, grid)
    assert [f.shape[1] for f in base] == [7 + 4 + ROWS * 6, 4 + 4 + ROWS * 6]
    sees = [
        not torch.equal(a, b) for a, b in zip(base, next_features(net, grid, codes=9), strict=True)
    ]
    minds = [
        not torch.equal(a, b) for a, b in zip(base, next_features(net, grid, 0.25), strict=True)
    ]
    assert (sees, minds) == ([sees_new] * 2, [has_time] * 2)
    in_turn = next_features(net, replace(grid, is_sequential=True))
    for a_BSD, b_BSD in zip(base, in_turn, strict=True):
        torch.testing.assert_close(a_BSD, b_BSD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_sequential", [False, True])
@pytest.mark.parametrize("num_blocks", [1, 2])
def test_a_head_predicts_only_what_is_wanted(is_sequential, num_blocks):
    """As if everything were; the rest is handed through."""
    model = random_network()
    net = random_head(model, num_blocks=num_blocks)
    grid = model.on_grid(ROWS, COLUMNS, is_sequential=is_sequential)
    wanted_BM = torch.tensor([[1, 5, L - 1], [0, 3, 4]])
    everywhere, there = next_features(net, grid), next_features(net, grid, wanted_BM=wanted_BM)
    before = next_features(net, grid, wanted_BM=wanted_BM[:, :0])
    for before_BSD, all_BSD, some_BSD in zip(before, everywhere, there, strict=True):
        place_BM = grid.image_positions(wanted_BM, all_BSD.shape[1])
        torch.testing.assert_close(tokens_at(some_BSD, place_BM), tokens_at(all_BSD, place_BM))
        is_other_BS = torch.ones(some_BSD.shape[:2]).scatter(1, place_BM, 0).bool()
        assert torch.equal(some_BSD[is_other_BS], before_BSD[is_other_BS])
        assert not torch.allclose(all_BSD[is_other_BS], before_BSD[is_other_BS])


def test_a_file_may_state_the_guidance_that_suits_source_images():
    plain, own = (
        builders.text_model(defaults=defaults)
        for defaults in ({}, {"guidance": [3.0], "source_guidance": [2.0, 1.5]})
    )
    for model, guidance, with_sources in ((plain, (4.0,), (2.5, 4.0)), (own, (3.0,), (2.0, 1.5))):
        assert usual_settings(model).guidance == guidance
        assert usual_settings(model, num_guided=2).guidance == with_sources


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_positions_are_the_same_with_gradients_and_without(dtype: torch.dtype) -> None:
    x_BSD = torch.linspace(-3, 3, 2 * 7 * 16).reshape(2, 7, 16).to(dtype)
    rotary = Rotary.at(torch.arange(7).unsqueeze(0), 8, 10_000.0)
    exact = rotary(x_BSD)
    with torch.no_grad():
        found = rotary(x_BSD)
    assert found.dtype == dtype and torch.equal(found, exact)
    lengths = (t.unflatten(-1, (2, 2, 4)).float().norm(dim=-2) for t in (found, x_BSD))
    torch.testing.assert_close(*lengths, rtol=0.01, atol=0.01)  # of each pair
    assert not torch.allclose(found[:, 1:], x_BSD[:, 1:])
    assert torch.equal(found[:, 0], x_BSD[:, 0]), "the first position is not turned"
