"""Randomness: one CPU generator per image, so an image depends on neither its batch nor the device.

Everything that a run draws is drawn before its loop and moved to the device once: two numbers per image token and step.

    B  images    L  image tokens    T  steps    N  tokens still masked    V  codebook size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self


def seeded(*seed: int) -> torch.Generator:
    """Return a CPU generator for up to four integers below 2**64; different ones give unrelated streams.

    Zeros at the end make no difference: (7, 0) is (7,).
    """
    # SeedSequence cuts its integers into words of 32 bits and joins them, so (2**32, 0) would be (0, 1).
    high = [number >> 32 for number in seed]
    sequence = np.random.SeedSequence(
        [n & 0xFFFFFFFF for n in seed], spawn_key=high if any(high) else ()
    )
    return torch.Generator().manual_seed(
        int(sequence.generate_state(1, np.uint64)[0]) & (2**63 - 1)
    )


@dataclass(frozen=True, slots=True)
class Noise:
    """The uniform draws of a whole run: which code (`code_TBL`) and which position (`choice_TBL`), in (0, 1)."""

    code_TBL: Tensor
    choice_TBL: Tensor

    @classmethod
    def draw(
        cls,
        seed: int,
        image_indices: Sequence[int],
        num_steps: int,
        num_tokens: int,
        device: torch.device | str,
        stream: int = 0,
    ) -> Self:
        """Draw the noise of the images at the places `image_indices` of their batch.

        The generators are (seed, place, stream).
        """
        draws_B2TL = torch.stack(
            [
                torch.rand(2, num_steps, num_tokens, generator=seeded(seed, i, stream))
                for i in image_indices
            ]
        )
        # rand includes 0, whose logarithm would be infinite; half a unit in the last place is the centre of its bin.
        code_TBL, choice_TBL = (
            (draws_B2TL + 2**-25).clamp(max=1 - 2**-24).permute(1, 2, 0, 3).to(device)
        )
        return cls(code_TBL, choice_TBL)

    def part(self, steps: slice, tokens: slice) -> Self:
        """Return the noise of some steps and tokens."""
        return type(self)(self.code_TBL[steps, :, tokens], self.choice_TBL[steps, :, tokens])

    def codes(self, step: int, index_BN: Tensor, logits_BNV: Tensor) -> Tensor:
        """Draw one code (B, N) per position from softmax(`logits_BNV`) by inverting its cumulative sum."""
        cdf_BNV = logits_BNV.softmax(-1).cumsum(-1)
        u_BN1 = self.code_TBL[step].gather(1, index_BN).unsqueeze(-1)
        found_BN1 = torch.searchsorted(cdf_BNV, u_BN1 * cdf_BNV[..., -1:], right=True)
        return found_BN1.squeeze(-1).clamp(max=logits_BNV.shape[-1] - 1)

    def choice(self, step: int, index_BN: Tensor) -> Tensor:
        """Return standard Gumbel noise (B, N) for the choice of positions."""
        return -torch.log(-torch.log(self.choice_TBL[step].gather(1, index_BN)))


class NormalNoise(Noise):
    """Noise whose choice of positions is normal instead."""

    def choice(self, step: int, index_BN: Tensor) -> Tensor:
        """Return standard normal noise (B, N) for the choice of positions."""
        return torch.special.ndtri(self.choice_TBL[step].gather(1, index_BN))
