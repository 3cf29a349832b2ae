"""Measure which layers bear few bits: python -m experiments weight-layers

Layers of the shipped text model are quantized, and the others stay in float32. The error is that of the last features
of image tokens, first branch, against float32, in states of a recorded vanilla run: the norm of the difference, divided
by the norm. A second table is of one block of Lumina-DiMOO at its published size, with random weights and
activations in which some channels stand out, as in trained networks: the error of what the block adds to its input.

    B  images    S  sequence    D  width
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from experiments.tables.cases import FIRST_SEED, batched, batches, cases_of
from experiments.tables.report import table
from shortcut import Pipeline, quantized
from shortcut.denoiser import Conditions, image_features
from shortcut.grid import usual_grid
from shortcut.models import lumina_dimoo
from shortcut.models.layers import Bare, sdpa
from shortcut.models.lumina_dimoo.block import Block, SequencePositions
from shortcut.sampler import Trace
from shortcut.settings import usual_settings

State = tuple[
    Any, Tensor, Tensor, Sequence[Conditions]
]  # step, codes, which are masked, conditions
OUTLIERS = 64  # one channel in as many is `LOUDER` times as large as the others
LOUDER = 20.0


def add_parser(steps: Any) -> None:
    """Add `weight-layers` to the command line."""
    about = "measure the error of each layer in few bits: two tables (5 minutes)"
    parser = steps.add_parser("weight-layers", help=about, description=about)
    parser.add_argument("--num", type=int, default=16, help="prompts")
    parser.add_argument("--width", type=int, help="of the block; default: the published one")
    parser.set_defaults(run=run)


@torch.no_grad()
def run(options: argparse.Namespace) -> int:
    """Print the tables. Returns 0."""
    pipeline = Pipeline.load("scenes text")
    states = recorded(pipeline, options.num)
    rows = list(layer_rows(pipeline, states))
    print(table(("quantized", *quantized.TARGETS), rows))
    print(f"\nShipped text model, {len(states)} states of 16 vanilla steps, seed 1.\n")
    published = lumina_dimoo.ARCHITECTURE.sizes["lumina-dimoo"].model
    config = published if options.width is None else resized(published, options.width)
    print(table(("quantized", *quantized.TARGETS), block_rows(config)))
    print(
        f"\nOne block of width {config.width}, 64 tokens, weights normal with a deviation of 0.02; one channel in "
        f"{OUTLIERS} of the input is {LOUDER:.0f} times as large as the others."
    )
    return 0


def recorded(pipeline: Pipeline, num: int) -> list[State]:
    """Return states of vanilla runs: every fourth step."""
    cases = cases_of(pipeline, range(FIRST_SEED, FIRST_SEED + num))
    grid = usual_grid(pipeline.model_file)
    vanilla = replace(pipeline, head=None, accelerator_name=None)
    settings = replace(usual_settings(pipeline.model_file), num_steps=16)
    states: list[State] = []
    for numbers in batches(cases, num):
        conditions = batched(cases, numbers)

        def keep(trace: Trace, conditions: Sequence[Conditions] = conditions) -> None:
            if trace.step.index % 4 == 3 and trace.step.num_masked_after:
                states.append((trace.step, trace.codes_BL, trace.is_masked_BL, conditions[:1]))

        vanilla.sample(conditions, settings, grid, seed=1, image_indices=numbers, on_step=keep)
    return states


def layer_rows(pipeline: Pipeline, states: Sequence[State]) -> Iterator[tuple[str, ...]]:
    """Yield rows: each kind of layer in all blocks, all layers of each block, and all layers."""
    grid = usual_grid(pipeline.model_file)
    model = pipeline.model.on_grid(*grid)

    def features() -> Tensor:
        found = []
        for step, codes_BL, is_masked_BL, conditions in states:
            features_BSD = model.features(codes_BL, is_masked_BL, conditions, step)[0]
            index_BL = torch.arange(codes_BL.shape[1]).expand_as(codes_BL)
            found.append(image_features(model, features_BSD, index_BL).flatten(0, 1))
        return torch.cat(found)

    network, exact = cast(nn.Module, pipeline.model), features()
    names = [name for name, layer in network.named_modules() if is_quantizable(name, layer)]
    kinds = {name.split(".", 2)[2]: "" for name in names}
    blocks = {name.split(".", 2)[1]: "" for name in names}
    groups = {kind: [n for n in names if n.endswith(f".{kind}")] for kind in kinds}
    groups |= {f"block {b}": [n for n in names if n.startswith(f"blocks.{b}.")] for b in blocks}
    groups["all"] = names
    for kept in (list(kinds)[-1], f"block {max(blocks, key=int)}"):
        groups[f"all but {kept}"] = [name for name in names if name not in groups[kept]]
    for title, group in groups.items():
        errors = []
        for target in quantized.TARGETS.values():
            with replaced(network, group, target):
                errors.append(f"{relative(features(), exact):.2%}")
        yield (title, *errors)


def block_rows(config: Any) -> Iterator[tuple[str, ...]]:
    """Yield rows: the error of a block's output with each of its layers quantized, and with all."""
    generator = torch.Generator().manual_seed(0)
    block = Block(config, Bare, sdpa, {"dtype": torch.float32, "device": "cpu"})
    louder_D = torch.where(torch.arange(config.width) % OUTLIERS == 0, LOUDER, 1.0)
    for name, parameter in block.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0, 0.02, generator=generator)
    x_BSD = torch.randn(1, 64, config.width, generator=generator) * louder_D
    positions = SequencePositions.whole([64], config, "cpu")
    exact = block(x_BSD, positions) - x_BSD
    names = [name for name, layer in block.named_modules() if isinstance(layer, nn.Linear)]
    for title, group in {**{name: [name] for name in names}, "all": names}.items():
        errors = []
        for target in quantized.TARGETS.values():
            with replaced(block, group, target):
                errors.append(f"{relative(block(x_BSD, positions) - x_BSD, exact):.2%}")
        yield (title, *errors)


@contextmanager
def replaced(network: nn.Module, names: Sequence[str], target: quantized.Target) -> Iterator[None]:
    """Have the linear layers `names` quantized within the block."""
    before = {name: network.get_submodule(name) for name in names}
    for name, layer in before.items():
        network.set_submodule(name, quantized_layer(cast(nn.Linear, layer), target))
    yield
    for name, layer in before.items():
        network.set_submodule(name, layer)


def quantized_layer(layer: nn.Linear, target: quantized.Target) -> nn.Module:
    """Return the layer with a quantized weight."""
    format = str(quantized.format_of(target))
    stored = quantized.quantize("weight", layer.weight.detach(), format)
    state = {name.removeprefix("weight."): tensor for name, tensor in stored.items()}
    if layer.bias is not None:
        state["bias"] = layer.bias.detach()
    made = quantized.Operations.Linear(
        layer.in_features, layer.out_features, layer.bias is not None, device="meta"
    )
    made.load_state_dict(state, assign=True)
    return made


def is_quantizable(name: str, layer: nn.Module) -> bool:
    """Return whether a layer is a linear one of the blocks."""
    return isinstance(layer, nn.Linear) and name.startswith("blocks.")


def relative(found: Tensor, exact: Tensor) -> float:
    """Return the norm of the difference, divided by the norm."""
    return float((found - exact).norm() / exact.norm())


def resized(config: Any, width: int) -> Any:
    """Return the configuration of a block of another width, with as wide heads."""
    heads = width // (config.width // config.num_heads)
    return replace(config, width=width, num_heads=heads, num_kv_heads=heads, mlp_width=3 * width)
