"""What of a shortcut head's recipe matters: python -m experiments ablation

Each row trains a head of the class-conditional model by the recipe of the shipped one (`train_head`), cut to
--iterations, with one change. All are then judged alike: on a run of the model that no head saw, and by pictures of
as many steps for about the same operations, so that a larger head has fewer full passes. Killed and started again, the
command goes on where it stopped.

Only heads of Lumina-DiMOO can be blind to the tokens just revealed (`sees_new`), so that is tried on the text model, by
runs alone. A second table holds the steps of the runs that a head learned from against those of the runs it is used in.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from shortcut import shipped, weights
from shortcut.checkpoint import Checkpoint
from shortcut.grid import usual_grid
from shortcut.train.evaluate import Keeps
from shortcut.train.head import initialised
from shortcut.train.learn import HeadPlan

from . import classifier
from .ablation_bench import Bench
from .ablation_report import (
    CHAINS,
    AblationLine,
    ablation_chart,
    markdown,
)
from .frechet import Gaussian
from .quality_measure import (
    FIRST_REFERENCE_SEED,
    NUM_CLASSES,
    judge_scenes,
    measure,
)
from .quality_rows import (
    DTYPES,
    Figures,
    Kit,
    Row,
    add_arguments,
    measured_rows,
    setting_of,
    setup_of,
    work_of,
    write,
)

logger = logging.getLogger(__name__)

Change = Callable[[HeadPlan], HeadPlan]

NUM_STEPS = 32  # at use
BUDGET = 10  # operations of a row with a head are about those of so many full passes


def changed(**parts: Mapping[str, Any]) -> Change:
    """Gives fields of some parts of a plan other values, such as objective={"kl": 1.0}."""

    def change(plan: HeadPlan) -> HeadPlan:
        return replace(
            plan,
            **{name: replace(getattr(plan, name), **values) for name, values in parts.items()},
        )

    return change


def narrowed(bottleneck: float) -> Change:
    """Makes the head `bottleneck` times as narrow as its model."""

    def change(plan: HeadPlan) -> HeadPlan:
        width = round(plan.config.model_width / bottleneck)
        return replace(plan, config=replace(plan.config, width=width))

    return change


def shown(*num_steps: int) -> Change:
    """Lets the teacher's runs have these numbers of steps."""

    def change(plan: HeadPlan) -> HeadPlan:
        runs = tuple(replace(plan.teaching.runs[0], num_steps=n) for n in num_steps)
        return replace(plan, teaching=replace(plan.teaching, runs=runs))

    return change


def smaller_batches(times: int) -> Change:
    """Takes so many times as many iterations, each with as small a part of the windows."""

    def change(plan: HeadPlan) -> HeadPlan:
        recipe, teaching = plan.recipe, plan.teaching
        return replace(
            plan,
            recipe=replace(
                recipe,
                iterations=recipe.iterations * times,
                lr=recipe.lr / math.sqrt(times),
                warmup=recipe.warmup * times,
                ema=1 - (1 - recipe.ema) / times,
            ),
            teaching=replace(
                teaching,
                iterations_per_run=teaching.iterations_per_run * times,
                windows_per_batch=teaching.windows_per_batch // times,
            ),
        )

    return change


CHANGES: dict[str, Change] = {
    "base": changed(),
    "another-seed": changed(recipe={"seed": 1}),
    **{
        f"stepwise-{n}": changed(config={"from_full": False}, teaching={"max_chain": n})
        for n in (1, 2, 4, 8)
    },
    **{f"from-full-{n}": changed(teaching={"max_chain": n}) for n in (1, 2, 4, 8)},
    "student-stepwise-4": changed(
        config={"from_full": False}, teaching={"max_chain": 4, "student_rollouts": True}
    ),
    "student-from-full-4": changed(teaching={"max_chain": 4, "student_rollouts": True}),
    "small-batches": smaller_batches(4),
    "all-positions": changed(objective={"only_masked": False}),
    "no-kl": changed(objective={"guided_kl": 0.0}),
    "kl-0.3": changed(objective={"guided_kl": 0.3}),
    "kl-alone": changed(objective={"mse": 0.0}),
    "no-kernel": changed(config={"kernel": 0, "attends": True}),
    "self-attention": changed(config={"attends": True}),
    "kernel-3": changed(config={"kernel": 3}),
    "blocks-2": changed(config={"num_blocks": 2}),
    "bottleneck-1.5": narrowed(1.5),
    "bottleneck-4": narrowed(4),
    "no-time": changed(config={"has_time": False}),
    "teacher-16": shown(16),
    "teacher-32": shown(32),
    "teacher-64": shown(64),
}
# Of the text model's head.
TEXT_CHANGES: dict[str, Change] = {
    "text": changed(),
    "text-blind": changed(config={"sees_new": False}),
}
# Rows without a head; the others take the work of the second.
REFERENCES = {
    "vanilla": Row("vanilla", NUM_STEPS, NUM_STEPS),
    f"vanilla-{BUDGET}": Row("vanilla", BUDGET, BUDGET),
    "reuse": Row("reuse", NUM_STEPS, BUDGET),
}
ROWS = (*REFERENCES, *CHANGES, *TEXT_CHANGES)
TAUGHT = ("base", "teacher-16", "teacher-32", "teacher-64")  # rows of the second table
USED, USED_CHAIN = (16, 32, 64), 3  # its columns, steps at use; steps after a full pass


