"""One picture on several devices: the guidance branches of a pass run side by side, each on its own device.

Every device holds the whole model. Codes, logits and the head stay on the first; a pass copies the tokens to the other
devices and the features back, 34 MB for a branch of Lumina-DiMOO at 1024 x 1024 in bfloat16. Work is queued on all
devices before anything is copied back, so that devices that work by themselves, as GPUs do, work at the same time.

    B  images    S  sequence of one guidance branch    D  width    M  positions asked for
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from .denoiser import Conditions, Features, Kept, MaskedImageModel, PartialModel, Relayed
from .schedule import Step


@dataclass(frozen=True, slots=True)
class Copy:
    """The model on another device, with the same weights."""

    model: MaskedImageModel
    device: torch.device


@dataclass(frozen=True, slots=True)
class Share:
    """A device's part of a pass."""

    model: PartialModel  # where it is asked for partial passes
    branches: slice
    codes_BL: Tensor
    is_masked_BL: Tensor
    conditions: list[Conditions]


class Split(Relayed):
    """A model whose passes are shared by several devices. All else is asked of the first.

    Args:
        model: the one on the run's device.
        device: the run's.
        copies: a pass runs its first branch on the run's device, the next on that of the first copy, and so on in
            turn.
    """

    def __init__(self, model: MaskedImageModel, device: torch.device, copies: Sequence[Copy]):
        super().__init__(model)
        self.parts = Copy(model, device), *copies

    def features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step,
    ) -> Features:
        """Run one full pass for each of the branches' `conditions`."""
        found = []
        for share in self._shares(codes_BL, is_masked_BL, conditions):
            with torch.cuda.device_of(share.codes_BL):
                found.append(
                    share.model.features(share.codes_BL, share.is_masked_BL, share.conditions, step)
                )
        return self._gathered(found)

    def _shares(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
    ) -> list[Share]:
        """Return what each device that has branches is given of a pass. The devices take turns."""
        turns, num_branches = len(self.parts), len(conditions)
        return [
            Share(
                cast(PartialModel, part.model),
                branches := slice(first, num_branches, turns),
                codes_BL.to(part.device),
                is_masked_BL.to(part.device),
                [condition.to(part.device) for condition in conditions[branches]],
            )
            for first, part in enumerate(self.parts[:num_branches])
        ]

    def _gathered(self, found: Sequence[Features]) -> Features:
        """Return the features of all branches, in their order, on the run's device."""
        device, turns, num_branches = self.parts[0].device, len(self.parts), sum(map(len, found))
        return tuple(found[b % turns][b // turns].to(device) for b in range(num_branches))


class PartialSplit(Split, PartialModel):
    """A split model that makes partial passes too."""

    def sequence_logits(self, features_BSD: Tensor) -> Tensor:
        """Return float32 logits (B, S, V) at all positions of a branch's sequence."""
        return cast(PartialModel, self.model).sequence_logits(features_BSD)

    def kept_bytes(
        self, num_images: int, lengths: Sequence[int], kept_dtype: torch.dtype | None
    ) -> float:
        """Return the memory of what a full pass keeps, on all devices together."""
        return cast(PartialModel, self.model).kept_bytes(num_images, lengths, kept_dtype)

    def kept_features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step,
        kept_dtype: torch.dtype | None,
        only_first: bool,
    ) -> tuple[Features, Kept]:
        """Run one full pass, and also return what each device keeps of it: with `only_first` the run's own alone."""
        found, kept = [], []
        for share in self._shares(codes_BL, is_masked_BL, conditions):
            given = share.codes_BL, share.is_masked_BL, share.conditions, step
            with torch.cuda.device_of(share.codes_BL):
                if only_first and kept:
                    found.append(share.model.features(*given))
                    continue
                features, of_share = share.model.kept_features(*given, kept_dtype, only_first)
            found.append(features)
            kept.append(of_share)
        return self._gathered(found), kept

    def partial_features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step,
        positions: Sequence[Tensor],
        kept: Kept,
    ) -> Features:
        """Run the tokens at `positions` (B, M) of each branch alone and return their features (B, M, D)."""
        found = []
        shares = self._shares(codes_BL, is_masked_BL, conditions)
        for share, of_share in zip(shares, kept, strict=True):
            where = [w_BM.to(share.codes_BL.device) for w_BM in positions[share.branches]]
            with torch.cuda.device_of(share.codes_BL):
                found.append(
                    share.model.partial_features(
                        *(share.codes_BL, share.is_masked_BL, share.conditions),
                        *(step, where, of_share),
                    )
                )
        return self._gathered(found)


def split(
    model: MaskedImageModel, device: torch.device, copies: Sequence[Copy]
) -> MaskedImageModel:
    """Return a model whose passes are shared with its `copies`, as `Split`; without any, the model itself."""
    if not copies:
        return model
    return (PartialSplit if isinstance(model, PartialModel) else Split)(model, device, copies)


def unsplit(model: MaskedImageModel) -> MaskedImageModel:
    """Return the model on the run's device, which heads ask for embeddings."""
    return model.model if isinstance(model, Split) else model
