"""Compose flat-design landscapes with known contents, as data, and label them.

`drawing.draw` draws a scene, `captions.caption` describes it. Lengths are fractions of the
picture.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

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
HORIZON = 0.60
_SPECIES = {
    "forest": (("pine", "dark green"), ("round", "green"), ("round", "orange")),
    "desert": (("cactus", "green"),),
    "snow": (("snowy pine", "dark green"),),
    "coast": (("palm", "green"),),
}
_FOOTPRINT = {"house": 0.205, "boat": 0.17, "palm": 0.23, "tree": 0.165}


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
        """Return the number of the scene's class, 0..15."""
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
        stars=compose_stars(rng, body) if time == "night" else (),
        layers=_compose_layers(rng, biome),
        trees=trees,
        houses=houses,
        boats=boats,
        clouds=_compose_clouds(rng, columns),
    )


def compose_varied(seed: int) -> Scene:
    """Compose a scene in which, at dawn and dusk, a third of the suns are moons: captions may ask for them."""
    scene = compose(seed)
    rng = random.Random(f"sky of {seed}")
    if scene.time not in ("dawn", "dusk") or scene.body is None or rng.random() > 1 / 3:
        return scene
    kind = rng.choice(BODY_KINDS[2:])
    return replace(scene, body=body_of(rng, kind, scene.time, scene.body.x, scene.body.size))


def _compose_body(rng: random.Random, time: str, column: float) -> Body | None:
    x, size = column + rng.uniform(-0.02, 0.02), rng.uniform(0.15, 0.18)
    if rng.random() < 0.1:
        return None
    kind = rng.choice(BODY_KINDS[2:]) if time == "night" else "sun"
    return body_of(rng, kind, time, x, size)


def body_of(rng: random.Random, kind: str, time: str, x: float, size: float) -> Body:
    """Return the sun or a moon at the height and in the colour of a time of day."""
    if kind != "sun":
        return Body(kind, x, rng.uniform(0.14, 0.26), size, "pale yellow")
    y = rng.uniform(0.13, 0.2) if time == "day" else rng.uniform(0.28, 0.38)
    return Body("sun", x, y, size, {"day": "yellow", "dawn": "pale yellow"}.get(time, "golden"))


def compose_stars(rng: random.Random, body: Body | None) -> tuple[Star, ...]:
    """Return the stars of a night, away from the moon."""
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
    shape, points = ("outline", _mesas(rng)) if biome == "desert" else ("peaks", _peaks(rng))
    far = Layer(shape, points, "far")
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
    return tuple((middle + reach * s, HORIZON - rise * (1 - s * s) ** 1.5) for s in steps)


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
