"""Measures the shipped demo model, speed against quality: python -m experiments quality

What a row measures is described in `quality_measure.py`. Distances are taken from fresh scenes that
no network was trained on: seeds 10,000,000 onwards, rendered on the fly, as many of every class; as they
are, and through the VQ.
Two reference rows need no sampling: other fresh scenes ("real"), and those after VQ encoding and
decoding ("vq"). The control "reuse" repeats the last full pass where "shortcut" asks the head.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shortcut import shipped, weights
from shortcut.models.maskgit.classes import class_branches

from . import classifier
from .frechet import Gaussian
from .quality_measure import NUM_CLASSES, measure, references
from .quality_report import Line, markdown, quality_chart
from .quality_rows import (
    DTYPES,
    Figures,
    Kit,
    Row,
    add_arguments,
    measured_rows,
    parse_rows,
    setting_of,
    setup_of,
    work_of,
    write,
)

ROWS = (
    *("real", "vq"),
    *("vanilla-8", "vanilla-10", "vanilla-12", "vanilla-16", "vanilla-32"),
    *("shortcut-32-6", "shortcut-32-8", "shortcut-32-12", "shortcut-16-5", "shortcut-16-8"),
    "reuse-32-8",
)


def add_parser(steps: Any) -> None:
    """Adds `quality` to the command line."""
    about = "measure speed and quality: a table"
    parser = steps.add_parser("quality", help=about, description=about)
    parser.add_argument("--num", type=int, default=2000, help="pictures per row and seed")
    parser.add_argument(
        "--num-reference", type=int, default=6000, help="fresh scenes to compare with"
    )
    add_arguments(parser, ROWS, work=Path("output/quality"))
    parser.add_argument(
        "--cfg", type=float, help="default of this and the next three: as the model's file says"
    )
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--choice-temperature", type=float)
    parser.add_argument("--spread", type=int)
    for name in ("model", "head", "vq", "judge"):
        parser.add_argument(
            f"--{name}", type=Path, default=getattr(shipped, name.upper()), help="default: shipped"
        )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measures what is not measured yet, prints the table, writes JSON and chart. Returns 0."""
    kit = load_kit(options)
    rows = parse_rows(options.rows, kit)

    @cache
    def compared_with() -> dict[str, Gaussian]:
        return references(kit, options.num_reference)

    def measure_row(row: Row, seed: int) -> Figures:
        return measure(row, seed, options.num, kit, compared_with())

    measured = {}
    for heads in ((), (options.head,)):  # another head leaves the rows without one as they are
        files = options.model, *heads, options.vq, options.judge
        setup = setup_of(files, kit, options, options.num, options.num_reference)
        alike = [row for row in rows if (row.kind == "shortcut") == bool(heads)]
        measured |= measured_rows(options.work, setup, alike, options.seeds, measure_row)
    lines = [
        summary(row, [measured[row.name, seed] for seed in options.seeds], kit) for row in rows
    ]
    setting = setting_of(options, kit, num=options.num, num_reference=options.num_reference)
    print(markdown(lines, setting))
    write(options, setting, lines, partial(quality_chart, lines))
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
    given = {
        name: getattr(options, name) for name in ("temperature", "choice_temperature", "spread")
    }
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


def summary(row: Row, figures: list[dict[str, float]], kit: Kit) -> Line:
    """One line of the table from the figures of each seed."""
    config = kit.model.config
    classes = class_branches(torch.zeros(1).long(), config.num_classes, len(kit.defaults.guidance))
    mean = {name: float(np.mean([figure[name] for figure in figures])) for name in figures[0]}
    return Line(
        **work_of(row, mean["seconds"], kit, classes, (config.grid, config.grid)),
        distance=mean["distance"],
        distances=[figure["distance"] for figure in figures],
        vq_distance=mean["vq_distance"],
        vq_distances=[figure["vq_distance"] for figure in figures],
        time=mean["time"],
        biome=mean["biome"],
        both=mean["both"],
    )
