"""What a run starts from: the pictures that the user gives -> the codes that stay, and those of source images.

B  images    h, w  rows, columns of codes    Y, X  pixel rows, columns
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from .cli.options import flag
from .grid import Grid, check_multiples, grid_of
from .image import covered, to_pixels
from .models.lumina_dimoo.prompts import TASKS
from .pipeline import Tools

SIDES = ("left", "top", "right", "bottom")


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run starts from."""

    grid: Grid
    sources: tuple[Tensor, ...] = ()  # codes (1, h, w) of each source image, in sizes of their own
    known_codes_1hw: Tensor | None = None  # of the picture to change; None = all is made
    is_editable_1hw: Tensor | None = None  # True = may be made anew; None = everywhere


def start_of(tools: Tools, options: argparse.Namespace) -> Start:
    """What the options give a run to start from.

    Raises:
        ValueError: a picture is missing, has no use or another size than it must; a mask covers nothing.
        OSError: a picture cannot be read.
    """
    wanted = _picture_options(options)
    changes = [
        name for name in ("mask", "outpaint", "denoise") if getattr(options, name) is not None
    ]
    if options.image is None:
        if changes:
            raise ValueError(f"{flag(changes[0])} needs the picture to change. Add --image.")
        return Start(grid_of(tools.model_file, tools.downscale, options.width, options.height))
    if not wanted and not changes:
        raise ValueError(
            "--image is of no use here. Say what to make anew by --mask, --outpaint or --denoise, or choose a --task "
            "that starts from a picture, such as edit."
        )
    pictures = [open_picture(path) for path in wanted]
    sources = tuple(
        tools.encode(to_pixels(_fitted(picture, tools.downscale))) for picture in pictures
    )
    if changes:
        return _changed(tools, options, sources)
    rows, columns = sources[0].shape[1:]
    width = columns * tools.downscale if options.width is None else options.width
    height = rows * tools.downscale if options.height is None else options.height
    return Start(grid_of(tools.model_file, tools.downscale, width, height), sources)


def open_picture(path: Path, mode: str = "RGB") -> Image.Image:
    """The picture in a file, upright.

    Raises:
        OSError: there is none, or it is damaged or larger than Pillow reads.
    """
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert(mode)
    except Exception as error:  # a damaged file can raise anything
        raise OSError(
            f"{path} cannot be read as a picture ({error}). Give a PNG or JPEG file, saved anew if it is damaged and "
            "smaller if it is very large."
        ) from error


def _picture_options(options: argparse.Namespace) -> list[Path]:
    """The source images, in the order of the task."""
    task = options.task or "text_to_image"
    given = {"image": options.image, "style_image": options.style_image}
    wanted = list(given)[: TASKS[task].num_sources]
    for name in wanted:
        if given[name] is None:
            raise ValueError(f"the task {task!r} starts from a picture. Add {flag(name)} PICTURE.")
    if options.style_image is not None and "style_image" not in wanted:
        raise ValueError(f"the task {task!r} takes no --style-image. Choose --task style.")
    return [given[name] for name in wanted]


def _fitted(picture: Image.Image, downscale: int) -> Image.Image:
    """The picture scaled down to whole codes.

    Source: diffusers VaeImageProcessor, by which Lumina-DiMOO utils/image_utils.py encode_img_with_breaks does it.
    """
    width, height = (max(side // downscale, 1) * downscale for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _changed(tools: Tools, options: argparse.Namespace, sources: tuple[Tensor, ...]) -> Start:
    """Of --image some tokens are made anew: those under the mask, around it, or a share of them."""
    picture, downscale = open_picture(options.image), tools.downscale
    left, top, right, bottom = _borders(options.outpaint, downscale)
    check_multiples(*picture.size, downscale)
    width, height = picture.width + left + right, picture.height + top + bottom
    if (options.width or width, options.height or height) != (width, height):
        raise ValueError(
            f"--image makes a picture of {width} x {height} pixels, but --width and --height say "
            f"{options.width or width} x {options.height or height}. Leave them out, or scale the picture."
        )
    grid = grid_of(tools.model_file, downscale, width, height)
    codes_1hw = tools.encode(to_pixels(picture))
    is_editable_1hw = _editable(options, picture, codes_1hw)
    pad = tuple(border // downscale for border in (left, right, top, bottom))
    return Start(
        grid, sources, F.pad(codes_1hw, pad), F.pad(is_editable_1hw.byte(), pad, value=1).bool()
    )


def _editable(options: argparse.Namespace, picture: Image.Image, codes_1hw: Tensor) -> Tensor:
    """Which codes (1, h, w) of the picture itself may be made anew."""
    if options.mask is None:
        return torch.full(codes_1hw.shape, options.outpaint is None)
    mask = open_picture(options.mask, "L")
    if mask.size != picture.size:
        raise ValueError(
            f"{options.mask} has {mask.width} x {mask.height} pixels, expected those of {options.image}: "
            f"{picture.width} x {picture.height}. Scale it."
        )
    share_1YX = torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255).unsqueeze(0)
    is_editable_1hw = covered(share_1YX, *codes_1hw.shape[1:])
    if options.outpaint is None and not is_editable_1hw.any():
        raise ValueError(
            f"{options.mask} covers no token: white must fill more than half of the pixels of one. What is white is "
            "made anew, what is black stays."
        )
    return is_editable_1hw


def _borders(text: str | None, downscale: int) -> tuple[int, ...]:
    """Pixels to add on each of SIDES."""
    if text is None:
        return (0,) * len(SIDES)
    parts = text.split(",")
    if len(parts) != len(SIDES) or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(
            f"--outpaint must be four numbers of pixels, {','.join(SIDES)}, such as 0,0,{8 * downscale},0, got "
            f"{text!r}."
        )
    borders = tuple(map(int, parts))
    if not any(borders):
        raise ValueError("--outpaint adds nothing: all its numbers are 0.")
    for side, border in zip(SIDES, borders, strict=True):
        if border % downscale:
            below = border // downscale * downscale
            raise ValueError(
                f"--outpaint must be multiples of {downscale} pixels, got {border} for {side}. The nearest are {below} "
                f"and {below + downscale}."
            )
    return borders
