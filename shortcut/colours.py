"""One colour per code, for previews that need no decoder: measured on pictures, stated in a file, or estimated.

    V  codebook size    C  code width    B  images    Y, X  pixel rows, columns    h, w  rows, columns of codes
    M  code positions of the whole batch

Colours (V, 3) are float32 RGB in [-1, 1] on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .noise import seeded

CONTRAST = 0.4  # standard deviation of the colours of codes, about that of pictures


def measured(codes_Bhw: Tensor, pixels_BCYX: Tensor, num_codes: int) -> Tensor:
    """Return the mean colour of each code in pictures (RGB in [-1, 1]) and their codes; grey where unused."""
    colours_M3 = _mean_by_cell(pixels_BCYX, codes_Bhw.shape[-1])
    codes_M = codes_Bhw.flatten().cpu()
    total_V3 = torch.zeros(num_codes, 3).index_add_(0, codes_M, colours_M3)
    return total_V3 / torch.bincount(codes_M, minlength=num_codes).clamp(min=1).unsqueeze(1)


@torch.no_grad()
def estimated(codebook_VC: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
    """Estimate what `measured` would give, without pictures.

    A code alone, or a field of one code, decodes to no colour that it has in pictures. What random
    pictures show is regressed on the codebook vectors instead; then each channel is given the middle
    and the contrast of usual pictures, which random ones lack.

    Args:
        decode: codes (B, h, w) -> RGB pixels (B, 3, Y, X) around [-1, 1].
    """
    codebook_VC = codebook_VC.cpu().float()
    num_codes, width = codebook_VC.shape
    codes_Bhw = torch.randint(num_codes, (4 + width // 64, 16, 16), generator=seeded(0))
    colours_M3 = _mean_by_cell(decode(codes_Bhw), 16)
    centred_VC = codebook_VC - codebook_VC.mean(0)
    vectors_MC = centred_VC[codes_Bhw.flatten()]
    gram_CC = vectors_MC.T @ vectors_MC
    ridge_CC = 0.01 * gram_CC.diagonal().mean() * torch.eye(width)
    slopes_C3 = torch.linalg.solve(
        gram_CC + ridge_CC, vectors_MC.T @ (colours_M3 - colours_M3.mean(0))
    )
    found_V3 = centred_VC @ slopes_C3
    return (found_V3 * (CONTRAST / found_V3.std(0).clamp(min=1e-6))).clamp(-1, 1)


def to_text(colours_V3: Tensor) -> str:
    """Return six hex digits for each code, RRGGBB."""
    return bytes(((colours_V3 + 1) * 127.5).round().clamp(0, 255).byte().flatten().tolist()).hex()


def from_text(text: str, num_codes: int) -> Tensor:
    """Read the text that `to_text` writes. Raises ValueError if `text` does not hold one colour per code."""
    try:
        values = bytes.fromhex(text)
    except ValueError as error:
        raise ValueError(f"code_colours is not hexadecimal ({error}).") from error
    if len(values) != 3 * num_codes:
        raise ValueError(
            f"code_colours has {len(values) / 3:g} colours, expected one for each of {num_codes} codes."
        )
    return torch.tensor(list(values), dtype=torch.float32).view(num_codes, 3) / 127.5 - 1


def _mean_by_cell(pixels_BCYX: Tensor, num_cells: int) -> Tensor:
    """Return the mean colour (M, 3) of each of `num_cells` x `num_cells` cells of each image."""
    return F.adaptive_avg_pool2d(pixels_BCYX.cpu().float(), num_cells).movedim(1, -1).reshape(-1, 3)
