"""Measure what the published models take on a device: python -m experiments real-sizes --device cuda

The networks have the published sizes and random weights: neither the seconds nor the memory of a pass depend on the
values. Every row goes through the sampler that makes pictures, and the rows of a model are measured in turn, so that
other work on the device disturbs all of them alike. The worth of the pictures is not measured here.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from experiments.tables.report import table
from experiments.tables.rows import hardware_of
from shortcut import checkpoint as checkpoints
from shortcut.accelerators.choice import HEAD, NAMES, named, needs_head
from shortcut.checkpoint import Checkpoint
from shortcut.compiled import Compiled
from shortcut.cuda_graph import Recordings
from shortcut.denoiser import Conditions
from shortcut.devices import checked_device
from shortcut.flops import count_flops
from shortcut.generate import StartRun, generate, unrecorded
from shortcut.models import ARCHITECTURES
from shortcut.models.architecture import (
    Architecture,
    Grid,
    HeadNetwork,
    ModelNetwork,
    PublishedSize,
)
from shortcut.models.layers import Bare
from shortcut.models.layout import Layout
from shortcut.models.uvit_parts import TextCondition
from shortcut.quantized import TARGETS
from shortcut.schedule import Settings

logger = logging.getLogger(__name__)

DTYPES = ("bfloat16", "float16", "float32", *TARGETS)
COLUMNS = (
    *("", "weights", "accelerator", "steps", "full", "s / image", "of vanilla", "TFLOP / s"),
    "peak GB",
)
NUM_PROMPT_TOKENS = 60
T, GB = 1e12, 1e9
Run = tuple[Settings, str | None]  # with its accelerator; None = vanilla


@dataclass(frozen=True, slots=True)
class System:
    """A published model with its head and VQ model."""

    architecture: Architecture
    size: PublishedSize

    def conditions(self, num_images: int) -> tuple[Conditions, ...]:
        """Return the conditions of a run; their values do not matter."""
        return tuple(_zeros(c, num_images) for c in self.size.conditions(NUM_PROMPT_TOKENS))

    def runs(self, full_steps: Sequence[int], accelerators: Sequence[str]) -> list[Run]:
        """Return vanilla, then the presets with each accelerator, or that many full passes in as many steps."""
        presets = list(self.architecture.presets.values())
        num_steps, settings = presets[0].num_steps, self.architecture.settings
        counts = [(num_steps, full) for full in full_steps] or presets
        return [
            (replace(settings, num_steps=num_steps), None),
            *(
                (replace(settings, num_steps=steps, full_steps=full), name)
                for name in accelerators
                for steps, full in counts
            ),
        ]

    def flops(self, run: Run, grid: Grid) -> int:
        """Return the FLOPs of one image."""
        (settings, accelerator), architecture = run, self.architecture
        model = architecture.model.network(self.size.model, device="meta", operations=Bare)
        head = None
        if needs_head(accelerator) and architecture.head is not None:
            head = architecture.head.network(self.size.head, device="meta", operations=Bare)
        return count_flops(
            cast(ModelNetwork, model),
            cast(HeadNetwork, head),
            settings,
            self.conditions(1),
            grid,
            rules=architecture.rules,
            accelerator=accelerator,
        ).total


def _zeros(condition: Conditions, num_images: int) -> Conditions:
    """Return a condition of that many images like one of the meta device."""
    if isinstance(condition, TextCondition):
        parts = (condition.states_BPC, condition.pooled_BC, condition.micro_B5)
        return TextCondition(*(torch.zeros(num_images, *part.shape[1:]) for part in parts))
    assert isinstance(condition, Tensor)
    return torch.zeros(num_images, *condition.shape[1:], dtype=torch.long)


SYSTEMS = {
    name: System(architecture, size)
    for architecture in ARCHITECTURES
    for name, size in architecture.sizes.items()
}


def add_parser(steps: Any) -> None:
    """Add `real-sizes` to the command line."""
    about = "seconds and memory of the published models, with random weights: a table"
    parser = steps.add_parser("real-sizes", help=about, description=about)
    parser.add_argument("--models", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16"])
    parser.add_argument("--batch", type=int, default=1, help="images at a time")
    parser.add_argument("--repeats", type=int, default=3, help="the table has the median")
    parser.add_argument("--full-steps", type=int, nargs="+", default=[], help="default: presets")
    parser.add_argument("--accelerator", nargs="+", choices=NAMES, default=[HEAD])
    parser.add_argument("--compile", action="store_true", help="compile the blocks")
    parser.add_argument("--cuda-graph", action="store_true", help="record the runs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print the table. Returns 0. Raises ValueError if the device does not exist."""
    device = checked_device(options.device)
    print(table(COLUMNS, []), flush=True)
    for name in options.models:
        for dtype in options.dtypes:
            for line in measure(SYSTEMS[name], dtype, device, options):
                print(f"| {' | '.join(line)} |", flush=True)
    ways = {"compiled": options.compile, "as CUDA graphs": options.cuda_graph}
    runs = ", ".join((f"{options.repeats} runs", *(way for way, is_on in ways.items() if is_on)))
    print(
        f"\nRandom weights. {hardware_of(device)}; torch {torch.__version__}; batch {options.batch}, median of {runs}. "
        "Peak: of all that lies on the device at a time, in any of them."
    )
    return 0