def add_parser(steps: Any) -> None:
    """Adds `ablation` to the command line."""
    about = "train heads by changed recipes and judge them: a table (hours)"
    parser = steps.add_parser("ablation", help=about, description=about)
    parser.add_argument("--iterations", type=int, default=600, help="of each training")
    parser.add_argument("--num", type=int, default=1000, help="pictures per row and seed")
    parser.add_argument(
        "--num-reference", type=int, default=6000, help="fresh scenes to compare with"
    )
    add_arguments(
        parser,
        ROWS,
        work=Path("output/ablation"),
        chart="draw the pictures' quality against divergence",
    )
    for name in ("model", "vq", "judge"):
        parser.add_argument(
            f"--{name}", type=Path, default=getattr(shipped, name.upper()), help="default: shipped"
        )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Makes and judges what is not there yet, prints the tables, writes JSON and chart. Returns 0.

    Raises:
        ValueError: there is no such row, or the model is none of scenes.
    """
    if unknown := [name for name in options.rows if name not in ROWS]:
        raise ValueError(f"there is no row {unknown[0]!r}. Expected some of: {', '.join(ROWS)}.")
    model_file = weights.load(options.model, kind="model")
    pictures = Pictures(
        options, Bench.of_classes(options, model_file), load_kit(options, model_file)
    )
    lines = [pictures.line(name) for name in options.rows if name not in TEXT_CHANGES]
    if text_rows := [name for name in options.rows if name in TEXT_CHANGES]:
        bench = Bench.of_text(options)
        lines += [text_line(name, options, bench) for name in text_rows]
    used = {name: pictures.used(name) for name in options.rows if name in TAUGHT}
    setting = setting_of(
        options,
        pictures.kit,
        num=options.num,
        num_reference=options.num_reference,
        iterations=options.iterations,
        num_held_out=pictures.bench.base.teaching.images_per_run,
        num_steps=NUM_STEPS,
        budget=BUDGET,
        used_steps=USED,
        used_chain=USED_CHAIN,
    )
    print(markdown(lines, setting, used))
    write(options, {**setting, "errors_at_use": used}, lines, partial(ablation_chart, lines))
    return 0


class Pictures:
    """Judges heads of the class-conditional model, also by the pictures that they make."""

    def __init__(self, options: argparse.Namespace, bench: Bench, kit: Kit):
        self.options, self.bench, self.kit = options, bench, kit

    @cached_property
    def reference(self) -> Gaussian:
        """What pictures are compared with."""
        return Gaussian.of(
            judge_scenes(self.kit, FIRST_REFERENCE_SEED, self.options.num_reference)[0]
        )

    def line(self, name: str) -> AblationLine:
        """A row of the table; what is missing for it is made."""
        plan = CHANGES[name](self.bench.base) if name in CHANGES else None
        row = REFERENCES[name] if plan is None else row_within(plan, self.bench, self.kit)
        return line_of(name, row, plan, self.bench, self.kit, self.figures(name, plan, row))

    def figures(self, name: str, plan: HeadPlan | None, row: Row) -> list[Figures]:
        """Of each seed: what `quality_measure.measure` has, and `chains`, which are alike for all seeds."""
        options, kit = self.options, self.kit
        setup = self._setup(plan)

        @cache
        def head(dtype: torch.dtype) -> Any:
            if plan is None:
                return Keeps() if row.kind == "reuse" else None
            trained = self.bench.trained(name, plan)
            return weights.build(trained, dtype=dtype, device=kit.device)

        @cache
        def chains() -> list[dict[str, float]]:
            network = head(torch.float32)
            if network is None:
                return []
            return self.bench.held_against(network, NUM_STEPS, max(CHAINS))

        def measure_row(row: Row, seed: int) -> Figures:
            logger.info("%s, seed %d", name, seed)
            tried = replace(kit, head=head(kit.model.dtype))
            compared_with = {"distance": self.reference}
            return {"chains": chains(), **measure(row, seed, options.num, tried, compared_with)}

        found = measured_rows(options.work, setup, [row], options.seeds, measure_row)
        return [found[row.name, seed] for seed in options.seeds]

    def used(self, name: str) -> list[float]:
        """By `USED`: error of a row's head in runs of so many steps, `USED_CHAIN` after a full pass; of reuse = 1."""
        plan = CHANGES[name](self.bench.base)

        @cache
        def head() -> Any:
            trained = self.bench.trained(name, plan)
            return weights.build(trained, dtype=torch.float32, device=self.kit.device)

        def measure_row(row: Row, seed: int) -> Figures:
            return {"chains": self.bench.held_against(head(), row.num_steps, USED_CHAIN)}

        rows = [Row("reuse", num_steps, 1) for num_steps in USED]  # named by their steps alone
        setup = f"{self._setup(plan)} used"
        found = measured_rows(self.options.work, setup, rows, [0], measure_row)
        return [found[row.name, 0]["chains"][-1]["error"] for row in rows]

    def _setup(self, plan: HeadPlan | None) -> str:
        options = self.options
        files = options.model, options.vq, options.judge
        return setup_of(files, self.kit, options, options.num, options.num_reference, plan)


