"""Lumina-DiMOO against the original: network, shortcut head and whole runs with recorded noise.

Each has controls: versions that are wrong on purpose and must be told apart.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden_sets import load
from lumina_sets import head, network, special_ids
from shortcut_pack.shortcut.models.lumina_dimoo import transformer as lumina
from shortcut_pack.shortcut.models.lumina_dimoo.block import SequencePositions
from shortcut_pack.shortcut.models.lumina_dimoo.head import LuminaHead
from torch import nn

BRANCHES = ("cond", "uncond")  # of the set dimoo_backbone


def check_backbone(model: lumina.LuminaDiMOO) -> None:
    """Compares the input of every block, the features and the logits of both branches."""
    golden = load("dimoo_backbone")
    inputs: list[torch.Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        for block in model.blocks
    ]
    cond_BSD, uncond_BSD = model([golden[name] for name in BRANCHES])
    for hook in hooks:
        hook.remove()
    for i, x_BSD in enumerate(inputs):
        golden.assert_close(x_BSD[:, : cond_BSD.shape[1]], f"cond/hidden{i}")
    golden.assert_close(cond_BSD, "cond/last_feat")
    golden.assert_close(uncond_BSD, "uncond/last_feat")
    logits_BSV = golden["cond/logits"][..., model.config.num_text_ids :]
    golden.assert_near(model.code_output(cond_BSD), logits_BSV, "cond/logits")


def test_network_equals_the_original():
    check_backbone(network("dimoo_backbone"))


def with_interleaved_heads(model: lumina.LuminaDiMOO) -> None:
    """Rotary embeddings that pair neighbours instead of halves."""
    for block in model.blocks:
        for layer in (block.query, block.key):
            rows = layer.weight.unflatten(0, (model.config.num_heads, 2, -1))
            layer.weight = nn.Parameter(rows.transpose(1, 2).flatten(0, 2), requires_grad=False)


def without_places(model: lumina.LuminaDiMOO) -> None:
    """Every token at the same place."""
    for block in model.blocks:
        block.register_forward_pre_hook(
            lambda _, args: (
                args[0],
                SequencePositions.of(
                    [torch.zeros(1, length) for length in args[1].lengths], model.config
                ),
            )
        )


def with_one_sequence(model: lumina.LuminaDiMOO) -> None:
    """Branches that see each other."""
    for block in model.blocks:
        block.register_forward_pre_hook(
            lambda _, args: (
                args[0],
                SequencePositions([sum(args[1].lengths)], args[1].rotary),
            )
        )


def with_gate_and_up_swapped(model: lumina.LuminaDiMOO) -> None:
    for block in model.blocks:
        mlp = block.feed_forward
        mlp.gate, mlp.up = mlp.up, mlp.gate


def without_norm_weights(model: lumina.LuminaDiMOO) -> None:
    model.final_norm.weight = nn.Parameter(torch.ones(64), requires_grad=False)


@pytest.mark.parametrize(
    "spoil",
    [
        with_interleaved_heads,
        without_places,
        with_one_sequence,
        with_gate_and_up_swapped,
        without_norm_weights,
    ],
)
def test_control_a_wrong_network_is_told_apart(spoil: Callable[[lumina.LuminaDiMOO], None]):
    model = copy.deepcopy(network("dimoo_backbone"))
    spoil(model)
    with pytest.raises(AssertionError):
        check_backbone(model)


def check_head(model: LuminaHead) -> None:
    """Compares the features that it predicts in the four cases of the set, and its inner values in one."""
    golden = load("dimoo_shortcut_head")
    for case in ("a", "b", "c", "zero_new"):
        is_new_BS = golden[f"{case}/new_token_map"]
        features_BSD, new_BND = golden[f"{case}/prev_feat"], golden[f"{case}/new_token"]
        inner, hooks = watched(model) if case == "a" else ({}, [])
        next_BSD = model(
            features_BSD,
            SequencePositions.whole([features_BSD.shape[1]], model.config, "cpu"),
            new_BND,
            SequencePositions.of([is_new_BS.nonzero()[:, 1].unsqueeze(0)], model.config),
            golden[f"{case}/mask_ratio"],
        )
        for hook in hooks:
            hook.remove()
        for name, value in inner.items():
            golden.assert_close(value, f"a/mid/{name}")
        golden.assert_close(next_BSD, f"{case}/feat")


def watched(model: LuminaHead) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """What layers of the head give when it runs, and the hooks to remove after that."""
    inner: dict[str, torch.Tensor] = {}
    layers = {
        "proj_in": model.proj_in,
        "block0_cross": model.blocks[0].cross_attention,
        "block0": model.blocks[0],
        "ln_f": model.final_norm,
        "time_emb": model.time.time_out,
        "adaln": model.time.modulation,
    }
    return inner, [
        layer.register_forward_hook(lambda _, __, out, name=name: inner.update({name: out}))
        for name, layer in layers.items()
    ]


def test_head_equals_the_original():
    check_head(head("dimoo_shortcut_head"))


def with_raw_keys(model: LuminaHead) -> None:
    """New tokens that do not go through the norm of the queries."""
    block = model.blocks[0].cross_attention
    norm = block.attention_norm
    calls = [0]

    def raw(_: nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return out if calls[0] % 2 else args[0]

    norm.register_forward_hook(raw)


def with_new_tokens_in_a_row(model: LuminaHead) -> None:
    """New tokens at the places 0, 1, 2 .. instead of their own."""
    model.register_forward_pre_hook(
        lambda _, args: (
            *args[:3],
            SequencePositions.whole(args[3].lengths, model.config, "cpu"),
            args[4],
        )
    )


def with_blind_cross_attention(model: LuminaHead) -> None:
    model.new_token_proj_in = None


def with_modulation_before_the_norm(model: LuminaHead) -> None:
    model.final_norm, model.time = (
        nn.Identity(),
        Reversed(model.time, model.final_norm),
    )


class Reversed(nn.Module):
    """Modulates, then normalises."""

    def __init__(self, time: nn.Module, norm: nn.Module):
        super().__init__()
        self.time, self.norm = time, norm
        self.time_out, self.modulation = time.time_out, time.modulation

    def forward(self, x_BSD: torch.Tensor, mask_ratio_B: torch.Tensor) -> torch.Tensor:
        return self.norm(self.time(x_BSD, mask_ratio_B))


def with_unscaled_ratio(model: LuminaHead) -> None:
    model.time.register_forward_pre_hook(lambda _, args: (args[0], args[1] / 1000))


@pytest.mark.parametrize(
    "spoil",
    [
        with_raw_keys,
        with_new_tokens_in_a_row,
        with_blind_cross_attention,
        with_modulation_before_the_norm,
        with_unscaled_ratio,
    ],
)
def test_control_a_wrong_head_is_told_apart(spoil: Callable[[LuminaHead], None]):
    model = copy.deepcopy(head("dimoo_shortcut_head"))
    spoil(model)
    with pytest.raises(AssertionError):
        check_head(model)


@pytest.mark.parametrize("name", ["dimoo_backbone", "dimoo_real_layout"])
def test_special_tokens_stand_where_the_original_has_them(name):
    names = {
        "mask": "mask",
        "newline": "newline",
        "boa": "boa",
        "eoa": "eoa",
        "boi": "boi",
        "eoi": "eoi",
        "uncondition": "uncondition",
        "system": "sys_open",
        "/system": "sys_close",
        "user": "user_open",
        "/user": "user_close",
    }
    config, ids = network(name).config, special_ids(name)
    assert config.num_text_ids == ids["text_vocab_size"]
    assert {ours: config.special_id(ours) for ours in lumina.SPECIAL_IDS} == {
        ours: ids[theirs] for ours, theirs in names.items()
    }
