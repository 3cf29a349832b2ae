"""Between pixels of a network and pictures on disk or screen, and the colours of a run's previews.

    B  images    Y, X  pixel rows, columns    h, w  rows, columns of codes    V  codebook size
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .noise import seeded

MASKED_COLOUR = (128, 128, 128)
CONTRAST = 0.4  # standard deviation of the colours of codes, about that of pictures


def to_pictures(pixels_BCYX: Tensor) -> list[Image.Image]:
    """Pictures of RGB pixels in [-1, 1], clipped.

    Source: MIGM-Shortcut Trainer/vit.py, images are (x + 1) / 2 clipped to [0, 1].
    """
    bytes_BYXC = ((pixels_BCYX.float() + 1) / 2).clamp(0, 1).mul(255).round().byte().movedim(1, -1)
    return [Image.fromarray(picture) for picture in bytes_BYXC.cpu().numpy()]


def to_pixels(picture: Image.Image) -> Tensor:
    """RGB pixels (1, 3, Y, X) in [-1, 1] of a picture."""
    values = torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32))
    return values.movedim(-1, 0).unsqueeze(0) / 127.5 - 1


@torch.no_grad()
def code_colours(codebook_VC: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
    """About the mean colour (V, 3) of each code in [-1, 1], on the CPU.

    A code alone, or a field of one code, decodes to no colour that it has in pictures. What random
    pictures show is regressed on the codebook vectors instead; then each channel is given the middle
    and the contrast of usual pictures, which random ones lack.

    Args:
        decode: codes (B, h, w) -> RGB pixels (B, 3, Y, X) around [-1, 1].
    """
    codebook_VC = codebook_VC.cpu().float()
    num_codes, width = codebook_VC.shape
    codes_Bhw = torch.randint(num_codes, (4 + width // 64, 16, 16), generator=seeded(0))
    pixels_BCYX = decode(codes_Bhw).cpu().float()
    colours_M3 = F.adaptive_avg_pool2d(pixels_BCYX, 16).movedim(1, -1).reshape(-1, 3)
    centred_VC = codebook_VC - codebook_VC.mean(0)
    vectors_MC = centred_VC[codes_Bhw.flatten()]
    gram_CC = vectors_MC.T @ vectors_MC
    ridge_CC = 0.01 * gram_CC.diagonal().mean() * torch.eye(width)
    slopes_C3 = torch.linalg.solve(gram_CC + ridge_CC, vectors_MC.T @ (colours_M3 - colours_M3.mean(0)))
    found_V3 = centred_VC @ slopes_C3
    return (found_V3 * (CONTRAST / found_V3.std(0).clamp(min=1e-6))).clamp(-1, 1)


def preview(codes_hw: Tensor, is_masked_hw: Tensor, colours_V3: Tensor) -> Image.Image:
    """A picture of one pixel per code of a partly revealed grid; masked tokens are grey."""
    colour_hw3 = ((colours_V3[codes_hw.cpu()] + 1) * 127.5).byte()
    colour_hw3[is_masked_hw.cpu()] = torch.tensor(MASKED_COLOUR, dtype=torch.uint8)
    return Image.fromarray(colour_hw3.numpy())
