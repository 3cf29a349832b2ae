"""Measure what the published models take on a device: python -m experiments real-sizes --device cuda

The networks have the published sizes and random weights: neither the seconds nor the memory of a pass depend on the
values. Every row goes through the sampler that makes pictures, and the rows of a model are measured in turn, so that
what else the device does meanwhile falls on all of them. What the pictures would be worth is not measured here.

    B  images    P  prompt tokens    h, w  rows, columns of codes
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from experiments.tables.report import table
from experiments.tables.rows import hardware_of
from shortcut import weights
from shortcut.accelerators.shortcut_head import ShortcutPredictor
from shortcut.checkpoint import Checkpoint, cast
from shortcut.cli import cost
from shortcut.files import written_whole
from shortcut.flops import count_operations
from shortcut.generate import generate
from shortcut.grid import Grid, check_multiples
from shortcut.models.layout import Bare, Format
from shortcut.models.lumina_dimoo import head as lumina_head
from shortcut.models.lumina_dimoo import transformer as lumina
from shortcut.models.lumina_dimoo import vq as lumina_vq
from shortcut.models.maskgit import head as maskgit_head
from shortcut.models.maskgit import transformer as maskgit
from shortcut.models.maskgit import vqgan as maskgit_vqgan
from shortcut.models.maskgit.classes import class_branches
from shortcut.pipeline import checked_device
from shortcut.schedule import Settings

logger = logging.getLogger(__name__)

FLOAT8 = "float8_e4m3fn"
DTYPES = ("bfloat16", "float16", "float32", FLOAT8)
COLUMNS = ("", "weights", "steps", "full", "s / image", "of vanilla", "TFLOP / s", "peak GB")
# Source: facts of the published files; README.md "Published weights".
MASKGIT = maskgit.Config(
    grid=32, width=768, depth=24, num_heads=16, mlp_width=3072, num_codes=1024, num_classes=1000
)
MASKGIT_HEAD = maskgit_head.Config(
    model_width=768, width=384, num_blocks=2, num_heads=16, has_time=True
)
MASKGIT_VQ = maskgit_vqgan.Config(128, (1, 1, 2, 2, 4), 2, (4,), 256, 256, 1024)
GB = 1e9


@dataclass(frozen=True, slots=True)
class System:
    """A published model with its head and VQ model, by their sizes."""

    title: str
    model: tuple[Format, Any]
    head: tuple[Format, Any]
    vq: tuple[Format, Any]
    side: int  # pixels
    downscale: int  # pixels a side of one code
    conditions: Callable[[int], tuple[Tensor, ...]]  # of so many images

    @property
    def settings(self) -> Settings:
        """Return the settings of the original."""
        return Settings(**self.model[0].defaults)

    @property
    def runs(self) -> list[Settings]:
        """Return vanilla, then the presets with the head."""
        presets = list(self.model[0].presets.values())
        counts = [(presets[0].num_steps, None), *((p.num_steps, p.num_full) for p in presets)]
        return [replace(self.settings, num_steps=n, full_steps=full) for n, full in counts]


def _prompts(num_images: int) -> tuple[Tensor, ...]:
    """Return a prompt of 60 tokens and the unconditional one; the ids do not matter."""
    return tuple(
        torch.zeros(num_images, length, dtype=torch.long) for length in (60, cost.UNCONDITIONAL)
    )


SYSTEMS = {
    "lumina-dimoo": System(
        "Lumina-DiMOO",
        (lumina.FORMAT, cost.MODEL),
        (lumina_head.FORMAT, cost.HEAD),
        (lumina_vq.FORMAT, cost.VQ),
        1024,
        cost.VQ.downscale,
        _prompts,
    ),
    "maskgit-512": System(
        "MaskGIT, ImageNet 512",
        (maskgit.FORMAT, MASKGIT),
        (maskgit_head.FORMAT, MASKGIT_HEAD),
        (maskgit_vqgan.FORMAT, MASKGIT_VQ),
        512,
        16,
        lambda num_images: class_branches(torch.zeros(num_images, dtype=torch.long), 1000, 1),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A row of the table. Seconds and operations are per image."""

    name: str
    dtype: str  # of the weights
    num_steps: int | None = None  # None: no run, the VQ model alone
    num_full: int | None = None
    seconds: list[float]  # of each repeat
    share: float | None = None  # of the seconds of vanilla
    operations: int | None = None
    peak_bytes: int | None  # of everything on the device at a time; None: the device does not tell

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the row's text, by COLUMNS."""
        seconds = median(self.seconds)
        rate = self.operations and f"{self.operations / seconds / cost.T:.0f}"
        return (
            self.name,
            self.dtype,
            *("" if number is None else str(number) for number in (self.num_steps, self.num_full)),
            f"{seconds:.3f}" if seconds < 1 else f"{seconds:.2f}",
            "" if self.share is None else f"{self.share:.3f}",
            rate or "",
            "" if self.peak_bytes is None else f"{self.peak_bytes / GB:.1f}",
        )


