"""Train the heads of the ablation and compare them with their teachers on runs that none of them saw."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from experiments.training import heads
from shortcut import checkpoint as checkpoints
from shortcut.checkpoint import Checkpoint
from shortcut.train.evaluate import evaluate, held_out_runs
from shortcut.train.learn import HeadPlan, learn
from shortcut.train.record import Trajectories
from shortcut.train.teacher import Teacher

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SharedTeacher(Teacher):
    """A teacher that keeps its runs: rows that are shown the same run share it."""

    kept: dict[Any, Trajectories] = field(default_factory=dict)

    @classmethod
    def of(cls, teacher: Teacher) -> SharedTeacher:
        """Return the teacher with an empty memory."""
        return cls(**{item.name: getattr(teacher, item.name) for item in fields(teacher)})

    def run(self, runs: Any, num_images: int, seed: Any, *rest: Any, **where: Any) -> Trajectories:
        """Return a run as `Teacher.run`, made once."""
        key = tuple(runs), num_images, seed
        if key not in self.kept:
            self.kept[key] = Teacher.run(self, runs, num_images, seed, *rest, **where)
        return self.kept[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLab:
    """A model whose heads are trained, and compared on held-out runs."""

    work: Path  # folder of the trained heads
    model_file: Checkpoint
    base: HeadPlan
    teacher: Teacher

    @classmethod
    def of(
        cls, work: Path, model_file: Checkpoint, base: HeadPlan, device: str, iterations: int
    ) -> HeadLab:
        """Return the lab of a model: `base` is fitted to its width and shortened."""
        base = cut(widened(base, model_file.config.width), iterations)
        teacher = SharedTeacher.of(heads.teacher_for(model_file, base, device))
        return cls(work=work, model_file=model_file, base=base, teacher=teacher)

    def trained(self, name: str, plan: HeadPlan) -> Checkpoint:
        """Return the head of a row; it is trained if the folder of work does not have it."""
        what = f"{self.model_file.fingerprint} {described(plan)}"
        mark = hashlib.sha256(what.encode()).hexdigest()[:8]
        path = self.work / f"{name}-{mark}.safetensors"
        if not path.exists():
            logger.info("training %s", path.stem)
            checkpoint = path.with_suffix(".ckpt")
            head = learn(
                self.teacher, self.model_file, plan, checkpoint=checkpoint, is_judged=False
            )
            checkpoints.save(path, head)
        return checkpoints.load(path, kind="head")

    def compare(self, head: Any, num_steps: int, max_chain: int) -> list[dict[str, float]]:
        """Evaluate a head on a held-out run of `num_steps` steps."""
        rollouts = self.base.rollouts
        runs = (replace(rollouts.runs[0], num_steps=num_steps),)
        seed, num_images = self.base.recipe.seed, rollouts.images_per_run
        (run,) = held_out_runs(self.teacher, runs, num_images, seed)
        return evaluate(head, self.teacher.model, run, max_chain)


def described(plan: HeadPlan | None) -> str:
    """Return a text that tells plans apart."""
    return "" if plan is None else f"{plan.config} {plan.recipe} {plan.rollouts} {plan.objective}"


def widened(plan: HeadPlan, model_width: int) -> HeadPlan:
    """Return the plan for a model of another width, its head in proportion."""
    config = plan.config
    share = config.width / config.model_width / config.num_heads
    width = config.num_heads * round(model_width * share)
    return replace(plan, config=replace(config, model_width=model_width, width=width))


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
