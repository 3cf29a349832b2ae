"""Measure which parts of a shortcut head's recipe matter: python -m experiments ablation

Each row trains a head of the class model by the recipe of the shipped head (`training.head`), cut to --iterations, with
one change. All rows are then judged alike: on a run of the model that no head saw, and by pictures of as many steps at
about the same FLOPs, so that a larger head has fewer full passes. Started again, the command resumes.

Only heads of Lumina-DiMOO can be blind to the tokens just revealed (`sees_new`); that is tried on the text model, by
runs alone. A second table compares the steps of the runs that a head learned from with the steps of its use.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from experiments.judges import attributes
from experiments.judges.file import JUDGE
from experiments.tables.ablation_heads import HeadLab, described
from experiments.tables.frechet import Gaussian
from experiments.tables.quality_measure import (
    NUM_CLASSES,
    measure,
    reference_of,
)
from experiments.tables.report import Cost, table
from experiments.tables.rows import (
    Figures,
    Row,
    Subject,
    add_arguments,
    load_pipeline,
    measured_rows,
    setting_of,
    setup_of,
)
from experiments.training import heads
from shortcut import checkpoint as checkpoints
from shortcut import shipped
from shortcut.settings import usual_settings
from shortcut.train.head import initialised
from shortcut.train.learn import HeadPlan

logger = logging.getLogger(__name__)

Change = Callable[[HeadPlan], HeadPlan]
NUM_STEPS = 32  # at use
BUDGET = 10  # a row with a head takes about the FLOPs of so many full passes
CHAINS = (1, 3, 6)  # steps after a full pass at which a head is compared with the model


def changed(**parts: Mapping[str, Any]) -> Change:
    """Return a change of some fields, such as objective={"kl": 1.0}."""

    def change(plan: HeadPlan) -> HeadPlan:
        new = {name: replace(getattr(plan, name), **values) for name, values in parts.items()}
        return replace(plan, **new)

    return change


def taught(num_steps: int) -> Change:
    """Return the change to teacher's runs with this number of steps."""
    return changed(rollouts={"runs": (replace(heads.PLAN.rollouts.runs[0], num_steps=num_steps),)})


def smaller_batches(times: int) -> Change:
    """Return the change to `times` as many iterations with batches `times` smaller."""

    def change(plan: HeadPlan) -> HeadPlan:
        recipe, rollouts = plan.recipe, plan.rollouts
        recipe = replace(
            recipe,
            iterations=recipe.iterations * times,
            lr=recipe.lr / math.sqrt(times),
            warmup=recipe.warmup * times,
            ema=1 - (1 - recipe.ema) / times,
        )
        rollouts = replace(
            rollouts,
            iterations_per_run=rollouts.iterations_per_run * times,
            windows_per_batch=rollouts.windows_per_batch // times,
        )
        return replace(plan, recipe=recipe, rollouts=rollouts)

    return change


CHANGES: dict[str, Change] = {
    "base": changed(),
    "another-seed": changed(recipe={"seed": 1}),
    **{
        f"stepwise-{n}": changed(config={"from_full": False}, rollouts={"max_chain": n})
        for n in (1, 2, 4, 8)
    },
    **{f"from-full-{n}": changed(rollouts={"max_chain": n}) for n in (1, 2, 4, 8)},
    "small-batches": smaller_batches(4),
    "no-kl": changed(objective={"guided_kl": 0.0}),
    "kl-0.3": changed(objective={"guided_kl": 0.3}),
    "kl-alone": changed(objective={"mse": 0.0}),
    "no-kernel": changed(config={"kernel": 0, "attends": True}),
    "self-attention": changed(config={"attends": True}),
    "kernel-3": changed(config={"kernel": 3}),
    "blocks-2": changed(config={"num_blocks": 2}),
    "bottleneck-1.5": changed(config={"width": 128}),
    "bottleneck-4": changed(config={"width": 48}),
    "no-time": changed(config={"has_time": False}),
    **{f"teacher-{n}": taught(n) for n in (16, 32, 64)},
}
TEXT_CHANGES: dict[str, Change] = {
    "text": changed(),
    "text-blind": changed(config={"sees_new": False}),
}
REFERENCES = {  # rows without a head
    "vanilla": Row("vanilla", NUM_STEPS, NUM_STEPS),
    f"vanilla-{BUDGET}": Row("vanilla", BUDGET, BUDGET),
    "reuse": Row("reuse", NUM_STEPS, BUDGET),
}
ROWS = (*REFERENCES, *CHANGES, *TEXT_CHANGES)
TAUGHT = ("base", "teacher-16", "teacher-32", "teacher-64")  # rows of the second table
USED, USED_CHAIN = (16, 32, 64), 3  # its columns: steps at use; steps after a full pass
COLUMNS = (
    "",
    *(f"error {n}" for n in CHAINS),
    *(f"divergence {n}" for n in CHAINS),
    "distance (each seed)",
    "full",
    "GFLOP / image",
    "head pass",
)
NOTE = """\
vanilla: the model alone; vanilla-N: in N steps; reuse: features of the last full pass, no head. base: the recipe of the
shipped head; each other row changes what its name says. Compare differences with base against another-seed.
stepwise-N: predicts from the step before, in roll-outs of up to N predictions; from-full-N: from the last full pass.
no-kernel: the paper's head. teacher-N: teacher's runs of N steps. text-blind: no attention to the tokens just revealed.
Error, divergence N steps after a full pass: squared error of features and divergence of guided codes where tokens are
masked, on a held-out run, as a share of that of reuse. Distance: Frechet distance in the judge's features from fresh
scenes. Full: full passes of 32, so that the FLOPs are nearest to vanilla-10. Head pass: its share of a full pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationRow(Cost):
    """A row of the table."""

    name: str
    errors: list[float]  # by CHAINS, of reuse = 1; empty: all steps are full passes
    divergences: list[float]  # likewise
    distances: list[float]  # of each seed; empty: no pictures were made

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the row's text, by COLUMNS."""
        chains = [f"{value:.3f}" for value in (*self.errors, *self.divergences)]
        seeds = ", ".join(f"{distance:.1f}" for distance in self.distances)
        return (
            self.name,
            *(chains or 2 * len(CHAINS) * [""]),
            f"{mean(self.distances):.1f} ({seeds})" if self.distances else "",
            str(self.num_full),
            f"{self.flops / 1e9:.2f}",
            f"{self.head_share:.1%}" if self.head_share else "",
        )


