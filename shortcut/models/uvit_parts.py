"""The parts of aMUSEd and Meissonic: conditions, tokens in, the change of resolution, features out.

Source: Patil et al. 2024 (aMUSEd, arXiv 2401.01808); diffusers models/unets/uvit_2d.py; facts in tests/golden/UVIT.md.

    B  images    h, w  rows, columns    P  text tokens    C  width of a text encoder    D  width of the features
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DOWNSCALE = 16  # pixels per code along one side, of the VQ model that goes with these networks
# Micro-conditions: width and height of the image, what was cropped left and above, in pixels, and an aesthetic score.
NUM_MICRO = 5
AESTHETIC = 6.0  # of pictures to make, as the originals have it
EPS = 1e-6  # of all norms


@dataclass(frozen=True, slots=True)
class TextCondition:
    """The condition of one guidance branch: a text as CLIP sees it, and micro-conditions."""

    states_BPC: Tensor  # of the last layer but one, padding included
    pooled_BC: Tensor  # projected
    micro_B5: Tensor  # width or height 0 = that of the image

    def to(self, device: Any, /) -> TextCondition:
        parts = (self.states_BPC, self.pooled_BC, self.micro_B5)
        return TextCondition(*(part.to(device) for part in parts))

    def __getitem__(self, rows: Any, /) -> TextCondition:
        return TextCondition(self.states_BPC[rows], self.pooled_BC[rows], self.micro_B5[rows])

    def __len__(self) -> int:
        return len(self.pooled_BC)

    @property
    def is_finite(self) -> bool:
        return all(bool(part.isfinite().all()) for part in (self.states_BPC, self.pooled_BC))

    @classmethod
    def joined(cls, conditions: Sequence[TextCondition]) -> TextCondition:
        """Return the rows of several conditions, whose texts have equal lengths."""
        return cls(
            torch.cat([c.states_BPC for c in conditions]),
            torch.cat([c.pooled_BC for c in conditions]),
            torch.cat([c.micro_B5 for c in conditions]),
        )


def micro_conditions() -> Tensor:
    """Return the usual micro-conditions (1, 5) of an image to make."""
    return torch.tensor([[0.0, 0.0, 0.0, 0.0, AESTHETIC]])


def shapes_of_text(num_tokens: int, width: int, pooled_width: int) -> TextCondition:
    """Return a condition without values, on the meta device."""
    return TextCondition(
        torch.zeros(1, num_tokens, width, device="meta"),
        torch.zeros(1, pooled_width, device="meta"),
        torch.zeros(1, NUM_MICRO, device="meta"),
    )


def sinusoids(value_B: Tensor, width: int) -> Tensor:
    """Return cosines, then sines, of values at `width` / 2 frequencies from 1 down to almost 1 / 10000: (B, width).

    In float32, whose rounding shows: values reach 63,000.
    """
    half = width // 2
    exponent = -math.log(10_000) * torch.arange(half, dtype=torch.float32, device=value_B.device)
    angle = value_B.float().unsqueeze(1) * torch.exp(exponent / half)
    return torch.cat([angle.cos(), angle.sin()], 1)


class TwoLayers(nn.Module):
    """Linear, SiLU, Linear."""

    def __init__(self, num_in: int, width: int, operations: Any, *, bias: bool, **tensor: Any):
        super().__init__()
        self.linear_1 = operations.Linear(num_in, width, bias=bias, **tensor)
        self.linear_2 = operations.Linear(width, width, bias=bias, **tensor)

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x_BD)))


class MicroConditions(TwoLayers):
    """The pooled text and the micro-conditions, as one vector."""

    def __init__(
        self, pooled_width: int, micro_width: int, width: int, operations: Any, **tensor: Any
    ):
        num_in = pooled_width + NUM_MICRO * micro_width
        super().__init__(num_in, width, operations, bias=False, **tensor)
        self.micro_width = micro_width

    def of(self, condition: TextCondition, dtype: torch.dtype) -> Tensor:
        """Return (B, width of the trunk)."""
        waves = sinusoids(condition.micro_B5.flatten(), self.micro_width)
        micro_BM = waves.unflatten(0, (-1, NUM_MICRO)).flatten(1)
        return self(torch.cat([condition.pooled_BC.to(dtype), micro_BM.to(dtype)], 1))


class TokenInput(nn.Module):
    """Token ids -> embeddings behind a norm -> what the first blocks get."""

    def __init__(self, vocabulary: int, width: int, channels: int, operations: Any, **tensor: Any):
        super().__init__()
        self.embeddings = operations.Embedding(vocabulary, width, **tensor)
        self.layer_norm = operations.RMSNorm(width, eps=EPS, **tensor)
        self.conv = operations.Linear(width, channels, bias=False, **tensor)

    def normed(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """Return embeddings behind their norm, (..., width)."""
        return self.layer_norm(self.embeddings(tokens).to(dtype))

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        return self.conv(self.normed(tokens, dtype))


class CodeOutput(nn.Module):
    """What the last blocks give -> features -> logits."""

    def __init__(self, channels: int, width: int, num_codes: int, operations: Any, **tensor: Any):
        super().__init__()
        self.conv1 = operations.Linear(channels, width, bias=False, **tensor)
        self.layer_norm = operations.RMSNorm(width, eps=EPS, **tensor)
        self.conv2 = operations.Linear(width, num_codes, bias=False, **tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (..., width): `conv2` makes logits of them."""
        return self.layer_norm(self.conv1(x))


class Downsample(nn.Module):
    """Norm, then both sides halved."""

    def __init__(self, width: int, operations: Any, **tensor: Any):
        super().__init__()
        self.norm = operations.RMSNorm(width, eps=EPS, **tensor)
        self.conv = operations.Conv2d(width, width, 2, stride=2, bias=False, **tensor)

    def forward(self, x_BhwD: Tensor) -> Tensor:
        return self.conv(self.norm(x_BhwD).movedim(-1, 1)).movedim(1, -1)


class Upsample(Downsample):
    """Norm, then both sides doubled."""

    def __init__(self, width: int, operations: Any, **tensor: Any):
        super().__init__(width, operations, **tensor)
        self.conv = operations.ConvTranspose2d(width, width, 2, stride=2, bias=False, **tensor)
