"""Rows of the quality table, the pipeline under test, resuming, the cost of a row.

B  images    L  image tokens    h, w  rows, columns of codes
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from shortcut import Pipeline
from shortcut.accelerators import MakeAccelerator
from shortcut.accelerators.choice import NAMES, named
from shortcut.denoiser import Conditions
from shortcut.flops import count_flops
from shortcut.generate import generate, needed_branches
from shortcut.grid import Grid, usual_grid
from shortcut.schedule import Settings

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = {"vq": 0, "vanilla": 1, **dict.fromkeys(NAMES, 2)}  # numbers in a row's name
ORDERS = ("halton", "corrected")  # of revealing
Figures = dict[str, Any]  # of a row and seed, as JSON; "seconds" is per image


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table, by its name on the command line."""

    kind: str  # one of KINDS
    num_steps: int = 0
    full_steps: int = 0
    order: str = ""  # one of ORDERS; "" = as the settings have it

    @classmethod
    def parse(cls, name: str) -> Row:
        """Return the row of a name. Raises ValueError for an unknown one."""
        way, _, order = name.partition("@")
        kind, *numbers = re.split(r"-(?=\d)", way)  # an accelerator's name may have a dash
        is_known = KINDS.get(kind) == len(numbers) and order in ("", *ORDERS)
        if not is_known or not all(number.isdecimal() for number in numbers):
            raise ValueError(
                f"there is no row {name!r}. Expected vq, vanilla-STEPS or ACCELERATOR-STEPS-FULL, such as "
                f"head-32-8 or head-32-8@halton. Accelerators: {', '.join(NAMES)}. Orders: {', '.join(ORDERS)}."
            )
        sizes = [int(number) for number in numbers]
        return cls(kind, *(sizes if len(sizes) != 1 else 2 * sizes), order=order)

    @property
    def name(self) -> str:
        """Return the name on the command line."""
        numbers = (self.num_steps, self.full_steps)[: KINDS[self.kind]]
        return "@".join(filter(None, ("-".join(map(str, (self.kind, *numbers))), self.order)))


@dataclass(frozen=True, slots=True)
class Subject:
    """A pipeline under test, its judge, and how it is run."""

    pipeline: Pipeline
    judge: Any
    settings: Settings  # all but the steps
    batch_size: int

    @property
    def grid(self) -> Grid:
        """Return the grid of its pictures."""
        return usual_grid(self.pipeline.model_file)

    def settings_of(self, row: Row) -> Settings:
        """Return the sampler settings of a row."""
        full_steps = None if row.kind == "vanilla" else row.full_steps
        settings = replace(self.settings, num_steps=row.num_steps, full_steps=full_steps)
        return replace(settings, order=row.order) if row.order else settings

    def accelerator(self, row: Row) -> MakeAccelerator | None:
        """Return what makes the accelerator of a row's runs."""
        return named(row.kind, self.pipeline.head) if row.kind in NAMES else None

    def sample(
        self, row: Row, conditions: Sequence[Conditions], seed: int, images: Sequence[int]
    ) -> tuple[Tensor, float]:
        """Return codes (B, h, w) of the images with these numbers, and the seconds of sampling."""
        pipeline, settings = self.pipeline, self.settings_of(row)
        conditions, guidance = needed_branches(conditions, settings.guidance)
        result = generate(
            pipeline.model.on_grid(*self.grid),
            conditions,
            replace(settings, guidance=guidance),
            pipeline.architecture.rules,
            seed=seed,
            image_indices=images,
            num_tokens=self.grid[0] * self.grid[1],
            accelerator=self.accelerator(row),
            device=pipeline.device,
        )
        return result.codes_BL.unflatten(1, self.grid), result.seconds

    def cost(self, row: Row, seconds: float, conditions: Sequence[Conditions]) -> dict[str, Any]:
        """Return the fields of `report.Cost`.

        Args:
            conditions: of one image; only their shapes matter.
        """
        flops, pipeline = None, self.pipeline
        if row.num_steps:
            settings = self.settings_of(row)
            conditions, guidance = needed_branches(conditions, settings.guidance)
            flops = count_flops(
                pipeline.model,
                pipeline.head,
                replace(settings, guidance=guidance),
                conditions,
                self.grid,
                rules=pipeline.architecture.rules,
                accelerator=row.kind if row.kind in NAMES else None,
            )
        return {
            "kind": row.kind,
            "order": row.order,
            "num_steps": row.num_steps,
            "num_full": row.full_steps,
            "seconds": seconds,
            "flops": flops.total if flops else 0,
        }


def add_arguments(
    parser: argparse.ArgumentParser,
    rows: Sequence[str],
    work: Path,
    files: Mapping[str, Path | None],
    seeds: Sequence[int],
) -> None:
    """Add the options of the table. `files` holds the default of --model, --vq and so on; None = the task's."""
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--batch", type=int, default=25, help="pictures sampled at a time")
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="bfloat16", help="of model and head"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--rows", nargs="+", default=list(rows), metavar="ROW", help=f"default: {' '.join(rows)}"
    )
    parser.add_argument("--work", type=Path, default=work, help="finished rows, to resume from")
    for name, path in files.items():
        parser.add_argument(f"--{name}", type=Path, default=path, help="default: ours")