def add_parser(steps: Any) -> None:
    """Add `ablation` to the command line."""
    about = "train heads by changed recipes and judge them: a table (hours)"
    parser = steps.add_parser("ablation", help=about, description=about)
    parser.add_argument("--iterations", type=int, default=600, help="of each training")
    parser.add_argument("--num", type=int, default=1000, help="pictures per row and seed")
    parser.add_argument(
        "--num-reference", type=int, default=6000, help="fresh scenes to compare with"
    )
    files = {"model": shipped.MODEL, "vq": shipped.VQ, "judge": JUDGE}
    add_arguments(parser, ROWS, Path("output/ablation"), files)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make and judge what is not there yet, print the tables. Returns 0.

    Raises:
        ValueError: there is no such row, or the model has other classes than the scenes.
    """
    if unknown := [name for name in options.rows if name not in ROWS]:
        raise ValueError(f"there is no row {unknown[0]!r}. Expected some of: {', '.join(ROWS)}.")
    pictures = Pictures(options)
    rows = [pictures.row(name) for name in options.rows if name not in TEXT_CHANGES]
    if text_rows := [name for name in options.rows if name in TEXT_CHANGES]:
        text = TextErrors(options)
        rows += [text.row(name) for name in text_rows]
    print(table(COLUMNS, [row.cells for row in rows]), NOTE, sep="\n\n")
    if used := [name for name in options.rows if name in TAUGHT]:
        columns = ("error at use in", *(f"{n} steps" for n in USED))
        cells = [(name, *(f"{e:.3f}" for e in pictures.errors_at_use(name))) for name in used]
        print(f"\n{table(columns, cells)}\n\nError {USED_CHAIN} steps after a full pass.")
    print(
        f"\n{options.iterations} iterations; {options.num} pictures per row and seed, {options.num_reference} scenes. "
        f"{setting_of(options, pictures.subject)}"
    )
    return 0


class TextErrors:
    """Compare heads of the shipped text model with it on held-out runs."""

    changes = TEXT_CHANGES

    def __init__(self, options: argparse.Namespace):
        self.options = options
        files = {"model": shipped.TEXT_MODEL, "vq": shipped.VQ}
        self._load(argparse.Namespace(**vars(options) | files))
        plan = heads.text_plan(self.subject.pipeline.model_file)
        self.lab = self._lab(shipped.TEXT_MODEL, plan)

    def _load(self, options: argparse.Namespace) -> None:
        pipeline = load_pipeline(options)
        # By confidence alone, as in the paper, so that pictures show all that a head gets wrong.
        settings = replace(usual_settings(pipeline.model_file), spread=0)
        self.subject = Subject(pipeline, None, settings, options.batch)

    def _lab(self, model: Path, plan: HeadPlan) -> HeadLab:
        options, model_file = self.options, checkpoints.load(model, kind="model")
        return HeadLab.of(options.work, model_file, plan, options.device, options.iterations)

    def row(self, name: str) -> AblationRow:
        """Return a row of the table; what is missing for it is made."""
        plan = self.changes[name](self.lab.base) if name in self.changes else None
        row = REFERENCES[name] if plan is None else self.row_within(plan)
        figures = self.figures(name, plan, row)
        chains = [entry for entry in figures[0]["chains"] or () if entry["chain"] in CHAINS]
        reuse = [1.0] * len(CHAINS) if row.kind == "reuse" else []
        return AblationRow(
            **self.cost(row, plan),
            name=name,
            errors=reuse or [entry["error"] for entry in chains],
            divergences=reuse or [entry["kl"] / entry["kl_reuse"] for entry in chains],
            distances=[figure["distance"] for figure in figures if "distance" in figure],
        )

    def figures(self, name: str, plan: HeadPlan | None, row: Row) -> list[Figures]:
        """Return `chains`, what `evaluate` says of the head."""
        assert plan is not None, "a reference needs pictures"
        return [{"chains": self.chains(name, plan, [NUM_STEPS], max(CHAINS))[0]}]

    def chains(
        self, name: str, plan: HeadPlan, num_steps: Sequence[int], max_chain: int
    ) -> list[list[dict[str, float]]]:
        """Return what `evaluate` says of a row's head on held-out runs of these numbers of steps."""

        def measure_row(row: Row, seed: int) -> Figures:
            head = self._head(name, plan, torch.float32)
            return {"chains": self.lab.compare(head, row.num_steps, max_chain)}

        rows = [Row("reuse", n, max_chain) for n in num_steps]  # named by the runs alone
        setup = setup_of(
            (), self.subject, self.options, self.lab.model_file.fingerprint, described(plan)
        )
        found = measured_rows(self.options.work, setup, rows, [0], measure_row)
        return [found[row.name, 0]["chains"] for row in rows]

    def _head(self, name: str, plan: HeadPlan, dtype: torch.dtype) -> Any:
        device = self.subject.pipeline.device
        return checkpoints.build(self.lab.trained(name, plan), dtype=dtype, device=device)

    def row_within(self, plan: HeadPlan) -> Row:
        """Return the row of a head whose number of full passes brings its FLOPs nearest to `BUDGET`."""
        budget = self.cost(Row("vanilla", BUDGET, BUDGET), None)["flops"]
        tried = self.cost(Row("head", NUM_STEPS, BUDGET), plan)
        in_head = tried["flops_head"] / (NUM_STEPS - BUDGET)
        num_fewer = (tried["flops"] - budget) / (tried["flops_full"] / BUDGET - in_head)
        return Row("head", NUM_STEPS, max(1, BUDGET - round(num_fewer)))

    def cost(self, row: Row, plan: HeadPlan | None) -> dict[str, Any]:
        """Return the fields of `Cost` of a row with a head of this plan."""
        head = None if plan is None else initialised(plan.layout, plan.config, 0)
        _, conditions, _ = self.lab.teacher.draw((self.subject.settings,), 1, (0,))
        return self._with_head(head).cost(row, 0.0, conditions)

    def _with_head(self, head: Any) -> Subject:
        return replace(self.subject, pipeline=replace(self.subject.pipeline, head=head))


