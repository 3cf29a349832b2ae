"""Tell what the picture of a scene shows: as facts that claims are checked on, and for each token.

L  tokens
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor

from experiments.scenes import claims
from experiments.scenes.kinds import KINDS
from experiments.scenes.scene import Scene, Thing
from shortcut.grid import Grid

# Group -> what its things can be, by colour; "" = they have none.
GROUPS: dict[str, tuple[str, ...]] = {name: kind.colours for name, kind in KINDS.items()}
LABELS = (None, *((group, colour) for group, colours in GROUPS.items() for colour in colours))
_NUMBER = {label: number for number, label in enumerate(LABELS)}
MOST_HIDDEN = 0.35  # of a thing that can still be told
LEAST_APART = 3 / 32  # of two things of a kind that can be counted


def facts_of(scene: Scene) -> claims.Facts:
    """Return what a scene holds, hidden or not."""
    return _facts(scene, scene.things)


def seen_facts(scene: Scene) -> claims.Facts:
    """Return what the picture of a scene shows."""
    out_of_sight = hidden(scene)
    return _facts(scene, [thing for thing in scene.things if thing not in out_of_sight])


def _facts(scene: Scene, shown: Iterable[Thing]) -> claims.Facts:
    in_order = sorted(shown, key=lambda thing: thing.x)
    things = {
        group: tuple(claims.Thing(t.colour, t.x) for t in in_order if t.kind == group)
        for group in GROUPS
    }
    return claims.Facts(scene.time, scene.place, things, scene.weather, scene.style)


def hidden(scene: Scene) -> set[Thing]:
    """Return the things that others in front of them hide for the most part."""
    things = scene.things
    return {
        thing
        for i, thing in enumerate(things)
        if sum(_overlap(thing, other) for other in things[i + 1 :] if other.kind != "fence")
        > MOST_HIDDEN
    }


def visible_groups(scene: Scene) -> list[str]:
    """Return the groups that the scene shows, all things of each in sight and apart from each other."""
    out_of_sight = {thing.kind for thing in hidden(scene)}
    found = []
    for group, things in facts_of(scene).things.items():
        is_apart = all(b.x - a.x >= LEAST_APART for a, b in pairwise(things)) or group == "bird"
        if things and is_apart and group not in out_of_sight:
            found.append(group)
    return found


def labels_of(scene: Scene, grid: Grid) -> Tensor:
    """Return numbers (L,) in `LABELS` of what stands in front on each token, by rectangles around things."""
    number_YX = torch.zeros(grid, dtype=torch.long)
    rows, columns = grid
    for thing in scene.things:
        left, top, right, bottom = thing.box
        across, down = _tokens(left, right, columns), _tokens(top, bottom, rows)
        number_YX[down, across] = _NUMBER[thing.kind, thing.colour]
    return number_YX.flatten()


def _tokens(low: float, high: float, size: int) -> slice:
    """Return the tokens of `size` whose centre lies between two positions; at least one."""
    first = min(max(0, round(low * size)), size - 1)
    return slice(first, max(first + 1, round(high * size)))


def _overlap(thing: Thing, other: Thing) -> float:
    """Return the share of a thing's box that lies in that of another."""
    (la, ta, ra, ba), (lb, tb, rb, bb) = thing.box, other.box
    width, height = min(ra, rb) - max(la, lb), min(ba, bb) - max(ta, tb)
    return max(0.0, width) * max(0.0, height) / ((ra - la) * (ba - ta))
