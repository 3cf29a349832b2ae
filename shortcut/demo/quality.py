"""Measures the shipped demo model, speed against quality: python -m shortcut.demo quality

What a row measures is described in `quality_measure.py`. Distances are taken from fresh scenes that
no network was trained on: seeds 10,000,000 onwards, rendered on the fly, as many of every class.
Two reference rows need no sampling: other fresh scenes ("real"), and those after VQ encoding and
decoding ("vq"). The control "reuse" repeats the last full pass where "shortcut" asks the head.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import shipped, weights
from ..classes import class_branches
from ..files import written_whole
from ..operations import count_operations
from . import classifier
from .frechet import Gaussian
from .quality_measure import NUM_CLASSES, Kit, Row, judge_scenes, measure
from .quality_report import Line, chart, markdown

logger = logging.getLogger(__name__)

ROWS = (
    *("real", "vq"),
    *("vanilla-8", "vanilla-12", "vanilla-16", "vanilla-32"),
    *("shortcut-32-6", "shortcut-32-8", "shortcut-32-12", "shortcut-16-5", "shortcut-16-8"),
    "reuse-32-8",
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIRST_REFERENCE_SEED = 10_000_000


def add_parser(steps: Any) -> None:
    """Adds `quality` to the command line."""
    about = "measure speed and quality: a table"
    parser = steps.add_parser("quality", help=about, description=about)
    parser.add_argument("--num", type=int, default=2000, help="pictures per row and seed")
    parser.add_argument(
        "--num-reference", type=int, default=6000, help="fresh scenes to compare with"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=50, help="pictures sampled at a time")
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="bfloat16", help="of model and head"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--rows", nargs="+", default=list(ROWS), metavar="ROW", help=f"default: {' '.join(ROWS)}"
    )
    parser.add_argument(
        "--cfg", type=float, help="default of this and the next two: as the model's file says"
    )
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--choice-temperature", type=float)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument(
        "--chart", type=Path, metavar="FILE.png", help="draw distance against operations"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("output/quality"), help="finished rows, to resume from"
    )
    for name in ("model", "head", "vq", "judge"):
        parser.add_argument(
            f"--{name}", type=Path, default=getattr(shipped, name.upper()), help="default: shipped"
        )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measures what is not measured yet, prints the table, writes JSON and chart. Returns 0."""
    rows = [Row.parse(name) for name in options.rows]
    kit = load_kit(options)
    for row in rows:
        if row.is_sampled:
            kit.settings(row).check()
    measured = measure_all(options, rows, kit)
    lines = [
        summary(row, [measured[row.name, seed] for seed in options.seeds], kit) for row in rows
    ]
    setting = setting_of(options, kit)
    print(markdown(lines, setting))
    if options.json is not None:
        with written_whole(options.json) as partial_path:
            partial_path.write_text(
                json.dumps({"setting": setting, "rows": [asdict(line) for line in lines]}, indent=1)
            )
    if options.chart is not None:
        with written_whole(options.chart) as partial_path:
            chart(lines).save(partial_path, format="PNG")
    return 0


def load_kit(options: argparse.Namespace) -> Kit:
    """The networks that `options` name, on its device."""
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    model_file, head_file = (
        weights.load(options.model, kind="model"),
        weights.load(options.head, kind="head"),
    )
    weights.check_head(head_file, model_file)
    if model_file.config.num_classes != NUM_CLASSES:
        raise ValueError(
            f"{options.model} has {model_file.config.num_classes} classes, expected the "
            f"{NUM_CLASSES} of the scenes. Only models of the scenes can be judged."
        )
    vq_file = weights.load(options.vq, kind="vq")
    defaults = weights.settings(model_file)
    given = {name: getattr(options, name) for name in ("temperature", "choice_temperature")}
    given |= {"guidance": None if options.cfg is None else (options.cfg,) if options.cfg else ()}
    return Kit(
        model=weights.build(model_file, dtype=dtype, device=device),
        head=weights.build(head_file, dtype=dtype, device=device),
        vq=weights.build(vq_file, dtype=torch.float32, device=device),
        judge=classifier.load(options.judge).to(device),
        defaults=replace(
            defaults, **{name: value for name, value in given.items() if value is not None}
        ),
        device=device,
        batch_size=options.batch,
    )


def measure_all(
    options: argparse.Namespace, rows: list[Row], kit: Kit
) -> dict[tuple[str, int], dict[str, float]]:
    """The figures of every row and seed; each is kept in `options.work` as soon as it is known."""
    setup = setup_of(options, kit)
    path = options.work / "rows.jsonl"
    measured = finished(path, setup)
    todo = [
        (row, seed) for row in rows for seed in options.seeds if (row.name, seed) not in measured
    ]
    if not todo:
        return measured
    options.work.mkdir(parents=True, exist_ok=True)
    reference = Gaussian.of(judge_scenes(kit, FIRST_REFERENCE_SEED, options.num_reference)[0])
    for row, seed in todo:
        figures = measure(row, seed, options.num, kit, reference)
        _append(path, {"setup": setup, "row": row.name, "seed": seed, "figures": figures})
        measured[row.name, seed] = figures
        logger.info("%s seed %d: %s", row.name, seed, figures)
    return measured


def finished(path: Path, setup: str) -> dict[tuple[str, int], dict[str, float]]:
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


def setup_of(options: argparse.Namespace, kit: Kit) -> str:
    """A short hash of everything that figures depend on besides row and seed."""
    digest = hashlib.sha256()
    for path in (options.model, options.head, options.vq, options.judge):
        digest.update(Path(path).read_bytes())
    what = (
        options.num,
        options.num_reference,
        options.batch,
        options.dtype,
        str(kit.device),
        torch.get_num_threads(),
    )
    digest.update(repr((what, kit.defaults)).encode())
    return digest.hexdigest()[:16]


def summary(row: Row, figures: list[dict[str, float]], kit: Kit) -> Line:
    """One line of the table from the figures of each seed."""
    operations = None
    if row.is_sampled:
        head = kit.head if row.kind == "shortcut" else None
        settings, config = kit.settings(row), kit.model.config
        classes = class_branches(torch.zeros(1).long(), config.num_classes, len(settings.guidance))
        operations = count_operations(
            kit.model,
            head,
            settings,
            classes,
            (config.grid, config.grid),
            predictor=kit.predictor(row),
        )
    mean = {name: float(np.mean([figure[name] for figure in figures])) for name in figures[0]}
    return Line(
        kind=row.kind,
        num_steps=row.num_steps,
        num_full=row.full_steps,
        seconds=mean["seconds"],
        operations=operations.total if operations else 0,
        operations_full=operations.full if operations else 0,
        operations_head=operations.head if operations else 0,
        operations_logits=operations.logits if operations else 0,
        distance=mean["distance"],
        distances=[figure["distance"] for figure in figures],
        time=mean["time"],
        biome=mean["biome"],
        both=mean["both"],
    )


def setting_of(options: argparse.Namespace, kit: Kit) -> dict[str, Any]:
    """What the figures were measured with, for the line under the table."""
    if kit.device.type == "cuda":
        hardware = torch.cuda.get_device_name(kit.device)
    else:
        hardware = f"{_cpu_name()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return {
        "hardware": hardware,
        "torch": torch.__version__,
        "dtype": options.dtype,
        "batch": options.batch,
        "num": options.num,
        "num_reference": options.num_reference,
        "seeds": options.seeds,
        "sampler": {
            k: v for k, v in asdict(kit.defaults).items() if k not in ("num_steps", "full_steps")
        },
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")),
        platform.processor(),
    )
