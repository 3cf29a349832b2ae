"""Describes a scene in one English sentence that is true of its picture."""

from __future__ import annotations

import random

from .scenes import Boat, House, Scene, Tree

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
