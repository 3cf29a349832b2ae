"""Scenes: what they show, captions, edits, labels of tokens, the tokenizer."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from experiments.scenes import tokenizer as words
from experiments.scenes.captions import caption, describe
from experiments.scenes.claims import Claim, Facts, Thing, holds
from experiments.scenes.drawing import draw
from experiments.scenes.edits import altered, instruction, kept
from experiments.scenes.facts import LABELS, facts_of, labels_of, seen_facts
from experiments.scenes.kinds import KINDS
from experiments.scenes.scene import CLASSES, compose
from experiments.training.stages import an_instruction

SCENES = [compose(seed) for seed in range(300)]


def facts(**things: list[tuple[str, float]]) -> Facts:
    shown = {group: tuple(Thing(*thing) for thing in things.get(group, [])) for group in KINDS}
    return Facts("dusk", "forest", shown)


# "three red flowers left of a blue house at dusk"
DUSK = facts(flower=[("red", 0.1), ("red", 0.3), ("red", 0.5)], house=[("blue", 0.8)])


@pytest.mark.parametrize(
    ("claim", "is_true"),
    [
        (Claim("time", value="dusk"), True),
        (Claim("place", value="desert"), False),
        (Claim("count", ("flower",), 3), True),
        (Claim("count", ("boat",), 0), True),
        (Claim("some", ("boat",)), False),
        (Claim("each", ("flower",), ("red",) * 3), True),
        (Claim("each", ("house",), ("blue", "blue")), False),
        (Claim("side", ("house",), "right"), True),
        (Claim("side", ("cloud",), "left"), False),
        (Claim("left of", ("flower", "house")), True),
        (Claim("left of", ("boat", "flower")), False),
    ],
)
def test_a_claim(claim: Claim, is_true: bool) -> None:
    assert holds(claim, DUSK) == is_true


def test_a_scene_follows_from_its_seed_and_shows_what_it_holds() -> None:
    assert SCENES[7] == compose(7) and {s.class_id for s in SCENES} == set(range(len(CLASSES)))
    assert {thing.kind for scene in SCENES for thing in scene.things} == set(KINDS)
    for scene in SCENES:
        standing = [thing for thing in scene.front if thing.kind != "fence"]
        for left, right in pairwise(standing):
            assert right.x - left.x > 0.4 * (left.width + right.width)


def test_a_lake_mirrors_what_stands_behind_it() -> None:
    lake = next(s for s in SCENES if s.place == "lake" and not s.water and s.back)
    whole, bare = (np.asarray(draw(s)).astype(int) for s in (lake, replace(lake, back=())))
    assert whole.shape == (128, 128, 3)
    changed = (whole != bare).any(2)
    shore = 80
    assert changed[shore + 1 : shore + 8].any() and changed[shore - 8 : shore - 1].any()
    assert not changed[:, ~changed[:shore].any(0)].any(), "only below what stands there"


def test_all_that_a_caption_says_is_true() -> None:
    said: list[Claim] = []
    state, false = random.getstate(), 0
    for seed, scene in enumerate(SCENES):
        claims = describe(scene, seed).claims
        false += not all(holds(claim, facts_of(compose(seed + 1))) for claim in claims)
        for facts in (facts_of(scene), seen_facts(scene)):
            assert all(holds(claim, facts) for claim in claims), describe(scene, seed).text
        said += claims
    wanted = {"time", "place", "weather", "style", "count", "some", "each", "side", "left of"}
    assert wanted <= {claim.what for claim in said}
    assert {group for claim in said for group in claim.of} == set(KINDS)
    assert false > 0.8 * len(SCENES), "mostly false of another picture"
    assert random.getstate() == state


def test_an_edit_changes_one_thing_and_its_words_are_true_of_the_result() -> None:
    tasks = set()
    for seed in range(200):
        before, after = facts_of(compose(seed)), facts_of(altered(seed))
        asked = instruction(before, after, seed)
        tasks.add(asked.task)
        assert all(holds(claim, after) for claim in asked.words.claims)
        assert not all(holds(claim, before) for claim in asked.words.claims)
        assert len(kept(before, after)) >= len(KINDS) + 4 - 3  # the hour may take sun or moon along
    assert tasks == {"time of day", "remove", "colour", "style"}


def test_tokens_are_labelled_by_what_stands_on_them() -> None:
    for scene in SCENES[:40]:
        if not scene.front:
            continue
        thing = scene.front[-1]
        label_YX = labels_of(scene, (16, 16)).view(16, 16)
        row, column = int((thing.base - thing.height / 2) * 16), min(15, int(thing.x * 16))
        assert LABELS[int(label_YX[row, column])] == (thing.kind, thing.colour)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    pytest.importorskip("transformers")
    import tiny

    from shortcut.models.lumina_dimoo.prompts import load_tokenizer

    return load_tokenizer(tiny.tokenizer_folder(), tiny.TEXT_MODEL)


def test_captions_and_instructions_have_no_unknown_word_and_any_text_has_ids(
    tokenizer: Any,
) -> None:
    def ids(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    assert sorted(tokenizer.get_vocab().values()) == list(range(words.NUM_TEXT_IDS))
    unknown = tokenizer.unk_token_id
    texts = [caption(compose(50_000_000 + i), i) for i in range(200)]
    texts += [an_instruction(50_000_000 + i) for i in range(200)]
    assert not [text for text in texts if unknown in ids(text)]
    red, house = ids("red house")
    assert ids("Red (zebra) HOUSE!") == [red, unknown, house]
    assert ids("\u65e5\u672c h\u00e9llo") == [unknown, unknown] and ids("?!") == []
    with pytest.raises(ValueError, match="500 words do not fit in front of id 365"):
        words.vocabulary([f"word{i}" for i in range(500)])
