"""Heads of MaskGIT that see the neighbourhood of new tokens."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import builders
import pytest
import torch
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.denoiser import Revealed
from shortcut_pack.shortcut.gather import tokens_at
from shortcut_pack.shortcut.models.maskgit.head import LAYOUT
from shortcut_pack.shortcut.models.maskgit.transformer import MaskGIT
from shortcut_pack.shortcut.models.nearby import Nearby
from shortcut_pack.shortcut.train.head import fit_to_embeddings, initialised
from shortcut_pack.shortcut.train.learn import head_config
from torch import nn

GRID, KERNEL = 6, 3
CONFIG = replace(builders.HEAD_CONFIG, kernel=KERNEL)


def changed_places(index: int) -> set[tuple[int, int]]:
    """Where the part says something else when a token is revealed at an image position."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        part = Nearby(8, 4, KERNEL, nn)
    token_BND, at_BN = torch.ones(1, 1, 8), torch.tensor([[index]])
    nothing_BLD = part.of(token_BND[:, :0], at_BN[:, :0], GRID, GRID)
    changed_BL = (part.of(token_BND, at_BN, GRID, GRID) != nothing_BLD).any(-1)
    return {divmod(place, GRID) for place in changed_BL[0].nonzero().flatten().tolist()}


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 3), (3, 5), (5, 0)])
def test_a_token_is_seen_around_its_place_and_nowhere_else(row, column):
    """Not across the edges of the grid: the end of a row is no neighbour of the next one's start."""
    around = {(row + y, column + x) for y in (-1, 0, 1) for x in (-1, 0, 1)}
    inside = {place for place in around if all(0 <= n < GRID for n in place)}
    assert changed_places(row * GRID + column) == inside


def test_the_head_asks_it():
    """Without any other way for new tokens, features change around them alone."""
    model: MaskGIT = checkpoints.build(builders.model())
    head = checkpoints.build(builders.head(CONFIG))
    for block in head.blocks:
        for attention in (block.cross_attention, block.self_attention):
            nn.init.zeros_(attention.out.weight)
    grid = model.config.grid
    features_BSD = torch.randn(1, grid**2 + 1, 32, generator=torch.Generator().manual_seed(1))
    codes_BN, index_BN = torch.tensor([[3]]), torch.tensor([[grid + 1]])

    def after(code: int) -> torch.Tensor:
        revealed = Revealed(torch.full_like(codes_BN, code), index_BN)
        return head.next_features(model, (features_BSD,), None, revealed, 0.5)[0]

    changed_S = (after(3) != after(4)).any(-1)[0]
    found = {divmod(place, grid) for place in changed_S.nonzero().flatten().tolist()}
    assert found == {(y, x) for y in (0, 1, 2) for x in (0, 1, 2)}


@pytest.mark.parametrize("attends", [True, False])
@pytest.mark.parametrize("num_blocks", [1, 2])
@torch.no_grad()
def test_only_what_is_wanted_is_predicted(attends, num_blocks):
    """As if everything were; the rest is handed through."""
    model: MaskGIT = checkpoints.build(builders.model())
    head = checkpoints.build(builders.head(replace(CONFIG, attends=attends, num_blocks=num_blocks)))
    generator = torch.Generator().manual_seed(1)
    features = tuple(torch.randn(2, model.config.grid**2 + 1, 32, generator=generator).unbind())
    features = tuple(branch_SD.expand(3, -1, -1) for branch_SD in features)
    revealed = Revealed(torch.tensor([[3, 4]] * 3), torch.tensor([[0, 5]] * 3))
    wanted_BM = torch.tensor([[1, 6, 15], [2, 3, 4], [9, 10, 11]])
    everywhere = head.next_features(model, features, None, revealed, 0.5)
    there = head.next_features(model, features, None, revealed, 0.5, wanted_BM)
    for before_BSD, all_BSD, some_BSD in zip(features, everywhere, there, strict=True):
        torch.testing.assert_close(tokens_at(some_BSD, wanted_BM), tokens_at(all_BSD, wanted_BM))
        is_other_BS = torch.ones(some_BSD.shape[:2]).scatter(1, wanted_BM, 0).bool()
        assert torch.equal(some_BSD[is_other_BS], before_BSD[is_other_BS])
        assert not torch.allclose(all_BSD[is_other_BS], before_BSD[is_other_BS])


