"""Quality tables as Markdown and as a chart drawn with Pillow. It measures nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Point = tuple[float, float]

WORK_COLUMNS = ("", "steps", "full", "s / image", "GFLOP / image")
COLUMNS = (*WORK_COLUMNS, "distance", "time", "biome", "both")
TITLES = {
    "real": "real scenes",
    "vq": "real scenes through the VQ",
    "vanilla": "vanilla",
    "shortcut": "shortcut",
    "reuse": "features reused, no head",
}

WIDTH, HEIGHT, SCALE = 880, 520, 2
LEFT, TOP, RIGHT, BOTTOM = 76, 88, 36, 64  # margins of the plot
INK, FAINT, GRID = (32, 36, 48), (112, 118, 134), (228, 230, 236)
PAPER = (255, 255, 255)
COLOURS: dict[str, Colour] = {
    "vanilla": (96, 104, 122),
    "shortcut": (214, 84, 44),
    "reuse": (150, 120, 190),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a row of a table takes, per image; a table adds its measure of quality."""

    kind: str  # real | vq | vanilla | shortcut | reuse
    num_steps: int  # 0: a reference, nothing was sampled
    num_full: int
    seconds: float  # mean over the seeds
    operations: int
    operations_full: int
    operations_head: int
    operations_logits: int

    @property
    def work_cells(self) -> tuple[str, ...]:
        """The row's text, by WORK_COLUMNS."""
        if not self.num_steps:
            return (TITLES[self.kind], "", "", "", "")
        steps, gigaflops = (str(self.num_steps), str(self.num_full)), self.operations / 1e9
        return (TITLES[self.kind], *steps, f"{self.seconds:.3f}", f"{gigaflops:.2f}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line(Work):
    """A row of the table of the class-conditional model. Figures are means over the seeds."""

    distance: float
    distances: list[float]  # of each seed
    time: float  # shares in [0, 1] of pictures that show what was asked for
    biome: float
    both: float

    @property
    def cells(self) -> tuple[str, ...]:
        """The row's text, by COLUMNS."""
        seeds = ", ".join(f"{distance:.3f}" for distance in self.distances)
        shares = (f"{share:.1%}" for share in (self.time, self.biome, self.both))
        return (*self.work_cells, f"{self.distance:.3f} ({seeds})", *shares)


def markdown(lines: Sequence[Line], setting: dict[str, Any]) -> str:
    """The table, the share of the head in the work, and how it was measured."""
    rows = [line.cells for line in lines]
    return "\n\n".join(filter(None, (table(COLUMNS, rows), head_share(lines), _how(setting))))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first hold numbers."""
    lines = [columns, ("---", *["---:"] * (len(columns) - 1)), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def head_share(lines: Sequence[Work]) -> str:
    """What a pass of the head takes, as a sentence; empty if no row has one."""
    for line in lines:
        if line.kind == "shortcut" and line.operations_head:
            full = line.operations_full / line.num_full
            head = line.operations_head / (line.num_steps - line.num_full)
            return (
                f"A pass of the head takes {head / full:.1%} of the operations of a full pass "
                f"({full / 1e9:.2f} GFLOP)."
            )
    return ""


def _how(setting: dict[str, Any]) -> str:
    sampler = ", ".join(f"{name} {value}" for name, value in setting["sampler"].items())
    return (
        f"Distance: Frechet distance in the judge's features from {setting['num_reference']} fresh "
        "scenes, mean (each seed), lower is better. Time, biome, both: share of pictures that show "
        f"what was asked for. {setting['num']} pictures per row and seed, as many of every class; "
        f"seeds {setting['seeds']}; {sampler}. {setting['hardware']}; torch {setting['torch']}, "
        f"{setting['dtype']}, batch {setting['batch']}."
    )


def distances(line: Line) -> list[float]:
    """The measure of the class-conditional model."""
    return line.distances


def chart(
    lines: Sequence[Any],
    quality: Callable[[Any], list[float]] = distances,
    title: str = "Frechet distance (lower is better)",
    *,
    top: float = 0.0,
    is_higher_better: bool = False,
) -> Image.Image:
    """Quality against operations: vanilla as a line, shortcut as points, references as levels.

    Args:
        lines: of one subclass of `Work`.
        quality: the measure of a line, of each seed.
        top: the axis of the measure reaches at least so far.
    """
    sampled = [line for line in lines if line.num_steps]
    if not sampled:
        raise ValueError(
            "a chart needs at least one sampled row, got references only. Add vanilla-8."
        )
    highest = max(top, *(max(quality(line)) for line in lines))
    plot = _Plot(max(line.operations for line in sampled) / 1e9, highest)
    plot.axes("operations per image (GFLOP)", title)
    for number, line in enumerate(line for line in lines if not line.num_steps):
        # Levels lie close to each other: their labels stand at either end.
        plot.level(mean(quality(line)), TITLES[line.kind], is_left=number % 2 == 1)
    vanilla = sorted(
        (line for line in sampled if line.kind == "vanilla"), key=lambda line: line.operations
    )
    curve = [(line.operations / 1e9, mean(quality(line))) for line in vanilla]
    plot.polyline(curve, COLOURS["vanilla"])
    for line in sampled:
        label = (
            str(line.num_steps) if line.kind == "vanilla" else f"{line.num_steps}/{line.num_full}"
        )
        # Vanilla's curve gets better to the right: its own labels fit on its worse side, the others' on the other.
        below = (line.kind != "vanilla") != is_higher_better
        plot.point(line.operations / 1e9, quality(line), label, COLOURS[line.kind], below=below)
    kinds = dict.fromkeys(line.kind for line in sampled)
    names = {
        "vanilla": "vanilla: steps",
        "shortcut": "shortcut: steps/full",
        "reuse": "reused: steps/full",
    }
    plot.legend([(names[kind], COLOURS[kind]) for kind in kinds])
    return plot.image.reduce(SCALE)


class _Plot:
    """A supersampled picture with two linear axes from 0; coordinates are in their units."""

    def __init__(self, x_max: float, y_max: float):
        self.x_ticks, self.y_ticks = ticks(x_max), ticks(y_max)
        self.image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), PAPER)
        self.pen = ImageDraw.Draw(self.image)

    def at(self, x: float, y: float) -> Point:
        """Place of a point in pixels of the final picture."""
        across, up = x / self.x_ticks[-1], y / self.y_ticks[-1]
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    def axes(self, x_title: str, y_title: str) -> None:
        for y in self.y_ticks:
            start, end = self.at(0, y), self.at(self.x_ticks[-1], y)
            self.stroke([start, end], GRID, 1)
            self.text((start[0] - 10, start[1]), f"{y:g}", FAINT, "rm")
        for x in self.x_ticks:
            place = self.at(x, 0)
            self.text((place[0], place[1] + 10), f"{x:g}", FAINT, "mt")
        self.stroke([self.at(0, 0), self.at(self.x_ticks[-1], 0)], FAINT, 1.5)
        self.text((LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 16), x_title, INK, "ms", 15)
        self.text((20, 28), y_title, INK, "ls", 15)

    def level(self, y: float, label: str, *, is_left: bool) -> None:
        (left, height), (right, _) = self.at(0, y), self.at(self.x_ticks[-1], y)
        for start in range(int(left), int(right), 10):
            self.stroke([(start, height), (min(start + 5, right), height)], FAINT, 1)
        place, anchor = (left + 6, "lb") if is_left else (right, "rb")
        self.text((place, height - 5), label, FAINT, anchor, 12)

    def polyline(self, points: Sequence[Point], colour: Colour) -> None:
        self.stroke([self.at(*point) for point in points], colour, 2.5)

    def point(
        self, x: float, ys: Sequence[float], label: str, colour: Colour, *, below: bool
    ) -> None:
        """A dot at the mean of `ys`, a bar over their range, and a label `below` it or above."""
        (across, low), (_, high) = self.at(x, min(ys)), self.at(x, max(ys))
        _, middle = self.at(x, sum(ys) / len(ys))
        self.stroke([(across, low), (across, high)], colour, 2)
        for radius, fill in ((7, PAPER), (5.5, colour)):
            box = [(v + d) * SCALE for d in (-radius, radius) for v in (across, middle)]
            self.pen.ellipse(box, fill=fill)
        self.text(
            (across + 8, middle + (6 if below else -6)), label, colour, "lt" if below else "lb", 14
        )

    def legend(self, entries: Iterable[tuple[str, Colour]]) -> None:
        right = WIDTH - RIGHT
        for row, (name, colour) in enumerate(entries):
            height = 24 + 22 * row
            self.text((right, height), name, colour, "rm", 15)

    def stroke(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        flat = [(x * SCALE, y * SCALE) for x, y in points]
        self.pen.line(flat, fill=colour, width=round(width * SCALE), joint="curve")

    def text(self, place: Point, text: str, colour: Colour, anchor: str, size: int = 13) -> None:
        font = ImageFont.load_default(size=size * SCALE)
        self.pen.text(
            (place[0] * SCALE, place[1] * SCALE), text, fill=colour, font=font, anchor=anchor
        )


def ticks(top: float) -> list[float]:
    """Round values from 0 to just above `top`, at most 8 of them."""
    if not math.isfinite(top) or top <= 0:
        raise ValueError(f"an axis must end above 0, got {top}.")
    magnitude = 10 ** math.floor(math.log10(top))
    step = next(s * magnitude for s in (0.1, 0.2, 0.5, 1, 2, 5) if top / (s * magnitude) <= 6.9)
    return [round(i * step, 10) for i in range(math.floor(top / step) + 2)]
