"""A supersampled picture that things are drawn on in their own coordinates, under the light of an hour."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from experiments.scenes.scene import Point, Scene, Thing

Colour = tuple[int, int, int]
SUPERSAMPLE = 3
INK: Colour = (34, 28, 48)
SNOW: Colour = (248, 251, 255)
SKY: dict[str, tuple[Colour, Colour, Colour]] = {
    "dawn": ((146, 152, 214), (246, 182, 190), (255, 226, 190)),
    "day": ((66, 150, 222), (126, 194, 240), (212, 238, 250)),
    "dusk": ((68, 44, 116), (204, 82, 112), (255, 172, 88)),
    "night": ((9, 14, 46), (22, 36, 92), (66, 88, 152)),
}
_GREY: dict[str, Colour] = {
    "dawn": (186, 180, 192),
    "day": (168, 182, 196),
    "dusk": (140, 112, 134),
    "night": (44, 52, 78),
}
_LIGHT: dict[str, tuple[Colour, float]] = {
    "dawn": ((244, 150, 160), 0.2),
    "day": ((255, 255, 255), 0.0),
    "dusk": ((104, 34, 92), 0.3),
    "night": ((20, 32, 104), 0.5),
}


def mix(a: Colour, b: Colour, amount: float) -> Colour:
    """Return a colour between two; 0 = the first."""
    keep = 1.0 - amount
    return (
        round(a[0] * keep + b[0] * amount),
        round(a[1] * keep + b[1] * amount),
        round(a[2] * keep + b[2] * amount),
    )


class Canvas:
    """Draws shapes in fractions of the picture, or within `on` of a thing: u to its right, v upwards."""

    def __init__(self, scene: Scene, size: int) -> None:
        self.time, self.weather = scene.time, scene.weather
        self.side = size * SUPERSAMPLE
        stops = SKY[scene.time]
        grey = {"clear": 0.0, "snowfall": 0.35, "rain": 0.75, "fog": 0.6}[scene.weather]
        self.sky = tuple(mix(stop, _GREY[scene.time], grey) for stop in stops)
        self.haze = self.sky[2]
        self.has_outlines = scene.style == "ink"
        self.image = Image.new("RGB", (self.side, self.side))
        self.pen = ImageDraw.Draw(self.image)
        self._origin, self._unit, self._tint = (0.0, 0.0), (1.0, 1.0), (INK, 0.0)

    def fill(self, pixels: np.ndarray) -> None:
        """Take a small float picture (Y, X, 3) for the background."""
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        self.replace(picture.resize((self.side, self.side), Image.Resampling.BILINEAR))

    def replace(self, image: Image.Image) -> None:
        self.image, self.pen = image, ImageDraw.Draw(image)

    def lit(self, colour: Colour, share: float = 1.0) -> Colour:
        """Return the colour under the light of the hour."""
        light, amount = _LIGHT[self.time]
        return mix(colour, light, amount * share)

    @contextlib.contextmanager
    def on(
        self, thing: Thing, *, mirror: float | None = None, tint: Colour = INK
    ) -> Iterator[None]:
        """Draw in a thing's own coordinates; `mirror` = as its reflection below that line, tinted."""
        sign = -1 if thing.looks_left else 1
        self._origin, self._unit = (thing.x, thing.base), (sign * thing.width, -thing.height)
        if mirror is not None:
            self._origin = thing.x, 2 * mirror - thing.base
            self._unit, self._tint = (sign * thing.width, thing.height), (tint, 0.5)
        yield
        self._origin, self._unit, self._tint = (0.0, 0.0), (1.0, 1.0), (INK, 0.0)

    def poly(self, points: list[Point], colour: Colour) -> None:
        self.pen.polygon([self._at(*point) for point in points], **self._paint(colour))

    def oval(self, u: float, v: float, ru: float, rv: float, colour: Colour) -> None:
        self.pen.ellipse(self._corners(u - ru, v - rv, u + ru, v + rv), **self._paint(colour))

    def box(self, left: float, low: float, right: float, high: float, colour: Colour) -> None:
        self.pen.rectangle(self._corners(left, low, right, high), **self._paint(colour))

    def pill(self, left: float, low: float, right: float, high: float, colour: Colour) -> None:
        box = self._corners(left, low, right, high)
        radius = min(box[2] - box[0], box[3] - box[1]) / 2
        self.pen.rounded_rectangle(box, radius, **self._paint(colour))

    def arc(
        self, u: float, v: float, ru: float, rv: float, angles: Point, colour: Colour, width: float
    ) -> None:
        box = self._corners(u - ru, v - rv, u + ru, v + rv)
        self.pen.arc(
            box, *angles, fill=self._tinted(colour), width=max(1, round(width * self.side))
        )

    def line(self, points: list[Point], colour: Colour, width: float) -> None:
        width = max(1, round(width * self.side))
        self.pen.line(
            [self._at(*point) for point in points], self._tinted(colour), width, joint="curve"
        )

    def _paint(self, colour: Colour) -> dict[str, Any]:
        fill = self._tinted(colour)
        # A darker tone of its colour: black lines cost the VQ model 1.5 dB.
        line = mix(fill, INK, 0.5) if self.has_outlines else None
        return {"fill": fill, "outline": line, "width": SUPERSAMPLE if line else 1}

    def _tinted(self, colour: Colour) -> Colour:
        return mix(colour, *self._tint)

    def _at(self, u: float, v: float) -> Point:
        (x, y), (right, down) = self._origin, self._unit
        return (x + u * right) * self.side, (y + v * down) * self.side

    def _corners(
        self, left: float, low: float, right: float, high: float
    ) -> tuple[float, float, float, float]:
        (xa, ya), (xb, yb) = self._at(left, low), self._at(right, high)
        return min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb)
