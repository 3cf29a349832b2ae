"""Between pixels of a network and pictures on disk or screen, and the colours of a run's previews.

    B  images    Y, X  pixel rows, columns    h, w  rows, columns of codes    V  codebook size
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MASKED_COLOUR = (128, 128, 128)


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
def code_colours(vq: Any, batch_size: int = 256) -> Tensor:
    """Mean colour (V, 3) in [-1, 1] of each code, from decoding 3x3 grids of that one code on the CPU or vq's device."""
    num_codes = vq.config.num_codes
    device = next(vq.parameters()).device
    colours = []
    for start in range(0, num_codes, batch_size):
        ids_B = torch.arange(start, min(start + batch_size, num_codes), device=device)
        pixels_BCYX = vq.decode(ids_B[:, None, None].expand(-1, 3, 3)).float()
        size = pixels_BCYX.shape[-1] // 3
        colours.append(pixels_BCYX[..., size:-size, size:-size].mean((-1, -2)).clamp(-1, 1))
    return torch.cat(colours).cpu()


def preview(codes_hw: Tensor, is_masked_hw: Tensor, colours_V3: Tensor) -> Image.Image:
    """A picture of one pixel per code of a partly revealed grid; masked tokens are grey."""
    colour_hw3 = ((colours_V3[codes_hw.cpu()] + 1) * 127.5).byte()
    colour_hw3[is_masked_hw.cpu()] = torch.tensor(MASKED_COLOUR, dtype=torch.uint8)
    return Image.fromarray(colour_hw3.numpy())
