"""The time of a shortcut head: the mask ratio as scale and shift.

Source: arXiv 2602.23996; MIGM-Shortcut Network/shortcut_model.py TimestepEmbedder; sizes in golden/README.md section 4.

    B  sequences    D  width of the head
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_FREQUENCIES = 128
MAX_PERIOD = 10_000.0
RATIO_SCALE = 1000.0  # the ratio in [0, 1] takes the place of a diffusion timestep


class MaskRatioModulation(nn.Module):
    """Modulates features by the mask ratio: x * (1 + scale) + shift."""

    def __init__(self, width: int, operations: Any, **tensor: Any):
        super().__init__()
        middle = round(math.sqrt(2 * NUM_FREQUENCIES * width))
        self.time_in = operations.Linear(2 * NUM_FREQUENCIES, middle, **tensor)
        self.time_out = operations.Linear(middle, width, **tensor)
        self.modulation = operations.Linear(width, 2 * width, **tensor)

    def forward(self, x_BSD: Tensor, mask_ratio_B: Tensor) -> Tensor:
        """`mask_ratio_B` lies in [0, 1]. Returns (B, S, D)."""
        waves = self.time_in(fourier(mask_ratio_B).to(x_BSD.dtype))
        scale, shift = self.modulation(self.time_out(F.silu(waves))).unsqueeze(1).chunk(2, dim=-1)
        return x_BSD * (1 + scale) + shift


def fourier(mask_ratio_B: Tensor) -> Tensor:
    """Cosines, then sines, of the scaled ratio at 128 frequencies: float32 (B, 256)."""
    exponent = torch.arange(NUM_FREQUENCIES, device=mask_ratio_B.device, dtype=torch.float32)
    frequency = torch.exp(-math.log(MAX_PERIOD) / NUM_FREQUENCIES * exponent)
    angle = mask_ratio_B.float().unsqueeze(1) * RATIO_SCALE * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)
