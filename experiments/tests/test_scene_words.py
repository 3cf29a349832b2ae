"""Captions of scenes, what they claim, and the prompts that a text model is measured with."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from experiments import scene_words
from experiments.scenes.captions import caption, describe
from experiments.scenes.facts import Claim, Facts, Thing, facts_of, holds
from experiments.scenes.prompts import NUMBERS, prompts, score
from experiments.scenes.scene import compose, compose_varied

SEEDS = range(1500)


def facts(time: str = "dusk", biome: str = "forest", **things: list[tuple[str, float]]) -> Facts:
    groups = ("trees", "houses", "boats", "clouds", "bodies")
    return Facts(
        time, biome, {g: tuple(Thing(*thing) for thing in things.get(g, [])) for g in groups}
    )


# "three pine trees left of a red house at dusk under a full moon"
ISSUE = facts(
    trees=[("pine", 0.1), ("pine", 0.3), ("pine", 0.5)],
    houses=[("red", 0.8)],
    bodies=[("full moon", 0.2)],
)


@pytest.mark.parametrize(
    ("claim", "is_true"),
    [
        (Claim("time", value="dusk"), True),
        (Claim("time", value="night"), False),
        (Claim("biome", value="forest"), True),
        (Claim("count", ("trees",), 3), True),
        (Claim("count", ("trees",), 2), False),
        (Claim("count", ("boats",), 0), True),
        (Claim("several", ("trees",)), True),
        (Claim("several", ("houses",)), False),
        (Claim("all", ("trees",), ("pine", "snowy pine")), True),
        (Claim("all", ("trees",), ("palm",)), False),
        (Claim("all", ("boats",), ("red",)), False),  # there is none
        (Claim("each", ("houses",), ("red",)), True),
        (Claim("each", ("houses",), ("red", "red")), False),
        (Claim("place", ("houses",), "right"), True),
        (Claim("place", ("trees",), "left"), False),
        (Claim("place", ("clouds",), "left"), False),
        (Claim("left of", ("trees", "houses")), True),
        (Claim("left of", ("houses", "trees")), False),
        (Claim("left of", ("boats", "trees")), False),
        (Claim("between", ("houses", "trees")), False),
    ],
)
def test_a_claim(claim: Claim, is_true: bool) -> None:
    assert holds(claim, ISSUE) == is_true


def test_what_stands_between_others() -> None:
    row = facts(houses=[("red", 0.5)], trees=[("pine", 0.2), ("pine", 0.8)])
    assert holds(Claim("between", ("houses", "trees")), row)
    assert not holds(Claim("left of", ("houses", "trees")), row)


def test_every_caption_is_true_of_its_picture() -> None:
    for seed in SEEDS:
        scene = compose_varied(seed)
        words = describe(scene, seed)
        assert words.text.strip(" .") and words.claims
        for claim in words.claims:
            assert holds(claim, facts_of(scene), tolerance=0), (words.text, claim)


def test_control_captions_are_mostly_false_of_another_picture() -> None:
    wrong = sum(
        not all(holds(c, facts_of(compose(seed + 1))) for c in describe(compose(seed), seed).claims)
        for seed in SEEDS
    )
    assert wrong / len(SEEDS) > 0.8


def test_the_words_of_the_claims_are_in_the_text() -> None:
    for seed in SEEDS:
        words = describe(compose_varied(seed), seed)
        for claim in words.claims:
            if claim.what == "each":
                assert all(colour in words.text for colour in claim.value)
            if claim.what == "place":
                assert any(phrase in words.text for phrase in scene_words.PLACE_WORDS[claim.value])
            if claim.what == "left of":
                assert any(word in words.text for word in ("left of", "right of", "left to right"))


def test_the_seed_decides_the_caption_and_nothing_else_moves() -> None:
    state = random.getstate()
    scene = compose(3)
    found = [caption(scene, seed) for seed in range(50)]
    assert found == [caption(scene, seed) for seed in range(50)]
    assert len(set(found)) > 40
    assert random.getstate() == state


def test_captions_are_short_and_long_and_speak_of_everything() -> None:
    words = [describe(compose_varied(seed), seed) for seed in SEEDS]
    lengths = [len(w.text.split()) for w in words]
    assert sum(length <= 3 for length in lengths) > 0.1 * len(words)
    assert sum(length >= 15 for length in lengths) > 0.2 * len(words)
    labels = Counter(claim.label for w in words for claim in set(w.claims))
    for label in ("time", "biome", "place", "order", "colour houses", "colour boats"):
        assert labels[label] > 50, label
    for group in ("trees", "houses", "boats", "clouds"):
        assert labels[f"count {group}"] > 50


def test_a_moon_may_stand_at_dusk_in_varied_scenes_only() -> None:
    def moons(make: Any) -> int:
        scenes = [make(seed) for seed in SEEDS]
        return sum(s.time == "dusk" and bool(s.body) and "moon" in s.body.kind for s in scenes)

    assert moons(compose) == 0
    assert moons(compose_varied) > 50


# Prompts.


def test_the_prompts_are_always_the_same_and_no_text_is_there_twice() -> None:
    found = prompts()
    assert found == prompts()
    assert Counter(prompt.task for prompt in found) == NUMBERS
    for task in NUMBERS:
        texts = [prompt.text for prompt in found if prompt.task == task]
        assert len(set(texts)) == len(texts)


def test_the_scene_that_a_prompt_came_from_scores_full_marks() -> None:
    found = prompts()
    result = score((prompt, facts_of(compose_varied(prompt.seed))) for prompt in found)
    assert result.overall == 1
    assert set(result.tasks) == set(NUMBERS)
    assert set(result.labels.values()) == {1.0}


def test_control_scenes_of_other_prompts_score_low() -> None:
    found = prompts()
    other = [facts_of(compose_varied(prompt.seed)) for prompt in found[1:] + found[:1]]
    result = score(zip(found, other, strict=True))
    assert result.overall < 0.3
    assert result.tasks["position"] < 0.2


def test_each_task_asks_for_what_it_is_named_after() -> None:
    for prompt in prompts():
        labels = {claim.label for claim in prompt.claims}
        if prompt.task == "position":
            assert "order" in labels
        if prompt.task in ("colours", "colour attribution"):
            assert labels & {"colour houses", "colour boats", "kind trees"}
        if prompt.task == "land and hour":
            assert {"time", "biome"} <= labels
