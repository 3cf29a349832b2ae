"""Label each token of the picture of a scene with the kind of thing that stands there."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.scenes.facts import GROUPS, tree_kind
from experiments.scenes.scene import Scene, Tree
from shortcut.grid import Grid

KINDS = (
    None,
    *((group, kind) for group, kinds in GROUPS.items() for kind in kinds),
)  # None: land, sky
_NUMBER = {kind: number for number, kind in enumerate(KINDS)}

Box = tuple[float, float, float, float]  # left, top, right, bottom in parts of the picture


def kinds_of(scene: Scene, grid: Grid) -> Tensor:
    """Return numbers (L,) in `KINDS` of what stands in front on each token, by rectangles around things."""
    number_YX = torch.zeros(grid, dtype=torch.long)
    rows, columns = grid
    for kind, (left, top, right, bottom) in _boxes(scene):
        across, down = _tokens(left, right, columns), _tokens(top, bottom, rows)
        number_YX[down, across] = _NUMBER[kind]
    return number_YX.flatten()


def _tokens(low: float, high: float, size: int) -> slice:
    """Return the tokens of `size` whose centre lies between two positions; at least one."""
    first = min(max(0, round(low * size)), size - 1)
    return slice(first, max(first + 1, round(high * size)))


def _boxes(scene: Scene) -> list[tuple[tuple[str, str], Box]]:
    """Return things and the rectangles around them, as `drawing` draws them, from back to front."""
    found: list[tuple[tuple[str, str], Box]] = []

    def add(group: str, kind: str, x: float, half: float, top: float, bottom: float) -> None:
        found.append(((group, kind), (x - half, top, x + half, bottom)))

    if body := scene.body:
        half = body.size / 2
        add("bodies", body.kind, body.x, half, body.y - half, body.y + half)
    for cloud in scene.clouds:
        w, y = cloud.width, cloud.y
        add("clouds", "cloud", cloud.x, 0.5 * w, y - 0.41 * w, y + 0.14 * w)
    for boat in scene.boats:
        w, base = boat.width, boat.base
        add("boats", boat.colour, boat.x, 0.5 * w, base - 1.1 * w, base + 0.02)
    for thing in sorted((*scene.houses, *scene.trees), key=lambda thing: thing.base):
        x, base = thing.x, thing.base
        if isinstance(thing, Tree):
            add("trees", tree_kind(thing), x, 0.25 * thing.height, base - thing.height, base)
        else:
            add("houses", thing.colour, x, 0.5 * thing.width, base - 0.95 * thing.width, base)
    return found