def text_line(name: str, options: argparse.Namespace, bench: Bench) -> AblationLine:
    """A row of the text model's head, by its errors alone."""
    plan = TEXT_CHANGES[name](bench.base)
    device = torch.device(options.device)
    kit = Kit(
        model=weights.build(bench.model_file, dtype=DTYPES[options.dtype], device=device),
        head=None,
        vq=None,
        judge=None,
        defaults=weights.settings(bench.model_file),
        device=device,
        batch_size=options.batch,
    )

    def measure_row(row: Row, seed: int) -> Figures:
        head = weights.build(bench.trained(name, plan), dtype=torch.float32, device=device)
        return {"chains": bench.held_against(head, NUM_STEPS, max(CHAINS)), "seconds": 0.0}

    setup, row = setup_of((shipped.TEXT_MODEL,), kit, options, plan), row_within(plan, bench, kit)
    found = measured_rows(options.work, setup, [row], [0], measure_row)
    return line_of(name, row, plan, bench, kit, [found[row.name, 0]])


def row_within(plan: HeadPlan, bench: Bench, kit: Kit) -> Row:
    """The row of a head whose number of full passes brings its operations nearest to `BUDGET`."""
    budget = _work(Row("vanilla", BUDGET, BUDGET), 0.0, None, bench, kit)["operations"]
    tried = _work(Row("shortcut", NUM_STEPS, BUDGET), 0.0, plan, bench, kit)
    in_head = tried["operations_head"] / (NUM_STEPS - BUDGET)
    num_fewer = (tried["operations"] - budget) / (tried["operations_full"] / BUDGET - in_head)
    return Row("shortcut", NUM_STEPS, max(1, BUDGET - round(num_fewer)))


def line_of(
    name: str,
    row: Row,
    plan: HeadPlan | None,
    bench: Bench,
    kit: Kit,
    figures: Sequence[Figures],
) -> AblationLine:
    """A line of the table.

    Args:
        plan: of the head; None = the row has none.
        figures: of each seed; `distance` only where pictures were made.
    """
    seconds = mean(figure["seconds"] for figure in figures)
    chains = [entry for entry in figures[0]["chains"] if entry["chain"] in CHAINS]
    return AblationLine(
        **_work(row, seconds, plan, bench, kit),
        name=name,
        errors=[entry["error"] for entry in chains],
        divergences=[entry["kl"] / entry["kl_reuse"] for entry in chains],
        distances=[figure["distance"] for figure in figures if "distance" in figure],
    )


def _work(
    row: Row, seconds: float, plan: HeadPlan | None, bench: Bench, kit: Kit
) -> dict[str, Any]:
    """What a row with a head of this plan takes for an image, as the fields of `Work`."""
    if plan is not None:
        kit = replace(kit, head=initialised(plan.config, 0))
    _, conditions, _ = bench.teacher.draw((kit.defaults,), 1, (0,))
    return work_of(row, seconds, kit, conditions, usual_grid(bench.model_file))


def load_kit(options: argparse.Namespace, model_file: Checkpoint) -> Kit:
    """What samples and judges pictures, still without a head.

    Raises:
        ValueError: the model does not make scenes.
    """
    if getattr(model_file.config, "num_classes", 0) != NUM_CLASSES:
        raise ValueError(
            f"{options.model} has no {NUM_CLASSES} classes of scenes. Only models of the scenes can be judged."
        )
    device = torch.device(options.device)
    vq_file = weights.load(options.vq, kind="vq")
    return Kit(
        model=weights.build(model_file, dtype=DTYPES[options.dtype], device=device),
        head=None,
        vq=weights.build(vq_file, dtype=torch.float32, device=device),
        judge=classifier.load(options.judge).to(device),
        # By confidence alone, as in the paper, so that pictures show all that a head gets wrong.
        defaults=replace(weights.settings(model_file), spread=0),
        device=device,
        batch_size=options.batch,
    )
