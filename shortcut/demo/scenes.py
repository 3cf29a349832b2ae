"""Compose and draw flat-design landscapes that serve as training pictures with known contents."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

TIMES = ("dawn", "day", "dusk", "night")
BIOMES = ("forest", "desert", "snow", "coast")
CLASS_NAMES = [f"{time} {biome}" for time in TIMES for biome in BIOMES]
BODY_KINDS = ("none", "sun", "full moon", "crescent moon")
HOUSE_COLOURS = ("red", "blue", "yellow", "white")
SAIL_COLOURS = ("white", "red", "yellow")
ATTRIBUTE_SIZES: dict[str, int] = {
    "time": len(TIMES),
    "biome": len(BIOMES),
    "body": len(BODY_KINDS),
    "trees": 5,
    "houses": 3,
    "house_colour": 1 + len(HOUSE_COLOURS),
    "boats": 3,
    "clouds": 4,
}

_SUPERSAMPLE = 4
_SKY_GRID = 64
_HORIZON = 0.60
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
_SPECIES = {
    "forest": (("pine", "dark green"), ("round", "green"), ("round", "orange")),
    "desert": (("cactus", "green"),),
    "snow": (("snowy pine", "dark green"),),
    "coast": (("palm", "green"),),
}
_FOOTPRINT = {"house": 0.205, "boat": 0.17, "palm": 0.23, "tree": 0.165}
_FRONDS = ((-0.29, 0.16), (0.29, 0.16), (-0.3, -0.06), (0.3, -0.06), (-0.12, -0.2), (0.13, -0.2))
_COUNT_WORDS = ("no", "one", "two", "three", "four")
_TREE_WORDS = {
    "pine": ("pine tree", "pine trees"),
    "round": ("round tree", "round trees"),
    "cactus": ("cactus", "cacti"),
    "snowy pine": ("snowy pine tree", "snowy pine trees"),
    "palm": ("palm tree", "palm trees"),
}
_TIME_WORDS = {
    "dawn": ("at dawn", "at daybreak", "in the early morning"),
    "day": ("by day", "during the day", "in daylight"),
    "dusk": ("at dusk", "in the evening light", "in the glow of dusk"),
    "night": ("at night", "on a starry night", "after dark"),
}
_BIOME_WORDS = {
    "forest": ("in the forest", "in a green forest valley", "on a forest meadow"),
    "desert": ("in the desert", "among the dunes", "in a sandy desert"),
    "snow": ("in the snow", "in a snowy valley", "in a snowy land"),
    "coast": ("at the coast", "by the sea", "on a sandy beach by the sea"),
}
_BOAT_WORDS = ("a boat with a {} sail", "two boats with {} sails")
_BACKDROP = {
    ("forest", 3): "mountains",
    ("desert", 3): "red mesas",
    ("snow", 3): "mountains",
    ("coast", 2): "a distant island",
}


@dataclass(frozen=True, slots=True)
class Body:
    """Sun or moon: centre and diameter as fractions of the picture; kind from BODY_KINDS."""

    kind: str
    x: float
    y: float
    size: float
    colour: str


@dataclass(frozen=True, slots=True)
class Star:
    """Bright dot: centre and diameter as fractions of the picture."""

    x: float
    y: float
    size: float
    colour: str = "white"


@dataclass(frozen=True, slots=True)
class Layer:
    """Land silhouette: apexes of triangles ("peaks") or a left-to-right outline ("outline")."""

    kind: str
    points: tuple[Point, ...]
    colour: str


@dataclass(frozen=True, slots=True)
class Tree:
    """Tree standing at (x, base) and rising by height, all fractions of the picture."""

    species: str
    x: float
    base: float
    height: float
    colour: str


@dataclass(frozen=True, slots=True)
class House:
    """House whose wall is centred on x and stands on base; width includes the roof."""

    x: float
    base: float
    width: float
    colour: str


@dataclass(frozen=True, slots=True)
class Boat:
    """Sailing boat floating at (x, base); width is that of the hull, colour that of the sail."""

    x: float
    base: float
    width: float
    colour: str


@dataclass(frozen=True, slots=True)
class Cloud:
    """Cloud centred on (x, y); width as a fraction of the picture."""

    x: float
    y: float
    width: float
    colour: str = "white"


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything a picture shows; layers run from far to near, the last one is the ground."""

    time: str
    biome: str
    body: Body | None
    stars: tuple[Star, ...]
    layers: tuple[Layer, ...]
    trees: tuple[Tree, ...]
    houses: tuple[House, ...]
    boats: tuple[Boat, ...]
    clouds: tuple[Cloud, ...]

    @property
    def class_id(self) -> int:
        """Number of the scene's class, 0..15."""
        return class_id_of(self.time, self.biome)


