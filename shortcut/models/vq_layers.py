"""Layers that the VQ models share with identical numerics: what lies between pixels and code ids.

Source: Esser et al. 2021 (VQGAN), whose layers CompVis/taming-transformers and the VQModel of
diffusers compute alike; only names, group counts and attention differ, which are the models' own.

    B  images    C  channels    Y, X  pixel rows, columns    h, w  rows, columns of codes    V  codebook size
    M  codes of one image
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import bands
from .layers import Attention


@dataclass(frozen=True, slots=True)
class Host:
    """The layers and the attention that a network is built from."""

    operations: Any
    attention: Attention
    tensor: dict[str, Any]
    num_groups: int = 32  # of all norms

    def conv(self, num_in: int, num_out: int, kernel: int, **options: Any) -> nn.Module:
        options.setdefault("padding", kernel // 2)
        return self.operations.Conv2d(num_in, num_out, kernel, **options, **self.tensor)

    def norm(self, width: int) -> nn.GroupNorm:
        return self.operations.GroupNorm(self.num_groups, width, eps=1e-6, **self.tensor)


class Codebook(nn.Module):
    """Code ids <-> codebook vectors."""

    def __init__(self, num_codes: int, width: int, host: Host):
        super().__init__()
        self.embedding = host.operations.Embedding(num_codes, width, **host.tensor)
        self.num_codes = num_codes

    def forward(self, codes_Bhw: Tensor) -> Tensor:
        """Return codebook vectors (B, C, h, w) of code ids."""
        return self.embedding(codes_Bhw).movedim(-1, 1)

    def nearest(self, latents_BChw: Tensor) -> Tensor:
        """Return ids (B, h, w) of the codebook entries nearest in L2, computed in float32.

        The codebook is read by a lookup of all ids, so that a host which moves weights on use sees the access.
        All distances of one image are held at a time, once: 134 MB for 1024 x 1024 pixels and 8192 codes.
        """
        ids_V = torch.arange(self.num_codes, device=latents_BChw.device)
        codebook_VC = self.embedding(ids_V).float()
        lengths_V = codebook_VC.square().sum(1)
        found_BM = []
        for latents_Chw in latents_BChw:
            doubled_MC = -2 * latents_Chw.flatten(1).T.float()
            found_BM.append((doubled_MC @ codebook_VC.T).add_(lengths_V).argmin(-1))
        return torch.stack(found_BM).unflatten(1, latents_BChw.shape[2:])


class ResBlock(nn.Module):
    """Two 3x3 convolutions, each behind a GroupNorm and a swish, around a residual connection."""

    def __init__(self, num_in: int, num_out: int, host: Host):
        super().__init__()
        self.norm1, self.conv1 = host.norm(num_in), host.conv(num_in, num_out, 3)
        self.norm2, self.conv2 = host.norm(num_out), host.conv(num_out, num_out, 3)
        if num_in != num_out:
            self.nin_shortcut = host.conv(num_in, num_out, 1)
        self.changes_width = num_in != num_out
        self.num_out = num_out

    def forward(self, x: Tensor) -> Tensor:
        if bands.is_large(x):
            return self._in_bands(x)
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return h.add_(self.nin_shortcut(x) if self.changes_width else x)

    def _in_bands(self, x: Tensor) -> Tensor:
        """Compute the same with one map beside `x`."""
        h = x.new_empty(x.shape[0], self.num_out, *x.shape[2:])
        bands.convolved(x, bands.activated(self.norm1, x), self.conv1, h)
        bands.convolved(h, bands.activated(self.norm2, h), self.conv2, h)
        return bands.add_(h, x, self.nin_shortcut) if self.changes_width else h.add_(x)


class Downsample(nn.Module):
    """Halves both sides: one row and column of zeros right and below, then a 3x3 convolution of stride 2."""

    def __init__(self, width: int, host: Host):
        super().__init__()
        self.conv = host.conv(width, width, 3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles both sides: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, width: int, host: Host):
        super().__init__()
        self.conv = host.conv(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        if bands.is_large(x):
            return bands.upsampled(x, self.conv)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
