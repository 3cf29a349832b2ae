"""From codes to guided logits: a full pass of the model or predicted features, then guidance.

It knows the model and the accelerator by their protocols only.

    B  images    S  sequence of one guidance branch    D  width    L  image tokens, rows x columns
    N  positions asked for    K  tokens revealed    V  codebook size
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from .gather import tokens_at
from .schedule import Step

# Last-layer features (B, S, D), one for each guidance branch: the condition first, then what to guide away from.
Features = tuple[Tensor, ...]
# Image tokens (B, N) -> their guided float32 logits (B, N, V), made when asked for: all of a large batch would not fit.
Logits = Callable[[Tensor], Tensor]
AT_ONCE = 2048  # positions of a batch whose logits exist at a time: 67 MB for 8,192 codes
# What a full pass keeps for partial ones, such as the keys and values of its blocks. Only its model looks inside.
Kept = Any


class Conditions(Protocol):
    """The condition of one guidance branch, rows = images. Only its conditioner and its model look inside.

    One tensor is such a condition; so is any dataclass of tensors with these three methods.
    """

    def to(self, device: Any, /) -> Conditions: ...
    def __getitem__(self, rows: Any, /) -> Conditions: ...
    def __len__(self) -> int: ...


class ImageLogits(Protocol):
    """How a model's features become logits of image tokens."""

    def image_positions(self, index_BN: Tensor, length: int) -> Tensor:
        """Return the positions of the image tokens `index_BN` in a sequence of `length` tokens."""
        ...

    def logits(self, features_BND: Tensor, index_BN: Tensor) -> Tensor:
        """Return float32 logits (B, N, V), affine in the features of the image tokens `index_BN`."""
        ...


class MaskedImageModel(ImageLogits, Protocol):
    """What the sampler calls of a masked image model, for images of one size."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of an image's tokens."""
        ...

    def features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step,
    ) -> Features:
        """Run one full pass for each of the branches' `conditions`.

        Args:
            codes_BL: code ids; those at masked positions are ignored.
            step: for models that take a timestep.
        """
        ...


@runtime_checkable
class PartialModel(MaskedImageModel, Protocol):
    """A model that can also run some tokens alone, which attend to what a full pass kept of all."""

    def kept_features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step,
        kept_dtype: torch.dtype | None,
        only_first: bool,
    ) -> tuple[Features, Kept]:
        """Run one full pass as `features` does, and also return what partial passes attend to.

        Args:
            kept_dtype: type that it is kept in; None = that of the computation.
            only_first: True: it is kept of the first branch alone, which alone partial passes run then.
        """
        ...

    def partial_features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step,
        positions: Sequence[Tensor],
        kept: Kept,
    ) -> Features:
        """Run some tokens of each branch alone and return their features (B, M, D).

        Args:
            positions: (B, M) of each branch, distinct, in its sequence, as `image_positions` gives them.
            kept: of the last full pass; what it holds of these tokens is renewed in place.
        """
        ...

    def sequence_logits(self, features_BSD: Tensor) -> Tensor:
        """Return float32 logits (B, S, V) at all positions of a branch's sequence, its text included."""
        ...

    def kept_bytes(
        self, num_images: int, lengths: Sequence[int], kept_dtype: torch.dtype | None
    ) -> float:
        """Return the memory of what a full pass keeps, for branches of these sequence lengths."""
        ...


@runtime_checkable
class PerturbedModel(MaskedImageModel, Protocol):
    """A model that also takes changed embeddings, as its one-step students do."""

    def perturbed_features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step,
        perturb: Callable[[Tensor], Tensor],
    ) -> Features:
        """Run one full pass as `features` does.

        Args:
            perturb: embeddings of the image tokens (images of some branches, L, D) -> changed ones.
        """
        ...


class Relayed(MaskedImageModel):
    """A model that makes its passes in a way of its own, and asks another for all else."""

    def __init__(self, model: MaskedImageModel):
        self.model = model

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of an image's tokens."""
        return self.model.grid

    def image_positions(self, index_BN: Tensor, length: int) -> Tensor:
        """Return the positions of the image tokens `index_BN` in a sequence of `length` tokens."""
        return self.model.image_positions(index_BN, length)

    def logits(self, features_BND: Tensor, index_BN: Tensor) -> Tensor:
        """Return float32 logits (B, N, V) from the features of the image tokens `index_BN`."""
        return self.model.logits(features_BND, index_BN)


