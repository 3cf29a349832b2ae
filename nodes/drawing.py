"""A comparison as pictures: a labelled grid and a chart, and its figures as text.

Y, X  pixel rows, columns
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LEAST_SIDE, GAP, LINE, FONT_SIZE = 192, 8, 22, 15  # pixels of a cell, around it, of a line of text
ROW_TITLE = 96  # pixels in front of a row
CHART, MARGIN = (720, 440), (90, 60, 40, 60)  # pixels; left, top, right, bottom
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


class Cell(NamedTuple):
    """What one run made and took."""

    bytes_YX3: Tensor  # RGB, on the CPU
    seconds: float
    ratio: float  # times as fast as vanilla


class Column(NamedTuple):
    """The runs of one setting, a cell for each seed."""

    name: str  # of what answers the steps that are not full passes
    num_full: int
    num_steps: int
    cells: Sequence[Cell]

    @property
    def seconds(self) -> float:
        """The mean seconds of a run."""
        return statistics.fmean(cell.seconds for cell in self.cells)

    @property
    def ratio(self) -> float:
        """How many times as fast as vanilla the runs were in the mean."""
        return statistics.fmean(cell.ratio for cell in self.cells)

    def distance(self, vanilla: Column) -> tuple[float, float]:
        """Return the mean difference of pixels from vanilla's in per cent, and its standard error over the seeds."""
        pairs = zip(self.cells, vanilla.cells, strict=True)
        found = [
            100 / 255 * float((a.bytes_YX3.float() - b.bytes_YX3).abs().mean()) for a, b in pairs
        ]
        error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
        return statistics.fmean(found), error


def grid(columns: Sequence[Column], seeds: Sequence[int]) -> Tensor:
    """Draw a column for each setting, a row for each seed, seconds and ratio under each picture: (1, Y, X, 3)."""
    rows, width = columns[0].cells[0].bytes_YX3.shape[:2]
    scale = math.ceil(LEAST_SIDE / width)
    height, width = rows * scale, width * scale
    step_x, step_y, top = width + GAP, height + LINE + GAP, 2 * LINE + GAP
    picture = Image.new(
        "RGB", (ROW_TITLE + step_x * len(columns), top + step_y * len(seeds)), "white"
    )
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_SIZE)
    for row, seed in enumerate(seeds):
        draw.text((GAP, top + row * step_y), f"seed {seed}", fill="black", font=font)
    for number, column in enumerate(columns):
        x = ROW_TITLE + number * step_x
        name = column.name
        while font.getlength(name) > width:
            name = name[:-1]
        draw.text((x, GAP // 2), name, fill="black", font=font)
        counted = f"{column.num_full} of {column.num_steps} full"
        draw.text((x, GAP // 2 + LINE), counted, fill="black", font=font)
        for row, cell in enumerate(column.cells):
            y = top + row * step_y
            shown = Image.fromarray(cell.bytes_YX3.numpy()).resize(
                (width, height), Image.Resampling.NEAREST
            )
            picture.paste(shown, (x, y))
            took = f"{cell.seconds:.2f} s, {cell.ratio:.1f}x"
            draw.text((x, y + height + 2), took, fill="black", font=font)
    return image_of(picture)


def chart(columns: Sequence[Column]) -> Tensor:
    """Draw how far pictures are from vanilla's by how many times as fast they were: (1, Y, X, 3).

    Args:
        columns: vanilla first.
    """
    left, top, right, bottom = MARGIN
    width, height = CHART[0] - left - right, CHART[1] - top - bottom
    points = [(column.ratio, column.distance(columns[0])[0]) for column in columns]
    most_x = math.ceil(max(x for x, _ in points) + 0.5)
    most_y = max(1, math.ceil(max(y for _, y in points) * 1.1))
    picture = Image.new("RGB", CHART, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_SIZE)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + width * x / most_x, top + height * (1 - y / most_y)

    for mark in range(most_x + 1):
        draw.line((*at(mark, 0), *at(mark, most_y)), fill="#dddddd")
        draw.text((at(mark, 0)[0] - 4, top + height + 6), f"{mark}x", fill="black", font=font)
    for share in (0, 0.25, 0.5, 0.75, 1):
        draw.line((*at(0, share * most_y), *at(most_x, share * most_y)), fill="#dddddd")
        place = (left - 56, at(0, share * most_y)[1] - FONT_SIZE // 2)
        draw.text(place, f"{share * most_y:g} %", fill="black", font=font)
    draw.text((left, top + height + 6 + LINE), "times as fast as vanilla", fill="black", font=font)
    draw.text((GAP, GAP), "mean difference of pixels from vanilla's", fill="black", font=font)
    names = list(dict.fromkeys(column.name for column in columns[1:]))
    for number, name in enumerate(names):
        colour = COLOURS[number % len(COLOURS)]
        draw.text((left + number * width // len(names), GAP + LINE), name, fill=colour, font=font)
        found = sorted(
            (point, column.num_full)
            for point, column in zip(points, columns, strict=True)
            if column.name == name
        )
        draw.line([at(*points[0]), *(at(*point) for point, _ in found)], fill=colour, width=2)
        for point, num_full in found:
            x, y = at(*point)
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
            draw.text((x + 7, y - 18), f"{num_full} full", fill=colour, font=font)
    return image_of(picture)


def table(columns: Sequence[Column]) -> str:
    """Return the figures as a table in Markdown.

    Args:
        columns: vanilla first.
    """
    num_seeds = len(columns[0].cells)
    lines = [
        "| answered by | full | steps | seconds | times as fast | difference from vanilla |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for column in columns:
        mean, error = column.distance(columns[0])
        said = f"{mean:.2f} %" if math.isnan(error) else f"{mean:.2f} ± {error:.2f} %"
        lines.append(
            f"| {column.name} | {column.num_full} | {column.num_steps} | {column.seconds:.2f} | {column.ratio:.2f} "
            f"| {said} |"
        )
    lines.append("")
    lines.append(
        f"Means over {num_seeds} seed{'s' * (num_seeds > 1)}. The difference is that of a pixel's values, in per cent "
        "of their range; ± its standard error."
    )
    return "\n".join(lines)


def image_of(picture: Image.Image) -> Tensor:
    """Return an IMAGE (1, Y, X, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 255).unsqueeze(0)
