"""Train the shortcut head of the shipped text model while its teacher makes pictures of captions.

The images of a run have prompts of one length, so that nothing has to be padded; runs differ in it as captions do.
It learns from text to image alone, as in the paper.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.scenes.captions import caption
from experiments.scenes.scene import compose_varied
from experiments.training.text_base import CONFIG as MODEL
from experiments.training.text_base import GRID
from shortcut import weights
from shortcut.checkpoint import Checkpoint
from shortcut.models.lumina_dimoo.head import Config
from shortcut.models.lumina_dimoo.transformer import Config as ModelConfig
from shortcut.schedule import Settings
from shortcut.train.evaluate import evaluate, held_out_runs
from shortcut.train.fit import Recipe
from shortcut.train.head import Teaching, initialised, train_head
from shortcut.train.loss import Objective
from shortcut.train.teacher import DrawConditions, Teacher, text_conditions

# One block and half the width, as the published head. On CPUs the time of so small a head goes by its blocks and
# attention heads more than by its operations, hence two of these.
CONFIG = Config(
    model_width=MODEL.width,
    width=96,
    num_blocks=1,
    num_heads=2,
    num_kv_heads=2,
    mlp_width=192,
    rope_theta=MODEL.rope_theta,
    norm_eps=MODEL.norm_eps,
    has_time=True,
    sees_new=True,
    from_full=True,  # for the reason in `training.head`
)
RECIPE = Recipe(
    iterations=1800,
    lr=3e-3,
    warmup=60,
    betas=(0.9, 0.98),
    ema=0.995,
    autocast=torch.bfloat16,
    checkpoint_every=250,
)
NUM_STEPS = (64, 64, 32, 24)  # of the teacher's runs
# As far from a full pass as with 64 steps of which 9 are full. A run of 64 steps takes 130 MB.
TEACHING = Teaching(
    runs=(),  # with the settings in the model's file
    images_per_run=16,
    runs_kept=16,
    iterations_per_run=40,
    windows_per_batch=4,
    images_per_window=16,
    max_chain=7,
)
OBJECTIVE = Objective(mse=1.0, guided_kl=0.3)
NUM_CAPTIONS = 20_000


def caption_conditions(
    tokenizer: Any, config: ModelConfig, num_captions: int = NUM_CAPTIONS
) -> DrawConditions:
    """Return a function that draws captions of the scenes."""
    return text_conditions(tokenizer, config, captions(num_captions))


def captions(num: int = NUM_CAPTIONS) -> list[str]:
    """Return a caption of each of the varied scenes 0, 1, 2 ..."""
    return [caption(compose_varied(seed), seed) for seed in range(num)]


def train(
    directory: Path, model_file: Checkpoint, tokenizer: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Train with checkpoints in `directory`. Returns the averaged head and its figures on held-out runs."""
    model: Any = weights.build(model_file, dtype=torch.float32)
    return learn(
        model.on_grid(*GRID),
        caption_conditions(tokenizer, model_file.config),
        weights.settings(model_file),
        checkpoint=directory / "text-head.ckpt",
    )


def learn(
    model: Any,
    draw_conditions: DrawConditions,
    settings: Settings,
    *,
    config: Config = CONFIG,
    recipe: Recipe = RECIPE,
    teaching: Teaching = TEACHING,
    num_steps: tuple[int, ...] = NUM_STEPS,
    checkpoint: Path | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a head of a model on its grid.

    Args:
        settings: of the teacher's runs, but for the steps.
    """
    teaching = replace(teaching, runs=tuple(replace(settings, num_steps=n) for n in num_steps))
    teacher = Teacher(
        model=model,
        draw_conditions=draw_conditions,
        settings=settings,
        num_tokens=model.num_tokens,
        autocast=recipe.autocast,
    )
    head = train_head(
        teacher,
        initialised(config, recipe.seed),
        recipe,
        teaching,
        OBJECTIVE,
        checkpoint=checkpoint,
    )
    held_out = held_out_runs(teacher, recipe, teaching)
    figures = {
        f"{len(run.steps)} steps": evaluate(head, model, run, teaching.max_chain)
        for run in held_out
    }
    return head, {"iterations": recipe.iterations, "chain": teaching.max_chain, "held_out": figures}
