"""Train the shortcut heads of the shipped models while their teachers make pictures.

A teacher's runs have several numbers of steps. The text model's runs show captions of scenes: it learns from text to
image alone, as in the paper.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from experiments.scenes.captions import caption
from experiments.scenes.scene import compose_varied
from experiments.training.base import CONFIG as MODEL
from experiments.training.text_base import CONFIG as TEXT_MODEL
from shortcut import checkpoint as checkpoints
from shortcut.checkpoint import Checkpoint
from shortcut.models.architecture import Request
from shortcut.models.lumina_dimoo import head as lumina_head
from shortcut.models.maskgit import head as maskgit_head
from shortcut.pipeline import conditioner_of
from shortcut.schedule import Settings
from shortcut.settings import usual_settings
from shortcut.train.fit import Recipe
from shortcut.train.head import RolloutConfig
from shortcut.train.learn import HeadPlan, learn
from shortcut.train.loss import Objective
from shortcut.train.teacher import Teacher, teacher_of

CHOICE_TEMPERATURE = 30.0  # as the class model's file says
PLAN = HeadPlan(
    layout=maskgit_head.LAYOUT,
    # From the last full pass, where errors do not add up. One block, and a neighbourhood in place of self-attention, as
    # the ablation says; the width is what 8 % of the FLOPs of a full pass allow.
    config=maskgit_head.Config(
        model_width=MODEL.width,
        width=96,
        num_blocks=1,
        num_heads=2,
        has_time=True,
        from_full=True,
        kernel=7,
        attends=False,
    ),
    recipe=Recipe(
        iterations=2000,
        lr=3e-3,
        warmup=60,
        betas=(0.9, 0.98),
        ema=0.9935,
        autocast=torch.bfloat16,
        checkpoint_every=250,
    ),
    # As far from a full pass as with 32 steps of which 6 are full, at most.
    rollouts=RolloutConfig(
        runs=tuple(
            Settings(num_steps=n, choice_temperature=CHOICE_TEMPERATURE) for n in (32, 32, 16, 24)
        ),
        images_per_run=128,
        runs_kept=8,
        iterations_per_run=60,
        windows_per_batch=4,
        images_per_window=128,
        max_chain=6,
    ),
    # A head that predicts from the last full pass never sees its own features: what counts at use is the codes.
    objective=Objective(mse=1.0, guided_kl=4.0),
)
TEXT_NUM_STEPS = (64, 64, 32, 24)  # of the teacher's runs
TEXT_PLAN = HeadPlan(
    layout=lumina_head.LAYOUT,
    # One block and half the width, as the published head. On CPUs the time of so small a head goes by its blocks and
    # attention heads more than by its FLOPs, hence two of them.
    config=lumina_head.Config(
        model_width=TEXT_MODEL.width,
        width=96,
        num_blocks=1,
        num_heads=2,
        num_kv_heads=2,
        mlp_width=192,
        rope_theta=TEXT_MODEL.rope_theta,
        norm_eps=TEXT_MODEL.norm_eps,
        has_time=True,
        sees_new=True,
        from_full=True,
    ),
    recipe=replace(PLAN.recipe, iterations=1800, ema=0.995),
    # As far from a full pass as with 64 steps of which 9 are full. A run of 64 steps takes 130 MB.
    rollouts=RolloutConfig(
        runs=(),  # with the settings in the model's file
        images_per_run=16,
        runs_kept=16,
        iterations_per_run=40,
        windows_per_batch=4,
        images_per_window=16,
        max_chain=7,
    ),
    objective=Objective(mse=1.0, guided_kl=0.3),
)
NUM_CAPTIONS = 20_000


def captions() -> list[Request]:
    """Return a caption of each of the varied scenes 0, 1, 2 ..."""
    return [Request(prompt=caption(compose_varied(n), n)) for n in range(NUM_CAPTIONS)]


def text_plan(model_file: Checkpoint) -> HeadPlan:
    """Return the plan of the text head, with runs of the settings in the model's file."""
    settings = usual_settings(model_file)
    runs = tuple(replace(settings, num_steps=n) for n in TEXT_NUM_STEPS)
    return replace(TEXT_PLAN, rollouts=replace(TEXT_PLAN.rollouts, runs=runs))


def teacher_for(model_file: Checkpoint, plan: HeadPlan, device: str = "cpu") -> Teacher:
    """Return the teacher that a shipped model is: any class, or captions of scenes."""
    network = checkpoints.build(model_file, dtype=torch.float32, device=device)
    requests = captions() if "prompt" in model_file.architecture.takes else ()
    conditioner = conditioner_of(model_file)
    how = {"autocast": plan.recipe.autocast, "device": device}
    return teacher_of(model_file, network, conditioner, requests, **how)


def train(directory: Path, model_file: Checkpoint, device: str = "cpu") -> Checkpoint:
    """Train the class head, with checkpoints in `directory`. Returns it with its figures on held-out runs."""
    teacher = teacher_for(model_file, PLAN, device)
    return learn(teacher, model_file, PLAN, checkpoint=directory / "head.ckpt")


def train_text(directory: Path, model_file: Checkpoint) -> Checkpoint:
    """Train the text head, with checkpoints in `directory`. Returns it with its figures on held-out runs."""
    plan = text_plan(model_file)
    teacher = teacher_for(model_file, plan)
    return learn(teacher, model_file, plan, checkpoint=directory / "text-head.ckpt")
