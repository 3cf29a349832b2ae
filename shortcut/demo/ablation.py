"""What of a shortcut head's recipe matters: python -m shortcut.demo ablation

Each row trains a head of the class-conditional model by the recipe of the shipped one (`train_head`), cut to
--iterations, with one change. All are then judged alike: on a run of the model that no head saw, and by pictures at the
same numbers of steps and full passes. Killed and started again, the command goes on where it stopped.

No row has a head that is blind to the tokens just revealed: only heads of Lumina-DiMOO can be (`sees_new`).
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from .. import shipped, weights
from ..checkpoint import Checkpoint
from ..classes import class_branches
from ..train.evaluate import Keeps, evaluate, held_out_runs
from ..train.head import initialised
from ..train.learn import HeadPlan, learn
from ..train.record import Trajectories
from ..train.teacher import teacher_of
from . import classifier, train_head
from .ablation_report import CHAINS, AblationLine, ablation_chart, markdown
from .frechet import Gaussian
from .quality import FIRST_REFERENCE_SEED
from .quality_measure import NUM_CLASSES, judge_scenes, measure
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

BOTTLENECK = 3.2  # of the shipped head
NUM_STEPS, NUM_FULL = 32, 8  # at use


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
    "small-batches": smaller_batches(4),
    "all-positions": changed(objective={"only_masked": False}),
    "no-kl": changed(objective={"guided_kl": 0.0}),
    "kl-alone": changed(objective={"mse": 0.0, "guided_kl": 1.0}),
    "blocks-1": changed(config={"num_blocks": 1}),
    "blocks-3": changed(config={"num_blocks": 3}),
    "bottleneck-2": narrowed(2),
    "bottleneck-4": narrowed(4),
    "no-time": changed(config={"has_time": False}),
    "teacher-16": shown(16),
    "teacher-32": shown(32),
    "teacher-64": shown(64),
}
# Rows without a head; the second takes about the work of a row with one.
REFERENCES = {
    "vanilla": Row("vanilla", NUM_STEPS, NUM_STEPS),
    f"vanilla-{NUM_FULL}": Row("vanilla", NUM_FULL, NUM_FULL),
    "reuse": Row("reuse", NUM_STEPS, NUM_FULL),
}
SHORTCUT = Row("shortcut", NUM_STEPS, NUM_FULL)
ROWS = (*REFERENCES, *CHANGES)


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
    """Makes and judges what is not there yet, prints the table, writes JSON and chart. Returns 0.

    Raises:
        ValueError: there is no such row, or the model is none of scenes.
    """
    if unknown := [name for name in options.rows if name not in ROWS]:
        raise ValueError(f"there is no row {unknown[0]!r}. Expected some of: {', '.join(ROWS)}.")
    bench = Bench(options)
    lines = [bench.line(name) for name in options.rows]
    setting = setting_of(
        options,
        bench.kit,
        num=options.num,
        num_reference=options.num_reference,
        iterations=options.iterations,
        num_held_out=bench.base.teaching.images_per_run,
        num_steps=NUM_STEPS,
        num_full=NUM_FULL,
    )
    print(markdown(lines, setting))
    write(options, setting, lines, partial(ablation_chart, lines))
    return 0


def base_plan(model_file: Checkpoint, iterations: int) -> HeadPlan:
    """The recipe of the shipped head in fewer iterations: each recorded step is used as often, and shares stay."""
    recipe, teaching = train_head.RECIPE, train_head.TEACHING
    share = iterations / recipe.iterations
    config = replace(train_head.CONFIG, model_width=model_file.config.width)
    plan = HeadPlan(
        config=config,
        recipe=replace(
            recipe,
            iterations=iterations,
            warmup=min(recipe.warmup, iterations // 10),
            ema=max(0.0, 1 - (1 - recipe.ema) / share),
        ),
        teaching=replace(teaching, runs_kept=max(2, round(teaching.runs_kept * share))),
        objective=train_head.OBJECTIVE,
    )
    return narrowed(BOTTLENECK)(plan)


class Bench:
    """Where heads are trained and judged."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.model_file = weights.load(options.model, kind="model")
        self.kit = load_kit(options, self.model_file)
        self.base = base_plan(self.model_file, options.iterations)
        self.teacher = teacher_of(
            self.model_file,
            weights.build(self.model_file, dtype=torch.float32, device=options.device),
            autocast=self.base.recipe.autocast,
            device=options.device,
        )

    @cached_property
    def reference(self) -> Gaussian:
        """What pictures are compared with."""
        return Gaussian.of(
            judge_scenes(self.kit, FIRST_REFERENCE_SEED, self.options.num_reference)[0]
        )

    @cached_property
    def held_out(self) -> Trajectories:
        """A run that no head saw, with the steps of use."""
        settings = replace(self.kit.defaults, num_steps=NUM_STEPS)
        teaching = replace(self.base.teaching, runs=(settings,))
        return held_out_runs(self.teacher, self.base.recipe, teaching)[0]

    def line(self, name: str) -> AblationLine:
        """A row of the table; what is missing for it is made."""
        plan = CHANGES[name](self.base) if name in CHANGES else None
        row, kit = REFERENCES.get(name, SHORTCUT), self.kit
        if plan is not None:
            kit = replace(kit, head=initialised(plan.config, 0))  # its operations are counted
        figures = self.figures(name, plan, row)
        config = kit.model.config
        classes = class_branches(
            torch.zeros(1).long(), config.num_classes, len(kit.defaults.guidance)
        )
        seconds = mean(figure["seconds"] for figure in figures)
        distances = [figure["distance"] for figure in figures]
        chains = [entry for entry in figures[0]["chains"] if entry["chain"] in CHAINS]
        return AblationLine(
            **work_of(row, seconds, kit, classes, (config.grid, config.grid)),
            name=name,
            errors=[entry["error"] for entry in chains],
            divergences=[entry["kl"] / entry["kl_reuse"] for entry in chains],
            distance=mean(distances),
            distances=distances,
        )

    def figures(self, name: str, plan: HeadPlan | None, row: Row) -> list[Figures]:
        """Of each seed: what `quality_measure.measure` has, and `chains`, which are alike for all seeds."""
        options, kit = self.options, self.kit
        files = options.model, options.vq, options.judge
        setup = setup_of(files, kit, options, options.num, options.num_reference, plan)

        @cache
        def head(dtype: torch.dtype) -> Any:
            if plan is None:
                return Keeps() if row.kind == "reuse" else None
            return weights.build(self.trained(name, plan), dtype=dtype, device=kit.device)

        @cache
        def chains() -> list[dict[str, float]]:
            network = head(torch.float32)
            if network is None:
                return []
            return evaluate(network, self.teacher.model, self.held_out, max(CHAINS))

        def measure_row(row: Row, seed: int) -> Figures:
            logger.info("%s, seed %d", name, seed)
            tried = replace(kit, head=head(kit.model.dtype))
            return {"chains": chains(), **measure(row, seed, options.num, tried, self.reference)}

        found = measured_rows(options.work, setup, [row], options.seeds, measure_row)
        return [found[row.name, seed] for seed in options.seeds]

    def trained(self, name: str, plan: HeadPlan) -> Checkpoint:
        """The head of a row; if there is none in the folder of work, it is trained there."""
        what = repr((self.model_file.fingerprint, plan))
        mark = hashlib.sha256(what.encode()).hexdigest()[:8]
        path = self.options.work / f"{name}-{mark}.safetensors"
        if not path.exists():
            logger.info("training %s", path.stem)
            head = learn(self.teacher, self.model_file, plan, checkpoint=path.with_suffix(".ckpt"))
            weights.save(path, head)
        return weights.load(path, kind="head")


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
        defaults=weights.settings(model_file),
        device=device,
        batch_size=options.batch,
    )
