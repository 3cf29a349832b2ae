"""Measure the shipped class model, speed against quality: python -m experiments quality

`quality_measure.py` describes what a row measures. Distances are taken from fresh scenes that no network was trained on
(seeds from 10,000,000), as they are and through the VQ. Two reference rows need no sampling: other fresh scenes
("real"), and these after VQ encoding and decoding ("vq"). The control "reuse" repeats the features of the last full
pass where "shortcut" asks the head.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from experiments.judges import attributes
from experiments.judges.file import JUDGE
from experiments.tables.frechet import Gaussian
from experiments.tables.quality_measure import NUM_CLASSES, measure, references
from experiments.tables.report import COST_COLUMNS, Cost, draw_chart, head_share, table
from experiments.tables.rows import (
    Figures,
    Row,
    Subject,
    add_arguments,
    add_sampler_arguments,
    load_pipeline,
    measured_rows,
    parse_rows,
    setting_of,
    setup_of,
    with_options,
)
from shortcut import shipped
from shortcut.settings import usual_settings

ROWS = (
    *("real", "vq"),
    *("vanilla-8", "vanilla-10", "vanilla-11", "vanilla-12", "vanilla-16", "vanilla-32"),
    *("shortcut-32-6", "shortcut-32-8", "shortcut-32-12", "shortcut-16-5", "shortcut-16-8"),
    "reuse-32-8",
)
COLUMNS = (*COST_COLUMNS, "distance", "distance in codes", "time", "biome", "both")
FILES = {"model": shipped.MODEL, "head": shipped.HEAD, "vq": shipped.VQ, "judge": JUDGE}


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityRow(Cost):
    """A row of the table: Frechet distances of each seed, shares of pictures that show their class."""

    distances: list[float]  # from fresh scenes
    vq_distances: list[float]  # from fresh scenes through the VQ
    shares: list[float]  # time, biome, both: means over the seeds, in [0, 1]

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the row's text, by COLUMNS."""
        distances = (
            f"{mean(each):.1f} ({', '.join(f'{d:.1f}' for d in each)})"
            for each in (self.distances, self.vq_distances)
        )
        return (*self.cost_cells, *distances, *(f"{share:.1%}" for share in self.shares))


def add_parser(steps: Any) -> None:
    """Add `quality` to the command line."""
    about = "measure speed and quality of the class model: a table (an hour)"
    parser = steps.add_parser("quality", help=about, description=about)
    parser.add_argument("--num", type=int, default=2000, help="pictures per row and seed")
    parser.add_argument(
        "--num-reference", type=int, default=6000, help="fresh scenes to compare with"
    )
    add_arguments(parser, ROWS, Path("output/quality"), FILES)
    add_sampler_arguments(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure what is not measured yet, print the table, draw the chart. Returns 0."""
    subject = subject_of(options)
    rows = parse_rows(options.rows, subject)

    @cache
    def compared_with() -> dict[str, Gaussian]:
        return references(subject, options.num_reference)

    def measure_row(row: Row, seed: int) -> Figures:
        return measure(row, seed, options.num, subject, compared_with())

    measured = {}
    for heads in ((), (options.head,)):  # another head leaves the rows without one as they are
        files = options.model, *heads, options.vq, options.judge
        setup = setup_of(files, subject, options, options.num, options.num_reference)
        alike = [row for row in rows if (row.kind == "shortcut") == bool(heads)]
        measured |= measured_rows(options.work, setup, alike, options.seeds, measure_row)
    found = [
        quality_row(row, [measured[row.name, seed] for seed in options.seeds], subject)
        for row in rows
    ]
    print(table(COLUMNS, [row.cells for row in found]), head_share(found), sep="\n\n")
    print(
        f"\nDistance: Frechet distance in the judge's features from {options.num_reference} fresh scenes; in codes: "
        "from the same scenes through the VQ. Mean (each seed), lower is better. Time, biome, both: share of pictures "
        f"that show their class. {options.num} pictures per row and seed, evenly over the classes. "
        f"{setting_of(options, subject)}"
    )
    if options.chart:
        title = "Frechet distance in codes (lower is better)"
        draw_chart(options.chart, found, lambda row: row.vq_distances, title)
    return 0


def subject_of(options: argparse.Namespace) -> Subject:
    """Load pipeline and judge. Raises ValueError if the model has other classes than the scenes."""
    pipeline = load_pipeline(options)
    if getattr(pipeline.model_file.config, "num_classes", 0) != NUM_CLASSES:
        raise ValueError(
            f"{options.model} does not have the {NUM_CLASSES} classes of the scenes. Only models of the scenes can be "
            "judged."
        )
    judge = attributes.FILE.load(options.judge).to(pipeline.device)
    settings = with_options(usual_settings(pipeline.model_file), options)
    return Subject(pipeline, judge, settings, options.batch)


def quality_row(row: Row, figures: Sequence[Figures], subject: Subject) -> QualityRow:
    """Return a row of the table from the figures of each seed."""
    classes = 2 * (torch.zeros(1).long(),)
    return QualityRow(
        **subject.cost(row, mean(figure["seconds"] for figure in figures), classes),
        distances=[figure["distance"] for figure in figures],
        vq_distances=[figure["vq_distance"] for figure in figures],
        shares=[mean(figure[n] for figure in figures) for n in ("time", "biome", "both")],
    )
