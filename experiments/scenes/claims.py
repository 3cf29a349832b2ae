"""Facts that a picture shows, and claims about it that can be checked.

The same facts come from a scene (`facts.facts_of`) and from a picture (`judge.read`), so what a caption claims is
checked alike on both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SIDES = {"left": (0.0, 0.4), "middle": (0.4, 0.6), "right": (0.6, 1.0)}  # of a picture's width
TOLERANCE = 0.05  # of the picture's width, for positions that are read from a picture


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing of a group: its colour and its centre, 0 = left edge, 1 = right edge."""

    colour: str
    x: float


@dataclass(frozen=True, slots=True)
class Facts:
    """Hold what a picture shows."""

    time: str
    place: str
    things: Mapping[str, tuple[Thing, ...]]  # group -> its things from left to right
    weather: str = "clear"
    style: str = "flat"

    def colours(self, group: str) -> list[str]:
        return [thing.colour for thing in self.things[group]]

    def xs(self, group: str) -> list[float]:
        return [thing.x for thing in self.things[group]]


@dataclass(frozen=True, slots=True)
class Claim:
    """Something said about a picture.

    what       of                value
    time                         one of TIMES
    place                        one of PLACES
    weather                      one of WEATHERS
    style                        one of STYLES
    count      group             how many
    some       group             None: at least one
    each       group             colours, sorted: it has exactly these
    side       group             one of SIDES, on which all its things stand
    left of    two groups        None: all things of the first are left of all of the second
    """

    what: Literal["time", "place", "weather", "style", "count", "some", "each", "side", "left of"]
    of: tuple[str, ...] = ()
    value: Any = None


def holds(claim: Claim, facts: Facts, tolerance: float = TOLERANCE) -> bool:
    """Return whether a claim is true.

    Args:
        tolerance: how far beyond the edges of its place a thing may stand.
    """
    xs = [facts.xs(group) for group in claim.of]
    match claim.what:
        case "time":
            return facts.time == claim.value
        case "place":
            return facts.place == claim.value
        case "weather":
            return facts.weather == claim.value
        case "style":
            return facts.style == claim.value
        case "count":
            return len(xs[0]) == claim.value
        case "some":
            return bool(xs[0])
        case "each":
            return Counter(facts.colours(claim.of[0])) == Counter(claim.value)
        case "side":
            low, high = SIDES[claim.value]
            return bool(xs[0]) and all(low - tolerance <= x <= high + tolerance for x in xs[0])
        case "left of":
            return all(xs) and max(xs[0]) < min(xs[1])
