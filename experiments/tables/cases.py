"""Ask for pictures in tables and say what each must show: classes, captions or edits of fresh scenes.

P  prompt tokens
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from experiments.scenes.captions import describe
from experiments.scenes.claims import Claim, Facts, holds
from experiments.scenes.drawing import pixels_of
from experiments.scenes.edits import altered, instruction, kept
from experiments.scenes.facts import facts_of
from experiments.scenes.scene import Scene, compose
from shortcut import Pipeline
from shortcut.models.architecture import Request

FIRST_SEED = 40_000_000  # of scenes and wordings that no network was trained on
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Case:
    """A picture that is asked for."""

    scene: Scene  # one that shows it
    claims: tuple[Claim, ...]  # what it must show
    conditions: Any  # (1, P) for each guidance branch; classes (1,)

    def is_met(self, facts: Facts) -> bool:
        """Return whether a picture shows all that was asked for."""
        return all(holds(claim, facts) for claim in self.claims)


def cases_of(pipeline: Pipeline, seeds: Sequence[int]) -> list[Case]:
    """Return the scenes of seeds, each asked for by its class or, of a text model, by a caption."""
    takes_text, found = "prompt" in pipeline.architecture.takes, []
    for seed in seeds:
        scene = compose(seed)
        request = Request(label=str(scene.class_id))
        claims = Claim("time", value=scene.time), Claim("place", value=scene.place)
        if takes_text:
            words = describe(scene, seed)
            request, claims = Request(prompt=words.text), words.claims
        conditions = pipeline.conditioner.conditions(request, 1)
        found.append(Case(scene, claims, conditions))
    return found


def known_captions(pipeline: Pipeline, num: int) -> list[Case]:
    """Return the first `num` captions all of whose words a text model knows."""

    def is_known(seed: int) -> bool:
        text = describe(compose(seed), seed).text
        return not pipeline.conditioner.unknown_words(Request(prompt=text))

    return cases_of(pipeline, list(islice(filter(is_known, count(FIRST_SEED)), num)))


def edits_of(pipeline: Pipeline, seeds: Sequence[int]) -> list[Case]:
    """Return edits of the scenes of seeds; all that was not to change must be as it was."""
    found = []
    for seed in seeds:
        before, after = compose(seed), altered(seed)
        if seed % 2:
            before, after = after, before
        facts = facts_of(before), facts_of(after)
        asked = instruction(*facts, seed).words
        source_1hw = pipeline.encode(pixels_of([before]))
        request = Request(prompt=asked.text, task="edit", sources=(source_1hw,))
        conditions = pipeline.conditioner.conditions(request, 1)
        found.append(Case(after, asked.claims + kept(*facts), conditions))
    return found


def batches(cases: Sequence[Case], size: int) -> list[list[int]]:
    """Return the numbers of cases in batches, whose prompts have one length each: nothing is padded."""
    groups: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for number, case in enumerate(cases):
        groups[tuple(c.shape[1:] for c in case.conditions)].append(number)
    return [part for numbers in groups.values() for part in parts(numbers, size)]


def batched(cases: Sequence[Case], numbers: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the conditions of the cases `numbers`, whose prompts have one length."""
    branches = zip(*(cases[number].conditions for number in numbers), strict=True)
    return tuple(torch.cat(prompts) for prompts in branches)


def parts(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Cut items into parts of at most `size`."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
