"""The command `cost`: FLOPs and memory of a published model, without its weights.

Everything is measured on torch's meta device by the code that runs: FLOPs by torch's counter, memory by the tensors
alive at a time.

    B  images    L  image tokens    Y, X  pixel rows, columns
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from ..accelerators.choice import FLOAT8 as IN_FLOAT8
from ..accelerators.choice import HEAD, NAMES, PARTIAL, keeps, kept_bytes, needs_head
from ..accelerators.shortcut_head import ShortcutHead
from ..denoiser import Accelerator, Denoiser
from ..flops import LiveTensors, count_flops, fused
from ..grid import Grid, check_multiples, check_sides
from ..guard import MAX_IMAGES, check_whole
from ..models.architecture import (
    Architecture,
    Branches,
    GridModel,
    HeadNetwork,
    ModelNetwork,
    Network,
    PublishedSize,
    VQNetwork,
)
from ..models.layers import Bare
from ..models.layout import Layout
from ..noise import Noise
from ..sampler import Trace, sample
from ..schedule import Settings, Step, plan
from ..settings import usual_full_steps
from . import cards

MAX_PROMPT_TOKENS = 2**16
T, MB, GB = 1e12, 1e6, 1e9
FULL, LOGITS = "full pass", "logits, guidance, choice of tokens"  # parts of a run
DECODING = "VQ model, codes to picture"


@dataclass(frozen=True, slots=True)
class Published:
    """A published model on the meta device: shapes without values."""

    architecture: Architecture
    size: PublishedSize
    model: ModelNetwork
    head: HeadNetwork | None
    vq: VQNetwork

    @classmethod
    def named(cls, name: str) -> Published:
        """Return the model of that size."""
        architecture = sizes()[name]
        size, head = architecture.sizes[name], architecture.head
        vq = next(layout for layout in architecture.vqs if isinstance(size.vq, layout.config))
        return cls(
            architecture,
            size,
            without_values(architecture.model, size.model),
            None if head is None or size.head is None else without_values(head, size.head),
            without_values(vq, size.vq, torch.float32),
        )

    @property
    def settings(self) -> Settings:
        """The sampler settings of the original."""
        return self.architecture.settings


def sizes() -> Mapping[str, Architecture]:
    """Return the names of the published sizes and their architectures."""
    return {name: a for a in models.ARCHITECTURES for name in a.sizes}


def add_parser(commands: Any) -> None:
    """Add `cost` to the command line."""
    parser = commands.add_parser(
        "cost",
        description="Prints what a published model takes, counted without its weights, as Markdown tables.",
    )
    parser.add_argument("size", metavar="NAME", choices=list(sizes()), help=", ".join(sizes()))
    parser.add_argument("--width", type=int, help="pixels; default: of the model's training")
    parser.add_argument("--height", type=int, help="pixels; likewise")
    parser.add_argument("--steps", type=int, help="default: the original's")
    parser.add_argument(
        "--full-steps",
        type=int,
        nargs="+",
        help="full passes; rows for each; default: those of the presets that the steps leave room for",
    )
    parser.add_argument(
        "--accelerator",
        choices=NAMES,
        nargs="+",
        metavar="NAME",
        help="rows of the other steps: %(choices)s; default: head, if one is published, else partial",
    )
    parser.add_argument(
        "--prompt-tokens", type=int, default=60, help="with the system prompt; default: %(default)s"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="number of images")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the tables. Return 0."""
    published = Published.named(options.size)
    downscale = published.vq.config.downscale
    rows, columns = published.size.grid
    width = columns * downscale if options.width is None else options.width
    height = rows * downscale if options.height is None else options.height
    check_sides(width, height, downscale)
    check_multiples(width, height, downscale)
    check_whole("--prompt-tokens", options.prompt_tokens, 0, MAX_PROMPT_TOKENS)
    check_whole("--batch-size", options.batch_size, 1, MAX_IMAGES)
    grid = height // downscale, width // downscale
    rows = [0] * options.batch_size
    conditions = tuple(one[rows] for one in published.size.conditions(options.prompt_tokens))
    num_steps = published.settings.num_steps if options.steps is None else options.steps
    full_steps = options.full_steps
    if full_steps is None:
        usual = (preset.num_full for preset in published.architecture.presets.values())
        full_steps = [num_full for num_full in usual if num_full <= num_steps]
        if options.accelerator and not full_steps:
            full_steps = [usual_full_steps(published.architecture, num_steps)]
    images = "one image" if options.batch_size == 1 else f"{options.batch_size} images"
    print(f"{options.size}, {images} of {width} x {height} pixels with guidance.\n")
    names = options.accelerator or [PARTIAL if published.head is None else HEAD]
    for line in flops_table(published, grid, conditions, num_steps, full_steps, names):
        print(line, flush=True)
    print()
    at_once, in_turn = (
        run_peaks(published, grid, conditions, is_sequential=value) for value in (False, True)
    )
    decoding = vq_peaks(published.vq, grid, options.batch_size)
    for line in memory_table(published, at_once, in_turn, decoding):
        print(line, flush=True)
    print()
    vq_bytes = network_bytes(published.vq) + decoding[DECODING]
    needs = accelerator_needs(published, grid, conditions, at_once, in_turn)
    layout = published.architecture.model
    for line in cards.cards_table(layout, published.model, needs, vq_bytes):
        print(line, flush=True)
    return 0


