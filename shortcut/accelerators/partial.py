"""Partial passes: between full passes only the tokens that matter go through the model, and no head is needed.

A full pass keeps the keys and values of its blocks. A step between full passes chooses the positions to reveal from the
features at hand, runs those and the ones revealed in the step before through all blocks, where they attend to all kept
keys and values, and draws the codes from these fresh features.

Relatives: the dual cache of Fast-dLLM (arXiv 2505.22618); ReCAP (arXiv 2505.19089).
Differs: positions are chosen step by step, and what is kept of a position is renewed when its token is revealed.

    B  images    L  image tokens    K  tokens revealed    M  tokens run
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..denoiser import (
    Conditions,
    MaskedImageModel,
    PartialModel,
    Prediction,
    Snapshot,
    Tokens,
    count_near,
    guided_logits,
)
from ..gather import replaced_at
from ..schedule import Step

NUM_NEIGHBOURS = 8  # of a token in a square of 3 x 3


class Partial:
    """Runs the tokens to reveal and those just revealed.

    Args:
        model: a `PartialModel`.
        conditions: of the run, one for each guidance branch.
        with_neighbours: True: the masked tokens around those just revealed are run too, whose features change most.

    Raises:
        ValueError: the model makes no partial passes.
    """

    keeps = True

    def __init__(
        self,
        model: MaskedImageModel,
        conditions: Sequence[Conditions],
        *,
        with_neighbours: bool = False,
    ):
        if not isinstance(model, PartialModel):
            raise ValueError(
                "this model makes no partial passes: its architecture keeps no keys and values. Use head "
                "or reuse."
            )
        self.model, self.conditions = model, conditions
        self.with_neighbours = with_neighbours

    def predict(self, step: Step, tokens: Tokens, full: Snapshot, last: Snapshot) -> Prediction:
        """Return features that are fresh at the tokens run, and the tokens that the step reveals."""
        if tokens.choose is None:
            raise RuntimeError("partial passes need the sampler's choice of tokens.")
        at_hand_BNV = guided_logits(self.model, last.features, step.guidance, tokens.index_BN)
        chosen_BK = tokens.choose(at_hand_BNV)
        del at_hand_BNV
        new_BK = last.revealed_until(step, tokens).index_BK
        run = [new_BK, chosen_BK]
        if self.with_neighbours:
            run.append(self._neighbours(step, tokens, new_BK, chosen_BK))
        index_BM = torch.cat(run, 1)
        fresh = self.model.partial_features(
            tokens.codes_BL, tokens.is_masked_BL, self.conditions, step, index_BM, full.kept
        )
        features = tuple(
            replaced_at(old_BSD, self.model.image_positions(index_BM, old_BSD.shape[1]), fresh_BMD)
            for old_BSD, fresh_BMD in zip(last.features, fresh, strict=True)
        )
        return Prediction(features, chosen_BK)

    def _neighbours(self, step: Step, tokens: Tokens, new_BK: Tensor, chosen_BK: Tensor) -> Tensor:
        """Return the masked tokens (B, M) with most of the tokens `new_BK` around them, without `chosen_BK`.

        How many there are differs from image to image. Their number is the most that there can be, which needs no
        copy to the host: where there are fewer, other masked tokens fill it up.
        """
        count = min(NUM_NEIGHBOURS * new_BK.shape[1], step.num_masked_after)
        nothing_BL = torch.zeros_like(tokens.is_masked_BL)
        num_near_BL = count_near(nothing_BL.scatter(1, new_BK, True), self.model.grid, 1)
        is_free_BL = tokens.is_masked_BL.scatter(1, chosen_BK, False)
        order_BL = num_near_BL.masked_fill(~is_free_BL, -1).argsort(
            dim=1, descending=True, stable=True
        )
        return order_BL[:, :count].sort(1).values
