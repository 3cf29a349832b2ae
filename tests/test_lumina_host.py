"""What a host may rely on: weights that are away between calls, no waiting for a device."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from lumina_sets import head, network
from shortcut_pack.shortcut.accelerators.shortcut_head import ShortcutHead
from shortcut_pack.shortcut.denoiser import Denoiser, Revealed, guided_logits
from shortcut_pack.shortcut.models.layers import Bare
from shortcut_pack.shortcut.models.lumina_dimoo import ARCHITECTURE
from shortcut_pack.shortcut.noise import Noise
from shortcut_pack.shortcut.sampler import sample
from shortcut_pack.shortcut.schedule import plan
from test_sampler import NoSync
from torch import nn


def away(net: nn.Module) -> nn.Module:
    """A copy whose weights are there only while the layer that has them runs."""
    net = copy.deepcopy(net)
    for layer in net.modules():
        weights = dict(layer.named_parameters(recurse=False))
        if not weights:
            continue
        assert isinstance(layer, (nn.Linear, nn.Embedding, nn.RMSNorm)), type(layer)

        def put(layer: nn.Module, *_: Any, weights: Any, device: str) -> None:
            for name, value in weights.items():
                value = nn.Parameter(value.data.to(device), requires_grad=False)
                layer._parameters[name] = value

        def bring(layer: nn.Module, *_: Any, weights: Any = weights) -> None:
            put(layer, weights=weights, device="cpu")

        def take(layer: nn.Module, *_: Any, weights: Any = weights) -> None:
            put(layer, weights=weights, device="meta")

        layer.register_forward_pre_hook(bring)
        layer.register_forward_hook(take)
        take(layer)
    assert not list(net.buffers())
    return net


@torch.no_grad()
def test_no_weight_is_read_outside_its_layer():
    prompts = [torch.arange(5).unsqueeze(0), torch.arange(3).unsqueeze(0)]
    codes_BL = torch.arange(12).unsqueeze(0)
    revealed = Revealed(codes_BL[:, :2], codes_BL[:, 3:5])
    model, net = network("dimoo_backbone"), head("dimoo_sampling_t0_shortcut")
    results = []
    for base, shortcut in ((model, net), (away(model), away(net))):
        grid = base.on_grid(3, 4)
        features = grid.features(codes_BL, codes_BL > 6, prompts)
        features = shortcut.next_features(grid, features, prompts, revealed, 0.5)
        results.append(guided_logits(grid, features[:1], (), codes_BL))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)  # memory lies elsewhere


def test_the_host_reads_one_number_at_the_end_of_a_run():
    model, net = network("dimoo_backbone").on_grid(4, 6), head("dimoo_sampling_t0_shortcut")
    prompts = [torch.arange(5).repeat(2, 1), torch.arange(3).repeat(2, 1)]
    codes_BL = torch.zeros(2, 24, dtype=torch.long)
    settings = replace(ARCHITECTURE.settings, num_steps=30, full_steps=3)
    steps, reads = plan(settings, 24, 24, ARCHITECTURE.rules), []
    denoiser = Denoiser(model, prompts, ShortcutHead(net, model, prompts))
    noise = Noise.draw(0, range(2), 30, 24, "cpu")
    with NoSync() as watch:
        sample(
            denoiser, codes_BL, codes_BL == 0, steps, noise, lambda _: reads.append(watch.num_reads)
        )
    assert reads == [0] * len(steps)
    assert watch.num_reads == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_lower_precision_stays_near_float32(dtype, head_dtype):
    """And the features keep the model's type, logits are float32 for guidance and confidence."""
    prompts = [torch.arange(5).unsqueeze(0), torch.arange(3).unsqueeze(0)]
    codes_BL = torch.arange(12).unsqueeze(0)
    revealed = Revealed(codes_BL[:, :2], codes_BL[:, 3:5])
    results = []
    for base, shortcut in ((torch.float32, torch.float32), (dtype, head_dtype)):
        model = cast(network("dimoo_backbone"), base).on_grid(3, 4)
        features = model.features(codes_BL, codes_BL > 6, prompts)
        net = cast(head("dimoo_sampling_t0_shortcut"), shortcut)
        features = net.next_features(model, features, prompts, revealed, 0.5)
        assert {f.dtype for f in features} == {base}
        results.append(guided_logits(model, features[:1], (), codes_BL))
    assert results[1].dtype is torch.float32
    error = (results[0] - results[1]).abs().mean() / results[0].abs().mean()
    assert error < (0.05 if dtype is torch.bfloat16 else 0.01)


def cast(net: Any, dtype: torch.dtype) -> Any:
    cast = type(net)(net.config, dtype=dtype, operations=Bare).requires_grad_(False)
    cast.load_state_dict(net.state_dict())
    return cast


def test_a_head_can_be_trained():
    model, net = (
        network("dimoo_backbone").on_grid(3, 4),
        copy.deepcopy(head("dimoo_sampling_t0_shortcut")),
    )
    net.requires_grad_(True)
    prompts, codes_BL = [torch.arange(5).unsqueeze(0)], torch.arange(12).unsqueeze(0)
    features = model.features(codes_BL, codes_BL > 6, prompts)
    revealed = Revealed(codes_BL[:, :2], codes_BL[:, 3:5])
    net.next_features(model, features, prompts, revealed, 0.5)[0].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert all(p.grad is None for p in model.model.parameters())
