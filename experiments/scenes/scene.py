"""Compose landscapes with known contents, as data: `drawing.draw` draws a scene, `captions` describes it.

Lengths are fractions of the picture; y points down.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from experiments.scenes.kinds import KINDS

Point = tuple[float, float]
TIMES = ("dawn", "day", "dusk", "night")
PLACES = ("forest", "desert", "snow", "coast", "lake", "town")
# Classes 0..15 are those of the first models, in their order; lake and town follow.
CLASSES = [(time, place) for time in TIMES for place in PLACES[:4]]
CLASSES += [(time, place) for place in PLACES[4:] for time in TIMES]
CLASS_NAMES = [f"{time} {place}" for time, place in CLASSES]
WEATHERS = ("clear", "rain", "snowfall", "fog")
STYLES = ("flat", "ink")
HORIZON = 0.6
# Things stand on multiples of this, a code, so that few codes show their edges sharply.
GRAIN = 1 / 16
BODIES = ("sun", "full moon", "crescent moon")
SKY_KINDS = (*BODIES, "cloud", "balloon", "bird")

# Place -> kinds of its front row with their weights, and of its back row.
_FRONT: dict[str, dict[str, float]] = {
    "forest": {"house": 3, "pine tree": 3, "round tree": 3, "windmill": 2, "tent": 1, "flower": 2, "person": 2,
               "cow": 3, "sheep": 3, "dog": 1, "cat": 1},
    "desert": {"house": 1, "cactus": 4, "tent": 2, "car": 2, "person": 2, "dog": 1},
    "snow": {"house": 3, "pine tree": 4, "snowman": 3, "person": 2, "dog": 2, "tent": 1},
    "coast": {"house": 1, "palm tree": 4, "person": 3, "dog": 1, "cat": 1, "tent": 1},
    "lake": {"round tree": 2, "pine tree": 2, "flower": 2, "person": 2, "sheep": 1, "cow": 1, "dog": 1, "cat": 1,
             "tent": 1},
    "town": {"car": 4, "person": 3, "street lamp": 2, "round tree": 2, "cat": 1, "dog": 1},
}  # fmt: skip
_BACK: dict[str, dict[str, float]] = {
    "forest": {"pine tree": 3, "round tree": 2, "house": 1},
    "desert": {"cactus": 1},
    "snow": {"pine tree": 3, "house": 1},
    "coast": {},
    "lake": {"house": 3, "pine tree": 2, "round tree": 2},
    "town": {"house": 1},
}
_MANY = {"flower": 4, "pine tree": 4, "round tree": 3, "palm tree": 3, "cactus": 4, "sheep": 4, "person": 3, "house": 2,
         "lighthouse": 1, "windmill": 1}  # fmt: skip
_FRONT_BASE = {
    "forest": 0.9,
    "desert": 0.88,
    "snow": 0.9,
    "coast": 0.93,
    "lake": 0.95,
    "town": 0.93,
}
_BACK_BASE = {"forest": 0.7, "desert": 0.7, "snow": 0.7, "lake": 0.62, "town": 0.74}
_FENCED = ("forest", "snow")
_SNOWY, _RAINY = ("snow", "forest", "town"), ("forest", "coast", "lake", "town")


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing that stands on (x, base), or whose centre it is in the sky."""

    kind: str  # of KINDS
    colour: str
    x: float
    base: float
    scale: float = 1.0
    looks_left: bool = False

    @property
    def width(self) -> float:
        return KINDS[self.kind].width * self.scale

    @property
    def height(self) -> float:
        return KINDS[self.kind].height * self.scale

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        low = self.base + (0.5 * self.height if self.kind in SKY_KINDS else 0.0)
        return self.x - self.width / 2, low - self.height, self.x + self.width / 2, low


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a picture shows."""

    time: str
    place: str
    weather: str
    style: str
    backdrop: tuple[
        Point, ...
    ]  # apexes of mountains or dunes behind all, or the outline of an island
    hills: tuple[Point, ...]  # outline of the land behind the back row
    ground: tuple[Point, ...]  # outline of the land of the front row
    sky: tuple[Thing, ...]  # sun or moon, clouds, balloons, birds
    back: tuple[Thing, ...]  # what stands far off, from left to right
    water: tuple[Thing, ...]  # boats, bridge
    front: tuple[Thing, ...]  # what stands near
    dots: tuple[Point, ...]  # stars at night
    drops: tuple[Point, ...]  # rain or snow

    @property
    def things(self) -> tuple[Thing, ...]:
        return (*self.sky, *self.back, *self.water, *self.front)

    @property
    def class_id(self) -> int:
        """Return the number of the scene's class, of CLASSES."""
        return CLASSES.index((self.time, self.place))


