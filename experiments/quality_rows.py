"""What the quality tables have in common: rows, the networks under test, resuming, what a run takes.

python -m experiments quality         the class-conditional model, by the distance of its pictures from scenes
python -m experiments text-quality    the text model, by what its pictures show
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from shortcut.accelerators.reuse import Reuse
from shortcut.accelerators.shortcut_head import ShortcutPredictor
from shortcut.files import written_whole
from shortcut.flops import count_operations
from shortcut.generate import PredictorOf
from shortcut.grid import Grid
from shortcut.schedule import Settings

from .quality_report import Work

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Figures = dict[str, Any]  # of a row and seed, as JSON; "seconds" is per image


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table, by its name on the command line."""

    kind: str  # real | vq | vanilla | shortcut | reuse
    num_steps: int = 0
    full_steps: int = 0

    @classmethod
    def parse(cls, name: str) -> Row:
        """The row `real`, `vq`, `vanilla-STEPS`, `shortcut-STEPS-FULL` or `reuse-STEPS-FULL`.

        Raises ValueError for any other name.
        """
        kind, *numbers = name.split("-")
        wanted = {"real": 0, "vq": 0, "vanilla": 1, "shortcut": 2, "reuse": 2}.get(kind)
        if wanted != len(numbers) or not all(number.isdecimal() for number in numbers):
            raise ValueError(
                f"there is no row {name!r}. Expected real, vq, vanilla-STEPS, "
                "shortcut-STEPS-FULL or reuse-STEPS-FULL, such as shortcut-32-8."
            )
        sizes = [int(number) for number in numbers]
        return cls(kind, *(sizes if len(sizes) != 1 else 2 * sizes))

    @property
    def name(self) -> str:
        """As on the command line."""
        numbers = {"real": (), "vq": (), "vanilla": (self.num_steps,)}.get(
            self.kind, (self.num_steps, self.full_steps)
        )
        return "-".join(map(str, (self.kind, *numbers)))

    @property
    def is_sampled(self) -> bool:
        """False: a reference row."""
        return self.num_steps > 0


@dataclass(frozen=True, slots=True)
class Kit:
    """The networks under test, and how they are run."""

    model: Any
    head: Any
    vq: Any
    judge: Any
    defaults: Settings  # all but the steps
    device: torch.device
    batch_size: int

    def settings(self, row: Row) -> Settings:
        """The sampler settings of a row."""
        full_steps = None if row.kind == "vanilla" else row.full_steps
        return replace(self.defaults, num_steps=row.num_steps, full_steps=full_steps)

    def predictor(self, row: Row) -> PredictorOf | None:
        """What answers the row's other steps."""
        if row.kind == "shortcut":
            return partial(ShortcutPredictor, self.head)
        return (lambda model, conditions: Reuse()) if row.kind == "reuse" else None


def add_arguments(
    parser: argparse.ArgumentParser,
    rows: Sequence[str],
    work: Path,
    chart: str = "draw quality against operations",
) -> None:
    """Adds what all tables can be asked for. `chart` says what theirs shows."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=50, help="pictures sampled at a time")
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="bfloat16", help="of model and head"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--rows", nargs="+", default=list(rows), metavar="ROW", help=f"default: {' '.join(rows)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help=chart)
    parser.add_argument("--work", type=Path, default=work, help="finished rows, to resume from")


def parse_rows(names: Sequence[str], kit: Kit) -> list[Row]:
    """The rows called `names`. Raises ValueError for one that does not exist or cannot be sampled."""
    rows = [Row.parse(name) for name in names]
    for row in rows:
        if row.is_sampled:
            kit.settings(row).check()
    return rows


def measured_rows(
    work: Path,
    setup: str,
    rows: Sequence[Row],
    seeds: Sequence[int],
    measure: Callable[[Row, int], Figures],
) -> dict[tuple[str, int], Figures]:
    """The figures of every row and seed; each is kept in the folder `work` as soon as it is known.

    Args:
        setup: figures in `work` of another one are left alone.
        measure: called for what is not there yet.
    """
    path = work / "rows.jsonl"
    found = finished(path, setup)
    for row in rows:
        for seed in seeds:
            if (row.name, seed) not in found:
                work.mkdir(parents=True, exist_ok=True)
                figures = measure(row, seed)
                _append(path, {"setup": setup, "row": row.name, "seed": seed, "figures": figures})
                found[row.name, seed] = figures
                logger.info("%s seed %d: %s", row.name, seed, figures)
    return found


def finished(path: Path, setup: str) -> dict[tuple[str, int], Figures]:
    """The figures in `path` measured under the same setup. A line that was cut off is skipped."""
    found = {}
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["setup"] == setup:
            found[line["row"], line["seed"]] = line["figures"]
    return found


def _append(path: Path, line: dict[str, Any]) -> None:
    """Adds a JSON line; one that was cut off before is closed first, so that this one is read."""
    with path.open("a+b") as file:
        file.seek(max(0, file.tell() - 1))
        is_closed = file.read() in (b"", b"\n")
        file.write((b"" if is_closed else b"\n") + json.dumps(line).encode() + b"\n")


def setup_of(files: Sequence[Path], kit: Kit, options: argparse.Namespace, *more: Any) -> str:
    """A short hash of everything that figures depend on besides row and seed."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    what = (*more, options.batch, options.dtype, str(kit.device), torch.get_num_threads())
    digest.update(repr((what, kit.defaults)).encode())
    return digest.hexdigest()[:16]


def work_of(
    row: Row, seconds: float, kit: Kit, conditions: Sequence[Tensor], grid: Grid
) -> dict[str, Any]:
    """The fields of `Work`: what a row takes for an image.

    Args:
        conditions: of one image, one for each guidance branch; their shapes matter.
    """
    operations = None
    if row.is_sampled:
        head = kit.head if row.kind == "shortcut" else None
        operations = count_operations(
            kit.model, head, kit.settings(row), conditions, grid, predictor=kit.predictor(row)
        )
    return {
        "kind": row.kind,
        "num_steps": row.num_steps,
        "num_full": row.full_steps,
        "seconds": seconds,
        "operations": operations.total if operations else 0,
        "operations_full": operations.full if operations else 0,
        "operations_head": operations.head if operations else 0,
        "operations_logits": operations.logits if operations else 0,
    }


def setting_of(options: argparse.Namespace, kit: Kit, **more: Any) -> dict[str, Any]:
    """What the figures were measured with, for the line under the table."""
    return {
        "hardware": hardware_of(kit.device),
        "torch": torch.__version__,
        "dtype": options.dtype,
        "batch": options.batch,
        **more,
        "seeds": options.seeds,
        "sampler": {
            k: v for k, v in asdict(kit.defaults).items() if k not in ("num_steps", "full_steps")
        },
    }


def hardware_of(device: torch.device) -> str:
    """What computes there, for the line under a table."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")),
        platform.processor(),
    )


def write(
    options: argparse.Namespace,
    setting: dict[str, Any],
    lines: Sequence[Work],
    chart: Callable[[], Image.Image],
) -> None:
    """Writes the JSON file and the chart, if they were asked for."""
    if options.json is not None:
        rows = [asdict(line) for line in lines]
        with written_whole(options.json) as partial_path:
            partial_path.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1))
    if options.chart is not None:
        with written_whole(options.chart) as partial_path:
            chart().save(partial_path, format="PNG")
