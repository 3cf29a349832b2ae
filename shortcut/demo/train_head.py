"""Trains the shortcut head of the shipped MaskGIT while its teacher runs with several numbers of steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..heads.maskgit import Config
from ..schedule import Settings
from ..train.evaluate import evaluate, held_out_runs
from ..train.fit import Recipe
from ..train.head import (
    Teaching,
    fit_to_embeddings,
    initialised,
    train_head,
)
from ..train.loss import Objective
from ..train.teacher import Teacher, class_conditions
from .train_base import CONFIG as MODEL

# From the last full pass: one step alone changes so little that a head of this size learned next to nothing
# from it in the same time, and its errors would add up. One block, and a neighbourhood, as the ablation says; the width
# is what 8 % of the operations of a full pass allow.
CONFIG = Config(
    model_width=MODEL.width,
    width=86,
    num_blocks=1,
    num_heads=2,
    has_time=True,
    from_full=True,
    kernel=7,
)
RECIPE = Recipe(
    iterations=6500,
    lr=3e-3,
    warmup=60,
    betas=(0.9, 0.98),
    ema=0.998,
    autocast=torch.bfloat16,
    checkpoint_every=250,
)
CHOICE_TEMPERATURE = 30.0  # as the model's file says
# As far from a full pass as with 32 steps of which 6 are full, at most.
TEACHING = Teaching(
    runs=tuple(
        Settings(num_steps=n, choice_temperature=CHOICE_TEMPERATURE) for n in (32, 32, 16, 24)
    ),
    images_per_run=32,
    runs_kept=16,
    iterations_per_run=120,
    windows_per_batch=4,
    images_per_window=16,
    max_chain=6,
)
# A head that predicts from the last full pass never sees its own features: what counts at use is the codes.
OBJECTIVE = Objective(mse=1.0, guided_kl=4.0)


def train(directory: Path, model: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Trains with checkpoints in `directory`. Returns the averaged head and how it did on runs that it never saw."""
    teacher = Teacher(
        model=model,
        draw_conditions=class_conditions(MODEL.num_classes),
        settings=TEACHING.runs[0],
        num_tokens=MODEL.num_tokens,
        autocast=RECIPE.autocast,
    )
    network = initialised(CONFIG, RECIPE.seed)
    fit_to_embeddings(network, model)
    head = train_head(
        teacher, network, RECIPE, TEACHING, OBJECTIVE, checkpoint=directory / "head.ckpt"
    )
    held_out = held_out_runs(teacher, RECIPE, TEACHING)
    figures = {
        f"{len(run.steps)} steps": evaluate(head, model, run, TEACHING.max_chain)
        for run in held_out
    }
    return head, {"iterations": RECIPE.iterations, "chain": TEACHING.max_chain, "held_out": figures}
