"""Where heads of the ablation are trained and held against their teachers, and the plans that rows change."""

from __future__ import annotations

import argparse
import hashlib
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from .. import shipped, weights
from ..checkpoint import Checkpoint
from ..prompts import load_tokenizer
from ..train.evaluate import evaluate, held_out_runs
from ..train.learn import HeadPlan, learn
from ..train.record import Trajectories
from ..train.teacher import Teacher, teacher_of
from . import train_head, train_text_head

logger = logging.getLogger(__name__)

BOTTLENECK = 3.2  # of the head that rows change


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A model whose heads are trained, and judged on runs that none of them saw."""

    work: Path  # folder of the trained heads
    model_file: Checkpoint
    base: HeadPlan
    teacher: Teacher
    runs: dict[int, Trajectories] = field(default_factory=dict)  # made so far, by their steps

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
            head = learn(self.teacher, self.model_file, plan, checkpoint=path.with_suffix(".ckpt"))
            weights.save(path, head)
        return weights.load(path, kind="head")

    def held_against(
        self, head: Any, num_steps: int, max_chain: int, stride: int = 1
    ) -> list[dict[str, float]]:
        """What `evaluate` says of a head on a run of `num_steps` steps that no head saw."""
        if num_steps not in self.runs:
            settings = replace(self.base.teaching.runs[0], num_steps=num_steps)
            teaching = replace(self.base.teaching, runs=(settings,))
            (self.runs[num_steps],) = held_out_runs(self.teacher, self.base.recipe, teaching)
        return evaluate(head, self.teacher.model, self.runs[num_steps], max_chain, stride)


def base_plan(model_file: Checkpoint, iterations: int) -> HeadPlan:
    """The recipe of the class head that shipped first, in fewer iterations."""
    model_width = model_file.config.width
    plan = HeadPlan(
        config=replace(
            train_head.CONFIG,
            model_width=model_width,
            width=round(model_width / BOTTLENECK),
            num_blocks=2,
            num_heads=4,
        ),
        recipe=replace(train_head.RECIPE, iterations=3500),
        teaching=replace(train_head.TEACHING, runs_kept=24),
        objective=replace(train_head.OBJECTIVE, guided_kl=0.3),
    )
    return cut(plan, iterations)


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
    """The plan in fewer iterations: each recorded step is used as often, and shares stay."""
    recipe, teaching = plan.recipe, plan.teaching
    share = iterations / recipe.iterations
    return replace(
        plan,
        recipe=replace(
            recipe,
            iterations=iterations,
            warmup=min(recipe.warmup, iterations // 10),
            ema=max(0.0, 1 - (1 - recipe.ema) / share),
        ),
        teaching=replace(teaching, runs_kept=max(2, round(teaching.runs_kept * share))),
    )
