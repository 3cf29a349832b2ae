"""Describe a scene in English, with the claims that the words make; all are true of its picture.

Captions are long or short, in many wordings and orders. A short one leaves things out, and what is
left out says nothing: "two houses" is true of a picture with trees as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from experiments.scenes.facts import PLACES, Claim, Facts, facts_of, holds
from experiments.scenes.scene import Scene

COUNT_WORDS = ("no", "one", "two", "three", "four")
TREE_NOUNS: dict[str, tuple[tuple[str, str], ...]] = {  # the first is the usual one
    "pine": (("pine tree", "pine trees"), ("pine", "pines"), ("fir", "firs")),
    "green round": (("green round tree", "green round trees"), ("round tree", "round trees")),
    "orange round": (("orange round tree", "orange round trees"), ("orange tree", "orange trees")),
    "cactus": (("cactus", "cacti"), ("cactus", "cactuses")),
    "snowy pine": (
        ("snowy pine tree", "snowy pine trees"),
        ("snow-covered pine", "snow-covered pines"),
    ),
    "palm": (("palm tree", "palm trees"), ("palm", "palms")),
}
TREE, HOUSE, BOAT = ("tree", "trees"), ("house", "houses"), ("boat", "boats")
HOUSES = (HOUSE, HOUSE, HOUSE, ("cottage", "cottages"), ("cabin", "cabins"))
BOATS = (BOAT, BOAT, BOAT, ("sailboat", "sailboats"), ("sailing boat", "sailing boats"))
TIME_WORDS = {
    "dawn": ("at dawn", "at daybreak", "in the early morning", "at sunrise"),
    "day": ("by day", "during the day", "in daylight", "at noon"),
    "dusk": ("at dusk", "in the evening light", "in the glow of dusk", "at sunset"),
    "night": ("at night", "on a starry night", "after dark", "under the stars"),
}
BIOME_WORDS = {
    "forest": ("in the forest", "in a green forest valley", "on a forest meadow", "in the woods"),
    "desert": ("in the desert", "among the dunes", "in a sandy desert", "in a dry desert"),
    "snow": ("in the snow", "in a snowy valley", "in a snowy land", "in winter"),
    "coast": ("at the coast", "by the sea", "on a sandy beach by the sea", "at the ocean"),
}
BIOME_NOUNS = {
    "forest": ("a forest", "a green forest", "a forest meadow"),
    "desert": ("a desert", "a sandy desert", "dunes"),
    "snow": ("a snowy landscape", "snow", "a winter landscape"),
    "coast": ("the coast", "a beach", "the sea", "the ocean"),
}
TIME_NOUNS = {
    "dawn": ("dawn", "sunrise", "early morning"),
    "day": ("day", "daylight", "noon"),
    "dusk": ("dusk", "sunset", "evening"),
    "night": ("night", "a starry night", "stars"),
}
PLACE_WORDS = {
    "left": ("on the left", "on the left side", "at the left"),
    "middle": ("in the middle", "in the centre", "in the center"),
    "right": ("on the right", "on the right side", "at the right"),
}
BACKDROPS = {
    ("forest", 3): "mountains",
    ("desert", 3): "red mesas",
    ("snow", 3): "mountains",
    ("coast", 2): "a distant island",
}
OPENINGS = ("a picture of", "an image of", "a drawing of", "a landscape with", "a scene with")
GROUND = ("trees", "houses", "boats")
SHARE_FULL, SHARE_TAGS = 0.4, 0.15  # of captions; the rest are sentences that leave things out
SHARE_DOT = 0.1  # of captions that end in a full stop


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
    rng = random.Random(seed)
    facts = facts_of(scene)
    style = rng.random()
    if style < SHARE_FULL:
        words = full(facts, rng, BACKDROPS.get((scene.biome, len(scene.layers)), ""))
    elif style < SHARE_FULL + SHARE_TAGS:
        words = tags(facts, rng)
    else:
        words = partial(facts, rng)
    return replace(words, text=f"{words.text}.") if rng.random() < SHARE_DOT else words


def full(facts: Facts, rng: random.Random, backdrop: str = "") -> Words:
    """Return a sentence that names everything on the ground, what is behind it, land, time and sky."""
    things, at, when = things_words(facts, rng), place_words(facts, rng), time_words(facts, rng)
    sky = sky_words(facts, rng, is_full=True)
    if backdrop and rng.random() < 0.4:
        things = Words(things.text or "open land", things.claims) + Words(f"in front of {backdrop}")
    if not things.text:
        nothing = tuple(Claim("count", (group,), 0) for group in GROUND)
        things = rng.choice((Words("a quiet landscape"), Words("an empty landscape", nothing)))
    under, over, comma = Words("under"), Words("over"), Words(",")
    forms = (
        (things, at, when, under, sky),
        (things, when, at, under, sky),
        (when, comma, things, at, under, sky),
        (at, when, comma, things, under, sky),
        (sky, over, things, at, when),
        (at, comma, when, Words(":"), things, comma, Words("with"), sky, Words("above")),
    )
    return joined(rng.choice(forms))


def partial(facts: Facts, rng: random.Random) -> Words:
    """Return a sentence that leaves things out, often nearly all."""
    share = rng.choice((0.25, 0.5, 0.75))
    has_place, has_time, has_sky = (rng.random() < share for _ in range(3))
    things = things_words(facts, rng, [g for g in present(facts) if rng.random() < share])
    if not things.text:
        return _without_things(facts, rng, has_place, has_time, has_sky)
    if rng.random() < 0.1:
        things = Words(rng.choice(OPENINGS)) + things
    circumstances = [place_words(facts, rng)] if has_place else []
    circumstances += [time_words(facts, rng)] if has_time else []
    rng.shuffle(circumstances)
    is_last = circumstances and rng.random() < 0.25
    parts = [*circumstances, Words(","), things] if is_last else [things, *circumstances]
    return joined(parts + (_under(facts, rng) if has_sky else []))


def _without_things(
    facts: Facts, rng: random.Random, has_place: bool, has_time: bool, has_sky: bool
) -> Words:
    """Return a sentence about the land alone, or about the sky alone."""
    when = [time_words(facts, rng)] if has_time else []
    if has_sky and not has_place:
        return joined([sky_words(facts, rng), *when])
    land = Words("a landscape") if has_time and not has_place else _biome_noun(facts, rng)
    return joined([land, *when, *(_under(facts, rng) if has_sky else [])])


def _under(facts: Facts, rng: random.Random) -> list[Words]:
    return [Words(rng.choice(("under", "with", "below"))), sky_words(facts, rng)]


def tags(facts: Facts, rng: random.Random) -> Words:
    """Return a list of a few things, in any order."""
    parts = [group_words(facts, group, rng) for group in present(facts)]
    parts += [_biome_noun(facts, rng), _time_noun(facts, rng), sky_words(facts, rng)]
    picked = rng.sample(parts, rng.randint(1, len(parts)))
    return joined([word for part in picked for word in (Words(","), part)][1:])


def present(facts: Facts) -> list[str]:
    """Return the groups on the ground that have things."""
    return [group for group in GROUND if facts.things[group]]


def things_words(facts: Facts, rng: random.Random, groups: list[str] | None = None) -> Words:
    """Say what stands on the ground and where, of some or all groups; empty if there is nothing."""
    groups = present(facts) if groups is None else groups
    groups = rng.sample(groups, len(groups))
    if not groups:
        return Words("")
    if len(groups) == 1:
        return group_words(facts, groups[0], rng) + where_words(facts, groups[0], rng)
    if len(groups) == 2:
        return pair_words(facts, groups[0], groups[1], rng)
    if rng.random() < 0.5 and (row := _row_words(facts, groups, rng)) is not None:
        return row
    pair, last = pair_words(facts, groups[0], groups[1], rng), groups[2]
    joint = Words(rng.choice((", plus", "and", ", and")))
    return pair + joint + group_words(facts, last, rng) + where_words(facts, last, rng)


def _row_words(facts: Facts, groups: list[str], rng: random.Random) -> Words | None:
    """Name three groups from left to right; None if they stand among each other."""
    groups = sorted(groups, key=lambda group: facts.xs(group)[0])
    if not all(_is_left(facts, a, b) for a, b in pairwise(groups)):
        return None
    named = [group_words(facts, group, rng) for group in groups]
    order = tuple(Claim("left of", pair) for pair in pairwise(groups))
    text = f"from left to right {named[0].text}, {named[1].text} and {named[2].text}"
    return Words(text, tuple(claim for words in named for claim in words.claims) + order)


def pair_words(facts: Facts, a: str, b: str, rng: random.Random) -> Words:
    """Name two groups and how they stand to each other."""
    first, second = group_words(facts, a, rng), group_words(facts, b, rng)
    where, other = where_words(facts, a, rng), where_words(facts, b, rng)
    if where.text and other.text and rng.random() < 0.3:
        return first + where + Words("and") + second + other
    if _is_left(facts, a, b):
        words = rng.choice(("left of", "to the left of"))
        return first + Words(words, (Claim("left of", (a, b)),)) + second
    if _is_left(facts, b, a):
        words = rng.choice(("right of", "to the right of"))
        return first + Words(words, (Claim("left of", (b, a)),)) + second
    between = Claim("between", (a, b))
    if len(facts.things[b]) == 2 and holds(between, facts):
        return first + Words("between", (between,)) + second
    return first + Words(rng.choice(("and", "with", "and"))) + second


def where_words(facts: Facts, group: str, rng: random.Random) -> Words:
    """Say where a group stands, if all of it stands in one of PLACES; else nothing."""
    xs = facts.xs(group)
    for place, (low, high) in PLACES.items():
        if low <= xs[0] and xs[-1] <= high:
            return Words(rng.choice(PLACE_WORDS[place]), (Claim("place", (group,), place),))
    return Words("")


def group_words(facts: Facts, group: str, rng: random.Random) -> Words:
    """Say how many of what: "three pine trees", "a red house and a blue house", "clouds"."""
    return _NAMING[group](facts, rng)


def _trees(facts: Facts, rng: random.Random) -> Words:
    kind = facts.kinds("trees")[0]
    usual, *others = TREE_NOUNS[kind]
    style = rng.random()
    if style < 0.3 and kind != "cactus":
        return _counted(facts, "trees", TREE, rng)
    nouns = rng.choice(others) if style > 0.8 else usual
    # A round tree without a colour may be of either, a pine may be snowy or not.
    firs, rounds = ("pine", "snowy pine"), ("green round", "orange round")
    loose = {"round tree": rounds, "pine tree": firs, "pine": firs, "fir": firs}
    kinds = loose.get(nouns[0], (kind,))
    return _counted(facts, "trees", nouns, rng) + Words("", (Claim("all", ("trees",), kinds),))


def _houses(facts: Facts, rng: random.Random) -> Words:
    nouns = rng.choice(HOUSES)
    if rng.random() < 0.2:
        return _counted(facts, "houses", nouns, rng)
    colours = facts.kinds("houses")
    claim = Claim("each", ("houses",), tuple(sorted(colours)))
    if len(set(colours)) == 1:
        noun = (f"{colours[0]} {nouns[0]}", f"{colours[0]} {nouns[1]}")
        return _counted(facts, "houses", noun, rng, is_exact=True) + Words("", (claim,))
    count = Claim("count", ("houses",), len(colours))
    return Words(_listed([f"a {colour} {nouns[0]}" for colour in colours]), (count, claim))


def _boats(facts: Facts, rng: random.Random) -> Words:
    nouns = rng.choice(BOATS)
    if rng.random() < 0.3:
        return _counted(facts, "boats", nouns, rng)
    colours = facts.kinds("boats")
    claim = Claim("each", ("boats",), tuple(sorted(colours)))
    if len(set(colours)) == 1:
        sail = f"with {'a ' if len(colours) == 1 else ''}{colours[0]} sail"
        sails = sail if len(colours) == 1 else f"{sail}s"
        counted = _counted(facts, "boats", nouns, rng, is_exact=True)
        return counted + Words(sails, (claim,))
    count = Claim("count", ("boats",), len(colours))
    return Words(_listed([f"a {nouns[0]} with a {c} sail" for c in colours]), (count, claim))


def _clouds(facts: Facts, rng: random.Random) -> Words:
    return _counted(facts, "clouds", ("cloud", "clouds"), rng)


def _bodies(facts: Facts, rng: random.Random) -> Words:
    kind = facts.kinds("bodies")[0]
    if kind == "sun":
        return Words(rng.choice(("a sun", "the sun")), (Claim("all", ("bodies",), ("sun",)),))
    if rng.random() < 0.2:
        moons = ("full moon", "crescent moon")
        return Words(rng.choice(("a moon", "the moon")), (Claim("all", ("bodies",), moons),))
    return Words(f"a {kind}", (Claim("all", ("bodies",), (kind,)),))


_NAMING: dict[str, Callable[[Facts, random.Random], Words]] = {
    "trees": _trees,
    "houses": _houses,
    "boats": _boats,
    "clouds": _clouds,
    "bodies": _bodies,
}


def sky_words(facts: Facts, rng: random.Random, *, is_full: bool = False) -> Words:
    """Name sun or moon and clouds, or say that there is nothing; `is_full` = mostly all of it."""
    if not facts.things["bodies"]:
        if facts.things["clouds"]:
            return group_words(facts, "clouds", rng)
        bare = rng.choice(("an empty sky", "a clear sky"))
        text = "a moonless sky" if facts.time == "night" else bare
        claims = [Claim("count", ("bodies",), 0)]
        if text != "a moonless sky":
            claims.append(Claim("count", ("clouds",), 0))
        return Words(text, tuple(claims))
    body = group_words(facts, "bodies", rng)
    if rng.random() < (0.6 if is_full else 0.3):
        body = body + where_words(facts, "bodies", rng)
    if facts.things["clouds"] and rng.random() < (0.8 if is_full else 0.4):
        return body + Words("and") + group_words(facts, "clouds", rng)
    return body


def place_words(facts: Facts, rng: random.Random) -> Words:
    """Name the land."""
    return Words(rng.choice(BIOME_WORDS[facts.biome]), (Claim("biome", value=facts.biome),))


def time_words(facts: Facts, rng: random.Random) -> Words:
    """Name the time of day."""
    return Words(rng.choice(TIME_WORDS[facts.time]), (Claim("time", value=facts.time),))


def _biome_noun(facts: Facts, rng: random.Random) -> Words:
    return Words(rng.choice(BIOME_NOUNS[facts.biome]), (Claim("biome", value=facts.biome),))


def _time_noun(facts: Facts, rng: random.Random) -> Words:
    return Words(rng.choice(TIME_NOUNS[facts.time]), (Claim("time", value=facts.time),))


def _counted(
    facts: Facts, group: str, nouns: tuple[str, str], rng: random.Random, *, is_exact: bool = False
) -> Words:
    """Return a noun with its number; two or more may go without, unless `is_exact`."""
    number, (one, many) = len(facts.things[group]), nouns
    exact = (Claim("count", (group,), number),)
    if number == 1:
        article = "an" if one[0] in "aeiou" else "a"
        return Words(f"{rng.choice((article, article, article, 'one', '1'))} {one}", exact)
    style = rng.random()
    if style < 0.1 and not is_exact:
        return Words(rng.choice((many, f"some {many}")), (Claim("several", (group,)),))
    return Words(f"{number if style > 0.85 else COUNT_WORDS[number]} {many}", exact)


def _is_left(facts: Facts, a: str, b: str) -> bool:
    return holds(Claim("left of", (a, b)), facts)


def _listed(parts: list[str]) -> str:
    return " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def joined(parts: Sequence[Words]) -> Words:
    """Join the parts to one text, without a blank in front of punctuation; each claim once."""
    text = " ".join(part.text for part in parts if part.text)
    for mark in (",", ":"):
        text = text.replace(f" {mark}", mark)
    return Words(text, tuple(dict.fromkeys(claim for part in parts for claim in part.claims)))
