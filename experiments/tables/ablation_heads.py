"""Train the heads of the ablation and compare them with their teachers on runs that none of them saw."""

from __future__ import annotations

import argparse
import hashlib
import logging
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.training import head as class_head
from experiments.training import text_head
from shortcut import shipped, weights
from shortcut.checkpoint import Checkpoint
from shortcut.models.lumina_dimoo.prompts import load_tokenizer
from shortcut.train.evaluate import evaluate, held_out_runs
from shortcut.train.learn import HeadPlan, learn
from shortcut.train.record import Trajectories
from shortcut.train.teacher import RUNS, Teacher, teacher_of

logger = logging.getLogger(__name__)

STRIDE = 3  # steps between the points of a run where heads are compared with it


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLab:
    """A model whose heads are trained, and compared on held-out runs."""

    work: Path  # folder of the trained heads
    model_file: Checkpoint
    base: HeadPlan
    teacher: Teacher
    held_out: dict[int, Trajectories] = field(default_factory=dict)  # by their number of steps
    shown: dict[Any, Trajectories] = field(default_factory=dict)  # to learn from

    @classmethod
    def of_classes(cls, options: argparse.Namespace, model_file: Checkpoint) -> HeadLab:
        """Return the lab of the class model."""
        base = base_plan(model_file, options.iterations)
        return cls._of(options, model_file, base)

    @classmethod
    def of_text(cls, options: argparse.Namespace) -> HeadLab:
        """Return the lab of the shipped text model, with the captions that its own head learned from."""
        model_file = weights.load(shipped.TEXT_MODEL, kind="model")
        tokenizer = load_tokenizer(shipped.TEXT_FOLDER, model_file.config)
        base = text_plan(model_file, options.iterations)
        captions = text_head.captions()
        return cls._of(options, model_file, base, tokenizer=tokenizer, prompts=captions)

    @classmethod
    def _of(
        cls, options: argparse.Namespace, model_file: Checkpoint, base: HeadPlan, **conditions: Any
    ) -> HeadLab:
        network = weights.build(model_file, dtype=torch.float32, device=options.device)
        how = {"autocast": base.recipe.autocast, "device": options.device}
        teacher = teacher_of(model_file, network, **conditions, **how)
        return cls(work=options.work, model_file=model_file, base=base, teacher=teacher)

    def trained(self, name: str, plan: HeadPlan) -> Checkpoint:
        """Return the head of a row; it is trained if the folder of work does not have it."""
        what = repr((self.model_file.fingerprint, plan))
        mark = hashlib.sha256(what.encode()).hexdigest()[:8]
        path = self.work / f"{name}-{mark}.safetensors"
        if not path.exists():
            logger.info("training %s", path.stem)
            head = learn(
                self.teacher,
                self.model_file,
                plan,
                source=partial(self._run_of, plan),
                checkpoint=path.with_suffix(".ckpt"),
                is_judged=False,
            )
            weights.save(path, head)
        return weights.load(path, kind="head")

    def _run_of(self, plan: HeadPlan, number: int) -> Trajectories:
        """Return a run to learn from; rows that are shown the same run share it."""
        runs, num_images = plan.teaching.runs, plan.teaching.images_per_run
        seed = (plan.recipe.seed, RUNS, number)
        key = runs, num_images, seed
        if key not in self.shown:
            self.shown[key] = self.teacher.run(runs, num_images, seed)
        return self.shown[key]

    def compare(self, head: Any, num_steps: int, max_chain: int) -> list[dict[str, float]]:
        """Evaluate a head on a held-out run of `num_steps` steps."""
        if num_steps not in self.held_out:
            settings = replace(self.base.teaching.runs[0], num_steps=num_steps)
            teaching = replace(self.base.teaching, runs=(settings,))
            (self.held_out[num_steps],) = held_out_runs(self.teacher, self.base.recipe, teaching)
        return evaluate(head, self.teacher.model, self.held_out[num_steps], max_chain, STRIDE)


def base_plan(model_file: Checkpoint, iterations: int) -> HeadPlan:
    """Return the recipe of the shipped class head in fewer iterations, for a model of any width."""
    shipped_head, model_width = class_head.PLAN.config, model_file.config.width
    share = shipped_head.width / shipped_head.model_width / shipped_head.num_heads
    width = shipped_head.num_heads * round(model_width * share)
    config = replace(shipped_head, model_width=model_width, width=width)
    return cut(replace(class_head.PLAN, config=config), iterations)


def text_plan(model_file: Checkpoint, iterations: int) -> HeadPlan:
    """Return the recipe of the shipped text head in fewer iterations."""
    settings = weights.settings(model_file)
    runs = tuple(replace(settings, num_steps=n) for n in text_head.NUM_STEPS)
    plan = HeadPlan(
        config=replace(text_head.CONFIG, model_width=model_file.config.width),
        recipe=text_head.RECIPE,
        teaching=replace(text_head.TEACHING, runs=runs),
        objective=text_head.OBJECTIVE,
    )
    return cut(plan, iterations)


def cut(plan: HeadPlan, iterations: int) -> HeadPlan:
    """Shorten a plan. The number of runs kept stays: a head learns a few runs by heart."""
    recipe, share = plan.recipe, iterations / plan.recipe.iterations
    recipe = replace(
        recipe,
        iterations=iterations,
        warmup=min(recipe.warmup, iterations // 10),
        ema=max(0.0, 1 - (1 - recipe.ema) / share),
    )
    return replace(plan, recipe=recipe)