@torch.no_grad()
def test_in_place_of_self_attention_features_see_their_neighbourhood_alone():
    """Not beyond it, and not the class."""
    head = checkpoints.build(builders.head(replace(CONFIG, attends=False)))
    grid, (row, column) = 4, (1, 0)
    x_BSD = torch.randn(1, grid**2 + 1, 32, generator=torch.Generator().manual_seed(1))
    other_BSD = x_BSD.clone()
    other_BSD[:, row * grid + column] += 1
    other_BSD[:, -1] += 1
    nothing_BND, nowhere_BN = torch.zeros(1, 0, 32), torch.zeros(1, 0, dtype=torch.long)

    def after(features_BSD: torch.Tensor) -> torch.Tensor:
        return head(features_BSD, nothing_BND, torch.tensor([0.5]), nowhere_BN) - features_BSD

    changed_S = ((after(x_BSD) - after(other_BSD)).abs() > 1e-6).any(-1)[0]
    assert changed_S[-1]
    found = {divmod(place, grid) for place in changed_S[:-1].nonzero().flatten().tolist()}
    assert found == {(y, x) for y in (0, 1, 2) for x in (0, 1)}


def test_training_begins_with_new_tokens_of_unit_size():
    """Else the convolution would see next to nothing of a model whose embeddings are small."""
    model: MaskGIT = checkpoints.build(builders.model())
    (
        model.token.weight.mul_(0.3),
        model.position.weight.mul_(0.3),
    )  # about 0.1, as in the shipped one
    head = initialised(LAYOUT, CONFIG, 0)
    fit_to_embeddings(head, model)
    codes_1N = torch.arange(model.config.num_codes).unsqueeze(0)
    new_1ND = model.embed(codes_1N, codes_1N % model.config.num_tokens)
    for projection in (head.new_token_proj_in, head.nearby.proj_in):
        assert 0.4 < projection(new_1ND).std().item() < 2  # without: 0.1


def test_new_tokens_are_scaled_where_the_head_is():
    """A host may keep the model's weights elsewhere."""
    asked = []

    def embed(codes_BN: torch.Tensor, index_BN: torch.Tensor) -> torch.Tensor:
        asked.append(codes_BN.device.type)
        return torch.zeros(*codes_BN.shape, CONFIG.model_width, device=codes_BN.device)

    model = SimpleNamespace(config=SimpleNamespace(num_codes=16), grid=(4, 4), embed=embed)
    fit_to_embeddings(initialised(LAYOUT, CONFIG, 0).to("meta"), model)
    assert asked == ["meta"]


def test_our_files_say_the_kernel(tmp_path):
    source = builders.write(tmp_path / "head.safetensors", builders.head(CONFIG))
    assert checkpoints.load(source, kind="head").config == CONFIG


def test_our_files_say_that_features_see_their_neighbourhood_alone(tmp_path):
    config = replace(CONFIG, attends=False)
    source = builders.write(tmp_path / "head.safetensors", builders.head(config))
    assert checkpoints.load(source, kind="head").config == config


def test_a_head_that_sees_features_around_but_no_tokens_is_refused(tmp_path):
    head = builders.head(replace(CONFIG, attends=False))
    tensors = {name: t for name, t in head.tensors.items() if not name.startswith("nearby.")}
    source = builders.write(tmp_path / "head.safetensors", replace(head, tensors=tensors))
    with pytest.raises(ValueError, match=r"nearby\.around\.weight"):
        checkpoints.load(source, kind="head")


@pytest.mark.parametrize("shape", [(16, 1, 4, 4), (16, 1, 3, 5)])
def test_a_file_with_an_impossible_kernel_is_refused(tmp_path, shape):
    head = builders.head(CONFIG)
    tensors = {**head.tensors, "nearby.around.weight": torch.zeros(shape)}
    source = builders.write(tmp_path / "head.safetensors", replace(head, tensors=tensors))
    with pytest.raises(ValueError, match=r"looks at . x . codes, expected a square of an odd side"):
        checkpoints.load(source, kind="head")


@pytest.mark.parametrize(("kernel", "expected"), [(None, 7), (0, 0), (5, 5)])
def test_new_heads_of_maskgit_have_a_neighbourhood_unless_told_otherwise(kernel, expected):
    config = head_config(builders.model(), kernel=kernel)
    assert (config.kernel, config.attends) == (expected, expected == 0)


@pytest.mark.parametrize("kernel", [4, -1])
def test_another_kernel_is_refused(kernel):
    with pytest.raises(ValueError, match=rf"must be odd, or 0 for none, got {kernel}"):
        head_config(builders.model(), kernel=kernel)


def test_heads_of_lumina_have_none():
    with pytest.raises(ValueError, match="cannot look at a neighbourhood, got kernel"):
        head_config(builders.text_model(), kernel=7)
