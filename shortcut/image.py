"""Between pixels of a network and pictures on disk or screen, and the previews of a run.

B  images    Y, X  pixel rows, columns    h, w  rows, columns of codes    V  codebook size
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MASKED_COLOUR = (128, 128, 128)


def to_pictures(pixels_BCYX: Tensor) -> list[Image.Image]:
    """Return pictures of RGB pixels in [-1, 1], clipped.

    Source: MIGM-Shortcut Trainer/vit.py, images are (x + 1) / 2 clipped to [0, 1].
    """
    return [_picture(pixels_CYX) for pixels_CYX in pixels_BCYX]  # one by one, to take less memory


def _picture(pixels_CYX: Tensor) -> Image.Image:
    bytes_YXC = ((pixels_CYX.float() + 1) / 2).clamp(0, 1).mul(255).round().byte().movedim(0, -1)
    return Image.fromarray(bytes_YXC.cpu().numpy())


def to_pixels(picture: Image.Image) -> Tensor:
    """Return RGB pixels (1, 3, Y, X) in [-1, 1] of a picture."""
    values = torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32))
    return values.movedim(-1, 0).unsqueeze(0) / 127.5 - 1


def covered(mask_BYX: Tensor, rows: int, columns: int) -> Tensor:
    """Return which codes (B, rows, columns) a mask of any size covers by more than half of their area.

    Source: Lumina-DiMOO utils/image_utils.py encode_img_with_paint ("area").
    """
    share_B1hw = F.interpolate(mask_BYX.float().unsqueeze(1), size=(rows, columns), mode="area")
    return share_B1hw.squeeze(1) > 0.5


def preview(codes_hw: Tensor, is_masked_hw: Tensor, colours_V3: Tensor) -> Image.Image:
    """Return a picture of one pixel per code of a partly revealed grid; masked tokens are grey."""
    colour_hw3 = ((colours_V3[codes_hw.cpu()] + 1) * 127.5).byte()
    colour_hw3[is_masked_hw.cpu()] = torch.tensor(MASKED_COLOUR, dtype=torch.uint8)
    return Image.fromarray(colour_hw3.numpy())
