"""What the labels of tokens say against what the drawn picture shows there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from experiments.scenes.drawing import draw
from experiments.scenes.facts import facts_of
from experiments.scenes.kinds import KINDS, kinds_of
from experiments.scenes.scene import Scene, compose_varied

GRID = (12, 12)
# Without sun and moon, whose light is drawn far around them.
SCENES = [replace(compose_varied(seed), body=None) for seed in range(150)]


def share_changed(scene: Scene, other: Scene) -> torch.Tensor:
    """Of each token's square (L,), how much differs between the pictures of two scenes."""
    before, after = (np.asarray(draw(s), dtype=np.int16) for s in (scene, other))
    differs = torch.from_numpy(np.abs(before - after).max(2) > 16).float()
    return differs.unflatten(1, (12, 8)).unflatten(0, (12, 8)).mean((1, 3)).flatten()


def test_labels_lie_where_the_things_are_drawn() -> None:
    inside, outside = [], []
    for scene in SCENES:
        bare = replace(scene, trees=(), houses=(), boats=(), clouds=())
        changed_L, is_thing_L = share_changed(scene, bare), kinds_of(scene, GRID) > 0
        inside.append(changed_L[is_thing_L])
        outside.append(changed_L[~is_thing_L])
    assert torch.cat(inside).mean() > 0.5
    assert torch.cat(outside).mean() < 0.05


def test_a_thing_has_the_label_of_its_kind() -> None:
    for group in ("trees", "houses", "boats"):
        found = 0
        for scene in SCENES:
            without = replace(scene, **{group: ()})
            kinds = {(group, kind) for kind in facts_of(scene).kinds(group)}
            is_whole_L = share_changed(scene, without) > 0.7
            labels = {KINDS[number] for number in kinds_of(scene, GRID)[is_whole_L].tolist()}
            of_group = {label for label in labels if label and label[0] == group}
            assert of_group <= kinds
            found += len(of_group)
        assert found > 10


def test_nothing_is_labelled_where_nothing_stands() -> None:
    scene = replace(SCENES[0], trees=(), houses=(), boats=(), clouds=())
    assert not kinds_of(scene, GRID).any()
