"""Train the shortcut head of the shipped MaskGIT while its teacher runs with several numbers of steps."""

from __future__ import annotations

from pathlib import Path

import torch

from experiments.training.base import CONFIG as MODEL
from shortcut import weights
from shortcut.checkpoint import Checkpoint
from shortcut.models.maskgit.head import Config
from shortcut.schedule import Settings
from shortcut.train.fit import Recipe
from shortcut.train.head import Teaching
from shortcut.train.learn import HeadPlan, learn
from shortcut.train.loss import Objective
from shortcut.train.teacher import teacher_of

# From the last full pass, where errors do not add up. One block, and a neighbourhood in place of self-attention, as the
# ablation says; the width is what 8 % of the operations of a full pass allow.
CONFIG = Config(
    model_width=MODEL.width,
    width=96,
    num_blocks=1,
    num_heads=2,
    has_time=True,
    from_full=True,
    kernel=7,
    attends=False,
)
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


def train(directory: Path, model_file: Checkpoint, device: str = "cpu") -> Checkpoint:
    """Train with checkpoints in `directory`. Returns the averaged head, with its figures on held-out runs."""
    network = weights.build(model_file, dtype=torch.float32, device=device)
    teacher = teacher_of(model_file, network, autocast=RECIPE.autocast, device=device)
    return learn(teacher, model_file, PLAN, checkpoint=directory / "head.ckpt")