def compose(seed: int) -> Scene:
    """Return the scene of a seed."""
    rng = random.Random(seed)
    time, place = rng.choice(CLASSES)
    weather = _weather(rng, place)
    sky = sky_of(rng, time, weather)
    water = _water(rng, place)
    return Scene(
        time=time,
        place=place,
        weather=weather,
        style="ink" if rng.random() < 0.25 else "flat",
        backdrop=_backdrop(rng, place),
        hills=_wave(
            rng,
            _BACK_BASE.get(place, HORIZON) - 0.03,
            0.02 if place in ("forest", "snow", "desert") else 0.0,
        ),
        ground=_wave(rng, _FRONT_BASE[place] - 0.1, 0.014 if place != "town" else 0.0),
        sky=sky,
        back=_back_row(rng, place),
        water=water,
        front=_front_row(rng, place),
        dots=scattered(rng, rng.randint(10, 18), 0.4, 0.09)
        if time == "night" and weather == "clear"
        else (),
        drops=scattered(rng, 26, 0.96, 0.1) if weather in ("rain", "snowfall") else (),
    )


def _weather(rng: random.Random, place: str) -> str:
    chance = rng.random()
    if chance < 0.1 and place in _RAINY:
        return "rain"
    if (place == "snow" and chance < 0.3) or (place in _SNOWY and 0.1 < chance < 0.14):
        return "snowfall"
    return "fog" if chance > 0.92 and place != "desert" else "clear"


def sky_of(rng: random.Random, time: str, weather: str) -> tuple[Thing, ...]:
    """Return sun or moon, clouds, balloons and birds."""
    columns = [0.15, 0.38, 0.62, 0.85]
    rng.shuffle(columns)
    found: list[Thing] = []
    if weather in ("clear", "snowfall") and rng.random() < 0.85:
        kind = (
            rng.choice(("full moon", "crescent moon"))
            if time == "night" or rng.random() < 0.08
            else "sun"
        )
        low = kind == "sun" and time != "day"
        y = rng.uniform(0.32, 0.42) if low else rng.uniform(0.12, 0.18)
        found.append(_thing(kind, "", columns.pop() + rng.uniform(-0.03, 0.03), y))
    for _ in range(rng.choices((0, 1, 2, 3), (3, 4, 3, 1))[0]):
        if columns:
            y = rng.uniform(0.1, 0.24)
            found.append(
                _thing(
                    "cloud", "", columns.pop() + rng.uniform(-0.03, 0.03), y, rng.choice((0.9, 1.1))
                )
            )
    if columns and weather == "clear" and rng.random() < 0.3:
        number = rng.randint(1, min(3, len(columns)))
        colours = _agreeing(rng, KINDS["balloon"].colours, number)
        for colour in colours:
            x = columns.pop() + rng.uniform(-0.03, 0.03)
            found.append(_thing("balloon", colour, x, rng.uniform(0.15, 0.3)))
    if weather != "snowfall" and time != "night" and columns and rng.random() < 0.3:
        x, y = columns.pop(), rng.uniform(0.16, 0.34)
        shifts = ((0, 0), (2 * GRAIN, GRAIN), (-2 * GRAIN, GRAIN), (0, 2 * GRAIN))
        found += [_thing("bird", "", x + dx, y + dy) for dx, dy in shifts[: rng.randint(1, 4)]]
    return tuple(found)


def _backdrop(rng: random.Random, place: str) -> tuple[Point, ...]:
    if place in ("coast", "town") and rng.random() < 0.5:
        return ()
    if place == "coast":
        return ((_snapped(rng.uniform(0.2, 0.8)), _snapped(rng.uniform(0.5, 0.54))),)
    high, low = (0.3, 0.42) if place in ("forest", "snow", "lake") else (0.42, 0.5)
    number = rng.choice((2, 3))
    apexes = [
        (_snapped((i + 0.5) / number + rng.uniform(-0.07, 0.07)), _snapped(rng.uniform(high, low)))
        for i in range(number)
    ]
    rng.shuffle(apexes)
    return tuple(apexes)


def _wave(rng: random.Random, level: float, swing: float) -> tuple[Point, ...]:
    phase, waves = math.tau * rng.randrange(16) / 16, rng.choice((0.7, 1.0, 1.3))
    return tuple(
        (i / 24, level + swing * math.sin(phase + math.tau * waves * i / 24)) for i in range(25)
    )


def scattered(rng: random.Random, number: int, bottom: float, gap: float) -> tuple[Point, ...]:
    """Return points in the upper part of the picture, `gap` apart."""
    found: list[Point] = []
    for _ in range(10 * number):
        point = _snapped(rng.uniform(0.02, 0.98)), _snapped(rng.uniform(0.02, bottom))
        if all(math.dist(point, other) > gap for other in found):
            found.append(point)
        if len(found) == number:
            break
    return tuple(found)


