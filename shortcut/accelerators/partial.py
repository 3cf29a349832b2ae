"""Partial passes: between full passes only the tokens that matter go through the model, and no head is needed.

A full pass keeps the keys and values of its blocks. A step between full passes chooses the positions to reveal from the
features at hand, or from those that another accelerator predicts, runs them and the ones revealed in the step before
through all blocks, where they attend to all kept keys and values, and draws the codes from these fresh features.

Of the guidance branches the condition's alone is run. The features of the others move as its features do, so that
guidance points where it did in the last full pass.

Relatives: the dual cache of Fast-dLLM (arXiv 2505.22618); ReCAP (arXiv 2505.19089); the kept guidance of FasterCache
(arXiv 2410.19355).
Differs: positions are chosen step by step, and what is kept of a position is renewed when its token is revealed.

    B  images    L  image tokens    K  tokens revealed    M  tokens run
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ..denoiser import (
    Accelerator,
    Conditions,
    Features,
    MaskedImageModel,
    PartialModel,
    Prediction,
    Snapshot,
    Tokens,
    count_near,
    guided_logits,
)
from ..gather import added_at, replaced_at, tokens_at
from ..schedule import Step
from .reuse import Reuse

NUM_NEIGHBOURS = 8  # of a token in a square of 3 x 3


class Forecast(Protocol):
    """An accelerator that predicts all features of a step."""

    def predict(self, step: Step, tokens: Tokens, full: Snapshot, last: Snapshot) -> Features: ...


class Partial(Accelerator):
    """Runs the tokens to reveal and those just revealed.

    Args:
        model: a `PartialModel`.
        conditions: of the run, one for each guidance branch.
        where: says by its features which tokens to reveal; None = the features at hand say so.
        with_neighbours: True: the masked tokens around those just revealed are run too, whose features change most.
        kept_dtype: type to keep keys and values in; None = that of the computation.

    Raises:
        ValueError: the model makes no partial passes.
    """

    keeps = keeps_first = True

    def __init__(
        self,
        model: MaskedImageModel,
        conditions: Sequence[Conditions],
        *,
        where: Forecast | None = None,
        with_neighbours: bool = False,
        kept_dtype: torch.dtype | None = None,
    ):
        self.model, self.conditions = checked(model), conditions
        self.where, self.with_neighbours = where or Reuse(), with_neighbours
        self.kept_dtype = kept_dtype

    def predict(self, step: Step, tokens: Tokens, full: Snapshot, last: Snapshot) -> Prediction:
        """Return features that are fresh at the tokens run, and the tokens that the step reveals."""
        if tokens.choose is None:
            raise RuntimeError("partial passes need the sampler's choice of tokens.")
        at_hand = self.where.predict(step, tokens, full, last)
        chosen = tokens.choose(partial(guided_logits, self.model, at_hand, step.guidance))
        new_BK = last.revealed_until(step, tokens).index_BK
        others_BM = self._others(step, tokens, last, new_BK, chosen.index_BK)
        index_BM = torch.cat([new_BK, chosen.index_BK, others_BM], 1)
        where = [self.model.image_positions(index_BM, f_BSD.shape[1]) for f_BSD in at_hand]
        (fresh_BMD,) = self.model.partial_features(
            *(tokens.codes_BL, tokens.is_masked_BL, self.conditions[:1]),
            *(step, where[:1], full.kept),
        )
        change_BMD = fresh_BMD - tokens_at(at_hand[0], where[0])
        features = [replaced_at(at_hand[0], where[0], fresh_BMD)]
        for old_BSD, where_BM in zip(at_hand[1:], where[1:], strict=True):
            features.append(added_at(old_BSD, where_BM, change_BMD))
        return Prediction(tuple(features), chosen)

    def _others(
        self, step: Step, tokens: Tokens, last: Snapshot, new_BK: Tensor, chosen_BK: Tensor
    ) -> Tensor:
        """Return the other masked tokens (B, M) to run: those just hidden again; those around `new_BK` if asked for.

        How many there are differs from image to image. Their number is the most that there can be, which needs no
        copy to the host: where there are fewer, other masked tokens fill it up.
        """
        count, rank_BL = last.step.num_hidden, torch.zeros_like(tokens.is_masked_BL).float()
        if self.with_neighbours:
            count += NUM_NEIGHBOURS * new_BK.shape[1]
            is_new_BL = torch.zeros_like(tokens.is_masked_BL).scatter(1, new_BK, True)
            rank_BL = count_near(is_new_BL, self.model.grid, 1)
        if last.is_hidden_BL is not None:
            rank_BL = rank_BL + (NUM_NEIGHBOURS + 1) * last.is_hidden_BL
        is_free_BL = tokens.is_masked_BL.scatter(1, chosen_BK, False)
        order_BL = rank_BL.masked_fill(~is_free_BL, -1).argsort(dim=1, descending=True, stable=True)
        return order_BL[:, : min(count, step.num_masked_after)].sort(1).values


def checked(model: MaskedImageModel) -> PartialModel:
    """Return the model. Raise ValueError if it makes no partial passes."""
    if not isinstance(model, PartialModel):
        raise ValueError(
            "this model makes no partial passes: its architecture keeps no keys and values. Use head, taylor or reuse."
        )
    return model
