"""What the quality tables share: rows, the networks under test, resuming, the cost of a row.

python -m experiments quality         the class model, by the distance of its pictures from scenes
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
from torch import Tensor

from shortcut import weights
from shortcut.accelerators.reuse import Reuse
from shortcut.accelerators.shortcut_head import ShortcutPredictor
from shortcut.checkpoint import Checkpoint
from shortcut.flops import count_operations
from shortcut.generate import PredictorOf
from shortcut.grid import Grid
from shortcut.schedule import Settings

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
        """Return the row `real`, `vq`, `vanilla-STEPS`, `shortcut-STEPS-FULL` or `reuse-STEPS-FULL`.

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
        """Return the name on the command line."""
        numbers = {"real": (), "vq": (), "vanilla": (self.num_steps,)}.get(
            self.kind, (self.num_steps, self.full_steps)
        )
        return "-".join(map(str, (self.kind, *numbers)))

    @property
    def is_sampled(self) -> bool:
        """Return False for a reference row."""
        return self.num_steps > 0


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks under test, and how they are run."""

    model: Any
    head: Any
    vq: Any
    judge: Any
    defaults: Settings  # all but the steps
    device: torch.device
    batch_size: int

    def settings(self, row: Row) -> Settings:
        """Return the sampler settings of a row."""
        full_steps = None if row.kind == "vanilla" else row.full_steps
        return replace(self.defaults, num_steps=row.num_steps, full_steps=full_steps)

    def predictor(self, row: Row) -> PredictorOf | None:
        """Return what predicts the row's other steps."""
        if row.kind == "shortcut":
            return partial(ShortcutPredictor, self.head)
        return (lambda model, conditions: Reuse()) if row.kind == "reuse" else None


def add_arguments(
    parser: argparse.ArgumentParser, rows: Sequence[str], work: Path, files: dict[str, Path]
) -> None:
    """Add the options of all tables. `files` holds the default of --model, --vq and so on."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=50, help="pictures sampled at a time")
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
        "--cfg", type=float, nargs="+", help="guidance scales; 0 = none; default: the model file's"
    )
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--choice-temperature", type=float)
    parser.add_argument("--spread", type=int)


def load_networks(
    options: argparse.Namespace, model_file: Checkpoint, defaults: Settings, judge: Any
) -> Networks:
    """Load the networks that `options` name, on its device.

    Raises:
        ValueError: they do not belong together, or --cfg has another number of scales than the model.
    """
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    head_file = weights.load(options.head, kind="head")
    vq_file = weights.load(options.vq, kind="vq")
    weights.check_head(head_file, model_file)
    if vq_file.config.num_codes != model_file.config.num_codes:
        raise ValueError(
            f"{vq_file.name} has {vq_file.config.num_codes} codes, but {model_file.name} makes "
            f"{model_file.config.num_codes}. Give the VQ model that belongs to it."
        )
    given = {n: getattr(options, n) for n in ("temperature", "choice_temperature", "spread")}
    given = {name: value for name, value in given.items() if value is not None}
    if options.cfg is not None:
        if len(options.cfg) != len(defaults.guidance):
            raise ValueError(f"--cfg needs {len(defaults.guidance)} numbers, got {options.cfg}.")
        given["guidance"] = tuple(options.cfg)
    return Networks(
        model=weights.build(model_file, dtype=dtype, device=device),
        head=weights.build(head_file, dtype=dtype, device=device),
        vq=weights.build(vq_file, dtype=torch.float32, device=device),
        judge=judge.to(device),
        defaults=replace(defaults, **given),
        device=device,
        batch_size=options.batch,
    )


def parse_rows(names: Sequence[str], networks: Networks) -> list[Row]:
    """Return the rows of these names. Raises ValueError if one does not exist or cannot be sampled."""
    rows = [Row.parse(name) for name in names]
    for row in rows:
        if row.is_sampled:
            networks.settings(row).check()
    return rows


def measured_rows(
    work: Path,
    setup: str,
    rows: Sequence[Row],
    seeds: Sequence[int],
    measure: Callable[[Row, int], Figures],
) -> dict[tuple[str, int], Figures]:
    """Return the figures of every row and seed; each is kept in the folder `work` as soon as it is known.

    Args:
        setup: hash of what figures depend on; those in `work` with another one are not used.
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
    """Return the figures in `path` measured under the same setup. A line that was cut off is skipped."""
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
    """Add a JSON line; a line that was cut off before is closed first, so that this one is read."""
    with path.open("a+b") as file:
        file.seek(max(0, file.tell() - 1))
        is_closed = file.read() in (b"", b"\n")
        file.write((b"" if is_closed else b"\n") + json.dumps(line).encode() + b"\n")


def setup_of(
    files: Sequence[Path], networks: Networks, options: argparse.Namespace, *more: Any
) -> str:
    """Return a short hash of everything that figures depend on besides row and seed."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    what = (*more, options.batch, options.dtype, str(networks.device), torch.get_num_threads())
    digest.update(repr((what, networks.defaults)).encode())
    return digest.hexdigest()[:16]


def cost_of(
    row: Row, seconds: float, networks: Networks, conditions: Sequence[Tensor], grid: Grid
) -> dict[str, Any]:
    """Return the fields of `report.Cost`.

    Args:
        conditions: of one image, one for each guidance branch; only their shapes matter.
    """
    flops = None
    if row.is_sampled:
        head = networks.head if row.kind == "shortcut" else None
        predictor = networks.predictor(row)
        flops = count_operations(
            networks.model, head, networks.settings(row), conditions, grid, predictor=predictor
        )
    return {
        "kind": row.kind,
        "num_steps": row.num_steps,
        "num_full": row.full_steps,
        "seconds": seconds,
        "flops": flops.total if flops else 0,
        "flops_full": flops.full if flops else 0,
        "flops_head": flops.head if flops else 0,
    }


def setting_of(options: argparse.Namespace, networks: Networks, **more: Any) -> dict[str, Any]:
    """Return what the figures were measured with, for the line under the table."""
    steps = "num_steps", "full_steps"
    return {
        "hardware": hardware_of(networks.device),
        "torch": torch.__version__,
        "dtype": options.dtype,
        "batch": options.batch,
        **more,
        "seeds": options.seeds,
        "sampler": {n: v for n, v in asdict(networks.defaults).items() if n not in steps},
    }


def hardware_of(device: torch.device) -> str:
    """Return a readable device name, such as 'NVIDIA H100' or a CPU's name with its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    name = next(names, platform.processor())
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} cores"
