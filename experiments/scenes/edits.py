"""Make pairs of scenes that differ in one thing, and instructions from one to the other, either way.

Covered: all things of a group taken away or added (trees, houses, boats, clouds, sun or moon); another colour of
houses, sails or round trees; another sun or moon; another time of day.
Not covered: how many, where, another land, several changes at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from experiments.scenes.captions import (
    BOATS,
    HOUSES,
    TIME_NOUNS,
    TIME_WORDS,
    TREE,
    TREE_NOUNS,
    Words,
    group_words,
    where_words,
)
from experiments.scenes.facts import GROUPS, Claim, Facts, holds
from experiments.scenes.scene import (
    BODY_KINDS,
    HOUSE_COLOURS,
    SAIL_COLOURS,
    TIMES,
    Body,
    Scene,
    body_of,
    compose_stars,
    compose_varied,
)

REMOVE = ("remove the {}", "remove the {}", "delete the {}", "erase the {}", "without the {}")
REMOVE_SEVERAL = (*REMOVE, "remove all {}", "no {}")
ADD = ("add {}", "add {}", "draw {}", "put {} into the picture", "the same picture with {}")
COLOUR = (
    "change the {noun} to {colour}",
    "make the {noun} {colour}",
    "paint the {noun} {colour}",
    "turn the {noun} {colour}",
    "change the colour of the {noun} to {colour}",
    "make the colour of the {noun} {colour}",
)
BODY = ("replace the {} with a {}", "change the {} to a {}", "turn the {} into a {}")
TIME = ("make it {new}", "make it {new}", "turn {old} into {new}", "change {old} to {new}")
SHARE_DOT = 0.2  # of instructions that end in a full stop


@dataclass(frozen=True, slots=True)
class Instruction:
    """What to change in a picture."""

    task: str  # time of day | remove | add | sun or moon | colour
    words: Words  # its claims are those that were asked for


def altered(seed: int) -> Scene:
    """Return the varied scene of a seed with one thing changed."""
    scene, rng = compose_varied(seed), random.Random(f"edit of {seed}")
    for change in rng.sample(_CHANGES, len(_CHANGES)):
        other = change(scene, rng)
        if other is not None:
            return other
    raise AssertionError("the time of day can always be changed")


def instruction(before: Facts, after: Facts, seed: int) -> Instruction:
    """Return the instruction that turns a picture of `before` into one of `after`; they differ in one thing."""
    rng = random.Random(seed)
    task, words = _instruction_words(before, after, rng)
    if rng.random() < SHARE_DOT:
        words = replace(words, text=f"{words.text}.")
    return Instruction(task, words)


def kept(before: Facts, after: Facts) -> tuple[Claim, ...]:
    """Return all that is true of both pictures: land, hour, and which things there are."""
    groups = (Claim("each", (group,), tuple(sorted(after.kinds(group)))) for group in GROUPS)
    claims = (Claim("time", value=after.time), Claim("biome", value=after.biome), *groups)
    return tuple(claim for claim in claims if holds(claim, before))


# Each: the scene with one change of a kind, or None if it has nothing to change so.


def _without(scene: Scene, rng: random.Random) -> Scene | None:
    empty: dict[str, Any] = {"trees": (), "houses": (), "boats": (), "clouds": (), "body": None}
    there = [name for name in empty if getattr(scene, name)]
    if not there:
        return None
    name = rng.choice(there)
    return replace(scene, **{name: empty[name]})


def _recoloured(scene: Scene, rng: random.Random) -> Scene | None:
    """Give all things of one group and colour another colour, which no other thing of the group has."""
    choices = {"houses": HOUSE_COLOURS, "boats": SAIL_COLOURS}
    if scene.trees and scene.trees[0].species == "round":
        choices["trees"] = ("green", "orange")
    there = [name for name in choices if getattr(scene, name)]
    if not there:
        return None
    name = rng.choice(there)
    things = getattr(scene, name)
    used = sorted({thing.colour for thing in things})
    old, new = rng.choice(used), rng.choice([c for c in choices[name] if c not in used])
    recoloured = tuple(replace(t, colour=new) if t.colour == old else t for t in things)
    return replace(scene, **{name: recoloured})


def _with_another_body(scene: Scene, rng: random.Random) -> Scene | None:
    if scene.body is None or scene.time == "day":
        return None
    kinds = BODY_KINDS[2:] if scene.time == "night" else BODY_KINDS[1:]
    kind = rng.choice([kind for kind in kinds if kind != scene.body.kind])
    return replace(scene, body=_moved(scene.body, kind, scene.time, rng))


def _at_another_time(scene: Scene, rng: random.Random) -> Scene:
    """Change the time; the sun becomes a moon at night, a moon the sun by day."""
    time = rng.choice([time for time in TIMES if time != scene.time])
    body = scene.body
    if body is not None:
        kind = "sun" if time == "day" else body.kind
        if time == "night" and kind == "sun":
            kind = rng.choice(BODY_KINDS[2:])
        body = _moved(body, kind, time, rng)
    stars = compose_stars(rng, body) if time == "night" else ()
    return replace(scene, time=time, body=body, stars=stars)


def _moved(body: Body, kind: str, time: str, rng: random.Random) -> Body:
    return body_of(rng, kind, time, body.x, body.size)


_CHANGES: tuple[Callable[[Scene, random.Random], Scene | None], ...] = (
    _without,
    _recoloured,
    _with_another_body,
    _at_another_time,
)


def _instruction_words(before: Facts, after: Facts, rng: random.Random) -> tuple[str, Words]:
    """Return the task and the words."""
    if before.time != after.time:
        return "time of day", _to_time(before.time, after.time, rng)
    group = next(group for group in GROUPS if before.kinds(group) != after.kinds(group))
    if not after.things[group]:
        return "remove", _to_remove(before, group, rng)
    if not before.things[group]:
        return "add", _to_add(after, group, rng)
    if group == "bodies":
        return "sun or moon", _to_body(before, after, rng)
    return "colour", _to_colour(before, after, group, rng)


def _to_time(old: str, new: str, rng: random.Random) -> Words:
    claims = (Claim("time", value=new),)
    if rng.random() < 0.3:
        return Words(f"the same picture {rng.choice(TIME_WORDS[new])}", claims)
    old_noun, new_noun = (
        rng.choice([n for n in TIME_NOUNS[t] if n != "stars"]) for t in (old, new)
    )
    return Words(rng.choice(TIME).format(old=old_noun, new=new_noun), claims)


def _to_remove(before: Facts, group: str, rng: random.Random) -> Words:
    forms = REMOVE_SEVERAL if len(before.things[group]) > 1 else REMOVE
    claims = (Claim("count", (group,), 0),)
    return Words(rng.choice(forms).format(_noun(before, group, rng)), claims)


def _to_add(after: Facts, group: str, rng: random.Random) -> Words:
    things = group_words(after, group, rng)
    if rng.random() < 0.5:
        things = things + where_words(after, group, rng)
    return Words(rng.choice(ADD).format(things.text), things.claims)


def _to_body(before: Facts, after: Facts, rng: random.Random) -> Words:
    (kind,) = after.kinds("bodies")
    # Between two moons only the full name says which one is meant.
    text = rng.choice(BODY).format(before.kinds("bodies")[0], kind)
    return Words(text, (Claim("all", ("bodies",), (kind,)),))


def _to_colour(before: Facts, after: Facts, group: str, rng: random.Random) -> Words:
    kinds = before.kinds(group)
    changed = [pair for pair in zip(kinds, after.kinds(group), strict=True) if pair[0] != pair[1]]
    (old, *_), (new, *_) = (kind.split() for kind in changed[0])  # "green round" -> "green"
    nouns = {"houses": rng.choice(HOUSES), "boats": ("sail", "sails"), "trees": TREE}[group]
    noun = nouns[len(changed) > 1]
    if len(changed) < len(kinds) or rng.random() < 0.3:
        noun = f"{old} {noun}"
    claims = (Claim("each", (group,), tuple(sorted(after.kinds(group)))),)
    return Words(rng.choice(COLOUR).format(noun=noun, colour=new), claims)


def _noun(facts: Facts, group: str, rng: random.Random) -> str:
    """Return a noun for the things of a group."""
    kinds = facts.kinds(group)
    if group == "bodies":
        return rng.choice((kinds[0], "sun" if kinds[0] == "sun" else "moon"))
    nouns = rng.choice(
        {
            "trees": (TREE, TREE_NOUNS.get(kinds[0], (TREE,))[0]),
            "houses": HOUSES,
            "boats": BOATS,
            "clouds": (("cloud", "clouds"),),
        }[group]
    )
    noun = nouns[len(kinds) > 1]
    has_one_colour = group == "houses" and len(set(kinds)) == 1
    return f"{kinds[0]} {noun}" if has_one_colour and rng.random() < 0.3 else noun
