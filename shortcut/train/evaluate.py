"""How well a shortcut head follows its teacher: on the teacher's runs, and in runs of its own.

B  images    L  image tokens    N  positions still masked    K  tokens revealed by a step
C  numbers of steps in a row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..denoiser import (
    Features,
    Model,
    guided_logits,
    image_features,
)
from ..noise import Noise
from ..sampler import Trace, decide, positions
from .fit import Recipe
from .head import Teaching
from .loss import (
    Window,
    divergence,
    feature_mse,
    mean,
    predict,
    window,
)
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


class Keeps:
    """The head that predicts no change: what a head is held against."""

    config = SimpleNamespace(from_full=False)

    def next_features(
        self, model: Any, features: Features, conditions: Any, revealed: Any, mask_ratio: float
    ) -> Features:
        """`features` as they are."""
        return features


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
    return by_chain(compared(head, model, run, max_chain, stride))


@torch.no_grad()
def compared(
    head: Any,
    model: Model,
    run: Trajectories,
    max_chain: int,
    stride: int = 1,
    device: torch.device | None = None,
) -> Tensor:
    """Sums (C, 6) of what `evaluate` has, for each number of steps in a row; those of several runs can be added up.

    Args:
        device: where to compute; None = where the run is kept.
    """
    totals_C6 = torch.zeros(max_chain, 6, dtype=torch.float64)
    last = len(run.steps) - 1
    for start in range(0, last, stride):
        part = window(run, start, min(max_chain, last - start), device=device)
        for chain, estimate in enumerate(predict(head, model, part)):
            totals_C6[chain] += _compare(model, part, chain, estimate)
    return totals_C6


def by_chain(totals_C6: Tensor) -> list[dict[str, float]]:
    """What `evaluate` has, of sums from `compared`."""
    table = []
    for chain, total in enumerate(totals_C6.tolist(), 1):
        error, reuse, cosine, kl, kl_reuse, count = total
        row = {
            "error": error / reuse,
            "cosine": cosine / count,
            "kl": kl / count,
            "kl_reuse": kl_reuse / count,
        }
        table.append({"chain": chain, **row})
    return table


def _compare(model: Any, part: Window, chain: int, estimate: Features) -> Tensor:
    """Sums for `evaluate`: error, error of reuse, cosine, divergence, divergence of reuse, 1."""
    target, index, step = part.targets[chain], part.masked_index[chain], part.steps[chain]
    error = mean(feature_mse(model, e, t, index) for e, t in zip(estimate, target, strict=True))
    reuse = mean(
        feature_mse(model, f, t, index) for f, t in zip(part.features, target, strict=True)
    )
    first = (image_features(model, f, index) for f in (estimate[0], target[0]))
    cosine = torch.cosine_similarity(*first, dim=-1).mean()

    def logits(features: Features) -> Tensor:
        in_model_type = tuple(f.to(model.dtype) for f in features)
        return guided_logits(model, in_model_type, step.guidance, index)

    wanted = logits(target)
    kl, kl_reuse = divergence(logits(estimate), wanted), divergence(logits(part.features), wanted)
    return torch.stack([error, reuse, cosine, kl, kl_reuse, torch.ones_like(error)]).double().cpu()


class Oversight:
    """A step hook that asks the model, in every step that is no full pass, what it would have done itself.

    The model sees the same tokens, draws with the same noise and keeps the same `spread`, so a token counts as the
    same if it would have revealed that position then, with that code.

    Args:
        conditions, noise: those of the run.
    """

    def __init__(self, model: Any, conditions: Sequence[Tensor], noise: Noise):
        self.model, self.conditions, self.noise = model, conditions, noise
        self.num_same = self.num_predicted = self.num_steps = 0
        self.cosine = 0.0  # of the first branch's features with the model's, summed over the steps
        self.divergence = (
            0.0  # of the guided codes from the model's, summed over the tokens revealed
        )

    def __call__(self, trace: Trace) -> None:
        if trace.denoised.was_full:
            return
        step, revealed = trace.step, trace.revealed
        is_masked_BL = trace.is_masked_BL.scatter(1, revealed.index_BK, True)
        index_BN = positions(is_masked_BL, step.num_masked)
        features = self.model.features(trace.codes_BL, is_masked_BL, self.conditions)
        logits = guided_logits(self.model, features, step.guidance, index_BN)
        wanted = decide(replace(trace.denoised, logits_BNV=logits), step, index_BN, self.noise)
        wanted_BL = torch.full_like(trace.codes_BL, -1)
        wanted_BL.scatter_(1, wanted.index_BK, wanted.codes_BK)
        is_same_BK = wanted_BL.gather(1, revealed.index_BK) == revealed.codes_BK
        first = (
            image_features(self.model, f, index_BN).float()
            for f in (trace.denoised.features[0], features[0])
        )
        self.num_same += int(is_same_BK.sum())
        self.num_predicted += is_same_BK.numel()
        self.num_steps += 1
        self.cosine += float(torch.cosine_similarity(*first, dim=-1).mean())
        if is_same_BK.numel() > 0:
            place_BK1 = torch.searchsorted(index_BN.contiguous(), revealed.index_BK).unsqueeze(-1)
            found_BKV, wanted_BKV = (
                x.gather(1, place_BK1.expand(-1, -1, x.shape[-1]))
                for x in (trace.denoised.logits_BNV, logits)
            )
            self.divergence += float(divergence(found_BKV, wanted_BKV)) * is_same_BK.numel()