def class_id_of(time: str, biome: str) -> int:
    """Return the class number 0..15 of a time of day and a biome."""
    return TIMES.index(time) * len(BIOMES) + BIOMES.index(biome)


def compose(seed: int, *, time: str | None = None, biome: str | None = None) -> Scene:
    """Return the scene of a seed; a time or biome left at None is drawn by the seed."""
    rng = random.Random(seed)
    drawn_time, drawn_biome = rng.choice(TIMES), rng.choice(BIOMES)
    time, biome = time or drawn_time, biome or drawn_biome
    columns = [0.17, 0.39, 0.61, 0.83]
    rng.shuffle(columns)
    body = _compose_body(rng, time, columns.pop())
    trees, houses, boats = _compose_objects(rng, biome)
    return Scene(
        time=time,
        biome=biome,
        body=body,
        stars=_compose_stars(rng, body) if time == "night" else (),
        layers=_compose_layers(rng, biome),
        trees=trees,
        houses=houses,
        boats=boats,
        clouds=_compose_clouds(rng, columns),
    )


def _compose_body(rng: random.Random, time: str, column: float) -> Body | None:
    x, size = column + rng.uniform(-0.02, 0.02), rng.uniform(0.15, 0.18)
    if rng.random() < 0.1:
        return None
    if time == "night":
        kind = rng.choice(("full moon", "crescent moon"))
        return Body(kind, x, rng.uniform(0.14, 0.26), size, "pale yellow")
    y = rng.uniform(0.13, 0.2) if time == "day" else rng.uniform(0.28, 0.38)
    return Body("sun", x, y, size, {"day": "yellow", "dawn": "pale yellow"}.get(time, "golden"))


def _compose_stars(rng: random.Random, body: Body | None) -> tuple[Star, ...]:
    stars: list[Star] = []
    count = rng.randint(6, 14)
    taken = [(body.x, body.y, 0.15)] if body else []
    for _ in range(200):
        x, y = rng.uniform(0.04, 0.96), rng.uniform(0.04, 0.38)
        if all(math.hypot(x - tx, y - ty) > gap for tx, ty, gap in taken):
            stars.append(Star(x, y, rng.uniform(0.013, 0.017)))
            taken.append((x, y, 0.09))
        if len(stars) == count:
            break
    return tuple(stars)


def _compose_clouds(rng: random.Random, columns: list[float]) -> tuple[Cloud, ...]:
    count = rng.choices((0, 1, 2, 3), (3, 4, 3, 1))[0]
    return tuple(
        Cloud(x + rng.uniform(-0.01, 0.01), rng.uniform(0.1, 0.27), rng.uniform(0.17, 0.2))
        for x in columns[:count]
    )


def _compose_layers(rng: random.Random, biome: str) -> tuple[Layer, ...]:
    ground_top = 0.81 if biome == "coast" else 0.745
    ground = Layer("outline", _hills(rng, ground_top, 0.014, 0.7), "ground")
    if biome == "coast":
        far = Layer("outline", _island(rng), "far")
        return (far, ground) if rng.random() < 0.6 else (ground,)
    near = Layer("outline", _hills(rng, 0.655, 0.035, 1.1), "near")
    if biome == "desert":
        far = Layer("outline", _mesas(rng), "far")
    else:
        far = Layer("peaks", _peaks(rng), "far")
    return (far, near, ground) if rng.random() < 0.8 else (near, ground)


def _hills(rng: random.Random, level: float, swing: float, waves: float) -> tuple[Point, ...]:
    phase, waves = rng.uniform(0, math.tau), waves * rng.uniform(0.8, 1.3)
    return tuple(
        (i / 24, level + swing * math.sin(phase + math.tau * waves * i / 24)) for i in range(25)
    )


