"""Orders of revealing: which of the masked tokens come first. Each scores them, and the sampler takes the highest.

B  images    L  image tokens    N  tokens still masked    V  codebook size
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from .noise import Noise
from .schedule import CORRECTED, HALTON, Step

# (logits (B, N, V) of the masked tokens, codes drawn from them (B, N), step, indices of the tokens (B, N), noise of the
# run) -> their scores (B, N)
Order = Callable[[Tensor, Tensor, Step, Tensor, Noise], Tensor]


def confidence(
    logits_BNV: Tensor, drawn_BN: Tensor, step: Step, index_BN: Tensor, noise: Noise
) -> Tensor:
    """Score the drawn codes (B, N), highest revealed first: log-probability plus tempered Gumbel noise.

    Source: Chang et al. 2022, section 3.2; Besnier and Chen 2023, section 3.
    Differs: Lumina-DiMOO takes probabilities below 1e-20 for 1e-20; here the logarithm is exact.
    """
    if math.isinf(step.choice_temperature):
        return noise.choice(step.index, index_BN)
    logp_BNV = (logits_BNV / step.score_temperature).log_softmax(-1)
    logp_BN = logp_BNV.gather(-1, drawn_BN.unsqueeze(-1)).squeeze(-1)
    if step.choice_temperature == 0:
        return logp_BN
    return logp_BN + step.choice_temperature * noise.choice(step.index, index_BN)


class Halton:
    """Reveals tokens far from each other first, whatever the model says: a Halton sequence over the grid.

    Source: Besnier et al. 2025 (arXiv 2503.17076), section 4; valeoai/Halton-MaskGIT Sampler/halton_sampler.py with
    `randomize`: each image begins at a place of the sequence of its own.
    Differs: the number of tokens of each step is the plan's.

    Args:
        grid: rows and columns of an image's tokens.
        device: of the run.
    """

    def __init__(self, grid: tuple[int, int], device: torch.device | str):
        self.rank_L = torch.tensor(halton_ranks(*grid), device=device)

    def __call__(
        self, logits_BNV: Tensor, drawn_BN: Tensor, step: Step, index_BN: Tensor, noise: Noise
    ) -> Tensor:
        """Score the tokens (B, N) by their place in the sequence."""
        num_tokens = len(self.rank_L)
        start_B1 = (noise.choice_TBL[0, :, :1] * num_tokens).long()
        rank_BN = self.rank_L[index_BN]
        return -((rank_BN - start_B1) % num_tokens).float()


@lru_cache(maxsize=8)
def halton_ranks(rows: int, columns: int) -> list[int]:
    """Return the place of each token of a grid, row by row, in the Halton sequence of bases 2 (rows) and 3 (columns).

    Points that fall on a token a second time are left out.
    """
    ranks: dict[int, int] = {}
    number = 0
    while len(ranks) < rows * columns:
        token = _mirrored(number, 2, rows) * columns + _mirrored(number, 3, columns)
        ranks.setdefault(token, len(ranks))
        number += 1
    return [ranks[token] for token in range(rows * columns)]


def _mirrored(number: int, base: int, size: int) -> int:
    """Return floor(`size` * x), where x in [0, 1) has the digits of `number` in `base`, mirrored at the point."""
    numerator, denominator = 0, 1
    while number:
        number, digit = divmod(number, base)
        numerator, denominator = numerator * base + digit, denominator * base
    return numerator * size // denominator


# One of schedule.ORDERS -> (rows and columns of the grid, device) -> the order
BY_NAME: dict[str, Callable[[tuple[int, int], torch.device | str], Order]] = {
    "confidence": lambda grid, device: confidence,
    HALTON: Halton,
    CORRECTED: lambda grid, device: confidence,  # the plan says what is hidden again
}
