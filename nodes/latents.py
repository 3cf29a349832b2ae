"""Between ComfyUI's LATENT and the codes of a masked image model.

B  images    h, w  rows, columns of codes    L  image tokens (h x w)    Y, X  pixel rows, columns
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management as mm
import comfy.sample
import comfy.utils
import torch
from torch import Tensor

from ..shortcut.grid import Grid, check_multiples, in_pixels
from ..shortcut.image import covered

ROUNDING = 0.01  # what arithmetic with ids in float32 may leave of a whole one
# Nodes of ComfyUI that leave fractions, and ids beyond the codes.
MIXERS = (
    "Latent Blend, Latent Interpolate, Latent Composite with feather, Latent Composite Masked with a soft mask, Latent "
    "Multiply, or Upscale Latent with bilinear or another method but nearest-exact"
)
# Of empty latents of ComfyUI's nodes: their channels, and the pixels of a side of one.
EMPTY_CHANNELS, EMPTY_RATIO = (4, 16), 8
ADDERS = "Latent Multiply, Latent Add or Latent Subtract"


def samples_of(latent: dict[str, Any], patcher: Any) -> Tensor:
    """Return latents (B, 1, h, w) of the model in `patcher`, an Empty Latent Image made to fit.

    Raises:
        ValueError: they are of another kind, or of no size.
    """
    samples, ratio = latent["samples"], latent.get("downscale_ratio_spacial")
    if samples.is_nested:
        check_form(samples)
    downscale = patcher.get_model_object("latent_format").spacial_downscale_ratio
    if ratio is None and samples.shape[1] in EMPTY_CHANNELS and not samples.any():
        ratio = EMPTY_RATIO  # Rebatch Latents leaves it out
    if ratio is not None and not samples.any():
        # ComfyUI would round to whole codes, up or down, and say nothing.
        check_multiples(samples.shape[-1] * ratio, samples.shape[-2] * ratio, downscale)
    samples = comfy.sample.fix_empty_latent_channels(patcher, samples, ratio)
    check_form(samples)
    if min(samples.shape[2:]) < 1:
        raise _of_wrong_size(samples, f"{in_pixels((1, 1), downscale)} or more", downscale)
    return samples


def of_size(samples_B1hw: Tensor, only_grid: Grid, downscale: int, *, is_all_new: bool) -> Tensor:
    """Return latents of the only size that a model makes.

    Args:
        is_all_new: True: nothing of an image is kept, so that empty latents say nothing but a size, and get the right
            one.

    Raises:
        ValueError: they hold an image of another size.
    """
    if samples_B1hw.shape[2:] == only_grid:
        return samples_B1hw
    if is_all_new and not samples_B1hw.any():
        return samples_B1hw.new_zeros(len(samples_B1hw), 1, *only_grid)
    raise _of_wrong_size(samples_B1hw, f"{in_pixels(only_grid, downscale)} only", downscale)


def _of_wrong_size(samples_B1hw: Tensor, expected: str, downscale: int) -> ValueError:
    return ValueError(
        f"LATENT is for an image of {in_pixels(samples_B1hw.shape[2:], downscale)} pixels, but this model makes "
        f"{expected}. Set that size in Empty Latent Image, or scale the image to it before VAE Encode."
    )


def check_form(samples: Tensor) -> None:
    """Raise ValueError if latents do not have the form (B, 1, h, w) of code ids."""
    if samples.is_nested or samples.ndim != 4 or samples.shape[1] != 1:
        found = "several tensors" if samples.is_nested else f"shape {tuple(samples.shape)}"
        raise ValueError(
            f"LATENT has {found}, expected (images, 1, rows, columns): it is of another kind of model. Use VAE Encode "
            "with the vae of Load MIGM, or Empty Latent Image."
        )


def codes_of(samples_B1hw: Tensor, num_codes: int) -> Tensor:
    """Return code ids (B, L), int64.

    Raises:
        ValueError: a value is not the id of a code.
    """
    check_type(samples_B1hw, num_codes)
    if not samples_B1hw.isfinite().all():
        raise ValueError(
            "LATENT holds NaN or infinite values, expected code ids. Look at the node before."
        )
    values_BL = samples_B1hw.float().flatten(1)
    codes_BL = values_BL.round()
    is_fraction_BL = (values_BL - codes_BL).abs() > ROUNDING
    if is_fraction_BL.any():
        raise ValueError(
            f"LATENT holds fractions such as {float(values_BL[is_fraction_BL][0]):.4g}, expected whole code ids: it is "
            f"of another model, or a node mixed or scaled it, such as {MIXERS}. Do that with the image before VAE "
            "Encode; Upscale Latent works with nearest-exact."
        )
    low, high = int(codes_BL.min()), int(codes_BL.max())
    if low < 0 or high >= num_codes:
        raise ValueError(
            f"LATENT holds values from {low} to {high}, expected code ids from 0 to {num_codes - 1}: it is of another "
            f"model, or a node changed it, such as {ADDERS}. Use VAE Encode with the vae of the same Load MIGM."
        )
    return codes_BL.long()


def check_type(samples: Tensor, num_codes: int) -> None:
    """Raise ValueError if latents have a type that cannot tell all codes apart."""
    if not samples.is_floating_point() or num_codes <= 2 / torch.finfo(samples.dtype).eps:
        return
    if samples.any():
        raise ValueError(
            f"LATENT is {str(samples.dtype).removeprefix('torch.')}, which cannot hold all ids below {num_codes} "
            "exactly: a node changed its type. Use float32."
        )


def indices_of(latent: dict[str, Any], num_images: int) -> Sequence[int]:
    """Return the place of each image in its batch. Raise ValueError if there are more or fewer places than images."""
    indices = latent.get("batch_index")
    if indices is None:
        return range(num_images)
    if len(indices) != num_images:
        raise ValueError(
            f"LATENT holds {num_images} images, and the places of {len(indices)} in their batch (batch_index): a node "
            "cut or joined images without them. Look at the node before."
        )
    return indices


def has_mask_of(latent: dict[str, Any]) -> bool:
    """Return whether a mask says what to make anew; None = none does, as for ComfyUI's samplers."""
    return latent.get("noise_mask") is not None


def editable_of(noise_mask: Tensor, num_images: int, grid: Grid) -> Tensor:
    """Return where tokens may be made anew: (B, L), True where the mask covers more than half of a token's area.

    Args:
        noise_mask: in any size, 1 = make anew, for one image or for all.
    """
    mask_BYX = noise_mask.reshape(-1, *noise_mask.shape[-2:])
    return comfy.utils.repeat_to_batch_size(covered(mask_BYX, *grid), num_images).flatten(1)


def latent_of(codes_BL: Tensor, grid: Grid, latent: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of `latent` with other codes."""
    out = latent.copy()
    out.pop("downscale_ratio_spacial", None)
    samples_B1hw = codes_BL.unflatten(1, (1, *grid))
    out["samples"] = samples_B1hw.to(mm.intermediate_device(), torch.float32)
    return out
