"""Draw each kind of thing in its own coordinates: u in -0.5..0.5 across, v in 0..1 upwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from experiments.scenes.canvas import SNOW, Canvas, Colour, mix
from experiments.scenes.scene import Point, Thing

_WOOD: Colour = (112, 74, 54)
_DARK: Colour = (44, 40, 56)
_CREAM: Colour = (250, 244, 228)
_SKIN: Colour = (240, 194, 160)
_PAINT: dict[str, Colour] = {
    "red": (212, 58, 54),
    "blue": (56, 112, 206),
    "yellow": (250, 204, 62),
    "green": (62, 154, 84),
    "purple": (146, 84, 190),
    "orange": (236, 134, 48),
    "pink": (244, 154, 180),
    "white": (252, 249, 240),
    "brown": (146, 92, 58),
    "black": (46, 42, 54),
}
_ROOF: dict[str, Colour] = {
    "red": (98, 48, 58),
    "blue": (44, 54, 100),
    "yellow": (156, 80, 50),
    "white": (96, 102, 120),
}


def draw_thing(canvas: Canvas, thing: Thing, place: str) -> None:
    """Draw a thing within `canvas.on(thing)`."""
    _DRAWN[thing.kind](canvas, canvas.lit(_PAINT.get(thing.colour, _WOOD), 0.6), thing, place)


def _house(c: Canvas, wall: Colour, thing: Thing, place: str) -> None:
    roof = c.lit(_ROOF[thing.colour], 0.6)
    top = c.lit(SNOW, 0.6) if place == "snow" else roof
    c.box(0.2, 0.6, 0.31, 0.98, roof)
    c.box(-0.43, 0, 0.43, 0.55, wall)
    c.poly([(-0.5, 0.53), (0, 1), (0.5, 0.53)], top)
    if place == "snow":
        c.box(-0.5, 0.5, 0.5, 0.55, roof)
    glass = (255, 226, 120) if c.time in ("dusk", "night") else (196, 228, 246)
    c.box(-0.09, 0, 0.09, 0.34, c.lit(_WOOD, 0.6))
    for side in (-1, 1):
        x = 0.26 * side
        c.box(x - 0.1, 0.16, x + 0.1, 0.4, c.lit(_CREAM, 0.5))
        c.box(x - 0.075, 0.18, x + 0.075, 0.38, glass)


def _lighthouse(c: Canvas, stripe: Colour, thing: Thing, place: str) -> None:
    white = c.lit(_CREAM, 0.6)
    for i, (low, high) in enumerate(pairwise(i / 5 for i in range(6))):
        a, b = 0.36 - 0.14 * low, 0.36 - 0.14 * high
        foot, head = 0.76 * low, 0.76 * high
        c.poly([(-a, foot), (a, foot), (b, head), (-b, head)], white if i % 2 else stripe)
    glass = (255, 232, 130) if c.time in ("dusk", "night") else (206, 232, 246)
    c.box(-0.17, 0.79, 0.17, 0.9, glass)
    c.box(-0.3, 0.75, 0.3, 0.8, c.lit(_DARK, 0.5))
    c.poly([(-0.26, 0.89), (0, 1), (0.26, 0.89)], stripe)


def _windmill(c: Canvas, _: Colour, thing: Thing, place: str) -> None:
    wood = c.lit(_WOOD, 0.6)
    c.poly([(-0.22, 0), (0.22, 0), (0.14, 0.58), (-0.14, 0.58)], c.lit(_CREAM, 0.6))
    c.poly([(-0.17, 0.57), (0, 0.74), (0.17, 0.57)], c.lit(_PAINT["red"], 0.7))
    c.box(-0.06, 0, 0.06, 0.18, wood)
    for turn in range(4):
        angle = math.pi * (0.25 + 0.5 * turn)
        cos, sin = math.cos(angle), math.sin(angle) * 0.72
        tip = 0.5 * cos, 0.6 + 0.5 * sin
        side = -0.13 * math.sin(angle), 0.13 * math.cos(angle) * 0.72
        c.poly([(0.1 * cos, 0.6 + 0.1 * sin), tip, (tip[0] + side[0], tip[1] + side[1]),
                (0.1 * cos + side[0], 0.6 + 0.1 * sin + side[1])], c.lit((226, 214, 196), 0.6))  # fmt: skip
        c.line([(0, 0.6), tip], wood, 0.009)


def _tent(c: Canvas, cloth: Colour, thing: Thing, place: str) -> None:
    c.poly([(-0.5, 0), (0, 1), (0.5, 0)], cloth)
    c.poly([(0, 1), (0.5, 0), (0.12, 0)], mix(cloth, _DARK, 0.2))
    c.poly([(0, 0.75), (0.14, 0), (-0.14, 0)], mix(cloth, _DARK, 0.65))


def _pine(c: Canvas, _: Colour, thing: Thing, place: str) -> None:
    leaf = c.lit((36, 104, 78), 0.8)
    dark, snow = mix(leaf, (10, 20, 50), 0.22), c.lit(SNOW, 0.6)
    c.box(-0.08, 0, 0.08, 0.2, c.lit(_WOOD, 0.8))
    for top, foot, half in ((0.62, 0.14, 0.5), (0.82, 0.38, 0.41), (1.0, 0.62, 0.3)):
        c.poly([(0, top), (half, foot), (-half, foot)], leaf)
        c.poly([(0, top), (half, foot), (0, foot)], dark)
        if place == "snow":
            mid, side = top - 0.55 * (top - foot), 0.55 * half
            c.poly([(0, top), (side, mid), (0, mid + 0.06), (-side, mid)], snow)


def _round_tree(c: Canvas, leaf: Colour, thing: Thing, place: str) -> None:
    c.box(-0.07, 0, 0.07, 0.5, c.lit(_WOOD, 0.8))
    dark, shine = mix(leaf, (10, 20, 50), 0.2), mix(leaf, c.haze, 0.2)
    c.oval(0, 0.64, 0.46, 0.35, dark)
    c.oval(-0.05, 0.68, 0.38, 0.3, leaf)
    c.oval(-0.14, 0.76, 0.14, 0.11, shine)


def _palm(c: Canvas, _: Colour, thing: Thing, place: str) -> None:
    leaf = c.lit((58, 146, 76), 0.8)
    steps = [i / 8 for i in range(9)]
    spine = [(0.1 * math.sin(math.pi * s) - 0.05, 0.74 * s) for s in steps]
    c.line(spine, c.lit((150, 104, 70), 0.7), 0.02 * thing.scale)
    for dx, dy in (
        (-0.44, -0.2),
        (0.44, -0.2),
        (-0.48, 0.02),
        (0.48, 0.02),
        (-0.2, 0.2),
        (0.22, 0.2),
    ):
        colour = mix(leaf, (10, 20, 50), 0.22) if dy < 0 else leaf
        upper = [_bow(-0.05, 0.74, dx, dy, 0.15, s) for s in steps]
        lower = [_bow(-0.05, 0.74, dx, dy, 0.02, s) for s in steps]
        c.poly(upper + lower[::-1], colour)


def _bow(u: float, v: float, du: float, dv: float, lift: float, s: float) -> Point:
    """Return the point at share s of a line from (u, v) by (du, dv) that arches up by lift."""
    return u + du * s, v + dv * s + 3.6 * lift * s * (1 - s)


def _cactus(c: Canvas, _: Colour, thing: Thing, place: str) -> None:
    leaf = c.lit((58, 142, 84), 0.8)
    for side, low, high in ((-1, 0.34, 0.74), (1, 0.46, 0.84)):
        left, right = sorted((0.0, side * 0.36))
        c.pill(left - 0.1, low, right + 0.1, low + 0.13, leaf)
        c.pill(side * 0.36 - 0.1, low, side * 0.36 + 0.1, high, leaf)
    c.pill(-0.15, -0.04, 0.15, 1, leaf)
    c.line([(-0.05, 0.1), (-0.05, 0.9)], mix(leaf, c.haze, 0.3), 0.007)


def _lamp(c: Canvas, _: Colour, thing: Thing, place: str) -> None:
    is_on = c.time in ("dusk", "night")
    iron = c.lit(_DARK, 0.5)
    c.box(-0.07, 0, 0.07, 0.8, iron)
    c.box(-0.2, 0, 0.2, 0.05, iron)
    c.poly(
        [(-0.2, 0.8), (0.2, 0.8), (0.3, 0.94), (-0.3, 0.94)],
        (255, 236, 150) if is_on else (224, 234, 240),
    )
    c.poly([(-0.36, 0.94), (0, 1.02), (0.36, 0.94)], iron)


def _flower(c: Canvas, petal: Colour, thing: Thing, place: str) -> None:
    stem = c.lit((48, 120, 60), 0.7)
    c.line([(0, 0), (0, 0.6)], stem, 0.012)
    c.oval(0.18, 0.24, 0.18, 0.09, stem)
    for turn in range(5):
        angle = math.pi * (0.5 + 0.4 * turn)
        c.oval(0.24 * math.cos(angle), 0.7 + 0.17 * math.sin(angle), 0.2, 0.14, petal)
    c.oval(
        0, 0.7, 0.15, 0.1, c.lit((92, 56, 40) if thing.colour == "yellow" else (255, 224, 110), 0.5)
    )


def _car(c: Canvas, paint: Colour, thing: Thing, place: str) -> None:
    glass = (255, 240, 176) if c.time == "night" else (206, 232, 246)
    c.poly([(-0.36, 0.55), (-0.22, 1), (0.14, 1), (0.3, 0.55)], paint)
    c.poly([(-0.28, 0.57), (-0.18, 0.9), (-0.05, 0.9), (-0.05, 0.57)], glass)
    c.poly([(0.0, 0.57), (0.0, 0.9), (0.11, 0.9), (0.22, 0.57)], glass)
    c.pill(-0.5, 0.16, 0.5, 0.62, paint)
    c.oval(0.45, 0.46, 0.04, 0.08, (255, 242, 180))
    for x in (-0.28, 0.28):
        c.oval(x, 0.18, 0.12, 0.24, c.lit(_DARK, 0.4))
        c.oval(x, 0.18, 0.05, 0.1, c.lit((190, 194, 204), 0.5))


def _person(c: Canvas, shirt: Colour, thing: Thing, place: str) -> None:
    trousers = c.lit((60, 66, 96), 0.6)
    for side in (-1, 1):
        c.box(0.13 * side - 0.11, 0, 0.13 * side + 0.11, 0.4, trousers)
        c.line([(0.22 * side, 0.64), (0.4 * side, 0.4)], shirt, 0.02)
    c.pill(-0.28, 0.34, 0.28, 0.72, shirt)
    c.oval(0, 0.85, 0.25, 0.13, c.lit((96, 62, 44), 0.6))
    c.oval(0.03, 0.82, 0.21, 0.105, c.lit(_SKIN, 0.6))


def _snowman(c: Canvas, scarf: Colour, thing: Thing, place: str) -> None:
    snow, coal = c.lit(SNOW, 0.45), c.lit(_DARK, 0.4)
    c.line([(-0.2, 0.5), (-0.5, 0.66)], c.lit(_WOOD, 0.7), 0.009)
    c.line([(0.2, 0.5), (0.5, 0.66)], c.lit(_WOOD, 0.7), 0.009)
    c.oval(0, 0.24, 0.42, 0.26, mix(snow, (120, 150, 200), 0.16))
    c.oval(0, 0.28, 0.36, 0.22, snow)
    c.oval(0, 0.68, 0.26, 0.17, snow)
    c.box(-0.26, 0.5, 0.26, 0.57, scarf)
    c.box(-0.28, 0.8, 0.28, 0.84, coal)
    c.box(-0.17, 0.82, 0.17, 1, coal)
    for x in (-0.09, 0.09):
        c.oval(x, 0.72, 0.035, 0.025, coal)
    c.poly([(0, 0.69), (0.22, 0.64), (0, 0.63)], c.lit(_PAINT["orange"], 0.5))


def _legs(c: Canvas, places: tuple[float, ...], half: float, top: float, colour: Colour) -> None:
    for x in places:
        c.box(x - half, 0, x + half, top, colour)


def _cow(c: Canvas, patch: Colour, thing: Thing, place: str) -> None:
    hide = c.lit(_PAINT["white"] if thing.colour == "black" else _PAINT["brown"], 0.6)
    spot = patch if thing.colour == "black" else c.lit(_CREAM, 0.6)
    _legs(c, (-0.32, -0.2, 0.12, 0.24), 0.04, 0.4, mix(hide, _DARK, 0.2))
    c.line([(-0.42, 0.78), (-0.47, 0.36)], mix(hide, _DARK, 0.3), 0.008)
    c.pill(-0.44, 0.32, 0.34, 0.86, hide)
    c.oval(-0.2, 0.66, 0.12, 0.15, spot)
    c.oval(0.1, 0.56, 0.1, 0.13, spot)
    c.poly([(0.28, 1.0), (0.24, 0.92), (0.34, 0.9)], c.lit(_CREAM, 0.5))
    c.pill(0.26, 0.5, 0.48, 0.96, spot)
    c.pill(0.27, 0.48, 0.5, 0.66, c.lit((240, 180, 170), 0.6))
    c.oval(0.36, 0.82, 0.02, 0.03, _DARK)


def _sheep(c: Canvas, _: Colour, thing: Thing, place: str) -> None:
    wool, skin = c.lit((246, 242, 232), 0.6), c.lit((66, 58, 66), 0.4)
    _legs(c, (-0.24, -0.12, 0.1, 0.2), 0.04, 0.4, skin)
    for u, v, r in (
        (-0.28, 0.6, 0.18),
        (-0.1, 0.68, 0.2),
        (0.1, 0.68, 0.2),
        (0.2, 0.54, 0.17),
        (-0.06, 0.5, 0.24),
    ):
        c.oval(u, v, r, r * 1.3, wool)
    c.pill(0.25, 0.46, 0.47, 0.86, skin)
    c.oval(0.27, 0.88, 0.12, 0.1, wool)
    c.oval(0.37, 0.7, 0.025, 0.035, _CREAM)


def _dog(c: Canvas, coat: Colour, thing: Thing, place: str) -> None:
    dark = mix(coat, _DARK, 0.35)
    _legs(c, (-0.26, -0.15, 0.08, 0.18), 0.045, 0.4, mix(coat, _DARK, 0.15))
    c.line([(-0.3, 0.6), (-0.46, 0.9)], coat, 0.016)
    c.pill(-0.36, 0.32, 0.26, 0.68, coat)
    c.oval(0.24, 0.74, 0.17, 0.23, coat)
    c.pill(0.22, 0.6, 0.5, 0.78, coat)
    c.oval(0.47, 0.74, 0.04, 0.05, _DARK)
    c.pill(0.1, 0.56, 0.21, 0.94, dark)
    c.oval(0.3, 0.82, 0.025, 0.03, _DARK)


def _cat(c: Canvas, coat: Colour, thing: Thing, place: str) -> None:
    eye = (250, 226, 110) if thing.colour == "black" else (70, 130, 70)
    c.arc(
        -0.26, 0.3, 0.22, 0.28, (90, 270) if thing.looks_left is False else (270, 90), coat, 0.016
    )
    c.poly([(-0.28, 0), (-0.2, 0.45), (0, 0.6), (0.22, 0.42), (0.3, 0)], coat)
    c.poly([(-0.2, 0.72), (-0.22, 1), (0, 0.88)], coat)
    c.poly([(0.24, 0.72), (0.26, 1), (0.04, 0.88)], coat)
    c.oval(0.02, 0.7, 0.28, 0.22, coat)
    for x in (-0.09, 0.13):
        c.oval(x, 0.73, 0.055, 0.055, eye)
    c.oval(0.02, 0.63, 0.04, 0.03, (226, 140, 140))


def _boat(c: Canvas, sail: Colour, thing: Thing, place: str) -> None:
    wood = c.lit(_WOOD, 0.8)
    c.box(-0.025, 0.2, 0.025, 1.0, wood)
    c.poly([(0.05, 1.0), (0.46, 0.28), (0.05, 0.28)], sail)
    c.poly([(-0.06, 0.84), (-0.06, 0.28), (-0.4, 0.28)], mix(sail, wood, 0.2))
    c.poly([(-0.5, 0.22), (0.5, 0.22), (0.34, -0.02), (-0.34, -0.02)], wood)


def _balloon(c: Canvas, cloth: Colour, thing: Thing, place: str) -> None:
    light = c.lit(_CREAM, 0.6)
    c.poly([(-0.38, -0.02), (0.38, -0.02), (0.1, -0.36), (-0.1, -0.36)], mix(cloth, _DARK, 0.25))
    c.oval(0, 0.14, 0.5, 0.36, cloth)
    c.oval(0, 0.14, 0.3, 0.36, light)
    c.oval(0, 0.14, 0.12, 0.36, cloth)
    c.box(-0.12, -0.5, 0.12, -0.38, c.lit(_WOOD, 0.6))


def _bird(c: Canvas, _: Colour, thing: Thing, place: str) -> None:
    colour = mix(_DARK, c.haze, 0.15)
    c.line([(-0.5, 0.6), (-0.25, 1), (0, 0.2), (0.25, 1), (0.5, 0.6)], colour, 0.011)


def _cloud(c: Canvas, _: Colour, thing: Thing, place: str) -> None:
    tone = {
        "dawn": (255, 234, 226),
        "day": (255, 255, 255),
        "dusk": (238, 142, 142),
        "night": (72, 88, 142),
    }[c.time]
    colour = mix(tone, c.haze, 0.0 if c.weather == "clear" else 0.4)
    c.has_outlines, outlines = False, c.has_outlines
    c.oval(-0.17, 0.1, 0.2, 0.4, colour)
    c.oval(0.12, 0.2, 0.25, 0.5, colour)
    c.pill(-0.5, -0.3, 0.5, 0.22, colour)
    c.has_outlines = outlines


def _fence(c: Canvas, paint: Colour, thing: Thing, place: str) -> None:
    for v in (0.35, 0.72):
        c.box(-0.52, v - 0.08, 0.52, v + 0.08, mix(paint, _DARK, 0.12))
    for i in range(16):
        u = (i + 0.5) / 16 - 0.5
        c.poly(
            [(u - 0.012, 0), (u - 0.012, 0.9), (u, 1.05), (u + 0.012, 0.9), (u + 0.012, 0)], paint
        )


def _bridge(c: Canvas, _: Colour, thing: Thing, place: str) -> None:
    stone = c.lit((176, 158, 146), 0.8)
    dark = mix(stone, _DARK, 0.3)
    top = [(-0.5 + i / 16, 0.62 + 0.3 * math.sin(math.pi * i / 16)) for i in range(17)]
    piers = [(0.5, 0.0)]
    for middle in (0.31, 0.0, -0.31):
        turns = [math.pi * i / 10 for i in range(11)]
        piers += [(middle + 0.12 * math.cos(t), 0.55 * math.sin(t)) for t in turns]
    c.poly([*top, *piers, (-0.5, 0.0)], stone)
    c.line([(u, v + 0.06) for u, v in top], dark, 0.014)


def _sun(c: Canvas, _: Colour, thing: Thing, place: str) -> None:
    tone = {
        "dawn": (255, 246, 214),
        "day": (255, 224, 84),
        "dusk": (255, 222, 128),
        "night": (255, 240, 200),
    }[c.time]
    c.oval(0, 0, 0.5, 0.5, tone)


def _full_moon(c: Canvas, _: Colour, thing: Thing, place: str) -> None:
    tone: Colour = (246, 241, 214)
    c.oval(0, 0, 0.5, 0.5, tone)
    c.has_outlines, outlines = False, c.has_outlines
    for u, v, r in ((-0.18, 0.12, 0.13), (0.15, -0.15, 0.15), (0.16, 0.21, 0.08)):
        c.oval(u, v, r, r, mix(tone, (150, 156, 190), 0.4))
    c.has_outlines = outlines


def _crescent(c: Canvas, _: Colour, thing: Thing, place: str) -> None:
    angles = [math.pi * (i / 20 - 0.5) for i in range(21)]
    outer = [(math.cos(a), math.sin(a)) for a in angles]
    inner = [(0.25 * math.cos(a), math.sin(a)) for a in reversed(angles)]
    cos, sin = math.cos(0.45), math.sin(0.45)
    shifted = [(u - 0.35, v) for u, v in outer + inner]
    c.poly(
        [((u * cos - v * sin) / 2, (u * sin + v * cos) / 2) for u, v in shifted], (246, 241, 214)
    )


_DRAWN: dict[str, Callable[[Canvas, Colour, Thing, str], None]] = {
    "house": _house,
    "lighthouse": _lighthouse,
    "windmill": _windmill,
    "tent": _tent,
    "pine tree": _pine,
    "round tree": _round_tree,
    "palm tree": _palm,
    "cactus": _cactus,
    "street lamp": _lamp,
    "flower": _flower,
    "car": _car,
    "person": _person,
    "snowman": _snowman,
    "cow": _cow,
    "sheep": _sheep,
    "dog": _dog,
    "cat": _cat,
    "boat": _boat,
    "balloon": _balloon,
    "bird": _bird,
    "cloud": _cloud,
    "fence": _fence,
    "bridge": _bridge,
    "sun": _sun,
    "full moon": _full_moon,
    "crescent moon": _crescent,
}
