"""Make pairs of scenes that differ in one thing, and instructions from one to the other, either way.

Covered: all things of a kind taken away or added; another colour of things that have one; another time of day, weather
or style.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from experiments.scenes.captions import (
    STYLE_WORDS,
    TIME_NOUNS,
    TIME_WORDS,
    WEATHER_WORDS,
    Words,
    group_words,
    where_words,
)
from experiments.scenes.claims import Claim, Facts, holds
from experiments.scenes.facts import GROUPS, visible_groups
from experiments.scenes.kinds import KINDS
from experiments.scenes.scene import BODIES, STYLES, TIMES, Scene, Thing, compose, scattered, sky_of

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
TIME = ("make it {new}", "make it {new}", "turn {old} into {new}", "change {old} to {new}")
_ROWS = ("sky", "back", "water", "front")


@dataclass(frozen=True, slots=True)
class Instruction:
    """What to change in a picture."""

    task: str  # one of TASKS
    words: Words  # its claims are those that were asked for


def altered(seed: int) -> Scene:
    """Return the scene of a seed with one thing changed."""
    scene, rng = compose(seed), random.Random(f"edit of {seed}")
    for change in rng.sample(_CHANGES, len(_CHANGES)):
        other = change(scene, rng)
        if other is not None:
            return other
    raise AssertionError("the time of day can always be changed")


def instruction(before: Facts, after: Facts, seed: int) -> Instruction:
    """Return the instruction that turns a picture of `before` into one of `after`; they differ in one thing."""
    rng = random.Random(seed)
    task, words = _words(before, after, rng)
    if rng.random() < 0.2:
        words = replace(words, text=f"{words.text}.")
    return Instruction(task, words)


def kept(before: Facts, after: Facts) -> tuple[Claim, ...]:
    """Return all that is true of both pictures."""
    groups = (Claim("each", (group,), tuple(sorted(after.colours(group)))) for group in GROUPS)
    whole = (Claim("time", value=after.time), Claim("place", value=after.place))
    whole += (Claim("weather", value=after.weather), Claim("style", value=after.style))
    return tuple(claim for claim in (*whole, *groups) if holds(claim, before))


# Each: the scene with one change of a kind, or None if it has nothing to change so.


def _without(scene: Scene, rng: random.Random) -> Scene | None:
    groups = [g for g in visible_groups(scene) if (scene.place, g) != ("town", "house")]
    if not groups:
        return None
    gone = rng.choice(groups)
    return _mapped(scene, lambda thing: None if thing.kind == gone else thing)


def _recoloured(scene: Scene, rng: random.Random) -> Scene | None:
    """Give all things of one kind and colour another colour, which no other of them has."""
    groups = [g for g in visible_groups(scene) if len(GROUPS[g]) > 1]
    if not groups:
        return None
    group = rng.choice(groups)
    used = sorted({thing.colour for thing in scene.things if thing.kind == group})
    free = [colour for colour in GROUPS[group] if colour not in used]
    if not free:
        return None
    old, new = rng.choice(used), rng.choice(free)
    is_meant = {(group, old)}
    return _mapped(scene, lambda t: replace(t, colour=new) if (t.kind, t.colour) in is_meant else t)


def _at_another_time(scene: Scene, rng: random.Random) -> Scene:
    """Change the time; sun or moon go with it."""
    time = rng.choice([time for time in TIMES if time != scene.time])
    bodies = [body for body in sky_of(rng, time, scene.weather) if body.kind in BODIES][:1]
    had_body = any(thing.kind in BODIES for thing in scene.sky)
    others = tuple(thing for thing in scene.sky if thing.kind not in BODIES)
    if bodies and had_body:
        x = next(thing.x for thing in scene.sky if thing.kind in BODIES)
        others = (replace(bodies[0], x=x), *others)
    dots = scattered(rng, 14, 0.4, 0.09) if time == "night" and scene.weather == "clear" else ()
    return replace(scene, time=time, sky=others, dots=dots)


def _in_another_style(scene: Scene, rng: random.Random) -> Scene | None:
    (style,) = (style for style in STYLES if style != scene.style)
    return replace(scene, style=style) if rng.random() < 0.5 else None


def _mapped(scene: Scene, change: Callable[[Thing], Thing | None]) -> Scene:
    rows = {row: tuple(t for old in getattr(scene, row) if (t := change(old))) for row in _ROWS}
    return replace(scene, **rows)


_CHANGES = (_without, _recoloured, _without, _recoloured, _at_another_time, _in_another_style)


def _words(before: Facts, after: Facts, rng: random.Random) -> tuple[str, Words]:
    """Return the task and the words."""
    if before.time != after.time:
        return "time of day", _to_time(before.time, after.time, rng)
    if before.weather != after.weather:
        words = WEATHER_WORDS.get(after.weather, ("in clear weather",))
        return "weather", Words(
            f"the same picture {rng.choice(words)}", (Claim("weather", value=after.weather),)
        )
    if before.style != after.style:
        words = rng.choice(STYLE_WORDS[after.style])
        return "style", Words(f"the same picture {words}", (Claim("style", value=after.style),))
    group = next(group for group in GROUPS if before.colours(group) != after.colours(group))
    kind = KINDS[group]
    if not after.things[group]:
        several = len(before.things[group]) > 1
        text = rng.choice(REMOVE_SEVERAL if several else REMOVE).format(
            kind.plural if several else kind.noun
        )
        return "remove", Words(text, (Claim("count", (group,), 0),))
    if not before.things[group]:
        things = group_words(after, group, rng)
        if rng.random() < 0.5:
            things = things + where_words(after, group, rng)
        return "add", Words(rng.choice(ADD).format(things.text), things.claims)
    return "colour", _to_colour(before, after, group, rng)


def _to_time(old: str, new: str, rng: random.Random) -> Words:
    claims = (Claim("time", value=new),)
    if rng.random() < 0.3:
        return Words(f"the same picture {rng.choice(TIME_WORDS[new])}", claims)
    old_noun, new_noun = (
        rng.choice([n for n in TIME_NOUNS[t] if n != "stars"]) for t in (old, new)
    )
    return Words(rng.choice(TIME).format(old=old_noun, new=new_noun), claims)


def _to_colour(before: Facts, after: Facts, group: str, rng: random.Random) -> Words:
    pairs = list(zip(before.colours(group), after.colours(group), strict=True))
    changed = [pair for pair in pairs if pair[0] != pair[1]]
    old, new = changed[0]
    kind, several = KINDS[group], len(changed) > 1
    noun = (kind.detail + "s" * several) if kind.detail else (kind.plural if several else kind.noun)
    if len(changed) < len(pairs) or rng.random() < 0.3:
        noun = f"{old} {noun}"
    claims = (Claim("each", (group,), tuple(sorted(after.colours(group)))),)
    return Words(rng.choice(COLOUR).format(noun=noun, colour=new), claims)
