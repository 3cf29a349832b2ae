"""Lumina-DiMOO against the original: network, shortcut head and whole runs with recorded noise.

Each has controls: versions that are wrong on purpose and must be told apart.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from golden_sets import load
from lumina_sets import network, special_ids
from shortcut_pack.shortcut.models import lumina
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
                lumina.Places.of(
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
                lumina.Places([sum(args[1].lengths)], args[1].rotary),
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