@dataclass(frozen=True, slots=True)
class Revealed:
    """Revealed tokens: their codes and, in ascending order, their indices among the image tokens."""

    codes_BK: Tensor
    index_BK: Tensor


@dataclass(frozen=True, slots=True)
class Chosen:
    """Tokens that a step reveals, chosen before their codes are drawn."""

    index_BK: Tensor  # ascending
    is_finite: Tensor  # whether the logits that they were chosen by were


@dataclass(frozen=True, slots=True)
class Tokens:
    """The image tokens before a step."""

    codes_BL: Tensor  # undefined where masked
    is_masked_BL: Tensor
    index_BN: Tensor  # of the masked ones, ascending
    # The logits of a step -> the tokens that it reveals, by the run's noise.
    choose: Callable[[Logits], Chosen] | None = None


@dataclass(frozen=True, slots=True)
class Canvas:
    """Tokens that are made together: of a text, or of an image beside one."""

    codes_BL: Tensor  # or token ids of a text; undefined where masked
    is_masked_BL: Tensor

    @classmethod
    def empty(cls, num_images: int, num_tokens: int, device: torch.device | str) -> Canvas:
        """Return tokens that are all masked."""
        shape = (num_images, num_tokens)
        return cls(
            torch.zeros(shape, dtype=torch.long, device=device),
            torch.ones(shape, dtype=torch.bool, device=device),
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Features, and the tokens that they were made from."""

    step: Step
    features: Features
    is_masked_BL: Tensor
    kept: Kept = None  # of a full pass, where the accelerator has `keeps`
    before: Snapshot | None = None  # of a full pass, where it has `looks_back`: the one before
    is_hidden_BL: Tensor | None = None  # tokens that were known, and were hidden again by the step

    def revealed_until(self, step: Step, tokens: Tokens) -> Revealed:
        """Return the tokens that were revealed since, before `step`."""
        is_new_BL = self.is_masked_BL & ~tokens.is_masked_BL
        if self.is_hidden_BL is not None:
            is_new_BL |= self.is_hidden_BL & ~tokens.is_masked_BL
        num_before = self.step.num_masked + self.step.num_hidden
        index_BK = positions(is_new_BL, num_before - step.num_masked)
        return Revealed(tokens.codes_BL.gather(1, index_BK), index_BK)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Features of a step whose tokens were chosen before they were made."""

    features: Features
    chosen: Chosen  # the image tokens that the step reveals: only their features are used


class Accelerator(Protocol):
    """A source of features for steps that are not full passes. It keeps nothing between steps.

    Attributes:
        keeps: True: full passes come with what partial passes attend to; the model must be a `PartialModel`.
        keeps_first: True: of the first guidance branch alone, the condition's.
        kept_dtype: type that it is kept in; None = that of the computation.
        looks_back: True: a full pass comes with the features of the one before.
    """

    keeps: bool = False
    keeps_first: bool = False
    kept_dtype: torch.dtype | None = None
    looks_back: bool = False

    def predict(
        self, step: Step, tokens: Tokens, full: Snapshot, last: Snapshot
    ) -> Features | Prediction | None:
        """Return the features of `step`, or None if it must be a full pass after all.

        Only the features of the masked tokens `tokens.index_BN` are used.

        Args:
            full: the last full pass.
            last: the step before, full or predicted.
        """
        ...


@dataclass(frozen=True, slots=True)
class Denoised:
    """The answer of a step and where it came from."""

    logits: Logits
    features: Features
    was_full: bool  # True: from a full pass. False: predicted
    # The image tokens that the step reveals, whose logits alone mean something then. None: not chosen yet.
    chosen: Chosen | None = None


class Denoiser:
    """One run of a model under fixed conditions. Between steps it keeps the last full pass and the last features.

    Args:
        conditions: one for each guidance branch.
        accelerator: None = every step is a full pass, whatever the plan says.
    """

    def __init__(
        self,
        model: MaskedImageModel,
        conditions: Sequence[Conditions],
        accelerator: Accelerator | None = None,
    ):
        self.model, self.conditions, self.accelerator = model, conditions, accelerator
        self.full: Snapshot | None = None
        self.last: Snapshot | None = None
        self.num_full = 0  # passes of the model so far

    def __call__(self, step: Step, tokens: Tokens) -> Denoised:
        """Return the answer of `step` at the masked tokens."""
        predicted = None
        if self.full is not None and self.full is self.last and self.full.step.num_hidden:
            is_hidden_BL = tokens.is_masked_BL & ~self.full.is_masked_BL
            self.full = self.last = replace(self.full, is_hidden_BL=is_hidden_BL)
        if self.accelerator is not None and self.full and self.last and not step.is_full:
            predicted = self.accelerator.predict(step, tokens, self.full, self.last)
        was_full = predicted is None
        if predicted is None:
            self.full = self.last = self._full_pass(step, tokens)
            features = self.last.features
        else:
            features = predicted.features if isinstance(predicted, Prediction) else predicted
            self.last = Snapshot(step, features, tokens.is_masked_BL)
        logits = partial(guided_logits, self.model, features, step.guidance)
        chosen = predicted.chosen if isinstance(predicted, Prediction) else None
        return Denoised(logits, features, was_full, chosen)

    def _full_pass(self, step: Step, tokens: Tokens) -> Snapshot:
        """Run a full pass. What the one before kept is let go first."""
        accelerator, before = self.accelerator, None
        if accelerator is not None and accelerator.looks_back and self.full is not None:
            before = replace(self.full, kept=None, before=None)
        self.full = self.last = None
        self.num_full += 1
        given = tokens.codes_BL, tokens.is_masked_BL, self.conditions, step
        features, kept = full_pass(self.model, accelerator, *given)
        return Snapshot(step, features, tokens.is_masked_BL, kept, before)


def full_pass(
    model: MaskedImageModel,
    accelerator: Accelerator | None,
    codes_BL: Tensor,
    is_masked_BL: Tensor,
    conditions: Sequence[Conditions],
    step: Step,
) -> tuple[Features, Kept]:
    """Run a full pass of all branches. Returns its features, and what it keeps for the accelerator."""
    if accelerator is None or not accelerator.keeps:
        return model.features(codes_BL, is_masked_BL, conditions, step), None
    how = accelerator.kept_dtype, accelerator.keeps_first
    return cast(PartialModel, model).kept_features(codes_BL, is_masked_BL, conditions, step, *how)


def positions(is_wanted_BL: Tensor, count: int) -> Tensor:
    """Return the indices (B, `count`) of the True positions, ascending; each image has `count` of them."""
    return (~is_wanted_BL).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]


