"""Charts drawn with Pillow: named series of points over two axes. It knows nothing of what they mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom

SIZE = (880, 520)
SCALE = 2  # drawn so much larger, then averaged
LEFT, RIGHT, BOTTOM = 76, 36, 64  # margins of the plot
TITLE_HEIGHT, LEGEND_HEIGHT = 46, 24
INK, FAINT, GRID, PAPER = (32, 36, 48), (112, 118, 134), (228, 230, 236), (255, 255, 255)
# Of series that have no colour of their own, in their order.
PALETTE: tuple[Colour, ...] = (
    (96, 104, 122),
    (214, 84, 44),
    (150, 120, 190),
    (38, 134, 138),
    (196, 150, 32),
    (58, 104, 180),
    (92, 148, 72),
    (190, 76, 124),
)
MAX_TICKS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points that belong together: a line, dots, or both."""

    name: str
    points: Sequence[Point]
    colour: Colour | None = None  # None = the next of PALETTE
    labels: Sequence[str] = ()  # beside the points, as many
    ranges: Sequence[Point] = ()  # lowest and highest value at each point, as many
    is_joined: bool = True
    has_dots: bool = True
    is_below: bool = False  # where labels go if there is room


@dataclass(frozen=True, slots=True)
class Level:
    """A value to compare with: a dashed line across the plot."""

    name: str
    y: float


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a plot, from its first tick to its last."""

    ticks: Sequence[float]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Place of `value` between the ends of the axis, 0 to 1."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


def chart(
    series: Sequence[Series],
    x_title: str,
    y_title: str,
    *,
    levels: Sequence[Level] = (),
    y_low: float | None = 0.0,
    is_log: bool = False,
    size: tuple[int, int] = SIZE,
) -> Image.Image:
    """A picture of the series, in the order given, the later above the earlier.

    Values that are not finite, or not above 0 where the axis is logarithmic, are left out.

    Args:
        y_low: the vertical axis begins there or below; None = where the values do.
        is_log: the vertical axis is logarithmic.
        size: width and height of the picture in pixels.

    Raises:
        ValueError: nothing is left to draw.
    """
    shown = _shown(series, is_log)
    marks = [mark for s in shown for mark in s.marks]
    if not marks:
        raise ValueError(
            f"a chart of {y_title!r} has no points: none of {len(series)} series has a finite value"
            f"{' above 0' if is_log else ''}."
        )
    ys = [y for mark in marks for y in (mark.y, *mark.span)] + [level.y for level in levels]
    plot = _Plot(
        Axis(ticks(min(0.0, *(mark.x for mark in marks)), max(mark.x for mark in marks))),
        Axis(log_ticks(min(ys), max(ys)), is_log=True)
        if is_log
        else Axis(ticks(min(ys) if y_low is None else min(y_low, *ys), max(ys))),
        [(s.series.name, s.colour) for s in shown],
        size,
    )
    plot.axes(x_title, y_title)
    for number, level in enumerate(levels):
        # Levels lie close to each other: their names stand at either end.
        plot.level(level, is_left=number % 2 == 1)
    for s in shown:
        plot.line(s)
    for s in shown:
        plot.dots(s)
    for s in shown:
        plot.labels(s)
    return plot.image.reduce(SCALE)


def ticks(low: float, high: float) -> list[float]:
    """Round values from `low` or just below it to `high` or just above it, at most MAX_TICKS."""
    if not high > low:
        low, high = min(low, 0.0), max(high, 0.0) or 1.0
    magnitude = 10 ** math.floor(math.log10(high - low))
    for factor in (0.1, 0.2, 0.5, 1, 2, 5):
        step = factor * magnitude
        # A value that is round but for its last bit counts as round.
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first < MAX_TICKS:
            break
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values above 0, about evenly apart on paper, around `low` and `high`; at most MAX_TICKS."""
    first, last = math.floor(math.log10(low)), math.floor(math.log10(high)) + 1
    fine = [factor * 10.0**exponent for exponent in range(first, last) for factor in (1, 2, 5)]
    fine = [float(f"{tick:.10g}") for tick in (*fine, 10.0**last)]
    begin = max(i for i, tick in enumerate(fine) if tick <= low)
    end = min(i for i, tick in enumerate(fine) if tick >= high and i > begin)
    if end - begin < MAX_TICKS:
        return fine[begin : end + 1]
    stride = math.ceil((last - first) / (MAX_TICKS - 1))
    return [float(f"{10.0**e:.10g}") for e in range(first, last + stride, stride)]


@dataclass(frozen=True, slots=True)
class _Mark:
    """A point of a series and what stands with it."""

    x: float
    y: float
    span: Point  # lowest and highest value
    label: str


@dataclass(frozen=True, slots=True)
class _Shown:
    """A series as it is drawn."""

    series: Series
    colour: Colour
    marks: list[_Mark]


def _shown(series: Sequence[Series], is_log: bool) -> list[_Shown]:
    following, found = cycle(PALETTE), []
    for s in series:
        marks = [
            _Mark(x, y, span, label)
            for (x, y), span, label in zip(
                s.points,
                s.ranges or [(y, y) for _, y in s.points],
                s.labels or [""] * len(s.points),
                strict=True,
            )
            if all(map(math.isfinite, (x, y, *span))) and not (is_log and min(y, *span) <= 0)
        ]
        found.append(_Shown(s, s.colour or next(following), marks))
    return found