def add_sampler_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that change the sampler and draw a chart."""
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help="draw quality against FLOPs")
    parser.add_argument(
        "--cfg", type=float, nargs="+", help="guidance weights; 0 = none; default: the model file's"
    )
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--choice-temperature", type=float)


def load_pipeline(options: argparse.Namespace) -> Pipeline:
    """Load the pipeline that `options` name. Raises ValueError as `Pipeline.load`."""
    head = getattr(options, "head", None)
    dtype = DTYPES[options.dtype]
    return Pipeline.load(options.model, options.vq, head, device=options.device, dtype=dtype)


def with_options(settings: Settings, options: argparse.Namespace) -> Settings:
    """Return settings with those given by `add_sampler_arguments`. Raises ValueError for a wrong --cfg."""
    given = {n: getattr(options, n) for n in ("temperature", "choice_temperature")}
    given = {name: value for name, value in given.items() if value is not None}
    if options.cfg is not None:
        if len(options.cfg) != len(settings.guidance):
            raise ValueError(f"--cfg needs {len(settings.guidance)} numbers, got {options.cfg}.")
        given["guidance"] = tuple(options.cfg)
    return replace(settings, **given)


def parse_rows(names: Sequence[str], subject: Subject) -> list[Row]:
    """Return the rows of these names. Raises ValueError if one does not exist or cannot be sampled."""
    rows = [Row.parse(name) for name in names]
    for row in rows:
        if row.num_steps:
            subject.settings_of(row).check()
    return rows


def measured_rows(
    work: Path,
    setup: str | Callable[[str], str],
    rows: Sequence[Row],
    seeds: Sequence[int],
    measure: Callable[[Row, int], Figures],
) -> dict[tuple[str, int], Figures]:
    """Return the figures of every row and seed; each is kept in the folder `work` as soon as it is known.

    All rows come with the first seed first; then each row, in their order, with the other seeds.

    Args:
        setup: hash of what figures depend on, or a function of a row's name that gives it; figures in `work` with
            another one are not used.
        measure: called for what is not there yet.
    """
    path = work / "rows.jsonl"
    found = finished(path, setup)
    pieces = (*product(rows, seeds[:1]), *product(rows, seeds[1:]))
    to_do = [(row, seed) for row, seed in pieces if (row.name, seed) not in found]
    taken: dict[str, float] = {}  # row -> seconds of its last piece
    for number, (row, seed) in enumerate(to_do, 1):
        work.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        figures = measure(row, seed)
        line = {"setup": _of(setup, row.name), "row": row.name, "seed": seed}
        with path.open("a+b") as file:
            file.write(_new_line(path) + f"{json.dumps(line | {'figures': figures})}\n".encode())
        found[row.name, seed] = figures
        taken[row.name] = time.monotonic() - begun
        usual = mean(taken.values())
        hours = sum(taken.get(other.name, usual) for other, _ in to_do[number:]) / 3600
        logger.info("%s seed %d is finished; about %.1f hours to go", row.name, seed, hours)
    return found


def finished(path: Path, setup: str | Callable[[str], str]) -> dict[tuple[str, int], Figures]:
    """Return the figures in `path` measured under the same setup."""
    found = {}
    for text in path.read_bytes().splitlines() if path.exists() else ():
        try:
            x = json.loads(text)
        except ValueError:  # its writing was cut off
            continue
        if x["setup"] == _of(setup, x["row"]):
            found[x["row"], x["seed"]] = x["figures"]
    return found


def _new_line(path: Path) -> bytes:
    """Return what ends the last line of a file, if its writing was cut off."""
    content = path.read_bytes() if path.exists() else b""
    return b"" if not content or content.endswith(b"\n") else b"\n"


def _of(setup: str | Callable[[str], str], name: str) -> str:
    return setup if isinstance(setup, str) else setup(name)


def setup_of(
    files: Sequence[Path], subject: Subject, options: argparse.Namespace, *more: Any
) -> str:
    """Return a short hash of everything that figures depend on besides row and seed."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    what = (*more, options.batch, options.dtype, options.device, torch.get_num_threads())
    digest.update(repr((what, subject.settings)).encode())
    return digest.hexdigest()[:16]


def setting_of(options: argparse.Namespace, subject: Subject) -> str:
    """Return the sampler's settings and the machine, for the line under a table."""
    settings = asdict(subject.settings).items()
    sampler = ", ".join(f"{n} {v}" for n, v in settings if n not in ("num_steps", "full_steps"))
    return (
        f"Seeds {options.seeds}; {sampler}. {hardware_of(subject.pipeline.device)}; torch {torch.__version__}, "
        f"{options.dtype}, batch {options.batch}."
    )


def hardware_of(device: torch.device) -> str:
    """Return a readable device name, such as 'NVIDIA H100' or a CPU's name with its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    name = next(names, platform.processor())
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} cores"
