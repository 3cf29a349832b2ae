"""Facts that a picture of a scene shows, and claims about it that can be checked.

The same facts come from a scene (`facts_of`) and from a picture (`text_judge.read`), so what a caption
claims is checked alike on both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from experiments.scenes.scene import BODY_KINDS, HOUSE_COLOURS, SAIL_COLOURS, Scene, Tree

TREE_KINDS = ("pine", "green round", "orange round", "cactus", "snowy pine", "palm")
# Group -> what its things can be: species, or the colour of a house or a sail.
GROUPS: dict[str, tuple[str, ...]] = {
    "trees": TREE_KINDS,
    "houses": HOUSE_COLOURS,
    "boats": SAIL_COLOURS,
    "clouds": ("cloud",),
    "bodies": BODY_KINDS[1:],  # sun or moon; a sky has one at most
}
PLACES = {"left": (0.0, 0.4), "middle": (0.4, 0.6), "right": (0.6, 1.0)}  # of a picture's width
TOLERANCE = 0.05  # of the picture's width, for positions that are read from a picture


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing of a group: its kind and its centre, 0 = left edge, 1 = right edge."""

    kind: str
    x: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What a picture shows."""

    time: str
    biome: str
    things: Mapping[str, tuple[Thing, ...]]  # group -> its things from left to right
    weather: str = "clear"
    style: str = "flat"

    def kinds(self, group: str) -> list[str]:
        return [thing.kind for thing in self.things[group]]

    def xs(self, group: str) -> list[float]:
        return [thing.x for thing in self.things[group]]


@dataclass(frozen=True, slots=True)
class Claim:
    """Something said about a picture.

    what       of                value
    time                         one of TIMES
    biome                        one of BIOMES
    weather                      as in `world.scene`
    style                        likewise
    count      group             how many
    several    group             None: at least two
    all        group             kinds: it has things, all of them of one of these
    each       group             kinds, sorted: it has exactly these
    place      group             one of PLACES, in which all its things stand
    left of    two groups        None: all things of the first are left of all of the second
    between    two groups        None: the first stands between two things of the second
    """

    what: Literal[
        "time",
        "biome",
        "weather",
        "style",
        "count",
        "several",
        "all",
        "each",
        "place",
        "left of",
        "between",
    ]
    of: tuple[str, ...] = ()
    value: Any = None

    @property
    def label(self) -> str:
        """Return its subject, for tables: "count trees", "colour houses", "place", "order"."""
        match self.what:
            case "time" | "biome" | "weather" | "style":
                return self.what
            case "count" | "several":
                return f"count {self.of[0]}"
            case "all" | "each":
                return f"{'colour' if self.of[0] in ('houses', 'boats') else 'kind'} {self.of[0]}"
            case "place":
                return "place"
            case _:
                return "order"


def facts_of(scene: Scene) -> Facts:
    """Return what the picture of a scene shows."""
    groups = {
        "trees": [(tree_kind(tree), tree.x) for tree in scene.trees],
        "houses": [(house.colour, house.x) for house in scene.houses],
        "boats": [(boat.colour, boat.x) for boat in scene.boats],
        "clouds": [("cloud", cloud.x) for cloud in scene.clouds],
        "bodies": [(scene.body.kind, scene.body.x)] if scene.body else [],
    }
    things = {
        group: tuple(Thing(kind, x) for kind, x in sorted(found, key=lambda pair: pair[1]))
        for group, found in groups.items()
    }
    return Facts(scene.time, scene.biome, things)


def tree_kind(tree: Tree) -> str:
    """Return one of `TREE_KINDS`: round trees of another colour are of another kind."""
    return f"{tree.colour} round" if tree.species == "round" else tree.species


def holds(claim: Claim, facts: Facts, tolerance: float = TOLERANCE) -> bool:
    """Return whether a claim is true.

    Args:
        tolerance: how far beyond the edges of its place a thing may stand.
    """
    xs = [facts.xs(group) for group in claim.of]
    match claim.what:
        case "time":
            return facts.time == claim.value
        case "biome":
            return facts.biome == claim.value
        case "weather":
            return facts.weather == claim.value
        case "style":
            return facts.style == claim.value
        case "count":
            return len(xs[0]) == claim.value
        case "several":
            return len(xs[0]) >= 2
        case "all":
            kinds = facts.kinds(claim.of[0])
            return bool(kinds) and set(kinds) <= set(claim.value)
        case "each":
            return Counter(facts.kinds(claim.of[0])) == Counter(claim.value)
        case "place":
            low, high = PLACES[claim.value]
            return bool(xs[0]) and all(low - tolerance <= x <= high + tolerance for x in xs[0])
        case "left of":
            return all(xs) and max(xs[0]) < min(xs[1])
        case "between":
            return all(xs) and min(xs[1]) < min(xs[0]) and max(xs[0]) < max(xs[1])
