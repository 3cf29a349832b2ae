"""Measures the shipped text model, speed against accuracy: python -m experiments text-quality

What a row measures is described in `text_measure.py`. Two reference rows need no sampling: pictures of the scenes that
the prompts came from ("real"), and those after VQ encoding and decoding ("vq"); they say what the judge can see at
most. The control "reuse" repeats the last full pass where "shortcut" asks the head. With --task edit the same is
measured of instruction edits, for which the head was not trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from shortcut import shipped, weights
from shortcut.generate import needed_branches
from shortcut.grid import usual_grid
from shortcut.models.lumina_dimoo.prompts import load_tokenizer
from shortcut.models.lumina_dimoo.tokenizer import NEEDED, tokenizer_folder

from . import text_judge
from .quality_report import (
    WORK_COLUMNS,
    Work,
    head_share,
    quality_chart,
    table,
)
from .quality_rows import (
    DTYPES,
    Figures,
    Kit,
    add_arguments,
    measured_rows,
    parse_rows,
    setting_of,
    setup_of,
    work_of,
    write,
)
from .text_measure import (
    Question,
    edit_questions,
    measure,
    text_questions,
)

ROWS = (
    *("real", "vq"),
    *("vanilla-12", "vanilla-16", "vanilla-32", "vanilla-64"),
    *("shortcut-64-9", "shortcut-64-11", "shortcut-64-14", "shortcut-32-8", "shortcut-16-6"),
    *("reuse-64-9", "reuse-64-14"),
)
TASKS = ("text_to_image", "edit")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLine(Work):
    """A row of the table. Figures are means over the seeds, shares in [0, 1]."""

    accuracy: float
    accuracies: list[float]  # of each seed
    tasks: dict[str, float]  # pictures that show all that was asked for
    labels: dict[str, float]  # claims that hold

    @property
    def cells(self) -> tuple[str, ...]:
        """The row's text: what it takes, its accuracy, that of each task."""
        seeds = ", ".join(f"{accuracy:.1%}" for accuracy in self.accuracies)
        tasks = (f"{share:.1%}" for share in self.tasks.values())
        return (*self.work_cells, f"{self.accuracy:.1%} ({seeds})", *tasks)