def accelerator_needs(
    published: Published,
    grid: Grid,
    conditions: Branches,
    at_once: Mapping[str, int],
    in_turn: Mapping[str, int],
) -> Iterator[cards.Need]:
    """Yield what the head and partial passes take. Arguments as `memory_table`."""
    model = published.model.on_grid(*grid)
    lengths = [model.sequence_length(condition) for condition in conditions]
    if published.head is not None:
        head_bytes = network_bytes(published.head)
        yield cards.Need(HEAD, head_bytes, max(at_once.values()), max(in_turn.values()))
    for name in (f"{PARTIAL}{IN_FLOAT8}", PARTIAL):
        if kept := kept_bytes(name, model, len(conditions[0]), lengths):
            yield cards.Need(name, kept, *(max(p[FULL], p[LOGITS]) for p in (at_once, in_turn)))


def flops_table(
    published: Published,
    grid: Grid,
    conditions: Branches,
    num_steps: int,
    full_steps: Sequence[int],
    names: Sequence[str],
) -> Iterator[str]:
    """Yield a Markdown table: vanilla, then the accelerators at each number of full passes. In 10^12 FLOPs.

    Kept: keys and values. Read: weights of matrix products by each pass of model and head, and what is kept by each
    partial pass.
    """
    yield (
        "| steps | full | accelerator | full passes | partial | head | logits | rest | total, TFLOP | kept, GB | "
        "read, TB | of vanilla |"
    )
    yield f"|--:|--:|---|{9 * '--:|'}"
    vanilla, model = 0, published.model.on_grid(*grid)
    lengths = [model.sequence_length(condition) for condition in conditions]
    ways = [(num_steps, None), *((full, name) for full in full_steps for name in names)]
    rules, num_tokens = published.architecture.rules, grid[0] * grid[1]
    for num_full, name in ways:
        settings = replace(published.settings, num_steps=num_steps, full_steps=num_full)
        found = count_flops(
            published.model,
            published.head if needs_head(name) else None,
            settings,
            conditions,
            grid,
            rules=rules,
            accelerator=name,
        )
        kept = kept_bytes(name, model, len(conditions[0]), lengths)
        steps = plan(settings, num_tokens, num_tokens, rules)
        full_passes = sum(step.is_full for step in steps)
        read = full_passes * _product_bytes(published.model)
        if keeps(name):
            read += (len(steps) - full_passes) * (_product_bytes(published.model) + kept)
        if needs_head(name) and published.head is not None:
            read += (len(steps) - full_passes) * _product_bytes(published.head)
        total = found.total + found.rest
        vanilla = vanilla or total
        parts = (found.full, found.partial, found.head, found.logits, found.rest, total)
        figures = " | ".join(f"{part / T:.1f}" for part in parts)
        figures = f"{name or 'vanilla'} | {figures} | {kept / GB:.2f} | {read / T:.2f}"
        yield f"| {num_steps} | {num_full} | {figures} | {100 * total / vanilla:.1f} % |"


def _product_bytes(network: Network) -> int:
    """Return the bytes of the weights that a pass multiplies by."""
    layers = (layer for _, layer in network.named_modules() if isinstance(layer, nn.Linear))
    return sum(layer.weight.nbytes for layer in layers)