def _snapped(value: float) -> float:
    return round(value / GRAIN) * GRAIN


def _thing(
    kind: str, colour: str, x: float, base: float, scale: float = 1.0, looks_left: bool = False
) -> Thing:
    return Thing(kind, colour, _snapped(x), _snapped(base), scale, looks_left)


def _agreeing(rng: random.Random, colours: tuple[str, ...], number: int) -> list[str]:
    """Return colours of things of one kind, mostly one for all."""
    if rng.random() < 0.65:
        return [rng.choice(colours)] * number
    return [rng.choice(colours) for _ in range(number)]


def _group(rng: random.Random, kind: str, most: int) -> list[tuple[str, str]]:
    number = rng.randint(1, min(most, _MANY.get(kind, 2)))
    return [(kind, colour) for colour in _agreeing(rng, KINDS[kind].colours, number)]


def _front_row(rng: random.Random, place: str) -> tuple[Thing, ...]:
    """Fill the front row with one to three kinds of things; perhaps a fence behind them."""
    weights = dict(_FRONT[place])
    wanted: list[tuple[str, str]] = []
    for _ in range(rng.choices((0, 1, 2, 3), (1, 5, 8, 5))[0]):
        kind = rng.choices(list(weights), list(weights.values()))[0]
        del weights[kind]
        wanted += _group(rng, kind, 4)
    if place == "coast" and rng.random() < 0.3:
        wanted.append(("lighthouse", rng.choice(KINDS["lighthouse"].colours)))
    things = _placed(rng, wanted, _FRONT_BASE[place], 1.05)
    if place in _FENCED and rng.random() < 0.3:
        fence = _thing("fence", rng.choice(KINDS["fence"].colours), 0.5, _FRONT_BASE[place] - 0.055)
        return (fence, *things)
    return things


def _back_row(rng: random.Random, place: str) -> tuple[Thing, ...]:
    weights = _BACK[place]
    if place == "town":
        number = rng.randint(3, 5)
        scale = 0.96 / number / KINDS["house"].width
        scale = min(scale, 1.1)
        colours = [rng.choice(KINDS["house"].colours) for _ in range(number)]
        step = KINDS["house"].width * scale
        first = 0.5 - step * (number - 1) / 2
        return tuple(
            _thing("house", c, first + step * i, _BACK_BASE[place], scale)
            for i, c in enumerate(colours)
        )
    if not weights or rng.random() < 0.35:
        return ()
    wanted = _group(rng, rng.choices(list(weights), list(weights.values()))[0], 4)
    return _placed(rng, wanted, _BACK_BASE[place], 0.62, left=0.04, right=0.96)


def _water(rng: random.Random, place: str) -> tuple[Thing, ...]:
    if place == "lake" and rng.random() < 0.3:
        return (_thing("bridge", "", rng.choice((0.3, 0.5, 0.7)), 0.68),)
    if place not in ("lake", "coast") or rng.random() < 0.35:
        return ()
    number = rng.choices((1, 2, 3), (5, 4, 2))[0]
    wanted = [("boat", colour) for colour in _agreeing(rng, KINDS["boat"].colours, number)]
    return _placed(rng, wanted, 0.72, 1.0, wobble=0.02)


def _placed(
    rng: random.Random,
    wanted: list[tuple[str, str]],
    base: float,
    scale: float,
    *,
    left: float = 0.01,
    right: float = 0.99,
    wobble: float = 0.015,
) -> tuple[Thing, ...]:
    """Place kinds and colours side by side from left to right; what has no room is left out."""
    room, kept = right - left, []
    if rng.random() < 0.3:
        rng.shuffle(wanted)
    for kind, colour in wanted:
        if (width := KINDS[kind].width * scale) < room:
            room -= width
            kept.append((kind, colour))
    if rng.random() < 0.5:
        kept.reverse()
    shares = [rng.uniform(0.1, 1.0) for _ in range(len(kept) + 1)]
    unit, edge, looks_left = room / sum(shares), left, rng.random() < 0.5
    things: list[Thing] = []
    for (kind, colour), share in zip(kept, shares, strict=False):
        width = KINDS[kind].width * scale
        x = edge + share * unit + width / 2
        edge += share * unit + width
        thing = _thing(kind, colour, x, base + rng.uniform(-wobble, wobble), scale, looks_left)
        while things and thing.x - things[-1].x < 0.42 * (things[-1].width + width):
            thing = replace(thing, x=thing.x + GRAIN)  # snapped too near
        if thing.x + width / 2 < right + GRAIN / 2:
            things.append(thing)
    return tuple(things)
