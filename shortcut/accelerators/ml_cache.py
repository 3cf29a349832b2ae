"""ML-Cache, the accelerator of Lumina-DiMOO's own sampler: tokens whose codes are least sure are run again.

Between full passes the tenth of each sequence, text included, whose likeliest codes have the lowest logits goes through
all blocks anew; all else stays as it is, even where a token was revealed.

Source: Xin et al. 2025 (arXiv 2510.06308); facts in tests/golden/README.md section 5.
Differs: full passes stand where the plan has them; features are kept, not logits, which takes less memory; where logits
are equal no more tokens than a tenth are run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..denoiser import (
    Accelerator,
    Conditions,
    Features,
    Kept,
    MaskedImageModel,
    PartialModel,
    Snapshot,
    Tokens,
)
from ..gather import replaced_at
from ..schedule import Step
from .partial import checked

SHARE = 0.1  # of a sequence that is run again


def own_full_steps(num_steps: int, warmup: float = 0.3, interval: int = 5) -> tuple[int, ...]:
    """Return the full passes of the original: a first share of the steps, then every so many."""
    last = int(num_steps * warmup)
    return tuple(i for i in range(num_steps) if i <= last or (i - last) % interval == 0)


class MLCache(Accelerator):
    """Runs the tokens again that the model is least sure of.

    Args:
        model: a `PartialModel`.
        conditions: of the run, one for each guidance branch.
        share: of a sequence that is run again, in [0, 1].
        kept_dtype: as for `Partial`.

    Raises:
        ValueError: the model makes no partial passes.
    """

    keeps = True

    def __init__(
        self,
        model: MaskedImageModel,
        conditions: Sequence[Conditions],
        *,
        share: float = SHARE,
        kept_dtype: torch.dtype | None = None,
    ):
        self.model, self.conditions = checked(model), conditions
        self.share, self.kept_dtype = share, kept_dtype

    def predict(self, step: Step, tokens: Tokens, full: Snapshot, last: Snapshot) -> Features:
        """Return the last features, fresh at the tokens run."""
        positions = [self._least_sure(branch_BSD) for branch_BSD in last.features]
        return renewed(
            self.model, self.conditions, step, tokens, last.features, positions, full.kept
        )

    def _least_sure(self, features_BSD: Tensor) -> Tensor:
        """Return the positions (B, M), ascending, with the lowest of the highest logits."""
        surest_BS = self.model.sequence_logits(features_BSD).amax(-1)
        # As many as lie at or below the quantile of that share, which stands between two of them or on one.
        count = int(round(self.share * (surest_BS.shape[1] - 1), 3)) + 1
        return surest_BS.topk(count, largest=False).indices.sort(1).values


def renewed(
    model: PartialModel,
    conditions: Sequence[Conditions],
    step: Step,
    tokens: Tokens,
    features: Features,
    positions: Sequence[Tensor],
    kept: Kept,
) -> Features:
    """Return `features` that a partial pass has made fresh at the `positions` (B, M) of each branch."""
    fresh = model.partial_features(
        tokens.codes_BL, tokens.is_masked_BL, conditions, step, positions, kept
    )
    changes = zip(features, positions, fresh, strict=True)
    return tuple(replaced_at(old_BSD, where_BM, new_BMD) for old_BSD, where_BM, new_BMD in changes)
