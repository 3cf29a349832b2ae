"""Where heads of the ablation are trained and held against their teachers, and the plans that rows change."""

from __future__ import annotations

import argparse
import hashlib
import logging
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from shortcut import shipped, weights
from shortcut.checkpoint import Checkpoint
from shortcut.models.lumina_dimoo.prompts import load_tokenizer
from shortcut.train.evaluate import evaluate, held_out_runs
from shortcut.train.learn import HeadPlan, learn
from shortcut.train.record import Trajectories
from shortcut.train.teacher import RUNS, Teacher, teacher_of

from . import train_head, train_text_head

logger = logging.getLogger(__name__)

STRIDE = 3  # steps between the places in a run where heads are held against it


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A model whose heads are trained, and judged on runs that none of them saw."""

    work: Path  # folder of the trained heads
    model_file: Checkpoint
    base: HeadPlan
    teacher: Teacher
    runs: dict[int, Trajectories] = field(default_factory=dict)  # held out, by their steps
    shown: dict[tuple[Any, ...], Trajectories] = field(default_factory=dict)  # to learn from

    @classmethod
    def of_classes(cls, options: argparse.Namespace, model_file: Checkpoint) -> Bench:
        """That of the class-conditional model."""
        base = base_plan(model_file, options.iterations)
        network = weights.build(model_file, dtype=torch.float32, device=options.device)
        teacher = teacher_of(
            model_file, network, autocast=base.recipe.autocast, device=options.device
        )
        return cls(work=options.work, model_file=model_file, base=base, teacher=teacher)

    @classmethod
    def of_text(cls, options: argparse.Namespace) -> Bench:
        """That of the shipped text model, shown the captions that its own head learned from."""
        model_file = weights.load(shipped.TEXT_MODEL, kind="model")
        base = text_plan(model_file, options.iterations)
        teacher = teacher_of(
            model_file,
            weights.build(model_file, dtype=torch.float32, device=options.device),
            tokenizer=load_tokenizer(shipped.TEXT_FOLDER, model_file.config),
            prompts=train_text_head.captions(),
            autocast=base.recipe.autocast,
            device=options.device,
        )
        return cls(work=options.work, model_file=model_file, base=base, teacher=teacher)

    def trained(self, name: str, plan: HeadPlan) -> Checkpoint:
        """The head of a row; if there is none in the folder of work, it is trained there."""
        what = repr((self.model_file.fingerprint, plan))
        mark = hashlib.sha256(what.encode()).hexdigest()[:8]
        path = self.work / f"{name}-{mark}.safetensors"
        if not path.exists():
            logger.info("training %s", path.stem)
            checkpoint = path.with_suffix(".ckpt")
            source = partial(self.shown_by, plan)
            head = learn(
                self.teacher,
                self.model_file,
                plan,
                source=source,
                checkpoint=checkpoint,
                is_judged=False,
            )
            weights.save(path, head)
        return weights.load(path, kind="head")

    def shown_by(self, plan: HeadPlan, number: int) -> Trajectories:
        """A run to learn from; rows that are shown the same one share it."""
        runs, num_images = plan.teaching.runs, plan.teaching.images_per_run
        seed = (plan.recipe.seed, RUNS, number)
        key = runs, num_images, seed
        if key not in self.shown:
            self.shown[key] = self.teacher.run(runs, num_images, seed)
        return self.shown[key]

    def held_against(self, head: Any, num_steps: int, max_chain: int) -> list[dict[str, float]]:
        """What `evaluate` says of a head on a run of `num_steps` steps that no head saw."""
        if num_steps not in self.runs:
            settings = replace(self.base.teaching.runs[0], num_steps=num_steps)
            teaching = replace(self.base.teaching, runs=(settings,))
            (self.runs[num_steps],) = held_out_runs(self.teacher, self.base.recipe, teaching)
        return evaluate(head, self.teacher.model, self.runs[num_steps], max_chain, STRIDE)


def base_plan(model_file: Checkpoint, iterations: int) -> HeadPlan:
    """The recipe of the shipped class head in fewer iterations, for a model of any width."""
    shipped_head, model_width = train_head.PLAN.config, model_file.config.width
    share = shipped_head.width / shipped_head.model_width / shipped_head.num_heads
    width = shipped_head.num_heads * round(model_width * share)
    config = replace(shipped_head, model_width=model_width, width=width)
    return cut(replace(train_head.PLAN, config=config), iterations)


def text_plan(model_file: Checkpoint, iterations: int) -> HeadPlan:
    """The recipe of the shipped text head in fewer iterations."""
    settings = weights.settings(model_file)
    runs = tuple(replace(settings, num_steps=n) for n in train_text_head.NUM_STEPS)
    plan = HeadPlan(
        config=replace(train_text_head.CONFIG, model_width=model_file.config.width),
        recipe=train_text_head.RECIPE,
        teaching=replace(train_text_head.TEACHING, runs=runs),
        objective=train_text_head.OBJECTIVE,
    )
    return cut(plan, iterations)


def cut(plan: HeadPlan, iterations: int) -> HeadPlan:
    """The plan in fewer iterations; as many runs are kept, for with few of them a head learns those by heart."""
    recipe, share = plan.recipe, iterations / plan.recipe.iterations
    return replace(
        plan,
        recipe=replace(
            recipe,
            iterations=iterations,
            warmup=min(recipe.warmup, iterations // 10),
            ema=max(0.0, 1 - (1 - recipe.ema) / share),
        ),
    )