def merged(revealed: Sequence[Revealed]) -> Revealed:
    """Return all tokens that several steps revealed."""
    index_BK, order_BK = torch.cat([r.index_BK for r in revealed], 1).sort(1)
    codes_BK = torch.cat([r.codes_BK for r in revealed], 1).gather(1, order_BK)
    return Revealed(codes_BK, index_BK)


def count_near(is_counted_BL: Tensor, grid: tuple[int, int], radius: int) -> Tensor:
    """Return how many counted tokens stand within `radius` rows and columns of each, itself included: (B, L)."""
    counted_BYX = is_counted_BL.float().unflatten(1, grid).unsqueeze(1)
    radius = min(radius, max(grid))  # a larger window would only add padding
    side = 2 * radius + 1
    near_BYX = F.avg_pool2d(counted_BYX, side, stride=1, padding=radius) * side**2
    return near_BYX.flatten(1).round()


def guided_logits(
    model: ImageLogits, features: Features, weights: Sequence[float], index_BN: Tensor
) -> Tensor:
    """Return float32 logits (B, N, V) at image tokens: the first branch's, moved away from every other's.

    Logits are affine in the features, so the features are moved, in float32. One product serves all branches, and in
    half precision it is rounded once, not multiplied by the weights after rounding.

    Args:
        weights: guidance weight of each branch but the first; a branch of weight 0 is not looked at.
    """
    first_BND = guided_BND = image_features(model, features[0], index_BN).float()
    for branch_BSD, weight in zip(features[1:], weights, strict=True):
        if weight != 0:
            other_BND = image_features(model, branch_BSD, index_BN).float()
            guided_BND = guided_BND + weight * (first_BND - other_BND)
    return model.logits(guided_BND.to(features[0].dtype), index_BN)


def image_features(model: ImageLogits, features_BSD: Tensor, index_BN: Tensor) -> Tensor:
    """Return the features (B, N, D) of the image tokens `index_BN` of one branch."""
    return tokens_at(features_BSD, model.image_positions(index_BN, features_BSD.shape[1]))
