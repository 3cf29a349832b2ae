"""How well a shortcut head follows its teacher, on runs that it never saw.

B  images    N  positions that count
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..denoiser import Model, guided
from .fit import Recipe
from .head import Teaching
from .loss import Window, divergence, feature_mse, image_features, mean, predict, window
from .record import Trajectories
from .teacher import Teacher

# Stream of random numbers beside that of the runs that heads learn from, `teacher.RUNS`.
HELD_OUT = 2


def held_out_runs(teacher: Teacher, recipe: Recipe, teaching: Teaching) -> list[Trajectories]:
    """One run for each of `teaching.runs`, none of which a head of this recipe saw."""
    return [
        teacher.run((settings,), teaching.images_per_run, (recipe.seed, HELD_OUT, number))
        for number, settings in enumerate(teaching.runs)
    ]


@torch.no_grad()
def evaluate(
    head: Any, model: Model, run: Trajectories, max_chain: int, stride: int = 1
) -> list[dict[str, float]]:
    """How well `head` follows `run`: one entry for each number of steps in a row, 1 .. `max_chain`.

    Each entry has, over positions still masked: `error`, squared error as a share of that of the
    window's first features unchanged ("reuse"); `cosine` of the first branch's features with the
    teacher's; `kl`, divergence after guidance from the teacher's, and `kl_reuse`, that of reuse.

    Args:
        stride: steps between the windows' starts.
    """
    totals = [torch.zeros(6, dtype=torch.float64) for _ in range(max_chain)]
    last = len(run.steps) - 1
    for start in range(0, last, stride):
        part = window(run, start, min(max_chain, last - start))
        for chain, estimate in enumerate(predict(head, model, part)):
            totals[chain] += _compare(model, part, chain, estimate)
    table = []
    for chain, total in enumerate(totals, 1):
        error, reuse, cosine, kl, kl_reuse, count = total.tolist()
        row = {
            "error": error / reuse,
            "cosine": cosine / count,
            "kl": kl / count,
            "kl_reuse": kl_reuse / count,
        }
        table.append({"chain": chain, **row})
    return table


def _compare(model: Model, part: Window, chain: int, estimate: tuple[Tensor, ...]) -> Tensor:
    """Sums for `evaluate`: error, error of reuse, cosine, divergence, divergence of reuse, 1."""
    target, index, step = part.targets[chain], part.masked_index[chain], part.steps[chain]
    error = mean(feature_mse(model, e, t, index) for e, t in zip(estimate, target, strict=True))
    reuse = mean(
        feature_mse(model, f, t, index) for f, t in zip(part.features, target, strict=True)
    )
    first = (image_features(model, f, index) for f in (estimate[0], target[0]))
    cosine = torch.cosine_similarity(*first, dim=-1).mean()

    def logits(features: tuple[Tensor, ...]) -> Tensor:
        return guided([model.logits(f, index) for f in features], step.guidance)

    wanted = logits(target)
    kl, kl_reuse = divergence(logits(estimate), wanted), divergence(logits(part.features), wanted)
    return torch.stack([error, reuse, cosine, kl, kl_reuse, torch.ones_like(error)]).double().cpu()
