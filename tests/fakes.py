"""Stand-ins for networks and predictors whose answers are known beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from golden_sets import tiny_maskgit
from shortcut_pack.shortcut.accelerators.shortcut_head import ShortcutHead
from shortcut_pack.shortcut.denoiser import (
    Accelerator,
    Denoiser,
    Features,
    Revealed,
    Snapshot,
    Tokens,
    positions,
)
from shortcut_pack.shortcut.generate import num_draws
from shortcut_pack.shortcut.noise import Noise
from shortcut_pack.shortcut.sampler import Trace, sample
from shortcut_pack.shortcut.schedule import Settings, Step, plan
from torch import Tensor

L, V = 36, 32  # tokens and codes of the tiny network, and of the fakes unless a test says otherwise
NO_CLASS = 10  # of the tiny network
UNGUIDED = {"guidance": ()}


class TableModel:
    """A model whose logits stand in a table (C, L, V) by class, whatever the tokens are.

    Its features are those logits. It counts what it is asked.
    """

    def __init__(self, table_CLV: Tensor):
        self.table_CLV = table_CLV
        self.num_passes = 0
        self.num_branches = 0  # that logits were asked of

    @property
    def grid(self) -> tuple[int, int]:
        return (math.isqrt(self.table_CLV.shape[1]),) * 2

    def features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Tensor],
        step: Step | None = None,
    ) -> Features:
        self.num_passes += 1
        return tuple(self.table_CLV[class_B] for class_B in conditions)

    def sequence_length(self, condition: Tensor | None) -> int:
        return self.table_CLV.shape[1]

    def image_positions(self, index_BN: Tensor, num_tokens: int) -> Tensor:
        self.num_branches += 1
        return index_BN

    def logits(self, features_BND: Tensor, index_BN: Tensor) -> Tensor:
        return features_BND


def uniform(num_tokens: int, num_codes: int) -> TableModel:
    """One class, all codes equally likely everywhere."""
    return TableModel(torch.zeros(1, num_tokens, num_codes))


def oracle(images_CL: Tensor, num_codes: int) -> TableModel:
    """Knows one image for each class and is sure of every code of it."""
    return TableModel(100.0 * torch.nn.functional.one_hot(images_CL, num_codes))


def varied(num_classes: int, num_tokens: int, num_codes: int, seed: int = 0) -> TableModel:
    """Random logits of standard deviation 2."""
    generator = torch.Generator().manual_seed(seed)
    return TableModel(2 * torch.randn(num_classes, num_tokens, num_codes, generator=generator))


class Watcher(Accelerator):
    """An accelerator that hands on to another, or declines every step, and keeps what it was asked."""

    def __init__(self, answers: Accelerator | None = None):
        self.answers = answers
        self.full: list[Snapshot] = []  # the full passes that it saw
        self.asked: list[
            tuple[int, Revealed]
        ] = []  # steps, and what was revealed since the step before

    def predict(
        self, step: Step, tokens: Tokens, full: Snapshot, last: Snapshot
    ) -> Features | None:
        self.full.append(full)
        self.asked.append((step.index, last.revealed_until(step, tokens)))
        return self.answers and self.answers.predict(step, tokens, full, last)


def run(
    model,
    conditions: Sequence[Tensor],
    steps: Settings | Sequence[Step],
    *,
    num_tokens: int,
    codes_BL: Tensor | None = None,
    is_masked_BL: Tensor | None = None,
    accelerator: Accelerator | None = None,
    seed: int = 0,
    image_indices: Sequence[int] | None = None,
) -> tuple[Tensor, list[Trace]]:
    """Samples with the real sampler, denoiser and noise. Returns codes (B, L) and every trace."""
    num_images = len(conditions[0])
    if codes_BL is None:
        codes_BL = torch.zeros(num_images, num_tokens, dtype=torch.long)
    if is_masked_BL is None:
        is_masked_BL = torch.ones(num_images, num_tokens, dtype=torch.bool)
    if isinstance(steps, Settings):
        steps = plan(steps, int(is_masked_BL[0].sum()), num_tokens)
    indices = range(num_images) if image_indices is None else image_indices
    noise = Noise.draw(seed, indices, num_draws(steps), num_tokens, "cpu")
    traces: list[Trace] = []
    denoiser = Denoiser(model, conditions, accelerator)
    return sample(denoiser, codes_BL, is_masked_BL, steps, noise, traces.append), traces


def classes(*ids: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Conditions of a guided run: the classes, and none."""
    class_B = torch.tensor(ids)
    return class_B, torch.full_like(class_B, NO_CLASS)


def some_masked(num_images: int, num_masked: int, seed: int = 0) -> torch.Tensor:
    """(B, L), True at `num_masked` random positions of each image."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_images, L, generator=generator).argsort(1) < num_masked


def tiny_run(ids, settings, *, use_head=True, dtype=None, head_dtype=None, **options):
    """A run of the tiny network of the golden sets."""
    model, head = tiny_maskgit(dtype, head_dtype)
    conditions = classes(*ids)[: 1 + len(settings.guidance)]
    accelerator = ShortcutHead(head, model, conditions) if use_head else None
    return run(model, conditions, settings, num_tokens=L, accelerator=accelerator, **options)


def logits_of(trace: Trace) -> Tensor:
    """Return the logits (B, N, V) that a step drew codes from."""
    if (chosen := trace.denoised.chosen) is not None:
        return trace.denoised.logits(chosen.index_BK)
    was_masked_BL = trace.is_masked_BL.scatter(1, trace.revealed.index_BK, True)
    return trace.denoised.logits(positions(was_masked_BL, trace.step.num_masked))