def measure(
    system: System, dtype: str, device: torch.device, options: argparse.Namespace
) -> list[tuple[str, ...]]:
    """Return the rows of a system with weights of one type, by COLUMNS: the runs, and decoding."""
    batch_size: int = options.batch
    architecture, size = system.architecture, system.size
    assert architecture.head is not None
    compute = torch.bfloat16 if dtype in TARGETS else getattr(torch, dtype)
    model_file = random_checkpoint(architecture.model, size.model, compute, device)
    if dtype in TARGETS:
        model_file = checkpoints.cast(model_file, TARGETS[dtype], device)
    model = checkpoints.build(model_file, dtype=compute, device=device)
    del model_file
    head_file = random_checkpoint(architecture.head, size.head, compute, device)
    head = checkpoints.build(head_file, dtype=compute, device=device)
    if options.compile:
        cast(ModelNetwork, model).in_order = Compiled(iter, {})
    grid, num_tokens = size.grid, size.grid[0] * size.grid[1]
    runs = system.runs(options.full_steps, options.accelerator)

    def sampled(run: Run, start: StartRun) -> float:
        settings, accelerator = run
        return generate(
            model.on_grid(*grid),
            system.conditions(batch_size),
            settings,
            architecture.rules,
            seed=0,
            image_indices=range(batch_size),
            num_tokens=num_tokens,
            accelerator=None if accelerator is None else named(accelerator, head),
            device=device,
            start=start,
        ).seconds

    vq_file = random_checkpoint(architecture.vqs[0], size.vq, torch.float32, device)
    vq = checkpoints.build(vq_file, dtype=torch.float32, device=device)
    codes_1hw = torch.zeros(1, *grid, dtype=torch.long, device=device)

    @torch.no_grad()
    def decoded() -> float:
        begun = time.perf_counter()
        vq.decode(codes_1hw).cpu()
        return time.perf_counter() - begun

    starts = [Recordings().start(run) if options.cuda_graph else unrecorded for run in runs]
    once = [*map(partial, repeat(sampled), runs, starts), decoded]
    for warm_up in once if options.compile else once[-2:]:
        warm_up()
    seconds, peaks = _in_turn(once, options.repeats, device)
    height, width = (side * size.vq.downscale for side in grid)
    lines = []
    for run, taken, peak in zip(runs, seconds, peaks, strict=False):
        (settings, accelerator), each = run, median(taken) / batch_size
        lines.append(
            (
                f"{architecture.title}, {width} x {height}",
                dtype,
                accelerator or "vanilla",
                str(settings.num_steps),
                str(len(settings.full_indices(settings.num_steps))),
                f"{each:.3f}",
                f"{median(taken) / median(seconds[0]):.3f}",
                f"{system.flops(run, grid) / each / T:.0f}",
                peak,
            )
        )
    title, beside = f"{architecture.title}, decoding {width} x {height}", f"float32, model {dtype}"
    lines.append((title, beside, "", "", "", f"{median(seconds[-1]):.3f}", "", "", peaks[-1]))
    return lines


def _in_turn(
    runs: Sequence[Callable[[], float]], repeats: int, device: torch.device
) -> tuple[list[list[float]], list[str]]:
    """Return the seconds of every repeat of every run, and the most GB on the device while it ran."""
    seconds: list[list[float]] = [[] for _ in runs]
    peaks = [0 for _ in runs]  # a recorded run takes memory in the first repeat only
    for turn in range(repeats):
        for number, once in enumerate(runs):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds[number].append(once())
            if device.type == "cuda":
                peaks[number] = max(peaks[number], torch.cuda.max_memory_allocated(device))
            logger.info("repeat %d, run %d: %.2f s", turn, number, seconds[number][-1])
    return seconds, [f"{peak / GB:.1f}" if peak else "" for peak in peaks]


def random_checkpoint(
    layout: Layout, config: Any, dtype: torch.dtype, device: torch.device
) -> Checkpoint:
    """Return weights of a network with small random values; scales of norms are 1."""
    network = layout.network(config, dtype=dtype, device="meta", operations=Bare)
    generator = torch.Generator(device).manual_seed(0)
    tensors = {}
    for name, shape in network.state_dict().items():
        tensor = torch.empty(shape.shape, dtype=dtype, device=device)
        is_norm = tensor.ndim == 1 and name.endswith("weight")
        tensors[name] = tensor.fill_(1) if is_norm else tensor.normal_(0, 0.02, generator=generator)
    return Checkpoint(layout, config, tensors, "")
