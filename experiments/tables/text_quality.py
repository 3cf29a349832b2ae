"""Measure the shipped text model, speed against accuracy: python -m experiments text-quality

`text_measure.py` describes what a row measures. Two reference rows need no sampling: pictures of the scenes that the
prompts came from ("real"), and these after VQ encoding and decoding ("vq"); they bound what the judge can see. The
control "reuse" repeats the features of the last full pass where "head" asks the head. --task edit measures
instruction edits, for which the head was not trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.judges import reader
from experiments.judges.file import TEXT_JUDGE
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
from experiments.tables.text_measure import edit_cases, measure, text_cases
from shortcut import shipped
from shortcut.settings import usual_settings

ROWS = (
    *("real", "vq"),
    *("vanilla-8", "vanilla-12", "vanilla-16", "vanilla-32"),
    *("head-32-6", "head-32-8", "head-32-12", "head-16-5", "head-16-8"),
    "reuse-32-8",
)
TASKS = {"text_to_image": "", "edit": " and all else as it was"}
FILES = {
    "model": shipped.TEXT_MODEL,
    "head": shipped.TEXT_HEAD,
    "vq": shipped.VQ,
    "judge": TEXT_JUDGE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRow(Cost):
    """A row of the table. Figures are means over the seeds, in [0, 1]."""

    accuracies: list[float]  # of each seed
    tasks: dict[str, float]  # pictures that show all that was asked for
    labels: dict[str, float]  # claims that hold

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the row's text: cost, accuracy, accuracy of each task."""
        seeds = ", ".join(f"{accuracy:.1%}" for accuracy in self.accuracies)
        tasks = (f"{share:.1%}" for share in self.tasks.values())
        return (*self.cost_cells, f"{mean(self.accuracies):.1%} ({seeds})", *tasks)


def add_parser(steps: Any) -> None:
    """Add `text-quality` to the command line."""
    about = "measure speed and accuracy of the text model: a table (an hour on 2 cores)"
    parser = steps.add_parser("text-quality", help=about, description=about)
    parser.add_argument("--task", choices=list(TASKS), default="text_to_image")
    parser.add_argument(
        "--per-task", type=int, metavar="N", help="prompts of each kind; default: all, 40 to 60"
    )
    add_arguments(parser, ROWS, Path("output/text-quality"), FILES)
    add_sampler_arguments(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure what is not measured yet, print the tables, draw the chart. Returns 0."""
    subject = subject_of(options)
    rows = parse_rows(options.rows, subject)
    make = edit_cases if options.task == "edit" else text_cases
    cases = make(subject.pipeline, options.per_task)
    tokens = [[c.tolist() for c in case.conditions] for case in cases]
    files = options.model, options.head, options.vq, options.judge
    setup = setup_of(files, subject, options, tokens)

    def measure_row(row: Row, seed: int) -> Figures:
        return measure(row, seed, cases, subject)

    measured = measured_rows(options.work, setup, rows, options.seeds, measure_row)
    by_length = sorted(cases, key=lambda case: sum(c.shape[1] for c in case.conditions))
    conditions = by_length[len(by_length) // 2].conditions
    found = []
    for row in rows:
        figures = [measured[row.name, seed] for seed in options.seeds]
        seconds = mean(figure["seconds"] for figure in figures)
        found.append(
            TextRow(
                **subject.cost(row, seconds, conditions),
                accuracies=[figure["accuracy"] for figure in figures],
                tasks=_means([figure["tasks"] for figure in figures]),
                labels=_means([figure["labels"] for figure in figures]),
            )
        )
    print(markdown(found))
    prompts = "edits" if options.task == "edit" else "prompts"
    print(
        f"\nAccuracy: share of pictures in which the judge sees all that was asked for{TASKS[options.task]}, mean over "
        f"the tasks. Second table: the claims one by one. {len(cases)} {prompts}, a picture of each per row and seed; "
        f"FLOPs are those of {prompts} of median length. {setting_of(options, subject)}"
    )
    if options.chart:
        title = "accuracy, mean over the tasks (higher is better)"
        draw_chart(options.chart, found, [(title, lambda row: row.accuracies)])
    return 0


def subject_of(options: argparse.Namespace) -> Subject:
    """Load pipeline and judge. Raises ValueError if the model is not a text model."""
    pipeline = load_pipeline(options)
    if "prompt" not in pipeline.architecture.takes:
        raise ValueError(
            f"{pipeline.model_file.name} is a {pipeline.architecture.title}, expected a text model. For the class "
            "model use: python -m experiments frontier"
        )
    num_guided = 2 if options.task == "edit" else 1
    settings = with_options(usual_settings(pipeline.model_file, num_guided=num_guided), options)
    judge = reader.FILE.load(options.judge).to(pipeline.device)
    return Subject(pipeline, judge, settings, options.batch)


def _means(shares: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: mean(share[name] for share in shares) for name in shares[0]}


def markdown(rows: Sequence[TextRow]) -> str:
    """Return accuracy by task, claims that hold by subject, and the share of the head."""
    by_task = table(
        (*COST_COLUMNS, "accuracy (each seed)", *rows[0].tasks), [row.cells for row in rows]
    )
    labels = [(*r.cost_cells[:3], *(f"{share:.1%}" for share in r.labels.values())) for r in rows]
    by_label = table((*COST_COLUMNS[:3], *rows[0].labels), labels)
    return "\n\n".join(filter(None, (by_task, by_label, head_share(rows))))
