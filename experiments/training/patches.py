"""A VQGAN's encoder and codebook by linear algebra: principal components of patches, and their k-means centres.

A VQGAN that learns from nothing on a CPU finds the mean colours of codes for hours. Its residual stream can carry all
pixels of a patch, and pairs a, -a pass a swish without loss: swish(a) - swish(-a) = a. So the encoder is set, not
learnt; codes are known before the decoder is.

    M  patches    P  values of a patch, (8 * 8 pixels) * 3    C  code width    V  codebook size
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shortcut.models.maskgit.vqgan import VQGAN

LLOYD_STEPS = 12
# Each norm group holds a, -a, and this many deviations of a as +c, -c, which make its scale nearly constant.
STEADY = 10.0
LEAST_DEVIATION = 0.08  # of the largest, when vectors are scaled for the decoder


@dataclass(frozen=True, slots=True)
class Patches:
    """Axes of patches and the centres of their codes."""

    mean_P: Tensor
    axes_PC: Tensor
    deviation_C: Tensor
    centre_VC: Tensor
    side: int  # pixels

    def project(self, pixels_BCYX: Tensor) -> Tensor:
        """Return vectors (M, C) of the patches of pictures, row by row."""
        return (_cut(pixels_BCYX, self.side) - self.mean_P) @ self.axes_PC

    def codes(self, pixels_BCYX: Tensor) -> Tensor:
        """Return code ids (B, h, w)."""
        rows, columns = (side // self.side for side in pixels_BCYX.shape[2:])
        return _nearest(self.project(pixels_BCYX), self.centre_VC).view(-1, rows, columns)

    @property
    def scale_C(self) -> Tensor:
        """Return what vectors are divided by for the decoder."""
        return self.deviation_C.clamp(min=LEAST_DEVIATION * float(self.deviation_C.max()))


def measured(pixels_BCYX: Tensor, side: int, width: int, num_codes: int) -> Patches:
    """Return axes and centres of the patches of pictures; the first centres are patches drawn with seed 0."""
    patches_MP = _cut(pixels_BCYX, side)
    mean_P = patches_MP.mean(0)
    centred_MP = patches_MP - mean_P
    _, axes_PP = torch.linalg.eigh(centred_MP.T @ centred_MP / len(centred_MP))
    axes_PC = axes_PP.flip(1)[:, :width].contiguous()
    vectors_MC = centred_MP @ axes_PC
    generator = torch.Generator().manual_seed(0)
    start_V = torch.randperm(len(vectors_MC), generator=generator)[:num_codes]
    centre_VC = vectors_MC[start_V].clone()
    for _ in range(LLOYD_STEPS):
        code_M = _nearest(vectors_MC, centre_VC)
        count_V1 = torch.bincount(code_M, minlength=num_codes).unsqueeze(1)
        sum_VC = torch.zeros_like(centre_VC).index_add_(0, code_M, vectors_MC)
        other_V = torch.randint(len(vectors_MC), (num_codes,), generator=generator)
        mean_VC = sum_VC / count_V1.clamp(min=1)
        centre_VC = torch.where(count_V1 > 0, mean_VC, vectors_MC[other_V])
    return Patches(mean_P, axes_PC, vectors_MC.std(0), centre_VC, side)


def _cut(pixels_BCYX: Tensor, side: int) -> Tensor:
    """Return patches (M, P), whose values lie as `pixel_unshuffle` lays them."""
    return F.pixel_unshuffle(pixels_BCYX, side).movedim(1, -1).flatten(0, 2)


def _nearest(vectors_MC: Tensor, centre_VC: Tensor) -> Tensor:
    lengths_V = centre_VC.square().sum(1)
    parts = vectors_MC.split(8192)
    return torch.cat([(lengths_V - 2 * part @ centre_VC.T).argmin(1) for part in parts])


@torch.no_grad()
def set_encoder(network: VQGAN, patches: Patches) -> None:
    """Make the encoder return the vectors of patches, and take the centres as the codebook.

    Raises:
        ValueError: the network has not the four levels or the width that this takes.
    """
    config, width = network.config, patches.axes_PC.shape[1]
    widths = [config.channels * m for m in config.multipliers]
    groups, coarsest = 32, widths[-1]
    if (
        patches.side != 8
        or len(widths) != 4
        or widths[2] < 48
        or coarsest != 4 * groups
        or width != groups
    ):
        raise ValueError(
            f"the encoder must halve three times, to {4 * groups} channels, got {config}."
        )
    encoder: Any = network.encoder
    for name, parameter in encoder.named_parameters():
        if name.endswith(("conv2.weight", "conv2.bias", "proj_out.weight", "proj_out.bias")):
            parameter.zero_()  # blocks add nothing
    _set(encoder.conv_in, torch.eye(3).view(3, 3, 1, 1), at=1)
    _halve(encoder.down[0], 3)
    _halve(encoder.down[1], 12)
    for level in encoder.down:
        for block in level.block:
            if block.changes_width:
                _set(
                    block.nin_shortcut, torch.eye(block.nin_shortcut.in_channels)[:, :, None, None]
                )
    # Values of a patch of 8 x 8 as (48 of its quarter patches, 2, 2): the finest steps come first in `_halve`.
    order = torch.arange(3 * 64).view(
        3, 2, 2, 2, 2, 2, 2
    )  # colour; row bits 4, 2, 1; column bits 4, 2, 1
    order = order.permute(0, 3, 6, 2, 5, 1, 4).reshape(48, 4)
    axes_C48yx = patches.axes_PC.T[:, order].view(width, 48, 2, 2)
    offset_C, steady_C = patches.mean_P @ patches.axes_PC, STEADY * patches.deviation_C
    zero = torch.zeros_like(axes_C48yx)
    _set(
        encoder.down[2].downsample.conv,
        torch.stack([axes_C48yx, -axes_C48yx, zero, zero], 1).flatten(0, 1),
        torch.stack([-offset_C, offset_C, steady_C, -steady_C], 1).flatten(),
    )
    scale_C = ((patches.deviation_C.square() + steady_C.square()) / 2).sqrt()
    encoder.norm_out.weight.copy_(scale_C.repeat_interleave(4))
    encoder.norm_out.bias.zero_()
    pairs = torch.zeros(width, width, 4)
    pairs[range(width), range(width), 0], pairs[range(width), range(width), 1] = 1.0, -1.0
    _set(encoder.conv_out, pairs.view(width, coarsest, 1, 1), at=1)
    _set(network.quant_conv, torch.eye(width)[:, :, None, None])
    network.quantize.embedding.weight.copy_(patches.centre_VC)


def _halve(level: Any, num_channels: int) -> None:
    """Let a level pass 2 x 2 pixels of its first channels on as channels: (channel, row, column)."""
    taps = torch.eye(4 * num_channels).view(4 * num_channels, num_channels, 2, 2)
    _set(level.downsample.conv, taps)


def _set(conv: Any, weight: Tensor, bias: Tensor | None = None, *, at: int = 0) -> None:
    """Give a convolution this kernel at tap (at, at) for its first channels, and nought for the others."""
    outs, ins, rows, columns = weight.shape
    conv.weight.zero_()
    conv.bias.zero_()
    conv.weight[:outs, :ins, at : at + rows, at : at + columns] = weight
    if bias is not None:
        conv.bias[:outs] = bias


@torch.no_grad()
def scale_codebook(network: VQGAN, factor_C: Tensor) -> None:
    """Multiply the codebook, and divide what the decoder reads, so that pictures stay the same."""
    reader: Any = network.post_quant_conv
    reader.weight.div_(factor_C.view(1, -1, 1, 1))
    network.quantize.embedding.weight.mul_(factor_C)