def add_parser(steps: Any) -> None:
    """Adds `text-quality` to the command line."""
    about = "measure speed and accuracy of the text model: a table (an hour on 2 cores)"
    parser = steps.add_parser("text-quality", help=about, description=about)
    parser.add_argument("--task", choices=TASKS, default=TASKS[0])
    parser.add_argument(
        "--per-task", type=int, metavar="N", help="prompts of each kind; default: all, 40 to 60"
    )
    add_arguments(parser, ROWS, work=Path("output/text-quality"))
    parser.add_argument(
        "--cfg",
        type=float,
        nargs="+",
        help="guidance of the text, for edits also of the image; default of this and the next three: as the model's",
    )
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--choice-temperature", type=float)
    parser.add_argument("--spread", type=int)
    for name, path in (
        ("model", shipped.TEXT_MODEL),
        ("head", shipped.TEXT_HEAD),
        ("vq", shipped.VQ),
        ("judge", shipped.TEXT_JUDGE),
    ):
        parser.add_argument(f"--{name}", type=Path, default=path, help="default: shipped")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measures what is not measured yet, prints the tables, writes JSON and chart. Returns 0."""
    model_file = weights.load(options.model, kind="model")
    assert model_file.path is not None
    grid, folder = usual_grid(model_file), tokenizer_folder(model_file.path)
    tokenizer = load_tokenizer(folder, model_file.config)
    kit = load_kit(options, model_file)
    rows = parse_rows(options.rows, kit)
    if options.task == "edit":
        questions = edit_questions(kit, tokenizer, options.per_task)
    else:
        questions = text_questions(tokenizer, model_file.config, options.per_task)
    questions, kit = _needed(questions, kit)
    files = model_file.path, options.head, options.vq, options.judge, folder / NEEDED
    setup = setup_of(files, kit, options, options.task, options.per_task)
    measured = measured_rows(
        options.work,
        setup,
        rows,
        options.seeds,
        lambda row, seed: measure(row, seed, questions, kit, grid),
    )
    usual = sorted(questions, key=lambda q: sum(c.shape[1] for c in q.conditions))
    conditions = usual[len(usual) // 2].conditions
    lines = []
    for row in rows:
        figures = [measured[row.name, seed] for seed in options.seeds]
        seconds = mean(figure["seconds"] for figure in figures)
        lines.append(line_of(work_of(row, seconds, kit, conditions, grid), figures))
    setting = setting_of(options, kit, num=len(questions), task=options.task)
    print(markdown(lines, setting))
    title = "accuracy, mean over the tasks (higher is better)"
    picture = partial(
        quality_chart, lines, lambda line: line.accuracies, title, is_higher_better=True
    )
    write(options, setting, lines, picture)
    return 0


def load_kit(options: argparse.Namespace, model_file: weights.Checkpoint) -> Kit:
    """The networks that `options` name, on its device.

    Raises:
        ValueError: they do not belong together, or a setting is none.
    """
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    if model_file.format.conditioning != "text":
        raise ValueError(
            f"{model_file.name} is a {model_file.format.title}, expected a text model. For the class-conditional one "
            "use: python -m experiments quality"
        )
    head_file, vq_file = (
        weights.load(options.head, kind="head"),
        weights.load(options.vq, kind="vq"),
    )
    weights.check_head(head_file, model_file)
    if vq_file.config.num_codes != model_file.config.num_codes:
        raise ValueError(
            f"{vq_file.name} has {vq_file.config.num_codes} codes, and {model_file.name} makes "
            f"{model_file.config.num_codes}. Give the VQ model that belongs to it."
        )
    defaults = weights.settings(model_file, has_sources=options.task == "edit")
    guidance = defaults.guidance
    if options.cfg is not None:
        if len(options.cfg) != len(guidance):
            raise ValueError(
                f"--cfg needs {len(guidance)} numbers for the task {options.task!r}, got {len(options.cfg)}."
            )
        guidance = tuple(options.cfg)
    given = {
        name: getattr(options, name) for name in ("temperature", "choice_temperature", "spread")
    }
    given = {name: value for name, value in given.items() if value is not None}
    return Kit(
        model=weights.build(model_file, dtype=dtype, device=device),
        head=weights.build(head_file, dtype=dtype, device=device),
        vq=weights.build(vq_file, dtype=torch.float32, device=device),
        judge=text_judge.load(options.judge).to(device),
        defaults=replace(defaults, guidance=guidance, **given),
        device=device,
        batch_size=options.batch,
    )


def _needed(questions: Sequence[Question], kit: Kit) -> tuple[list[Question], Kit]:
    """Both without guidance branches of weight 0."""
    needed = [needed_branches(q.conditions, kit.defaults.guidance) for q in questions]
    guidance = needed[0][1]
    kit = replace(kit, defaults=replace(kit.defaults, guidance=guidance))
    pairs = zip(questions, needed, strict=True)
    return [replace(q, conditions=tuple(conditions)) for q, (conditions, _) in pairs], kit


def line_of(work: dict[str, Any], figures: Sequence[Figures]) -> TextLine:
    """One line of the table from the figures of each seed."""
    accuracies = [figure["accuracy"] for figure in figures]
    return TextLine(
        **work,
        accuracy=mean(accuracies),
        accuracies=accuracies,
        tasks=_means([figure["tasks"] for figure in figures]),
        labels=_means([figure["labels"] for figure in figures]),
    )


def _means(shares: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: mean(share[name] for share in shares) for name in shares[0]}


def markdown(lines: Sequence[TextLine], setting: dict[str, Any]) -> str:
    """Accuracy by task, claims that hold by what they are about, and how it was measured."""
    by_task = table(
        (*WORK_COLUMNS, "accuracy (each seed)", *lines[0].tasks), [line.cells for line in lines]
    )
    by_label = table(
        (*WORK_COLUMNS[:3], *lines[0].labels),
        [
            (*line.work_cells[:3], *(f"{share:.1%}" for share in line.labels.values()))
            for line in lines
        ],
    )
    return "\n\n".join(filter(None, (by_task, by_label, head_share(lines), _how(setting))))


def _how(setting: dict[str, Any]) -> str:
    sampler = ", ".join(f"{name} {value}" for name, value in setting["sampler"].items())
    of = "edits" if setting["task"] == "edit" else "prompts"
    return (
        f"Accuracy: share of pictures in which the judge sees all that was asked for{_KEPT[setting['task']]}, mean "
        f"over the tasks. Second table: what was asked for, taken apart. {setting['num']} {of}, a picture of each per "
        f"row and seed; seeds {setting['seeds']}; operations are those of {of} of middle length; {sampler}. "
        f"{setting['hardware']}; torch {setting['torch']}, {setting['dtype']}, batch {setting['batch']}."
    )


_KEPT = {"text_to_image": "", "edit": " and all else as it was"}
