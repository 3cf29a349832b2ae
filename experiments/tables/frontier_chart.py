"""Draw the chart of the class model from the tables of a document: python -m experiments frontier-chart

The pieces that the tables were made of are too large to keep. So the chart is drawn from the tables as they stand in
RESULTS.md, and shows what a reader sees there.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.tables.cases import cases_of
from experiments.tables.frontier import BASELINE, UNKNOWN, FrontierRow, panels
from experiments.tables.frontier_measure import Estimate
from experiments.tables.report import draw_chart
from experiments.tables.rows import Row, Subject
from shortcut import Pipeline
from shortcut.settings import usual_settings

TITLE = BASELINE.replace("-", " ")
SHARE, FARTHER, SURPRISE = f"of {TITLE}", f"minus {TITLE}", f"surprise minus {TITLE}"
DISTANCE = "distance"
RESULTS = Path(__file__).parent.parent / "RESULTS.md"
SECTION = "## The shipped models"


def add_parser(steps: Any) -> None:
    """Add `frontier-chart` to the command line."""
    about = "draw the chart of the class model from the tables of a document"
    parser = steps.add_parser("frontier-chart", help=about, description=about)
    parser.add_argument("out", type=Path, metavar="FILE.png")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: RESULTS.md")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Draw the chart. Returns 0. Raises ValueError if the document has no such table."""
    pipeline = Pipeline.load("scenes")
    subject = Subject(pipeline, None, usual_settings(pipeline.model_file), 1)
    (case,) = cases_of(pipeline, range(1))
    flops = subject.cost(Row.parse(BASELINE), 0.0, case.conditions)["flops"]
    rows = rows_in(options.results.read_text(encoding="utf-8"), flops)
    draw_chart(options.out, rows, panels(TITLE, is_judged=True))
    return 0


def rows_in(text: str, flops: int) -> list[FrontierRow]:
    """Return the sampled rows of the tables with distances about the shipped models. Of equal ones the last counts.

    Args:
        flops: of the baseline.
    """
    _, _, section = text.partition(f"{SECTION}\n")
    section, _, _ = section.partition("\n## ")
    found = {}
    for cells in _cells_of_tables(section):
        kind, _, order = cells[""].partition(", ")
        if not cells["steps"]:
            continue
        found[cells[""], cells["steps"], cells["full"]] = FrontierRow(
            kind=kind,
            order=order,
            num_steps=int(cells["steps"]),
            num_full=int(cells["full"]),
            seconds=float(cells["CPU s"]),
            flops=round(float(cells[SHARE]) * flops),
            seeds=int(cells["seeds"]),
            distance=_estimate(cells[DISTANCE]),
            farther=_estimate(cells[FARTHER]),
            surprise=_estimate(cells[SURPRISE]),
            things=math.nan,
            met=math.nan,
            met_more=UNKNOWN,
        )
    return list(found.values())


def _cells_of_tables(text: str) -> Iterator[dict[str, str]]:
    """Yield {title of a column: cell} of each row of the tables with distances; of columns of one title the first."""
    titles: list[str] = []
    for line in text.splitlines():
        cells = [
            cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")
        ]
        if not line.startswith("|"):
            titles = []
        elif not titles:
            titles = cells
        elif {SHARE, DISTANCE} <= set(titles) and not set(line) <= set("|-: "):
            yield dict(reversed(list(zip(titles, cells, strict=True))))


def _estimate(cell: str) -> Estimate:
    """Read "4.8 ± 3.3"; nothing is unknown."""
    value, _, error = cell.partition("±")
    return (float(value), float(error)) if error else UNKNOWN
