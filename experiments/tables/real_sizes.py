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
from statistics import median
from typing import Any

import torch
from torch import Tensor

from experiments.tables.report import table
from experiments.tables.rows import hardware_of
from shortcut import checkpoint as checkpoints
from shortcut.accelerators.choice import named
from shortcut.checkpoint import Checkpoint
from shortcut.cuda_graph import Recordings, Start, unrecorded
from shortcut.devices import checked_device
from shortcut.flops import count_flops
from shortcut.generate import generate
from shortcut.models import ARCHITECTURES
from shortcut.models.architecture import Architecture, Grid, PublishedSize
from shortcut.models.layers import Bare
from shortcut.models.layout import Layout
from shortcut.quantized import TARGETS
from shortcut.schedule import Settings

logger = logging.getLogger(__name__)

DTYPES = ("bfloat16", "float16", "float32", *TARGETS)
COLUMNS = ("", "weights", "steps", "full", "s / image", "of vanilla", "TFLOP / s", "peak GB")
NUM_PROMPT_TOKENS = 60
T, GB = 1e12, 1e9


@dataclass(frozen=True, slots=True)
class System:
    """A published model with its head and VQ model."""

    architecture: Architecture
    size: PublishedSize

    def conditions(self, num_images: int) -> tuple[Tensor, ...]:
        """Return the conditions of a run; their values do not matter."""
        shapes = (c.shape[1:] for c in self.size.conditions(NUM_PROMPT_TOKENS))  # pyright: ignore
        return tuple(torch.zeros(num_images, *shape, dtype=torch.long) for shape in shapes)

    @property
    def runs(self) -> list[Settings]:
        """Return the settings of vanilla, then of the presets with the head."""
        presets = list(self.architecture.presets.values())
        counts = [(presets[0].num_steps, None), *presets]
        settings = self.architecture.settings
        return [replace(settings, num_steps=n, full_steps=full) for n, full in counts]

    def flops(self, settings: Settings, grid: Grid) -> int:
        """Return the FLOPs of one image."""
        architecture, conditions = self.architecture, self.conditions(1)
        model = architecture.model.network(self.size.model, device="meta", operations=Bare)
        head = None
        if settings.full_steps is not None and architecture.head is not None:
            head = architecture.head.network(self.size.head, device="meta", operations=Bare)
        rules = architecture.rules
        return count_flops(model, head, settings, conditions, grid, rules=rules).total  # pyright: ignore


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
    parser.add_argument("--cuda-graph", action="store_true", help="record the runs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print the table. Returns 0. Raises ValueError if the device does not exist."""
    device = checked_device(options.device)
    lines = []
    for name in options.models:
        for dtype in options.dtypes:
            start = Recordings().start(name) if options.cuda_graph else unrecorded
            lines += measure(SYSTEMS[name], dtype, device, options.batch, options.repeats, start)
    print(table(COLUMNS, lines))
    print(
        f"\nRandom weights. {hardware_of(device)}; torch {torch.__version__}; batch {options.batch}, median of "
        f"{options.repeats} runs{', as CUDA graphs' if options.cuda_graph else ''}. Peak: of all that lies on the "
        "device at a time."
    )
    return 0


def measure(
    system: System,
    dtype: str,
    device: torch.device,
    batch_size: int,
    repeats: int,
    start: Start,
) -> list[tuple[str, ...]]:
    """Return the rows of a system with weights of one type, by COLUMNS: vanilla, presets, decoding."""
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
    grid, num_tokens = size.grid, size.grid[0] * size.grid[1]

    def sampled(settings: Settings) -> float:
        return generate(
            model.on_grid(*grid),
            system.conditions(batch_size),
            settings,
            architecture.rules,
            seed=0,
            image_indices=range(batch_size),
            num_tokens=num_tokens,
            accelerator=None if settings.full_steps is None else named("head", head),
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

    once = [*(partial(sampled, settings) for settings in system.runs), decoded]
    for warm_up in once[-2:]:
        warm_up()
    seconds, peaks = _in_turn(once, repeats, device)
    height, width = (side * size.vq.downscale for side in grid)
    lines = []
    for settings, taken, peak in zip(system.runs, seconds, peaks, strict=False):
        each, flops = median(taken) / batch_size, system.flops(settings, grid)
        lines.append(
            (
                f"{architecture.title}, {width} x {height}",
                dtype,
                str(settings.num_steps),
                str(len(settings.full_indices(settings.num_steps))),
                f"{each:.3f}",
                f"{median(taken) / median(seconds[0]):.3f}",
                f"{flops / each / T:.0f}",
                peak,
            )
        )
    title, beside = f"{architecture.title}, decoding {width} x {height}", f"float32, model {dtype}"
    lines.append((title, beside, "", "", f"{median(seconds[-1]):.3f}", "", "", peaks[-1]))
    return lines


def _in_turn(
    runs: Sequence[Callable[[], float]], repeats: int, device: torch.device
) -> tuple[list[list[float]], list[str]]:
    """Return the seconds of every repeat of every run, and the most GB on the device while it ran."""
    seconds: list[list[float]] = [[] for _ in runs]
    peaks = ["" for _ in runs]
    for repeat in range(repeats):
        for number, once in enumerate(runs):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds[number].append(once())
            if device.type == "cuda":
                peaks[number] = f"{torch.cuda.max_memory_allocated(device) / GB:.1f}"
            logger.info("repeat %d, run %d: %.2f s", repeat, number, seconds[number][-1])
    return seconds, peaks


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
