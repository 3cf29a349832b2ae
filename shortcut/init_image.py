"""From pictures to what a run starts from: the codes that stay, and the codes of source images.

B  images    h, w  rows, columns of codes    Y, X  pixel rows, columns
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .grid import Grid, check_multiples, grid_of
from .image import covered, to_pixels
from .pictures import open_mask, open_picture
from .pipeline import Pipeline

SIDES = ("left", "top", "right", "bottom")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """The pictures and sizes that a user gives. None = not given."""

    image: Path | None = None  # what a task starts from, or the picture to change
    style_image: Path | None = None
    mask: Path | None = None  # of the size of `image`: white is made anew
    outpaint: str | None = None  # pixels to add on each of SIDES: "0,0,128,0"
    denoise: float | None = None  # share of the tokens of `image` that is made anew
    width: int | None = None  # pixels
    height: int | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run starts from."""

    grid: Grid
    sources: tuple[Tensor, ...] = ()  # codes (1, h, w) of each source image, in sizes of their own
    known_codes_1hw: Tensor | None = None  # of the picture to change; None = all is made
    is_editable_1hw: Tensor | None = None  # True = may be made anew; None = everywhere


def start_of(pipeline: Pipeline, given: Pictures, task: str | None) -> Start:
    """Encode the pictures of a run.

    Args:
        task: one of the architecture's tasks, which take source images; None = none of them.

    Raises:
        ValueError: a picture is missing, has no use or another size than it must; a mask covers nothing.
        OSError: a picture cannot be read.
    """
    wanted = _source_pictures(pipeline, given, task)
    changes = [name for name in ("mask", "outpaint", "denoise") if getattr(given, name) is not None]
    downscale = pipeline.downscale
    if given.outpaint is not None and given.denoise is not None and given.denoise < 1:
        raise ValueError(
            f"--denoise {given.denoise:g} with --outpaint would leave a share of what is added without a picture. "
            "Leave --denoise out."
        )
    if given.image is None:
        if changes:
            raise ValueError(f"--{changes[0]} needs the picture to change. Add --image.")
        return Start(grid_of(pipeline.model_file, downscale, given.width, given.height))
    if not wanted and not changes:
        raise ValueError(
            "--image is of no use here. Say what to make anew by --mask, --outpaint or --denoise, or choose a --task "
            "that starts from a picture, such as edit."
        )
    pictures = [open_picture(path) for path in wanted]
    sources = tuple(pipeline.encode(to_pixels(_fitted(picture, downscale))) for picture in pictures)
    if changes:
        return _changed(pipeline, given, sources)
    rows, columns = sources[0].shape[1:]
    width = columns * downscale if given.width is None else given.width
    height = rows * downscale if given.height is None else given.height
    return Start(grid_of(pipeline.model_file, downscale, width, height), sources)


def _source_pictures(pipeline: Pipeline, given: Pictures, task: str | None) -> Sequence[Path]:
    """Return the source images of a task, in its order."""
    num_sources = 0 if task is None else pipeline.architecture.all_tasks[task]
    named = (("--image", given.image), ("--style-image", given.style_image))
    found = []
    for flag, path in named[:num_sources]:
        if path is None:
            raise ValueError(f"the task {task!r} starts from a picture. Add {flag} PICTURE.")
        found.append(path)
    if given.style_image is not None and num_sources < 2:
        raise ValueError(
            f"the task {task or 'text_to_image'!r} takes no --style-image. Choose --task style."
        )
    return found


def _fitted(picture: Image.Image, downscale: int) -> Image.Image:
    """Scale a picture down to whole codes.

    Source: diffusers VaeImageProcessor, by which Lumina-DiMOO utils/image_utils.py encode_img_with_breaks does it.
    """
    width, height = (max(side // downscale, 1) * downscale for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _changed(pipeline: Pipeline, given: Pictures, sources: tuple[Tensor, ...]) -> Start:
    """Encode the picture to change: tokens under the mask, around the picture, or a share of them are made anew."""
    assert given.image is not None
    picture, downscale = open_picture(given.image), pipeline.downscale
    left, top, right, bottom = _borders(given.outpaint, downscale)
    check_multiples(*picture.size, downscale)
    width, height = picture.width + left + right, picture.height + top + bottom
    asked = (
        width if given.width is None else given.width,
        height if given.height is None else given.height,
    )
    if asked != (width, height):
        raise ValueError(
            f"--image makes a picture of {width} x {height} pixels, but --width and --height say "
            f"{asked[0]} x {asked[1]}. Leave them out, or scale the picture."
        )
    grid = grid_of(pipeline.model_file, downscale, width, height)
    codes_1hw = pipeline.encode(to_pixels(picture))
    is_editable_1hw = _editable(given, picture, codes_1hw)
    pad = tuple(border // downscale for border in (left, right, top, bottom))
    return Start(
        grid, sources, F.pad(codes_1hw, pad), F.pad(is_editable_1hw.byte(), pad, value=1).bool()
    )


def _editable(given: Pictures, picture: Image.Image, codes_1hw: Tensor) -> Tensor:
    """Return which codes (1, h, w) of the picture itself may be made anew."""
    if given.mask is None:
        return torch.full(codes_1hw.shape, given.outpaint is None)
    mask = open_mask(given.mask)
    if mask.size != picture.size:
        raise ValueError(
            f"{given.mask} has {mask.width} x {mask.height} pixels, expected those of {given.image}: "
            f"{picture.width} x {picture.height}. Scale it."
        )
    share_1YX = torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255).unsqueeze(0)
    is_editable_1hw = covered(share_1YX, *codes_1hw.shape[1:])
    if given.outpaint is None and not is_editable_1hw.any():
        raise ValueError(
            f"{given.mask} covers no token: white must fill more than half of the pixels of one. What is white is "
            "made anew, what is black stays."
        )
    return is_editable_1hw


def _borders(text: str | None, downscale: int) -> tuple[int, ...]:
    """Return the pixels to add on each of SIDES."""
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
