"""Make prompts to measure a text model with, and score their pictures, in the manner of GenEval.

Source: Ghosh et al. 2023 (GenEval, arXiv 2310.11513): six tasks, a picture is right if all that its prompt says is
there; the score is the mean over the tasks. Here every prompt comes from a scene that no network was trained on, so
each can be fulfilled; two tasks are added, the land with its hour and the long caption.
Differs: "a house" asks for exactly one.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, count

from experiments.scenes.captions import (
    Words,
    full,
    group_words,
    joined,
    pair_words,
    place_words,
    present,
    sky_words,
    time_words,
)
from experiments.scenes.facts import Claim, Facts, facts_of, holds
from experiments.scenes.scene import compose_varied

FIRST_PROMPT_SEED = 40_000_000  # of scenes and wordings; training captions have lower ones


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text, what a picture of it must show, its task, and the seed of a scene that it is true of."""

    task: str
    text: str
    claims: tuple[Claim, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Score:
    """Shares of 1 over all pictures."""

    tasks: dict[str, float]  # pictures that show all that was asked for
    labels: dict[str, float]  # claims that hold, by what they are about

    @property
    def overall(self) -> float:
        """Return the mean over the tasks."""
        return sum(self.tasks.values()) / len(self.tasks)


def prompts(numbers: dict[str, int] | None = None) -> list[Prompt]:
    """Return the prompts, always the same, no text twice. `numbers` = how many of each task; None = NUMBERS."""
    numbers = numbers or NUMBERS
    found: dict[str, dict[str, Prompt]] = {task: {} for task in numbers}
    for seed in count(FIRST_PROMPT_SEED):
        facts, rng = facts_of(compose_varied(seed)), random.Random(seed)
        for task in numbers:
            words = TASKS[task](facts, rng)
            if words is not None and len(found[task]) < numbers[task]:
                found[task].setdefault(words.text, Prompt(task, words.text, words.claims, seed))
        if all(len(found[task]) == number for task, number in numbers.items()):
            return [prompt for of_task in found.values() for prompt in of_task.values()]
    raise AssertionError("seeds never end")


def score(pictures: Iterable[tuple[Prompt, Facts]]) -> Score:
    """Score how well pictures show what their prompts say; `Facts` are what was read from each."""
    tasks, labels = defaultdict(list), defaultdict(list)
    for prompt, facts in pictures:
        is_right = [holds(claim, facts) for claim in prompt.claims]
        tasks[prompt.task].append(all(is_right))
        for claim, right in zip(prompt.claims, is_right, strict=True):
            labels[claim.label].append(right)
    return Score(_shares(tasks), _shares(labels))


def _shares(found: dict[str, list[bool]]) -> dict[str, float]:
    return {name: sum(values) / len(values) for name, values in sorted(found.items())}


# Each: the prompt of a task about a scene, or None if the scene does not have what it takes.


def _single_object(facts: Facts, rng: random.Random) -> Words | None:
    groups = [g for g in (*present(facts), "bodies") if len(facts.things[g]) == 1]
    return group_words(facts, rng.choice(groups), rng) if groups else None


def _two_objects(facts: Facts, rng: random.Random) -> Words | None:
    pairs = list(combinations(present(facts), 2))
    if not pairs:
        return None
    a, b = rng.sample(rng.choice(pairs), 2)
    return joined([group_words(facts, a, rng), Words("and"), group_words(facts, b, rng)])


def _counting(facts: Facts, rng: random.Random) -> Words | None:
    groups = [g for g in (*present(facts), "clouds") if len(facts.things[g]) > 1]
    words = group_words(facts, rng.choice(groups), rng) if groups else None
    return words if words and any(claim.what == "count" for claim in words.claims) else None


def _colours(facts: Facts, rng: random.Random) -> Words | None:
    groups = present(facts)
    words = group_words(facts, rng.choice(groups), rng) if groups else None
    return words if words and _num_coloured(words.claims) == 1 else None


def _position(facts: Facts, rng: random.Random) -> Words | None:
    pairs = list(combinations(present(facts), 2))
    if not pairs:
        return None
    a, b = rng.sample(rng.choice(pairs), 2)
    words = pair_words(facts, a, b, rng)
    return words if any(claim.label == "order" for claim in words.claims) else None


def _colour_attribution(facts: Facts, rng: random.Random) -> Words | None:
    words = _two_objects(facts, rng) or _colours_of_two_houses(facts, rng)
    return words if words and _num_coloured(words.claims) == 2 else None


def _colours_of_two_houses(facts: Facts, rng: random.Random) -> Words | None:
    return group_words(facts, "houses", rng) if len(facts.things["houses"]) == 2 else None


def _land_and_hour(facts: Facts, rng: random.Random) -> Words | None:
    under = [Words("under"), sky_words(facts, rng)] if rng.random() < 0.5 else []
    return joined([Words("a landscape"), place_words(facts, rng), time_words(facts, rng), *under])


def _long_caption(facts: Facts, rng: random.Random) -> Words | None:
    return full(facts, rng)


def _num_coloured(claims: Sequence[Claim]) -> int:
    """Return how many colours are named."""
    colours = 0
    for claim in claims:
        if claim.what == "each":
            colours += len(set(claim.value))
        elif claim.what == "all" and claim.value in (("green round",), ("orange round",)):
            colours += 1
    return colours


TASKS: dict[str, Callable[[Facts, random.Random], Words | None]] = {
    "single object": _single_object,
    "two objects": _two_objects,
    "counting": _counting,
    "colours": _colours,
    "position": _position,
    "colour attribution": _colour_attribution,
    "land and hour": _land_and_hour,
    "long caption": _long_caption,
}
NUMBERS = {
    "single object": 40,
    "two objects": 50,
    "counting": 40,
    "colours": 50,
    "position": 60,
    "colour attribution": 60,
    "land and hour": 50,
    "long caption": 50,
}
