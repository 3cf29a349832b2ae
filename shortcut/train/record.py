"""Record trajectories: features and revealed tokens of every step of a run, by the sampler's hook.

This module knows neither the model nor the sampler's arithmetic.

    B  images    S  sequence of one guidance branch    D  width    L  image tokens
    T  steps    K  tokens revealed
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..denoiser import Conditions, Features, Revealed, positions
from ..generate import generate
from ..models.architecture import Branches, GridModel
from ..sampler import Trace
from ..schedule import SamplerRules, Settings, Step


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

    def to(self, device: torch.device) -> Trajectories:
        """Return the run with its tensors on `device`."""
        return Trajectories(
            tuple(c.to(device) for c in self.conditions),
            self.steps,
            [tuple(f.to(device) for f in features) for features in self.features],
            [Revealed(r.codes_BK.to(device), r.index_BK.to(device)) for r in self.revealed],
            [index_BN.to(device) for index_BN in self.masked_index],
            self.codes_BL.to(device),
        )


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


def record(
    model: GridModel,
    conditions: Sequence[Conditions],
    settings: Settings,
    rules: SamplerRules,
    *,
    seed: int,
    num_tokens: int,
    image_indices: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float16,
    autocast: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    keep_on: torch.device | None = None,
    on_step: Callable[[Trace], None] | None = None,
) -> Trajectories:
    """Run the model for one batch of images and record it.

    Args:
        conditions: one for each guidance branch, rows = images.
        num_tokens: tokens of one image (L); all are made.
        image_indices: index of each image in its batch, as for `generate.generate`; None = 0, 1, ...
        dtype: of the recorded features.
        autocast: type of the model's arithmetic; None = that of its weights.
        keep_on: where the record is kept; None = on `device`.
        on_step: called after each step is recorded; an exception from it ends the run.
    """
    conditions = tuple(c.to(device) for c in conditions)
    recorder = Recorder(conditions, dtype, keep_on)

    def after_step(trace: Trace) -> None:
        recorder(trace)
        if on_step is not None:
            on_step(trace)

    with torch.autocast(torch.device(device).type, autocast, enabled=autocast is not None):
        generate(
            model,
            conditions,
            settings,
            rules,
            seed=seed,
            image_indices=range(len(conditions[0])) if image_indices is None else image_indices,
            num_tokens=num_tokens,
            device=device,
            on_step=after_step,
        )
    return recorder.trajectories()
