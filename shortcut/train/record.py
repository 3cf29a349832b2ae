"""Record trajectories: features and revealed tokens of every step of a run, by the sampler's hook.

This module knows neither the model nor the sampler's arithmetic.

    B  images    S  sequence of one guidance branch    D  width    L  image tokens
    T  steps    K  tokens revealed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..denoiser import Conditions, Features, Revealed, positions
from ..models.architecture import Branches
from ..sampler import Trace
from ..schedule import Step


@dataclass(frozen=True, slots=True)
class Trajectories:
    """Hold one recorded run of a batch of images; entry t of each list is step t."""

    conditions: Branches  # one for each guidance branch, rows = images
    steps: list[Step]
    features: list[Features]  # of each branch (B, S, D), that the step decided by
    revealed: list[Revealed]  # by the step
    masked_index: list[Tensor]  # (B, masked after the step), ascending
    codes_BL: Tensor  # after the last step

    @property
    def num_images(self) -> int:
        """Return the number of images of the run (B)."""
        return len(self.codes_BL)


@dataclass(slots=True)
class Recorder:
    """Copy what a head is trained on: a step hook, `sampler.sample(on_step=...)`.

    Args:
        conditions: of the run.
        dtype: in which features are kept; float16 is enough for the output of a layer norm.
        keep_on: where the record is kept; None = where the run is.
    """

    conditions: Sequence[Conditions]
    dtype: torch.dtype = torch.float16
    keep_on: torch.device | None = None
    steps: list[tuple[Step, Features, Revealed, Tensor]] = field(default_factory=list)
    codes_BL: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def __call__(self, trace: Trace) -> None:
        features = tuple(f.to(self.keep_on, self.dtype, copy=True) for f in trace.denoised.features)
        masked_index = positions(trace.is_masked_BL, trace.step.num_masked_after).to(self.keep_on)
        revealed = Revealed(
            trace.revealed.codes_BK.to(self.keep_on), trace.revealed.index_BK.to(self.keep_on)
        )
        self.steps.append((trace.step, features, revealed, masked_index))
        self.codes_BL = trace.codes_BL.to(self.keep_on)

    def trajectories(self) -> Trajectories:
        """Return what was recorded so far."""
        steps, features, revealed, masked_index = (
            list(part) for part in zip(*self.steps, strict=True)
        )
        return Trajectories(
            tuple(c.to(self.keep_on) for c in self.conditions),
            steps,
            features,
            revealed,
            masked_index,
            self.codes_BL,
        )
