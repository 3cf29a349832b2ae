"""Draw a scene as an anti-aliased picture: palettes, canvas, and how each thing looks."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from experiments.scenes.scene import (
    HORIZON,
    TIMES,
    Boat,
    Body,
    Cloud,
    House,
    Layer,
    Point,
    Scene,
    Tree,
)

Colour = tuple[int, int, int]
_SUPERSAMPLE = 4
_SKY_GRID = 64
_SKY: dict[str, tuple[Colour, Colour, Colour]] = {
    "dawn": ((150, 152, 212), (248, 180, 186), (255, 226, 190)),
    "day": ((66, 150, 222), (126, 194, 240), (212, 238, 250)),
    "dusk": ((68, 44, 116), (204, 82, 112), (255, 172, 88)),
    "night": ((9, 14, 46), (22, 36, 92), (66, 88, 152)),
}
_LIGHT: dict[str, tuple[Colour, float]] = {
    "dawn": ((244, 150, 160), 0.22),
    "day": ((255, 255, 255), 0.0),
    "dusk": ((104, 34, 92), 0.33),
    "night": ((20, 32, 104), 0.54),
}
_BODY: dict[str, Colour] = {
    "dawn": (255, 246, 214),
    "day": (255, 224, 84),
    "dusk": (255, 222, 128),
    "night": (246, 241, 214),
}
_SHINE: dict[str, Colour] = {**_BODY, "day": (255, 250, 222)}
_GLOW = {"dawn": 0.55, "day": 0.45, "dusk": 0.55, "night": 0.28}
_CLOUD: dict[str, Colour] = {
    "dawn": (255, 234, 226),
    "day": (255, 255, 255),
    "dusk": (236, 138, 138),
    "night": (70, 86, 140),
}
_LAND: dict[str, tuple[Colour, Colour, Colour, Colour]] = {
    "forest": ((96, 132, 168), (74, 146, 118), (118, 186, 92), (94, 166, 80)),
    "desert": ((204, 112, 82), (226, 152, 92), (244, 200, 128), (230, 178, 106)),
    "snow": ((112, 142, 186), (184, 208, 232), (240, 246, 252), (220, 232, 246)),
    "coast": ((92, 150, 150), (92, 150, 150), (248, 220, 162), (236, 200, 138)),
}
_MIST: dict[str, Colour] = {**{time: _SKY[time][2] for time in TIMES}, "night": (18, 28, 82)}
_WATER: Colour = (48, 142, 190)
_TREE: dict[str, Colour] = {
    "dark green": (36, 104, 78),
    "green": (58, 142, 72),
    "orange": (232, 132, 52),
}
_HOUSE: dict[str, tuple[Colour, Colour]] = {
    "red": ((208, 62, 56), (92, 50, 58)),
    "blue": ((58, 112, 198), (40, 52, 92)),
    "yellow": ((248, 200, 62), (150, 78, 50)),
    "white": ((252, 248, 238), (92, 98, 116)),
}
_SAIL: dict[str, Colour] = {
    "white": (255, 252, 244),
    "red": (222, 66, 60),
    "yellow": (250, 206, 70),
}
_WOOD: Colour = (112, 74, 54)
_SNOW: Colour = (248, 251, 255)
_FRONDS = ((-0.29, 0.16), (0.29, 0.16), (-0.3, -0.06), (0.3, -0.06), (-0.12, -0.2), (0.13, -0.2))


def _mix(a: Colour, b: Colour, amount: float) -> Colour:
    keep = 1.0 - amount
    return (
        round(a[0] * keep + b[0] * amount),
        round(a[1] * keep + b[1] * amount),
        round(a[2] * keep + b[2] * amount),
    )


class _Canvas:
    """Supersampled picture drawn in fractions, with the colours of one time of day."""

    def __init__(self, scene: Scene, size: int) -> None:
        self.side = size * _SUPERSAMPLE
        self.time = scene.time
        self.haze = _SKY[scene.time][2]
        self.image = _sky(scene).resize((self.side, self.side), Image.Resampling.BILINEAR)
        self.pen = ImageDraw.Draw(self.image)

    def lit(self, colour: Colour, share: float = 1.0) -> Colour:
        """Return the colour under the light of the time of day."""
        light, amount = _LIGHT[self.time]
        return _mix(colour, light, amount * share)

    def poly(self, points: list[Point], colour: Colour) -> None:
        side = self.side
        self.pen.polygon([(x * side, y * side) for x, y in points], fill=colour)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        side = self.side
        box = ((x - rx) * side, (y - ry) * side, (x + rx) * side, (y + ry) * side)
        self.pen.ellipse(box, fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        side = self.side
        self.pen.rectangle((left * side, top * side, right * side, bottom * side), fill=colour)

    def pill(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        side, radius = self.side, min(right - left, bottom - top) / 2
        corners = (left * side, top * side, right * side, bottom * side)
        self.pen.rounded_rectangle(corners, radius * side, fill=colour)


def draw(scene: Scene, size: int = 96) -> Image.Image:
    """Return the scene as an anti-aliased RGB picture of size x size pixels."""
    canvas = _Canvas(scene, size)
    for star in scene.stars:
        canvas.oval(star.x, star.y, star.size / 2, star.size / 2, (255, 252, 236))
    if scene.body:
        _draw_body(canvas, scene.body)
    for cloud in scene.clouds:
        _draw_cloud(canvas, cloud)
    for layer in scene.layers[:-1]:
        _draw_layer(canvas, layer, scene.biome)
    if scene.biome == "coast":
        _draw_water(canvas, scene.body)
    for boat in scene.boats:
        _draw_boat(canvas, boat)
    _draw_ground(canvas, scene.layers[-1], scene.biome)
    for thing in sorted((*scene.houses, *scene.trees), key=lambda thing: thing.base):
        if isinstance(thing, House):
            _draw_house(canvas, thing, scene.biome)
        else:
            _draw_tree(canvas, thing, scene.biome)
    return canvas.image.reduce(_SUPERSAMPLE)


def _sky(scene: Scene) -> Image.Image:
    rows = (np.arange(_SKY_GRID, dtype=np.float32) + 0.5) / _SKY_GRID
    stops = np.asarray(_SKY[scene.time], dtype=np.float32)
    column = np.stack([np.interp(rows, (0.0, 0.32, 0.62), stops[:, i]) for i in range(3)], axis=1)
    sky = np.repeat(column[:, None, :], _SKY_GRID, axis=1)
    if scene.body:
        reach = scene.body.size * 1.1
        fall_x = np.exp(-(((rows - scene.body.x) / reach) ** 2))
        fall_y = np.exp(-(((rows - scene.body.y) / reach) ** 2))
        glow = (fall_y[:, None] * fall_x[None, :])[:, :, None] * _GLOW[scene.time]
        sky += (np.asarray(_SHINE[scene.time]) - sky) * glow
    return Image.fromarray(sky.astype(np.uint8))


def _draw_body(canvas: _Canvas, body: Body) -> None:
    x, y, r = body.x, body.y, body.size / 2
    colour = _BODY[canvas.time]
    if body.kind == "crescent moon":
        angles = [math.pi * (i / 20 - 0.5) for i in range(21)]
        outer = [(math.cos(a), math.sin(a)) for a in angles]
        inner = [(0.25 * math.cos(a), math.sin(a)) for a in reversed(angles)]
        shifted = [(px - 0.35, py) for px, py in outer + inner]
        cos, sin = math.cos(0.45), math.sin(0.45)
        turned = [(px * cos - py * sin, px * sin + py * cos) for px, py in shifted]
        canvas.poly([(x + r * px, y + r * py) for px, py in turned], colour)
        return
    canvas.oval(x, y, r, r, colour)
    if body.kind == "full moon":
        dent = _mix(colour, (150, 156, 190), 0.35)
        for dx, dy, dr in ((-0.35, -0.25, 0.26), (0.3, 0.3, 0.3), (0.32, -0.42, 0.15)):
            canvas.oval(x + dx * r, y + dy * r, dr * r, dr * r, dent)


def _draw_cloud(canvas: _Canvas, cloud: Cloud) -> None:
    x, y, w = cloud.x, cloud.y, cloud.width
    colour = _CLOUD[canvas.time]
    canvas.oval(x - 0.16 * w, y - 0.1 * w, 0.2 * w, 0.2 * w, colour)
    canvas.oval(x + 0.13 * w, y - 0.15 * w, 0.26 * w, 0.26 * w, colour)
    canvas.pill(x - 0.5 * w, y - 0.12 * w, x + 0.5 * w, y + 0.14 * w, colour)


def _draw_layer(canvas: _Canvas, layer: Layer, biome: str) -> None:
    far = layer.colour == "far"
    land, mist = _LAND[biome][0 if far else 1], _MIST[canvas.time]
    colour = _mix(canvas.lit(land), mist, 0.3 if far else 0.15)
    if layer.kind == "peaks":
        for x, y in layer.points:
            _draw_peak(canvas, x, y, colour)
    else:
        first, last = layer.points[0], layer.points[-1]
        floor = HORIZON if biome == "coast" else 1.0
        canvas.poly([(first[0], floor), *layer.points, (last[0], floor)], colour)


def _draw_peak(canvas: _Canvas, x: float, y: float, colour: Colour) -> None:
    base = 0.78
    reach = base - y
    canvas.poly([(x, y), (x + reach, base), (x - reach, base)], colour)
    canvas.poly([(x, y), (x + reach, base), (x + 0.02, base)], _mix(colour, (20, 24, 60), 0.14))
    cap = 0.075
    foot = [(1.0, 1.0), (0.45, 0.72), (0.1, 1.08), (-0.4, 0.75), (-1.0, 1.0)]
    snow = [(x + cap * fx, y + cap * fy) for fx, fy in foot]
    canvas.poly([(x, y), *snow], _mix(canvas.lit(_SNOW, 0.7), canvas.haze, 0.15))


def _draw_water(canvas: _Canvas, body: Body | None) -> None:
    water = canvas.lit(_WATER, 0.9)
    shades = (0.42, 0.28, 0.14, 0.0)
    for i, haze in enumerate(shades):
        canvas.box(0, HORIZON + 0.055 * i, 1, 0.9, _mix(water, canvas.haze, haze))
    if body:
        for i, half in enumerate((0.5, 0.7, 0.45, 0.3)):
            y, reach = HORIZON + 0.018 + 0.042 * i, body.size * half
            shine = _mix(_SHINE[canvas.time], water, 0.2 + 0.13 * i)
            canvas.pill(body.x - reach, y, body.x + reach, y + 0.016, shine)


def _draw_ground(canvas: _Canvas, ground: Layer, biome: str) -> None:
    colour, front = canvas.lit(_LAND[biome][2]), canvas.lit(_LAND[biome][3])
    if biome == "coast":
        foam = [(x, y - 0.014) for x, y in ground.points]
        canvas.poly([(0, 1), *foam, (1, 1)], _mix(canvas.lit(_SNOW, 0.7), canvas.haze, 0.1))
    canvas.poly([(0, 1), *ground.points, (1, 1)], colour)
    level = 0.93 if biome == "coast" else 0.88
    swell = [(1 - x, level + 1.6 * (y - ground.points[0][1])) for x, y in ground.points]
    canvas.poly([(1, 1), *swell, (0, 1)], front)


def _draw_shadow(canvas: _Canvas, x: float, base: float, reach: float, biome: str) -> None:
    shade = _mix(canvas.lit(_LAND[biome][3]), (30, 30, 70), 0.22)
    canvas.oval(x + 0.01, base, reach, 0.014, shade)


def _draw_house(canvas: _Canvas, house: House, biome: str) -> None:
    x, base, w = house.x, house.base, house.width
    wall, roof = (canvas.lit(colour, 0.55) for colour in _HOUSE[house.colour])
    half, eaves, ridge = 0.43 * w, base - 0.5 * w, base - 0.95 * w
    _draw_shadow(canvas, x, base, 0.56 * w, biome)
    canvas.box(x + 0.18 * w, ridge + 0.02 * w, x + 0.31 * w, eaves, roof)
    canvas.box(x - half, eaves - 0.02, x + half, base, wall)
    tiles = canvas.lit(_SNOW, 0.6) if biome == "snow" else roof
    canvas.poly([(x, ridge), (x + w / 2, eaves), (x - w / 2, eaves)], tiles)
    if biome == "snow":
        canvas.box(x - w / 2, eaves - 0.01, x + w / 2, eaves + 0.01, roof)
    canvas.box(x - 0.3 * w, base - 0.33 * w, x - 0.08 * w, base, canvas.lit(_WOOD, 0.6))
    glass = (255, 226, 120) if canvas.time in ("dusk", "night") else (206, 232, 246)
    canvas.box(x + 0.07 * w, base - 0.36 * w, x + 0.3 * w, base - 0.14 * w, glass)


def _draw_boat(canvas: _Canvas, boat: Boat) -> None:
    x, y, w = boat.x, boat.base, boat.width
    sail, wood = canvas.lit(_SAIL[boat.colour], 0.45), canvas.lit(_WOOD, 0.8)
    canvas.pill(x - 0.46 * w, y + 0.01, x + 0.46 * w, y + 0.026, _mix(wood, _WATER, 0.5))
    canvas.box(x - 0.025 * w, y - 1.1 * w, x + 0.025 * w, y - 0.2 * w, wood)
    boom, deck, keel = y - 0.28 * w, y - 0.2 * w, y + 0.015
    main = [(0.05, y - 1.1 * w), (0.5, boom), (0.05, boom)]
    jib = [(-0.06, y - 0.9 * w), (-0.06, boom), (-0.4, boom)]
    hull = [(-0.5, deck), (0.5, deck), (0.34, keel), (-0.34, keel)]
    for shape, colour in ((main, sail), (jib, _mix(sail, wood, 0.15)), (hull, wood)):
        canvas.poly([(x + dx * w, py) for dx, py in shape], colour)


def _draw_tree(canvas: _Canvas, tree: Tree, biome: str) -> None:
    _draw_shadow(canvas, tree.x, tree.base, 0.22 * tree.height, biome)
    leaf, wood = canvas.lit(_TREE[tree.colour], 0.8), canvas.lit(_WOOD, 0.8)
    if tree.species == "palm":
        _draw_palm(canvas, tree, leaf, wood)
    elif tree.species == "cactus":
        _draw_cactus(canvas, tree, leaf)
    elif tree.species == "round":
        _draw_round(canvas, tree, leaf, wood)
    else:
        _draw_pine(canvas, tree, leaf, wood)


def _draw_pine(canvas: _Canvas, tree: Tree, leaf: Colour, wood: Colour) -> None:
    x, base, h = tree.x, tree.base, tree.height
    dark, snow = _mix(leaf, (10, 20, 50), 0.22), canvas.lit(_SNOW, 0.6)
    canvas.box(x - 0.04 * h, base - 0.2 * h, x + 0.04 * h, base, wood)
    for top, foot, half in ((0.62, 0.14, 0.25), (0.82, 0.38, 0.205), (1.0, 0.62, 0.15)):
        tip, low, reach = base - top * h, base - foot * h, half * h
        canvas.poly([(x, tip), (x + reach, low), (x - reach, low)], leaf)
        canvas.poly([(x, tip), (x + reach, low), (x, low)], dark)
        if tree.species == "snowy pine":
            mid = tip + 0.55 * (low - tip)
            side = 0.55 * reach
            canvas.poly([(x, tip), (x + side, mid), (x, mid - 0.02), (x - side, mid)], snow)


def _draw_round(canvas: _Canvas, tree: Tree, leaf: Colour, wood: Colour) -> None:
    x, base, h = tree.x, tree.base, tree.height
    canvas.box(x - 0.045 * h, base - 0.5 * h, x + 0.045 * h, base, wood)
    canvas.oval(x, base - 0.66 * h, 0.26 * h, 0.34 * h, _mix(leaf, (10, 20, 50), 0.2))
    canvas.oval(x - 0.035 * h, base - 0.69 * h, 0.215 * h, 0.29 * h, leaf)


def _draw_cactus(canvas: _Canvas, tree: Tree, leaf: Colour) -> None:
    x, base, h = tree.x, tree.base, tree.height
    t, shine = 0.075 * h, _mix(leaf, canvas.haze, 0.25)
    for side, low, high in ((-1, 0.38, 0.74), (1, 0.5, 0.84)):
        arm = x + side * 0.2 * h
        left, right, elbow = min(x, arm), max(x, arm), base - low * h + 0.3 * t
        canvas.pill(left - 0.75 * t, elbow - 1.4 * t, right + 0.75 * t, elbow, leaf)
        canvas.pill(arm - 0.75 * t, base - high * h, arm + 0.75 * t, elbow, leaf)
    canvas.pill(x - t, base - h, x + t, base + t, leaf)
    canvas.pill(x - 0.5 * t, base - 0.93 * h, x - 0.05 * t, base - 0.1 * h, shine)


def _draw_palm(canvas: _Canvas, tree: Tree, leaf: Colour, wood: Colour) -> None:
    x, base, h = tree.x, tree.base, tree.height
    top, bend = base - 0.78 * h, 0.05 * h
    steps = [i / 8 for i in range(9)]
    spine = [(x + bend * math.sin(math.pi * s), base + (top - base) * s) for s in steps]
    left = [(px - 0.04 * h * (1 - 0.45 * s), py) for s, (px, py) in zip(steps, spine, strict=True)]
    right = [(px + 0.04 * h * (1 - 0.45 * s), py) for s, (px, py) in zip(steps, spine, strict=True)]
    canvas.poly(left + right[::-1], wood)
    dark = _mix(leaf, (10, 20, 50), 0.22)
    for dx, dy in _FRONDS:
        colour = dark if dy > 0 else leaf
        upper = [_bow(x, top, dx * h, dy * h, 0.17 * h, s) for s in steps]
        lower = [_bow(x, top, dx * h, dy * h, 0.02 * h, s) for s in steps]
        canvas.poly(upper + lower[::-1], colour)


def _bow(x: float, y: float, dx: float, dy: float, lift: float, s: float) -> Point:
    """Return the point at share s of a line from (x, y) by (dx, dy) that arches up by lift."""
    return x + dx * s, y + dy * s - 3.2 * lift * s * (1 - s)
