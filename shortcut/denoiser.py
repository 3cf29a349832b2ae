"""From codes to guided logits: a full pass of the model or the predicted features, then guidance.

It knows the model and the predictor by their protocols only.

    B  images    S  sequence of one guidance branch    D  width    L  image tokens, rows x columns
    N  positions asked for    K  tokens revealed by the step before    V  codebook size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .gather import at_places
from .schedule import Step

# Last-layer features (B, S, D), one for each guidance branch: the condition first, then what to guide away from.
Features = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Revealed:
    """Tokens that a step revealed: their codes and, in ascending order, their indices among the image tokens."""

    codes_BK: Tensor
    index_BK: Tensor


def merged(revealed: Sequence[Revealed]) -> Revealed:
    """All tokens that several steps revealed."""
    index_BK, order_BK = torch.cat([r.index_BK for r in revealed], 1).sort(1)
    codes_BK = torch.cat([r.codes_BK for r in revealed], 1).gather(1, order_BK)
    return Revealed(codes_BK, index_BK)


@dataclass(frozen=True, slots=True)
class Denoised:
    """The answer of a step and where it came from."""

    logits_BNV: Tensor  # guided, float32
    features: Features
    was_full: bool  # True: from a full pass. False: predicted
    # How many tokens near each position the last full pass did not see. None: of no account.
    unseen_BN: Tensor | None = None


class Model(Protocol):
    """What the sampler needs of a masked image model."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of an image's tokens."""
        ...

    def features(
        self, codes_BL: Tensor, is_masked_BL: Tensor, conditions: Sequence[Any]
    ) -> Features:
        """One full pass for each of the branches' `conditions`."""
        ...

    def image_places(self, index_BN: Tensor, num_tokens: int) -> Tensor:
        """Where image positions `index_BN` stand in a sequence of so many tokens."""
        ...

    def logits(self, features_BND: Tensor, index_BN: Tensor) -> Tensor:
        """Float32 logits (B, N, V), linear but for a constant, from the features of image positions `index_BN`."""
        ...


class Predictor(Protocol):
    """Where the features of a step come from when it is not a full pass. One object serves one run."""

    def observe(self, step: Step, features: Features) -> None:
        """Sees the features of every full pass."""
        ...

    def predict(
        self, step: Step, features: Features, revealed: Revealed, index_BN: Tensor
    ) -> Features | None:
        """The features of `step` from those of the step before; None = a full pass is needed after all.

        What they are is asked at the image positions `index_BN` only, those still masked.
        """
        ...


class Denoiser:
    """One run of a model under fixed conditions.

    Args:
        conditions: one for each guidance branch; what they are is the model's business.
        predictor: None = every step is a full pass, whatever the plan says.
    """

    def __init__(self, model: Model, conditions: Sequence[Any], predictor: Predictor | None = None):
        self.model, self.conditions, self.predictor = model, conditions, predictor
        self.features: Features = ()
        self.is_fresh = (
            False  # True: `features` are of a full pass since which nothing was revealed
        )
        self.was_masked_BL: Tensor | None = None  # in the last full pass

    def __call__(
        self,
        step: Step,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        index_BN: Tensor,
        revealed: Revealed | None,
    ) -> Denoised:
        """Guided logits of `step` at the image positions `index_BN`."""
        features = None
        self.is_fresh &= revealed is not None and revealed.codes_BK.shape[1] == 0
        if not step.is_full and self.predictor is not None and revealed is not None:
            features = self.predictor.predict(step, self.features, revealed, index_BN)
            self.is_fresh = False
        elif self.is_fresh:
            features = self.features  # a full pass would only say the same again
        was_full = features is None
        if features is None:
            self.is_fresh, self.was_masked_BL = True, is_masked_BL
            features = self.model.features(codes_BL, is_masked_BL, self.conditions)
            if self.predictor is not None:
                self.predictor.observe(step, features)
        self.features = features
        logits_BNV = guided_logits(self.model, features, step.guidance, index_BN)
        unseen_BN = None
        if step.spread and not was_full and self.was_masked_BL is not None:
            is_unseen_BL = self.was_masked_BL & ~is_masked_BL
            unseen_BN = count_near(is_unseen_BL, self.model.grid, step.spread).gather(1, index_BN)
        return Denoised(logits_BNV, features, was_full, unseen_BN)


def count_near(is_counted_BL: Tensor, grid: tuple[int, int], radius: int) -> Tensor:
    """How many tokens that count stand within `radius` rows and columns of each, itself among them: (B, L)."""
    counted_BYX = is_counted_BL.float().unflatten(1, grid).unsqueeze(1)
    radius = min(radius, max(grid))  # further is nothing
    side = 2 * radius + 1
    near_BYX = F.avg_pool2d(counted_BYX, side, stride=1, padding=radius) * side**2
    return near_BYX.flatten(1).round()


def guided_logits(
    model: Model, features: Features, weights: Sequence[float], index_BN: Tensor
) -> Tensor:
    """Float32 logits (B, N, V) at image positions: those of the first branch, moved away from every other's.

    Logits are linear in the features, so these are moved, in float32: one product serves all branches, and in half
    precision it is rounded once, not multiplied by the weights after rounding.

    Args:
        weights: of each branch but the first; one of 0 is not looked at.
    """
    first_BND = guided_BND = image_features(model, features[0], index_BN).float()
    for branch_BSD, weight in zip(features[1:], weights, strict=True):
        if weight != 0:
            other_BND = image_features(model, branch_BSD, index_BN).float()
            guided_BND = guided_BND + weight * (first_BND - other_BND)
    return model.logits(guided_BND.to(features[0].dtype), index_BN)


def image_features(model: Model, features_BSD: Tensor, index_BN: Tensor) -> Tensor:
    """Features (B, N, D) of the image positions `index_BN` of one branch."""
    return at_places(features_BSD, model.image_places(index_BN, features_BSD.shape[1]))
