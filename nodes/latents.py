"""Between ComfyUI's LATENT and the codes of a masked image model.

B  images    h, w  rows, columns of codes    L  image tokens (h x w)    Y, X  pixel rows, columns
"""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import comfy.sample
import comfy.utils
import torch
import torch.nn.functional as F
from torch import Tensor


def samples_of(latent: dict[str, Any], patcher: Any, grid: int) -> Tensor:
    """Latents (B, 1, grid, grid) of the model in `patcher`, an Empty Latent Image made to fit.

    Raises:
        ValueError: they are of another kind or size.
    """
    samples = comfy.sample.fix_empty_latent_channels(
        patcher, latent["samples"], latent.get("downscale_ratio_spacial")
    )
    downscale = patcher.get_model_object("latent_format").spacial_downscale_ratio
    if samples.ndim != 4 or samples.shape[1] != 1:
        raise ValueError(
            f"LATENT has shape {tuple(samples.shape)}, expected (images, 1, rows, columns): it is "
            "of another kind of model. Use VAE Encode with the vae of Load MIGM, or Empty Latent "
            "Image."
        )
    rows, columns = samples.shape[2:]
    if (rows, columns) != (grid, grid):
        side = grid * downscale
        raise ValueError(
            f"LATENT is for an image of {columns * downscale} x {rows * downscale} pixels, but "
            f"this model makes {side} x {side} only. Set width and height to {side} in Empty "
            f"Latent Image, or scale the image to {side} x {side} before VAE Encode."
        )
    return samples


def codes_of(samples_B1hw: Tensor, num_codes: int) -> Tensor:
    """Code ids (B, L), int64.

    Raises:
        ValueError: a value is not the id of a code.
    """
    if not samples_B1hw.isfinite().all():
        raise ValueError(
            "LATENT holds NaN or infinite values, expected code ids. Look at the node before."
        )
    codes_BL = samples_B1hw.float().round().long().flatten(1)
    low, high = int(codes_BL.min()), int(codes_BL.max())
    if low < 0 or high >= num_codes:
        raise ValueError(
            f"LATENT holds values from {low} to {high}, expected code ids from 0 to "
            f"{num_codes - 1}. Use VAE Encode with the vae of the same Load MIGM, and no node that "
            "mixes latents."
        )
    return codes_BL


def editable_of(noise_mask: Tensor, num_images: int, grid: int) -> Tensor:
    """Where tokens may be made anew: (B, L), True where the mask covers more than half of a token's area.

    Args:
        noise_mask: in any size, 1 = make anew, for one image or for all.
    """
    mask_B1YX = noise_mask.reshape(-1, 1, *noise_mask.shape[-2:]).float()
    share_B1hw = F.interpolate(mask_B1YX, size=(grid, grid), mode="area")
    return comfy.utils.repeat_to_batch_size(share_B1hw > 0.5, num_images).flatten(1)


def latent_of(codes_BL: Tensor, grid: int, latent: dict[str, Any]) -> dict[str, Any]:
    """`latent` with other codes."""
    out = latent.copy()
    out.pop("downscale_ratio_spacial", None)
    samples_B1hw = codes_BL.unflatten(1, (1, grid, grid))
    out["samples"] = samples_B1hw.to(mm.intermediate_device(), torch.float32)
    return out