class _Plot:
    """A supersampled picture with two axes; places are pixels of the final picture."""

    def __init__(
        self, x_axis: Axis, y_axis: Axis, names: Sequence[tuple[str, Colour]], size: tuple[int, int]
    ):
        self.x_axis, self.y_axis = x_axis, y_axis
        self.width, self.height = size
        self.image = Image.new("RGB", (self.width * SCALE, self.height * SCALE), PAPER)
        self.pen = ImageDraw.Draw(self.image)
        self.taken: list[Box] = []  # by dots and labels
        self.top = TITLE_HEIGHT + LEGEND_HEIGHT * self._legend(names) + 18

    def at(self, x: float, y: float) -> Point:
        """Place of a point in the units of the axes."""
        right, bottom = self.width - RIGHT, self.height - BOTTOM
        across, up = self.x_axis.share(x), self.y_axis.share(y)
        return LEFT + across * (right - LEFT), bottom - up * (bottom - self.top)

    def axes(self, x_title: str, y_title: str) -> None:
        (x_first, *_, x_last), y_first = self.x_axis.ticks, self.y_axis.ticks[0]
        for y in self.y_axis.ticks:
            start, end = self.at(x_first, y), self.at(x_last, y)
            self._stroke([start, end], GRID, 1)
            self._text((start[0] - 10, start[1]), f"{y:g}", FAINT, "rm")
        for x in self.x_axis.ticks:
            across, down = self.at(x, y_first)
            self._text((across, down + 10), f"{x:g}", FAINT, "mt")
        self._stroke([self.at(x_first, y_first), self.at(x_last, y_first)], FAINT, 1.5)
        middle = LEFT + (self.width - LEFT - RIGHT) / 2
        self._text((middle, self.height - 16), x_title, INK, "ms", 15)
        self._text((20, 28), y_title, INK, "ls", 15)

    def level(self, level: Level, *, is_left: bool) -> None:
        first, *_, last = self.x_axis.ticks
        (left, height), (right, _) = self.at(first, level.y), self.at(last, level.y)
        for start in range(int(left), int(right), 10):
            self._stroke([(start, height), (min(start + 5, right), height)], FAINT, 1)
        place, anchor = (left + 6, "lb") if is_left else (right, "rb")
        self._text((place, height - 5), level.name, FAINT, anchor, 12, is_label=True)

    def line(self, shown: _Shown) -> None:
        if shown.series.is_joined and len(shown.marks) > 1:
            places = [self.at(mark.x, mark.y) for mark in shown.marks]
            self._stroke(places, shown.colour, 2.5 if shown.series.has_dots else 1.75)

    def dots(self, shown: _Shown) -> None:
        """A dot at each point and a bar over its span; a single point is seen in any case."""
        if not (shown.series.has_dots or len(shown.marks) == 1):
            return
        for mark in shown.marks:
            self._stroke([self.at(mark.x, y) for y in mark.span], shown.colour, 2)
            across, down = self.at(mark.x, mark.y)
            for radius, fill in ((7, PAPER), (5.5, shown.colour)):
                box = [(v + d) * SCALE for d in (-radius, radius) for v in (across, down)]
                self.pen.ellipse(box, fill=fill)
            self.taken.append((across - 6, down - 6, across + 6, down + 6))

    def labels(self, shown: _Shown) -> None:
        """Text beside each point, where nothing else stands if there is such a place."""
        for mark in shown.marks:
            across, down = self.at(mark.x, mark.y)
            ways = [(1, 1), (1, -1), (-1, 1), (-1, -1)]  # right and below, ...
            if not shown.series.is_below:
                ways = [(right, -below) for right, below in ways]
            places = [
                ((across + 8 * right, down + 6 * below), f"{'rl'[right > 0]}{'bt'[below > 0]}")
                for right, below in ways
            ]
            free = (p for p in places if not self._is_taken(self._box(*p, mark.label, 14)))
            place, anchor = next(free, places[0])
            self._text(place, mark.label, shown.colour, anchor, 14, is_label=True)

    def _legend(self, names: Sequence[tuple[str, Colour]]) -> int:
        """Names in lines under the title. Returns how many lines."""
        across, row = 20.0, 0
        for name, colour in names:
            left, _, right, _ = self._box((across + 16, 0), "lm", name, 14)
            if right > self.width - RIGHT and across > 20:
                across, row = 20.0, row + 1
            down = TITLE_HEIGHT + LEGEND_HEIGHT * (row + 0.5) - 4
            box = [(v + d) * SCALE for d in (-5, 5) for v in (across + 5, down)]
            self.pen.ellipse(box, fill=colour)
            self._text((across + 16, down), name, colour, "lm", 14)
            across += 16 + right - left + 24
        return row + 1

    def _stroke(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        flat = [(x * SCALE, y * SCALE) for x, y in points]
        self.pen.line(flat, fill=colour, width=round(width * SCALE), joint="curve")

    def _text(
        self,
        place: Point,
        text: str,
        colour: Colour,
        anchor: str,
        size: int = 13,
        *,
        is_label: bool = False,
    ) -> None:
        self.pen.text(
            _scaled(place),
            text,
            fill=colour,
            font=_font(size),
            anchor=anchor,
            stroke_width=2 * SCALE * is_label,  # labels stand on lines
            stroke_fill=PAPER,
        )
        if is_label:
            self.taken.append(self._box(place, anchor, text, size))

    def _box(self, place: Point, anchor: str, text: str, size: int) -> Box:
        """What a text covers."""
        box = self.pen.textbbox(_scaled(place), text, font=_font(size), anchor=anchor)
        left, top, right, bottom = (v / SCALE for v in box)
        return left, top, right, bottom

    def _is_taken(self, box: Box) -> bool:
        left, top, right, bottom = box
        return (
            right > self.width
            or bottom > self.height - BOTTOM
            or any(l < right and left < r and t < bottom and top < b for l, t, r, b in self.taken)  # noqa: E741
        )


def _scaled(place: Point) -> Point:
    return place[0] * SCALE, place[1] * SCALE


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size=size * SCALE)