class Pictures(TextErrors):
    """Compare heads of the class model with it, and judge the pictures that they make."""

    changes = CHANGES

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self._load(options)
        config = self.subject.pipeline.model_file.config
        if getattr(config, "num_classes", 0) != NUM_CLASSES:
            raise ValueError(
                f"{options.model} does not have the {NUM_CLASSES} classes of the scenes. Only models of the scenes can "
                "be judged."
            )
        judge = attributes.FILE.load(options.judge).to(self.subject.pipeline.device)
        self.subject = replace(self.subject, judge=judge)
        self.lab = self._lab(options.model, heads.PLAN)

    @cached_property
    def reference(self) -> Gaussian:
        """Return what pictures are compared with."""
        return reference_of(self.subject, self.options.num_reference)

    def figures(self, name: str, plan: HeadPlan | None, row: Row) -> list[Figures]:
        """Return the figures of each seed, with `chains`."""
        options = self.options
        chains = None if plan is None else super().figures(name, plan, row)[0]["chains"]

        @cache
        def subject() -> Subject:
            dtype = self.subject.pipeline.model.dtype
            return self._with_head(None if plan is None else self._head(name, plan, dtype))

        def measure_row(row: Row, seed: int) -> Figures:
            logger.info("%s, seed %d", name, seed)
            return measure(row, seed, options.num, subject(), self.reference)

        files = options.model, options.vq, options.judge
        more = options.num, options.num_reference, described(plan)
        setup = setup_of(files, self.subject, options, *more)
        found = measured_rows(options.work, setup, [row], options.seeds, measure_row)
        return [{**found[row.name, seed], "chains": chains} for seed in options.seeds]

    def errors_at_use(self, name: str) -> list[float]:
        """Return the error of a row's head in runs of other numbers of steps, by `USED`."""
        found = self.chains(name, CHANGES[name](self.lab.base), USED, USED_CHAIN)
        return [chains[-1]["error"] for chains in found]
