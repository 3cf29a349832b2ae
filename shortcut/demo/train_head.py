"""Trains the shortcut head of the shipped MaskGIT while its teacher runs with several numbers of steps.

It goes on with the head that learned along with the model (`train_base`), which saw pictures, not runs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from .. import weights
from ..checkpoint import Checkpoint
from ..schedule import Settings
from ..train.fit import Recipe
from ..train.head import Teaching
from ..train.learn import HeadPlan, learn
from ..train.loss import Objective
from ..train.teacher import teacher_of
from .train_base import HEAD_CONFIG as CONFIG

# Of a head from nothing, on a GPU.
RECIPE = Recipe(
    iterations=2000,
    lr=3e-3,
    warmup=60,
    betas=(0.9, 0.98),
    ema=0.9935,
    autocast=torch.bfloat16,
    checkpoint_every=250,
)
CHOICE_TEMPERATURE = 30.0  # as the model's file says
# As far from a full pass as with 32 steps of which 6 are full, at most.
TEACHING = Teaching(
    runs=tuple(
        Settings(num_steps=n, choice_temperature=CHOICE_TEMPERATURE) for n in (32, 32, 16, 24)
    ),
    images_per_run=128,
    runs_kept=8,
    iterations_per_run=60,
    windows_per_batch=4,
    images_per_window=128,
    max_chain=6,
)
# A head that predicts from the last full pass never sees its own features: what counts at use is the codes.
OBJECTIVE = Objective(mse=1.0, guided_kl=4.0)
PLAN = HeadPlan(config=CONFIG, recipe=RECIPE, teaching=TEACHING, objective=OBJECTIVE)
# What a head that knows something needs, on a CPU.
FURTHER = replace(
    PLAN,
    recipe=replace(RECIPE, iterations=1500, lr=1e-3),
    teaching=replace(TEACHING, images_per_run=16, iterations_per_run=40, images_per_window=16),
)


def train(directory: Path, model_file: Checkpoint, start: Checkpoint) -> Checkpoint:
    """Trains with checkpoints in `directory`. Returns the averaged head, which says how it did on unseen runs."""
    network = weights.build(model_file, dtype=torch.float32)
    teacher = teacher_of(model_file, network, autocast=RECIPE.autocast)
    plan = replace(FURTHER, start=start)
    return learn(teacher, model_file, plan, checkpoint=directory / "head.ckpt")