def memory_table(
    published: Published,
    at_once: Mapping[str, int],
    in_turn: Mapping[str, int],
    decoding: Mapping[str, int],
) -> Iterator[str]:
    """Yield a Markdown table: the most memory above the weights, in each part of a run. In megabytes.

    Args:
        at_once, in_turn: of a run with the guidance branches at once, and one at a time.
        decoding: of the VQ model.
    """
    yield "| above the weights, MB | branches at once | one at a time |"
    yield "|---|--:|--:|"
    for part in at_once:
        yield f"| {part} | {at_once[part] / MB:.0f} | {in_turn[part] / MB:.0f} |"
    yield f"| **run** | **{max(at_once.values()) / MB:.0f}** | **{max(in_turn.values()) / MB:.0f}** |"
    for part, peak in decoding.items():
        yield f"| {part} | {peak / MB:.0f} | |"
    networks = {"model": published.model, "head": published.head, "VQ model": published.vq}
    weights = [
        f"{name} {network_bytes(net) / GB:.2f} GB ({str(net.dtype).removeprefix('torch.')})"
        for name, net in networks.items()
        if net is not None
    ]
    yield f"\nWeights: {', '.join(weights)}."


def network_bytes(network: Network) -> int:
    """Return the bytes of a network's weights."""
    return sum(p.nbytes for p in network.parameters())


class _WatchedModel:
    """A model whose full pass and logits are parts of the memory's account."""

    def __init__(self, model: GridModel, memory: LiveTensors):
        self.grid, self.image_positions = model.grid, model.image_positions
        self.features = memory.during(FULL, model.features)
        self.logits = memory.during(LOGITS, model.logits)


class _WatchedHead(Accelerator):
    """An accelerator whose prediction is a part of the memory's account."""

    def __init__(self, accelerator: ShortcutHead, memory: LiveTensors):
        self.predict = memory.during("pass of the head", accelerator.predict)


class _Enough(Exception):
    """Ends a run before the sampler's last line, which reads a value."""


def _end_after(last: Step) -> Callable[[Trace], None]:
    def on_step(trace: Trace) -> None:
        if trace.step is last:
            raise _Enough

    return on_step


@torch.no_grad()
def run_peaks(
    published: Published, grid: Grid, conditions: Branches, *, is_sequential: bool
) -> dict[str, int]:
    """Return the bytes above the weights, at most in each part of a step; with what else is kept then."""
    model = published.model.on_grid(*grid, is_sequential=is_sequential)
    num_images, num_tokens = len(conditions[0]), grid[0] * grid[1]
    # A full pass, two of the head, of which the second has the first's features too, a full pass: later steps need no
    # more than these four.
    every_third = tuple(range(0, published.settings.num_steps, 3))
    settings = replace(published.settings, full_steps=every_third)
    steps = plan(settings, num_tokens, num_tokens, published.architecture.rules)
    noise = Noise(
        *torch.zeros(2, steps[-1].index + 1, num_images, num_tokens, device="meta").unbind()
    )
    networks = [net for net in (published.model, published.head) if net is not None]
    with LiveTensors(*networks) as memory:
        accelerator = None
        if published.head is not None:
            accelerator = _WatchedHead(ShortcutHead(published.head, model, conditions), memory)
        denoiser = Denoiser(_WatchedModel(model, memory), conditions, accelerator)
        codes_BL = torch.zeros(num_images, num_tokens, dtype=torch.long, device="meta")
        with contextlib.suppress(_Enough):
            sample(denoiser, codes_BL, codes_BL.bool(), steps, noise, _end_after(steps[:4][-1]))
    return memory.peaks


@torch.no_grad()
def vq_peaks(vq: VQNetwork, grid: Grid, num_images: int = 1) -> dict[str, int]:
    """Return the bytes above the weights that a VQ model takes before and after a run."""
    sides = (vq.config.downscale * side for side in grid)
    pixels_BCYX = torch.zeros(num_images, 3, *sides, device="meta")
    codes_Bhw: Tensor = torch.zeros(num_images, *grid, dtype=torch.long, device="meta")
    with LiveTensors(vq) as memory:
        memory.during("VQ model, picture to codes", vq.encode)(pixels_BCYX)
        memory.during(DECODING, vq.decode)(codes_Bhw)
    return memory.peaks


def without_values(layout: Layout, config: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a network that has shapes but no values."""
    network: Any = layout.network(
        config, dtype=dtype, device="meta", operations=Bare, attention=fused
    )
    return network.requires_grad_(False)
