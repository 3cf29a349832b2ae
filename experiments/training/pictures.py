"""Tell a trainer what its pictures show, whatever they are of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from experiments.scenes import captions, edits, facts, kinds, scene
from experiments.scenes.facts import Facts
from experiments.world import captions as world_captions
from experiments.world import edits as world_edits
from experiments.world import facts as world_facts
from experiments.world import scene as world_scene
from shortcut.grid import Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Pictures by seed: their scenes, and what is said about these."""

    compose: Callable[[int], Any]
    altered: Callable[[int], Any]  # the scene of a seed with one thing changed
    caption: Callable[[Any, int], str]  # a scene and the seed of a wording
    instruction: Callable[[Facts, Facts, int], edits.Instruction]
    facts: Callable[[Any], Facts]
    labels: Callable[[Any, Grid], Tensor]  # what stands on each token, (L,)
    num_labels: int


SCENES = Pictures(
    compose=scene.compose_varied,
    altered=edits.altered,
    caption=captions.caption,
    instruction=edits.instruction,
    facts=facts.facts_of,
    labels=kinds.kinds_of,
    num_labels=len(kinds.KINDS),
)
WORLD = Pictures(
    compose=world_scene.compose,
    altered=world_edits.altered,
    caption=world_captions.caption,
    instruction=world_edits.instruction,
    facts=world_facts.facts_of,
    labels=world_facts.labels_of,
    num_labels=len(world_facts.LABELS),
)
