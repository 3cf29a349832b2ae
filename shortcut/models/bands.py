"""Layers of a VQ model over bands of rows, so that a large map is never held three times.

A map of 1024 x 1024 pixels and 256 channels takes 1 GB. A GroupNorm needs the mean and variance of the whole map, but
what it writes is needed a band at a time. The result is that of the whole map but for rounding.

    B  images    C  channels    G  groups of a norm    Y, X  pixel rows, columns
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 2**26  # elements of an image's map above which it is worked on in bands; 268 MB in float32
ROWS = 64


def is_large(x: Tensor) -> bool:
    """Return whether a map (B, C, Y, X) is worked on in bands."""
    return x[0].numel() >= LARGE


def bands(num_rows: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield for each band: its rows, the rows that a 3x3 convolution reads for them, and its rows among those."""
    for start in range(0, num_rows, ROWS):
        stop = min(start + ROWS, num_rows)
        first, last = max(start - 1, 0), min(stop + 1, num_rows)
        yield slice(start, stop), slice(first, last), slice(start - first, stop - first)


def convolved(x: Tensor, before: Callable[[Tensor], Tensor], conv: nn.Module, out: Tensor) -> None:
    """Write `conv(before(x))` to `out`, which may be `x`, for a 3x3 convolution with one row of zeros around.

    Args:
        before: works on each position alone.
    """
    overwritten = x[:, :, :0]  # the last row of the band before, which may be gone from `x`
    for rows, read, inner in bands(x.shape[2]):
        piece = torch.cat([overwritten, x[:, :, rows.start : read.stop]], 2)
        overwritten = x[:, :, rows.stop - 1 : rows.stop].clone()
        out[:, :, rows] = conv(before(piece))[:, :, inner]


def upsampled(x: Tensor, conv: nn.Module) -> Tensor:
    """Return `conv` of `x` with both sides doubled by repetition; as many channels as `x` has."""
    out = x.new_empty(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    for rows, read, inner in bands(x.shape[2]):
        doubled = F.interpolate(x[:, :, read], scale_factor=2.0, mode="nearest")
        kept = slice(2 * inner.start, 2 * inner.stop)
        out[:, :, 2 * rows.start : 2 * rows.stop] = conv(doubled)[:, :, kept]
    return out


def add_(out: Tensor, x: Tensor, layer: nn.Module) -> Tensor:
    """Add `layer(x)` to `out`, for a layer that works on each position alone."""
    for rows, _, _ in bands(x.shape[2]):
        out[:, :, rows] += layer(x[:, :, rows])
    return out


def activated(norm: nn.GroupNorm, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return swish(norm(rows)) as a function of some rows of `x`, by the mean and variance of all.

    The norm's weight and bias are read from its answer to an input of mean 0 and variance 1, because a host may keep
    them elsewhere until the norm is called.
    """
    groups = x.unflatten(1, (norm.num_groups, -1)).unbind(1)
    found = [torch.var_mean(group.float(), dim=(1, 2, 3), correction=0) for group in groups]
    var_BG, mean_BG = (torch.stack(values, 1) for values in zip(*found, strict=True))
    probe_1C2 = x.new_tensor([1.0, -1.0]).expand(1, x.shape[1], 2)
    high_1C, low_1C = norm(probe_1C2).float().unbind(2)
    each = x.shape[1] // norm.num_groups
    scale_BC = (high_1C - low_1C) / 2 * (1 + norm.eps) ** 0.5
    scale_BC = scale_BC * (var_BG + norm.eps).rsqrt().repeat_interleave(each, 1)
    shift_BC = (high_1C + low_1C) / 2 - scale_BC * mean_BG.repeat_interleave(each, 1)
    scale, shift = (t[..., None, None].to(x.dtype) for t in (scale_BC, shift_BC))
    return lambda rows: F.silu(torch.addcmul(shift, rows, scale), inplace=True)
