"""Describe a scene in English, with the claims that the words make; all are true of its picture.

Some captions say all, most leave things out, and what is left out says nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from experiments.scenes.claims import SIDES, Claim, Facts, holds
from experiments.scenes.facts import facts_of, visible_groups
from experiments.scenes.kinds import KINDS
from experiments.scenes.scene import BODIES, SKY_KINDS, Scene

COUNT_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
TIME_WORDS = {
    "dawn": ("at dawn", "at daybreak", "in the early morning", "at sunrise"),
    "day": ("by day", "during the day", "in daylight", "at noon"),
    "dusk": ("at dusk", "in the evening light", "in the glow of dusk", "at sunset"),
    "night": ("at night", "on a starry night", "after dark", "under the stars"),
}
TIME_NOUNS = {
    "dawn": ("dawn", "sunrise", "early morning"),
    "day": ("day", "daylight", "noon"),
    "dusk": ("dusk", "sunset", "evening"),
    "night": ("night", "a starry night", "stars"),
}
SIDE_WORDS = {
    "left": ("on the left", "on the left side", "at the left"),
    "middle": ("in the middle", "in the centre", "in the center"),
    "right": ("on the right", "on the right side", "at the right"),
}
SCENE_WORDS = {
    "forest": ("in a green valley", "in the forest", "on a meadow", "in front of mountains"),
    "desert": ("in the desert", "among the dunes", "in a sandy desert", "in a dry desert"),
    "snow": ("in the snow", "in a snowy valley", "in winter", "in a winter landscape"),
    "coast": ("at the coast", "by the sea", "on the beach", "at the ocean"),
    "lake": ("at a lake", "by the lake", "on the shore of a lake", "at a calm lake"),
    "town": ("in the town", "in the street", "in the city", "in a small town"),
}
SCENE_NOUNS = {
    "forest": ("a green valley", "a forest", "a meadow"),
    "desert": ("a desert", "a sandy desert", "dunes"),
    "snow": ("a snowy landscape", "snow", "a winter landscape"),
    "coast": ("the coast", "a beach", "the sea", "the ocean"),
    "lake": ("a lake", "a calm lake", "a lake that mirrors its shore"),
    "town": ("a town", "a street", "a city", "a row of houses"),
}
WEATHER_WORDS = {
    "rain": ("in the rain", "while it rains", "in rainy weather"),
    "snowfall": ("in falling snow", "while it snows", "in a snowfall"),
    "fog": ("in the fog", "in the mist", "in foggy weather"),
}
WEATHER_NOUNS = {
    "rain": ("rain",),
    "snowfall": ("snowfall", "falling snow"),
    "fog": ("fog", "mist"),
}
STYLE_WORDS = {
    "ink": ("as an ink drawing", "with black outlines", "in comic style", "as a cartoon"),
    "flat": ("in flat design", "without outlines"),
}
OPENINGS = ("a picture of", "an image of", "a drawing of", "a scene with")
_TREES = ("pine tree", "round tree", "palm tree")
SHARE_FULL, SHARE_TAGS, SHARE_DOT = 0.35, 0.15, 0.1


@dataclass(frozen=True, slots=True)
class Words:
    """Some words and what they claim."""

    text: str
    claims: tuple[Claim, ...] = ()

    def __add__(self, other: Words) -> Words:
        return Words(f"{self.text} {other.text}".strip(), self.claims + other.claims)


def caption(scene: Scene, seed: int) -> str:
    """Return an English description of the scene; the seed varies what is said and how."""
    return describe(scene, seed).text


def describe(scene: Scene, seed: int) -> Words:
    """Return a caption with the claims that it makes."""
    rng, facts = random.Random(seed), facts_of(scene)
    groups = visible_groups(scene)
    groups = rng.sample(groups, len(groups))
    form = rng.random()
    if form < SHARE_FULL:
        words = sentence(facts, groups, rng, share=0.95)
    elif form < SHARE_FULL + SHARE_TAGS:
        words = _tags(facts, groups, rng)
    else:
        words = sentence(facts, groups[: rng.randint(0, 3)], rng, share=rng.choice((0.2, 0.4, 0.7)))
    return replace(words, text=f"{words.text}.") if rng.random() < SHARE_DOT else words


def sentence(facts: Facts, groups: list[str], rng: random.Random, share: float) -> Words:
    """Return a sentence about groups, and with a chance of `share` each about place, time, weather and style."""
    things = things_words(facts, groups, rng)
    around = [words for words in (place_words, time_words, weather_words) if rng.random() < share]
    parts = [part for make in rng.sample(around, len(around)) if (part := make(facts, rng)).text]
    if not things.text:
        parts = [part for part in parts if "place" not in {claim.what for claim in part.claims}]
        things = _noun(facts, rng)
    elif rng.random() < 0.1:
        things = Words(rng.choice(OPENINGS)) + things
    found = (
        joined([*parts, Words(","), things])
        if parts and rng.random() < 0.25
        else joined([things, *parts])
    )
    if rng.random() < share * (0.8 if facts.style == "ink" else 0.2):
        found = joined([found, style_words(facts, rng)])
    return found


def _tags(facts: Facts, groups: list[str], rng: random.Random) -> Words:
    parts = [group_words(facts, group, rng) for group in groups]
    parts += [
        _noun(facts, rng),
        Words(rng.choice(TIME_NOUNS[facts.time]), (Claim("time", value=facts.time),)),
    ]
    if facts.weather in WEATHER_NOUNS:
        nouns = WEATHER_NOUNS[facts.weather]
        parts.append(Words(rng.choice(nouns), (Claim("weather", value=facts.weather),)))
    picked = rng.sample(parts, rng.randint(1, min(5, len(parts))))
    return joined([word for part in picked for word in (Words(","), part)][1:])


def things_words(facts: Facts, groups: list[str], rng: random.Random) -> Words:
    """Name groups, the first of them with where they stand."""
    if not groups:
        return Words("")
    if len(groups) == 1:
        return group_words(facts, groups[0], rng) + where_words(facts, groups[0], rng)
    found = pair_words(facts, groups[0], groups[1], rng)
    for group in groups[2:]:
        joint = Words("and" if group == groups[-1] else ",")
        found = joined([found, joint, group_words(facts, group, rng)])
    return found


def pair_words(facts: Facts, a: str, b: str, rng: random.Random) -> Words:
    """Name two groups and how they stand to each other."""
    first, second = group_words(facts, a, rng), group_words(facts, b, rng)
    if "fence" not in (a, b) and rng.random() < 0.6:
        if holds(Claim("left of", (a, b)), facts):
            words = rng.choice(("left of", "to the left of"))
            return first + Words(words, (Claim("left of", (a, b)),)) + second
        if holds(Claim("left of", (b, a)), facts):
            words = rng.choice(("right of", "to the right of"))
            return first + Words(words, (Claim("left of", (b, a)),)) + second
    if rng.random() < 0.4:
        first = first + where_words(facts, a, rng)
    return first + Words(rng.choice(("and", "with", "and"))) + second


def where_words(facts: Facts, group: str, rng: random.Random) -> Words:
    """Say where a group stands, if all of it stands in one of SIDES; else nothing."""
    xs = facts.xs(group)
    for side, (low, high) in SIDES.items():
        if group != "fence" and low <= xs[0] and xs[-1] <= high:
            return Words(rng.choice(SIDE_WORDS[side]), (Claim("side", (group,), side),))
    return Words("in the sky") if group in SKY_KINDS and rng.random() < 0.3 else Words("")


def group_words(facts: Facts, group: str, rng: random.Random) -> Words:
    """Say how many of what: "three pine trees", "a red house and a blue house", "a boat with a white sail"."""
    kind, colours = KINDS[group], facts.colours(group)
    if group == "bird":
        return Words(
            "a bird" if len(colours) == 1 else rng.choice(("birds", "some birds")),
            (Claim("some", (group,)),),
        )
    if group in BODIES and rng.random() < 0.4:
        said, claims = f"the {group}", (Claim("some", (group,)),)
        return Words("the moon") if "moon" in group and rng.random() < 0.4 else Words(said, claims)
    nouns = kind.noun, kind.plural
    if kind.synonyms and rng.random() < 0.3:
        nouns = rng.choice(kind.synonyms)
    count = Claim("count", (group,), len(colours))
    only_tree = [g for g in _TREES if facts.things[g]] == [group]
    if only_tree and rng.random() < 0.15:
        return Words(_counted(len(colours), ("tree", "trees"), rng))
    is_mixed = len(set(colours)) > 1
    if colours[0] == "" or rng.random() < 0.2 or (is_mixed and len(colours) > 3):
        return Words(_counted(len(colours), nouns, rng), (count,))
    claims = (count, Claim("each", (group,), tuple(sorted(colours))))
    if is_mixed:
        return Words(_listed([_coloured(1, nouns, kind.detail, c, rng) for c in colours]), claims)
    return Words(_coloured(len(colours), nouns, kind.detail, colours[0], rng), claims)


def _coloured(
    number: int, nouns: tuple[str, str], detail: str, colour: str, rng: random.Random
) -> str:
    if not detail:
        return _counted(number, (f"{colour} {nouns[0]}", f"{colour} {nouns[1]}"), rng)
    article = f"{_article(colour)} " if number == 1 else ""
    joint = rng.choice(("with", "in")) if detail == "shirt" else "with"
    return f"{_counted(number, nouns, rng)} {joint} {article}{colour} {detail}{'s' * (number > 1)}"


def _counted(number: int, nouns: tuple[str, str], rng: random.Random) -> str:
    one, many = nouns
    if number == 1:
        return f"one {one}" if rng.random() < 0.15 else f"{_article(one)} {one}"
    return f"{number if rng.random() < 0.15 else COUNT_WORDS[number]} {many}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _listed(parts: list[str]) -> str:
    return " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _noun(facts: Facts, rng: random.Random) -> Words:
    return Words(rng.choice(SCENE_NOUNS[facts.place]), (Claim("place", value=facts.place),))


def place_words(facts: Facts, rng: random.Random) -> Words:
    """Say where it is."""
    return Words(rng.choice(SCENE_WORDS[facts.place]), (Claim("place", value=facts.place),))


def time_words(facts: Facts, rng: random.Random) -> Words:
    """Name the time of day."""
    return Words(rng.choice(TIME_WORDS[facts.time]), (Claim("time", value=facts.time),))


def weather_words(facts: Facts, rng: random.Random) -> Words:
    """Name the weather, unless it is clear."""
    if facts.weather == "clear":
        return Words("")
    return Words(rng.choice(WEATHER_WORDS[facts.weather]), (Claim("weather", value=facts.weather),))


def style_words(facts: Facts, rng: random.Random) -> Words:
    """Name the style."""
    return Words(rng.choice(STYLE_WORDS[facts.style]), (Claim("style", value=facts.style),))


def joined(parts: Sequence[Words]) -> Words:
    """Join the parts to one text, without a blank in front of punctuation; each claim once."""
    text = " ".join(part.text for part in parts if part.text)
    for mark in (",", ":"):
        text = text.replace(f" {mark}", mark)
    return Words(text, tuple(dict.fromkeys(claim for part in parts for claim in part.claims)))
