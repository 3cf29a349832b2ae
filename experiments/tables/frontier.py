"""Measure ways to run a model of the scenes, operations against quality: python -m experiments frontier

A row is a way to run the model, such as partial-32-8 (accelerator, steps, full passes). A piece is a row with a seed:
pictures of classes or, of a text model, of captions or edits. Finished pieces are kept in --work, from which the
command resumes, and the table shows all that are there: after the first piece of each row the surprise, which needs few
pictures, then the distance of the rows that claims rest on. `frontier_measure.py` describes what is measured of a
picture.

Differences are taken from vanilla with 32 steps, or from the row of --minus, over the seeds that both rows have.
Standard errors are those of a jackknife over 16 groups of pictures. The temperature in a model's file is the one that
suits vanilla with 32 steps best on other seeds (RESULTS.md).

The judge does not know the scenes of the shipped text model: its table, with --task text alone, has the surprise of
captions all of whose words that model knows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.judge import reader
from experiments.tables.cases import FIRST_SEED, Case, cases_of, edits_of, known_captions
from experiments.tables.frechet import Gaussian
from experiments.tables.frontier_measure import Estimate, distance, jackknifed, measure
from experiments.tables.report import Cost, Panel, draw_chart, table
from experiments.tables.rows import (
    ORDERS,
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
from shortcut.accelerators.choice import needs_head
from shortcut.settings import usual_settings

BASELINE = "vanilla-32"
UNKNOWN = math.nan, math.nan
Pieces = dict[int, dict[str, np.ndarray]]  # seed -> figure -> its value of each picture
ACCELERATORS = (
    *("partial", "head", "reuse", "taylor", "ml-cache"),
    *("partial+neighbours", "partial+head"),
)
_ROWS = (  # those first that claims by distance rest on
    *("vanilla-32", "partial-32-8", "partial-32-5"),
    *("head-32-8", "vanilla-8", "reuse-32-8"),
    *(f"vanilla-{steps}" for steps in (24, 16, 12, 10, 6)),
    *(f"{name}-32-{full}" for name in ACCELERATORS for full in (2, 3, 4, 5, 6, 8, 12)),
    *(f"{name}-32-8@{order}" for name in ACCELERATORS[:2] for order in ORDERS),
    *(f"partial-32-{full}@corrected" for full in (4, 5)),
)
ROWS = tuple(dict.fromkeys(_ROWS))
SEEDS = tuple(range(201, 233))
# Of the row of fresh scenes, of which no network has seen one.
REFERENCE_SEEDS, FIRST_REFERENCE, REFERENCE_STRIDE = range(1, 13), 10_000_000, 100_000
TASKS = "class", "text", "edit"
FILES: dict[str, dict[str, Path | None]] = {  # of a task without --model
    "class": {"model": shipped.MODEL, "head": shipped.HEAD, "vq": shipped.VQ, "judge": reader.PATH},
    "text": {
        "model": shipped.TEXT_MODEL,
        "head": shipped.TEXT_HEAD,
        "vq": shipped.TEXT_VQ,
        "judge": None,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierRow(Cost):
    """A row of the table, or the fresh scenes through the VQ."""

    seeds: int
    distance: Estimate
    farther: Estimate  # distance minus the baseline's
    surprise: Estimate  # minus the baseline's
    things: float  # that the judge sees
    met: float  # share of pictures that show all that was asked for
    met_more: Estimate  # minus the baseline's

    def cells(self, flops: int) -> tuple[str, ...]:
        """Return the row's text, by `columns`.

        Args:
            flops: of the baseline.
        """
        share = f"{self.flops / flops:.3f}" if self.num_steps else ""
        estimates = (_text(self.distance, 1), _text(self.farther, 1), _text(self.surprise, 3))
        judged = not math.isnan(self.things)
        seen = (f"{self.things:.2f}", f"{self.met:.1%}") if judged else ("", "")
        return (
            *self.cost_cells[:3],
            share,
            self.cost_cells[3],
            str(self.seeds),
            *estimates,
            *seen,
            _text(self.met_more, 3),
        )


def columns(baseline: str) -> tuple[str, ...]:
    """Return the head of a table whose differences are taken from that row."""
    return (
        *("", "steps", "full", f"of {baseline}", "CPU s", "seeds", "distance", f"minus {baseline}"),
        *(f"surprise minus {baseline}", "things", "asked for and shown", f"minus {baseline}"),
    )


def panels(baseline: str, *, is_judged: bool) -> list[Panel]:
    """Return what a chart of such a table shows."""
    surprise = f"surprise minus {baseline}, where below 1 (lower is better)", _shown_surprise
    if not is_judged:
        return [surprise]
    return [("distance, of two seeds or more (lower is better)", _shown_distance), surprise]


def _text(estimate: Estimate, digits: int) -> str:
    value, error = estimate
    return "" if math.isnan(value) else f"{value:.{digits}f} ± {error:.{digits}f}"


def add_parser(steps: Any) -> None:
    """Add `frontier` to the command line."""
    about = "measure operations against quality of the class or the text model: a table (hours)"
    parser = steps.add_parser("frontier", help=about, description=about)
    parser.add_argument("--task", choices=TASKS, default=TASKS[0])
    parser.add_argument("--num", type=int, default=250, help="pictures per row and seed")
    parser.add_argument(
        "--minus",
        default=BASELINE,
        metavar="ROW",
        help="the row that differences are taken from; default: %(default)s",
    )
    files = dict.fromkeys(FILES["class"])
    add_arguments(parser, ROWS, Path("output/frontier"), files, seeds=SEEDS)
    add_sampler_arguments(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure what is not measured yet, print the table, draw the chart. Returns 0."""
    if options.device == "cpu":
        torch.set_num_threads(1)
    subject = subject_of(options)
    rows = parse_rows(options.rows, subject)
    (baseline,) = parse_rows([options.minus], subject)
    files = [path for path in (options.model, options.vq, options.judge) if path]
    without_head = setup_of(files, subject, options, options.task, options.num)
    with_head = setup_of(
        (*files, options.head or options.model), subject, options, options.task, options.num
    )
    cases = asked_for(options, subject)

    def setup(name: str) -> str:
        return with_head if needs_head(Row.parse(name).kind) else without_head

    def measure_row(row: Row, seed: int) -> Figures:
        if row.num_steps:
            return measure(row, seed, cases, subject)
        first = FIRST_REFERENCE + REFERENCE_STRIDE * seed
        fresh = cases_of(subject.pipeline, range(first, first + options.num))
        return measure(row, seed, fresh, subject)

    if subject.judge is not None:
        measured_rows(options.work, setup, [Row("vq")], REFERENCE_SEEDS, measure_row)
    pieces = measured_rows(options.work, setup, rows, options.seeds, measure_row)
    by_length = sorted(cases, key=lambda case: sum(c.numel() for c in case.conditions))
    conditions = by_length[len(cases) // 2].conditions
    found = rows_of(pieces, subject, conditions, baseline.name)
    flops = subject.cost(baseline, 0.0, conditions)["flops"]
    title = baseline.name.replace("-", " ")
    print(table(columns(title), [row.cells(flops) for row in found]))
    judged = subject.judge is not None
    if judged:
        print(
            "\nDistance: Frechet distance in the judge's features from "
            f"{len(REFERENCE_SEEDS) * options.num} fresh scenes through the VQ, extrapolated to infinitely many "
            "pictures; lower is better. Things a picture, and share of pictures that show all that was asked for: as "
            "the judge sees them."
        )
    print(
        "\nSurprise: -log p of half of a finished picture's codes given the other half, by the model itself, nats a "
        f"code; lower is better. {options.num} pictures a seed; operations are those of a prompt of median length. "
        f"{setting_of(options, subject)}"
    )
    if options.chart:
        shown = panels(title, is_judged=judged)
        draw_chart(options.chart, [row for row in found if row.num_steps], shown)
    return 0


def asked_for(options: argparse.Namespace, subject: Subject) -> list[Case]:
    """Return the pictures that a table's rows are asked for."""
    seeds = range(FIRST_SEED, FIRST_SEED + options.num)
    if options.task == "edit":
        return edits_of(subject.pipeline, seeds)
    if subject.judge is None:
        return known_captions(subject.pipeline, options.num)
    return cases_of(subject.pipeline, seeds)


def _shown_distance(row: FrontierRow) -> tuple[float, ...]:
    return _range(row.distance if row.seeds > 1 else UNKNOWN)  # one seed tells nothing


def _shown_surprise(row: FrontierRow) -> tuple[float, ...]:
    return _range(row.surprise if row.surprise[0] < 1 else UNKNOWN)  # above, pictures fall apart


def _range(estimate: Estimate) -> tuple[float, ...]:
    value, error = estimate
    return value - error, value, value + error


def rows_of(
    pieces: Mapping[tuple[str, int], Figures], subject: Subject, conditions: Any, baseline: str
) -> list[FrontierRow]:
    """Return the rows of all `pieces`, by FLOPs.

    Args:
        conditions: of one image; only their shapes matter.
        baseline: name of the row that differences are taken from.
    """
    by_row: dict[str, Pieces] = {}
    for (name, seed), figures in sorted(pieces.items()):
        by_row.setdefault(name, {})[seed] = {n: np.array(v) for n, v in figures.items()}
    reference = Gaussian.of(_pooled(by_row["vq"], "features")) if "vq" in by_row else None
    rows = []
    for name, own in by_row.items():
        row = Row.parse(name)
        others = {} if name == baseline else by_row.get(baseline, {})
        found = estimates(own, others, reference) if row.num_steps else (UNKNOWN,) * 4
        rows.append(
            FrontierRow(
                **subject.cost(row, _mean(own, "seconds"), conditions),
                seeds=len(own),
                distance=found[0],
                farther=found[1],
                surprise=found[2],
                things=_mean(own, "things"),
                met=_mean(own, "met"),
                met_more=found[3],
            )
        )
    return sorted(rows, key=lambda row: row.flops)


def estimates(own: Pieces, baseline: Pieces, reference: Gaussian | None) -> tuple[Estimate, ...]:
    """Return a row's distance; its distance, surprise and share met minus the baseline's, over common seeds.

    Args:
        reference: features of fresh scenes; None = nothing was judged, and the surprise alone is known.
    """
    common = sorted(own.keys() & baseline.keys())
    paired = [{seed: pieces[seed] for seed in common} for pieces in (own, baseline)]

    def more(figure: str) -> Estimate:
        if not common:
            return UNKNOWN
        more_B = _pooled(paired[0], figure) - _pooled(paired[1], figure)
        return jackknifed(lambda kept: float(more_B[kept].mean()), len(more_B))

    if reference is None:
        return UNKNOWN, UNKNOWN, more("surprise"), UNKNOWN

    def far(features_BD: np.ndarray) -> float:
        return distance(features_BD, reference)

    features_BD = _pooled(own, "features")
    own_distance = jackknifed(lambda kept: far(features_BD[kept]), len(features_BD))
    if not common:
        return own_distance, UNKNOWN, UNKNOWN, UNKNOWN
    a_BD, b_BD = (_pooled(pieces, "features") for pieces in paired)
    farther = jackknifed(lambda kept: far(a_BD[kept]) - far(b_BD[kept]), len(a_BD))
    return own_distance, farther, more("surprise"), more("met")


def _mean(pieces: Pieces, figure: str) -> float:
    """Return the mean over all pictures; NaN if the figure was not measured."""
    measured = all(figure in piece for piece in pieces.values())
    return float(_pooled(pieces, figure).mean()) if measured else math.nan


def _pooled(pieces: Pieces, figure: str) -> np.ndarray:
    return np.concatenate([piece[figure] for piece in pieces.values()])


def subject_of(options: argparse.Namespace) -> Subject:
    """Load pipeline and judge. Raises ValueError if the model does not take what the task gives."""
    if options.model is None and options.task not in FILES:
        raise ValueError(
            f"--task {options.task} needs --model, such as the one that `models` makes. The shipped text model draws "
            "other scenes, which the judge does not know."
        )
    usual = FILES["class" if options.model else options.task]
    if options.model is not None:
        usual = usual | {"head": options.head}  # the usual one is of another model
    for name, path in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, path)
    pipeline = load_pipeline(options)
    if (options.task == "class") == ("prompt" in pipeline.architecture.takes):
        raise ValueError(
            f"{options.model} is a {pipeline.architecture.title}. Use --task class for a class model, text or edit for "
            "a text model."
        )
    num_guided = 2 if options.task == "edit" else 1
    settings = with_options(usual_settings(pipeline.model_file, num_guided=num_guided), options)
    judge = reader.load(options.judge).to(pipeline.device) if options.judge else None
    return Subject(pipeline, judge, settings, options.batch)