def _peaks(rng: random.Random) -> tuple[Point, ...]:
    count = rng.choice((2, 3, 3))
    apexes = [
        ((i + 0.5) / count + rng.uniform(-0.07, 0.07), rng.uniform(0.42, 0.54))
        for i in range(count)
    ]
    rng.shuffle(apexes)
    return tuple(apexes)


def _mesas(rng: random.Random) -> tuple[Point, ...]:
    points: list[Point] = [(0.0, 0.64)]
    x = rng.uniform(0.04, 0.2)
    while x < 0.75:
        width, top = rng.uniform(0.14, 0.24), rng.uniform(0.47, 0.55)
        points += [(x, 0.63), (x + 0.03, top), (x + width, top), (x + width + 0.03, 0.63)]
        x += width + rng.uniform(0.1, 0.24)
    return (*points, (1.0, 0.64))


def _island(rng: random.Random) -> tuple[Point, ...]:
    middle, reach = rng.uniform(0.2, 0.8), rng.uniform(0.22, 0.36)
    rise = rng.uniform(0.07, 0.11)
    steps = [i / 12 for i in range(-12, 13)]
    return tuple((middle + reach * s, _HORIZON - rise * (1 - s * s) ** 1.5) for s in steps)


def _compose_objects(
    rng: random.Random, biome: str
) -> tuple[tuple[Tree, ...], tuple[House, ...], tuple[Boat, ...]]:
    houses = rng.choices((0, 1, 2), (5, 6, 1))[0]
    boats = rng.choices((0, 1, 2), (3, 5, 2))[0] if biome == "coast" else 0
    trees = rng.choices((0, 1, 2, 3, 4), (1, 4, 4, 3, 2))[0]
    species, colour = rng.choice(_SPECIES[biome])
    widths = {**_FOOTPRINT, "tree": _FOOTPRINT["palm" if species == "palm" else "tree"]}
    taken = houses * widths["house"] + boats * widths["boat"]
    trees = min(trees, int((0.93 - taken) / widths["tree"]))
    groups = [["house"] * houses, ["tree"] * trees, ["boat"] * boats]
    rng.shuffle(groups)
    kinds = [kind for group in groups for kind in group]
    if rng.random() < 0.4:
        rng.shuffle(kinds)
    spots = _spread(rng, [widths[kind] for kind in kinds])
    ground = 0.9 if biome == "coast" else 0.86
    grown: list[Tree] = []
    built: list[House] = []
    afloat: list[Boat] = []
    for kind, x in zip(kinds, spots, strict=True):
        base = ground + rng.uniform(-0.03, 0.03)
        if kind == "tree":
            height = rng.uniform(0.33, 0.4) if species == "palm" else rng.uniform(0.25, 0.33)
            grown.append(Tree(species, x, base, height, colour))
        elif kind == "house":
            built.append(House(x, base, rng.uniform(0.175, 0.2), rng.choice(HOUSE_COLOURS)))
        else:
            y = rng.uniform(0.68, 0.74)
            afloat.append(Boat(x, y, rng.uniform(0.13, 0.155), rng.choice(SAIL_COLOURS)))
    return tuple(grown), tuple(built), tuple(afloat)


def _spread(rng: random.Random, widths: list[float]) -> list[float]:
    """Return centres that place the widths side by side with the free room shared at random."""
    shares = [rng.uniform(0.2, 1.0) for _ in range(len(widths) + 1)]
    unit = (0.98 - sum(widths)) / sum(shares)
    centres, edge = [], 0.01
    for width, share in zip(widths, shares, strict=False):
        centres.append(edge + share * unit + width / 2)
        edge += share * unit + width
    return centres


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
        floor = _HORIZON if biome == "coast" else 1.0
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
        canvas.box(0, _HORIZON + 0.055 * i, 1, 0.9, _mix(water, canvas.haze, haze))
    if body:
        for i, half in enumerate((0.5, 0.7, 0.45, 0.3)):
            y, reach = _HORIZON + 0.018 + 0.042 * i, body.size * half
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


