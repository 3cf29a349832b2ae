"""Sizes of images: what users say in pixels -> rows and columns of codes.

A grid is (rows, columns).
"""

from __future__ import annotations

from collections.abc import Sequence

from .checkpoint import Checkpoint
from .guard import MAX_SIDE, check_whole
from .models.architecture import Grid

FAR = 2  # times as long or short as a side that the model was trained on


def usual_grid(model: Checkpoint) -> Grid:
    """Return the grid of an image whose size nobody states: what the model was trained on.

    Raises:
        ValueError: its metadata state one that is none.
    """
    if (fixed := model.architecture.fixed_grid(model.config)) is not None:
        return fixed
    stated = model.metadata.grid or model.architecture.usual_grid(model.config)
    if stated is None or len(stated) != 2 or min(stated) < 1 or max(stated) > MAX_SIDE:
        raise ValueError(
            f"{model.name} states the grid {stated}, expected rows and columns, each at most {MAX_SIDE}."
        )
    return stated[0], stated[1]


def grid_of(
    model: Checkpoint, downscale: int, width: int | None = None, height: int | None = None
) -> Grid:
    """Return the grid of images of `width` x `height` pixels; None = as usual.

    Args:
        downscale: pixels per code along one side, of the VQ model.

    Raises:
        ValueError: the model does not make images of that size.
    """
    rows, columns = usual_grid(model)
    width = columns * downscale if width is None else width
    height = rows * downscale if height is None else height
    check_sides(width, height, downscale)
    is_fixed = model.architecture.fixed_grid(model.config) is not None
    if is_fixed and (height, width) != (rows * downscale, columns * downscale):
        raise ValueError(
            f"this model makes images of {columns * downscale} x {rows * downscale} pixels only, got {width} x "
            f"{height}."
        )
    check_multiples(width, height, downscale)
    return height // downscale, width // downscale


def check_sides(width: int, height: int, downscale: int) -> None:
    """Raise ValueError if a side is no whole number, or longer than any that is meant."""
    for name, side in (("width", width), ("height", height)):
        check_whole(name, side, 0, MAX_SIDE * downscale)


def check_multiples(width: int, height: int, downscale: int) -> None:
    """Raise ValueError, naming the nearest sizes, if a side is not a multiple of `downscale`."""
    if width % downscale or height % downscale or min(width, height) < 1:
        nearest = [" or ".join(map(str, _multiples(side, downscale))) for side in (width, height)]
        raise ValueError(
            f"an image of {width} x {height} pixels does not fit the codes of {downscale} x {downscale} pixels. The "
            f"nearest sizes are {nearest[0]} wide and {nearest[1]} high."
        )


def in_pixels(grid: Sequence[int], downscale: int) -> str:
    """Return width x height of an image with so many rows and columns of codes."""
    rows, columns = grid
    return f"{columns * downscale} x {rows * downscale}"


def doubt_of_size(model: Checkpoint, grid: Grid, downscale: int) -> str | None:
    """Return what to say of a size far from what the model was trained on; None = nothing."""
    usual = usual_grid(model)
    sides = [side / trained for side, trained in zip(grid, usual, strict=True)]
    if max(sides) <= FAR and min(sides) >= 1 / FAR:
        return None
    found, trained = in_pixels(grid, downscale), in_pixels(usual, downscale)
    line = f"{found} pixels is far from the {trained} that {model.name} was trained on: the picture may fall apart"
    times = sides[0] * sides[1]
    return line if times < FAR else f"{line}, and a step works on {times:.0f} times as many tokens"


def _multiples(side: int, downscale: int) -> list[int]:
    """Return `side` if it is a multiple, else the multiples below and above it; none below 1."""
    below = side // downscale * downscale
    found = [below] if below == side else [below, below + downscale]
    return [multiple for multiple in found if multiple > 0] or [downscale]
