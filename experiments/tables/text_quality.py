"""Measure the shipped text model, speed against accuracy: python -m experiments text-quality

`text_measure.py` describes what a row measures. Two reference rows need no sampling: pictures of the scenes that the
prompts came from ("real"), and these after VQ encoding and decoding ("vq"); they bound what the judge can see. The
control "reuse" repeats the features of the last full pass where "shortcut" asks the head. --task edit measures
instruction edits, for which the head was not trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.judges import reader
from experiments.judges.file import TEXT_JUDGE
from experiments.tables.report import (
    COST_COLUMNS,
    Cost,
    draw_chart,
    head_share,
    sampler_words,
    table,
)
from experiments.tables.rows import (
    Networks,
    add_arguments,
    add_sampler_arguments,
    cost_of,
    load_networks,
    measured_rows,
    parse_rows,
    setting_of,
    setup_of,
)
from experiments.tables.text_measure import PromptCase, edit_cases, measure, text_cases
from shortcut import shipped, weights
from shortcut.generate import needed_branches
from shortcut.grid import usual_grid
from shortcut.models.lumina_dimoo.prompts import load_tokenizer
from shortcut.models.lumina_dimoo.tokenizer import NEEDED, tokenizer_folder

ROWS = (
    *("real", "vq"),
    *("vanilla-8", "vanilla-12", "vanilla-16", "vanilla-32"),
    *("shortcut-32-6", "shortcut-32-8", "shortcut-32-12", "shortcut-16-5", "shortcut-16-8"),
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
    networks = networks_of(options)
    model_file = weights.load(options.model, kind="model")
    assert model_file.path is not None
    grid, folder = usual_grid(model_file), tokenizer_folder(model_file.path)
    tokenizer = load_tokenizer(folder, model_file.config)
    rows = parse_rows(options.rows, networks)
    if options.task == "edit":
        cases = edit_cases(networks, tokenizer, options.per_task)
    else:
        cases = text_cases(tokenizer, model_file.config, options.per_task)
    cases, networks = _without_unused_branches(cases, networks)
    files = model_file.path, options.head, options.vq, options.judge, folder / NEEDED
    setup = setup_of(files, networks, options, options.task, options.per_task)
    measured = measured_rows(
        options.work,
        setup,
        rows,
        options.seeds,
        lambda row, seed: measure(row, seed, cases, networks, grid),
    )
    by_length = sorted(cases, key=lambda case: sum(c.shape[1] for c in case.conditions))
    conditions = by_length[len(by_length) // 2].conditions
    found = []
    for row in rows:
        figures = [measured[row.name, seed] for seed in options.seeds]
        seconds = mean(figure["seconds"] for figure in figures)
        found.append(
            TextRow(
                **cost_of(row, seconds, networks, conditions, grid),
                accuracies=[figure["accuracy"] for figure in figures],
                tasks=_means([figure["tasks"] for figure in figures]),
                labels=_means([figure["labels"] for figure in figures]),
            )
        )
    print(markdown(found, setting_of(options, networks, num=len(cases), task=options.task)))
    if options.chart:
        title = "accuracy, mean over the tasks (higher is better)"
        draw_chart(options.chart, found, lambda row: row.accuracies, title)
    return 0


def networks_of(options: argparse.Namespace) -> Networks:
    """Load the networks. Raises ValueError if the model is not a text model."""
    model_file = weights.load(options.model, kind="model")
    if model_file.format.conditioning != "text":
        raise ValueError(
            f"{model_file.name} is a {model_file.format.title}, expected a text model. For the class model use: "
            "python -m experiments quality"
        )
    defaults = weights.settings(model_file, has_sources=options.task == "edit")
    return load_networks(options, model_file, defaults, reader.FILE.load(options.judge))


def _without_unused_branches(
    cases: Sequence[PromptCase], networks: Networks
) -> tuple[list[PromptCase], Networks]:
    """Drop guidance branches of weight 0 from both."""
    needed = [needed_branches(case.conditions, networks.defaults.guidance) for case in cases]
    networks = replace(networks, defaults=replace(networks.defaults, guidance=needed[0][1]))
    pairs = zip(cases, needed, strict=True)
    return [replace(case, conditions=tuple(kept)) for case, (kept, _) in pairs], networks


def _means(shares: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: mean(share[name] for share in shares) for name in shares[0]}


def markdown(rows: Sequence[TextRow], setting: dict[str, Any]) -> str:
    """Return accuracy by task, claims that hold by subject, and how they were measured."""
    by_task = table(
        (*COST_COLUMNS, "accuracy (each seed)", *rows[0].tasks), [row.cells for row in rows]
    )
    labels = [(*r.cost_cells[:3], *(f"{share:.1%}" for share in r.labels.values())) for r in rows]
    by_label = table((*COST_COLUMNS[:3], *rows[0].labels), labels)
    prompts = "edits" if setting["task"] == "edit" else "prompts"
    how = (
        f"Accuracy: share of pictures in which the judge sees all that was asked for{TASKS[setting['task']]}, mean "
        f"over the tasks. Second table: the claims one by one. {setting['num']} {prompts}, a picture of each per row "
        f"and seed; FLOPs are those of {prompts} of median length. {sampler_words(setting)}"
    )
    return "\n\n".join(filter(None, (by_task, by_label, head_share(rows), how)))