def attributes(scene: Scene) -> dict[str, int]:
    """Return the integer labels of a scene; ATTRIBUTE_SIZES tells the range of each."""
    first = scene.houses[0].colour if scene.houses else None
    return {
        "time": TIMES.index(scene.time),
        "biome": BIOMES.index(scene.biome),
        "body": BODY_KINDS.index(scene.body.kind if scene.body else "none"),
        "trees": len(scene.trees),
        "houses": len(scene.houses),
        "house_colour": 1 + HOUSE_COLOURS.index(first) if first else 0,
        "boats": len(scene.boats),
        "clouds": len(scene.clouds),
    }


def caption(scene: Scene, seed: int) -> str:
    """Return one true English sentence about the scene; the seed varies wording and order."""
    rng = random.Random(seed)
    time, place = rng.choice(_TIME_WORDS[scene.time]), rng.choice(_BIOME_WORDS[scene.biome])
    things, sky = _things_text(scene, rng), _sky_text(scene, rng)
    backdrop = _BACKDROP.get((scene.biome, len(scene.layers)), "")
    if backdrop and rng.random() < 0.4:
        things = f"{things or 'open land'} in front of {backdrop}"
    things = things or rng.choice(("a quiet landscape", "an empty landscape"))
    forms = (
        f"{things} {place} {time} under {sky}",
        f"{things} {time} {place} under {sky}",
        f"{time}, {things} {place} under {sky}",
        f"{place} {time}, {things} under {sky}",
        f"{sky} over {things} {place} {time}",
        f"{place}, {time}: {things}, with {sky} above",
    )
    return rng.choice(forms)


def _things_text(scene: Scene, rng: random.Random) -> str:
    groups = [
        (text, [thing.x for thing in things])
        for text, things in (
            (_trees_text(scene.trees), scene.trees),
            (_coloured_text(scene.houses, "a {} house", "two {} houses"), scene.houses),
            (_coloured_text(scene.boats, *_BOAT_WORDS), scene.boats),
        )
        if things
    ]
    rng.shuffle(groups)
    if not groups:
        return ""
    if len(groups) == 1:
        return groups[0][0] + _place_text(groups[0][1])
    text = _pair_text(groups[0], groups[1])
    return text if len(groups) == 2 else f"{text}, plus {groups[2][0]}{_place_text(groups[2][1])}"


def _trees_text(trees: tuple[Tree, ...]) -> str:
    if not trees:
        return ""
    first = trees[0]
    noun = _TREE_WORDS[first.species][len(trees) > 1]
    if first.species == "round":
        noun = f"{first.colour} {noun}"
    if len(trees) > 1:
        return f"{_COUNT_WORDS[len(trees)]} {noun}"
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _coloured_text(things: tuple[House | Boat, ...], one: str, two: str) -> str:
    colours = [thing.colour for thing in things]
    if len(colours) == 2 and colours[0] == colours[1]:
        return two.format(colours[0])
    return " and ".join(one.format(colour) for colour in colours)


def _place_text(xs: list[float]) -> str:
    if max(xs) < 0.4:
        return " on the left"
    if min(xs) > 0.6:
        return " on the right"
    return " in the middle" if min(xs) >= 0.4 and max(xs) <= 0.6 else ""


def _pair_text(first: tuple[str, list[float]], second: tuple[str, list[float]]) -> str:
    (name, xs), (other, others) = first, second
    if max(xs) < min(others):
        return f"{name} left of {other}"
    if min(xs) > max(others):
        return f"{name} right of {other}"
    if len(others) == 2 and min(others) < min(xs) and max(xs) < max(others):
        return f"{name} between {other}"
    return f"{name} and {other}"


def _sky_text(scene: Scene, rng: random.Random) -> str:
    count = len(scene.clouds)
    clouds = f"{_COUNT_WORDS[count]} cloud{'s' if count > 1 else ''}" if count else ""
    if not scene.body:
        bare = "a moonless sky" if scene.time == "night" else "an empty sky"
        return clouds or bare
    height = "low " if scene.body.y > 0.27 else "high " if scene.body.y < 0.21 else ""
    text = f"a {rng.choice((height, ''))}{scene.body.kind}"
    if rng.random() < 0.6:
        text += _place_text([scene.body.x])
    return f"{text} and {clouds}" if clouds and rng.random() < 0.8 else text