def add_parser(steps: Any) -> None:
    """Add `real-sizes` to the command line."""
    about = "seconds and memory of the published models, with random weights: a table"
    parser = steps.add_parser("real-sizes", help=about, description=about)
    parser.add_argument("--models", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16"])
    parser.add_argument("--size", type=int, help="pixels a side; default: the model's")
    parser.add_argument("--batch", type=int, default=1, help="images at a time")
    parser.add_argument("--repeats", type=int, default=3, help="the table has the median")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print the table. Returns 0.

    Raises:
        ValueError: the device does not exist, or a model makes no pictures of that size.
    """
    device = checked_device(options.device)
    lines: list[Line] = []
    for name in options.models:
        system = SYSTEMS[name]
        side = options.size or system.side
        check_multiples(side, side, system.downscale)
        grid = side // system.downscale, side // system.downscale
        runs = [(settings, _operations(system, settings, grid)) for settings in system.runs]
        for dtype in options.dtypes:
            lines += measure(system, runs, grid, dtype, device, options.batch, options.repeats)
    print(table(COLUMNS, [line.cells for line in lines]))
    print(
        f"\nRandom weights. {hardware_of(device)}; torch {torch.__version__}; batch {options.batch}, median of "
        f"{options.repeats} runs. Peak: of all that lies on the device at a time."
    )
    if options.json is not None:
        with written_whole(options.json) as partial_path:
            partial_path.write_text(json.dumps([asdict(line) for line in lines], indent=1))
    return 0


def measure(
    system: System,
    runs: Sequence[tuple[Settings, int]],
    grid: Grid,
    dtype: str,
    device: torch.device,
    batch_size: int,
    repeats: int,
) -> list[Line]:
    """Return the rows of a system with weights of one type: its runs, vanilla first, and decoding.

    Args:
        runs: settings, and the operations of an image.
    """
    compute = torch.bfloat16 if dtype == FLOAT8 else getattr(torch, dtype)
    model_file = random_checkpoint(*system.model, compute, device)
    if dtype == FLOAT8:
        model_file = cast(model_file, torch.float8_e4m3fn)
    model: Any = weights.build(model_file, dtype=compute, device=device)
    del model_file
    head_file = random_checkpoint(*system.head, compute, device)
    head: Any = weights.build(head_file, dtype=compute, device=device)
    once = partial(_run, model, head, system.conditions(batch_size), grid, device)
    # The first calls of the kernels are slower; they are not in the figures.
    timed = [partial(once, settings) for settings, _ in runs]
    timed[-1]()
    seconds, peaks = _in_turn(timed, repeats, device)
    lines = [
        Line(
            name=f"{system.title}, {grid[1] * system.downscale} x {grid[0] * system.downscale}",
            dtype=dtype,
            num_steps=settings.num_steps,
            num_full=len(settings.full_indices(settings.num_steps)),
            seconds=[s / batch_size for s in taken],
            share=median(taken) / median(seconds[0]),
            operations=operations,
            peak_bytes=peak,
        )
        for (settings, operations), taken, peak in zip(runs, seconds, peaks, strict=True)
    ]
    return [*lines, _decoding(system, grid, dtype, device, repeats)]


def _run(
    model: Any,
    head: Any,
    conditions: Sequence[Tensor],
    grid: Grid,
    device: torch.device,
    settings: Settings,
) -> float:
    """Return the seconds of one batch."""
    return generate(
        model.on_grid(*grid),
        conditions,
        settings,
        seed=0,
        image_indices=range(len(conditions[0])),
        num_tokens=grid[0] * grid[1],
        predictor=None if settings.full_steps is None else partial(ShortcutPredictor, head),
        device=device,
    ).seconds


def _operations(system: System, settings: Settings, grid: Grid) -> int:
    """Return the FLOPs of one image."""
    model, head = (cost.shapes(f.network, config) for f, config in (system.model, system.head))
    used = None if settings.full_steps is None else head
    return count_operations(model, used, settings, system.conditions(1), grid).total


def _decoding(system: System, grid: Grid, dtype: str, device: torch.device, repeats: int) -> Line:
    """Return the row of the VQ model, in float32, with all else still on the device."""
    file = random_checkpoint(*system.vq, torch.float32, device)
    vq: Any = weights.build(file, dtype=torch.float32, device=device)
    codes_1hw = torch.zeros(1, *grid, dtype=torch.long, device=device)

    @torch.no_grad()
    def decode() -> float:
        begun = time.perf_counter()
        vq.decode(codes_1hw).cpu()
        return time.perf_counter() - begun

    decode()
    (seconds,), (peak,) = _in_turn([decode], repeats, device)
    side = grid[0] * system.downscale
    return Line(
        name=f"{system.title}, decoding {side} x {side}",
        dtype="float32" if dtype != FLOAT8 else f"float32, model {dtype}",
        seconds=seconds,
        peak_bytes=peak,
    )


def _in_turn(
    runs: Sequence[Callable[[], float]], repeats: int, device: torch.device
) -> tuple[list[list[float]], list[int | None]]:
    """Return the seconds of every repeat of every run, and the most bytes on the device while it ran."""
    seconds: list[list[float]] = [[] for _ in runs]
    peaks: list[int | None] = [None for _ in runs]
    for repeat in range(repeats):
        for number, once in enumerate(runs):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds[number].append(once())
            if device.type == "cuda":
                peaks[number] = torch.cuda.max_memory_allocated(device)
            logger.info("repeat %d, run %d: %.2f s", repeat, number, seconds[number][-1])
    return seconds, peaks


def random_checkpoint(
    format: Format, config: Any, dtype: torch.dtype, device: torch.device
) -> Checkpoint:
    """Return weights of a network with small random values; scales of norms are 1."""
    network = format.network(config, dtype=dtype, device="meta", operations=Bare)
    generator = torch.Generator(device).manual_seed(0)
    tensors = {}
    for name, shape in network.state_dict().items():
        tensor = torch.empty(shape.shape, dtype=dtype, device=device)
        is_norm = tensor.ndim == 1 and name.endswith("weight")
        tensors[name] = tensor.fill_(1) if is_norm else tensor.normal_(0, 0.02, generator=generator)
    return Checkpoint(format, config, tensors, "")
