"""Scenes: captions and prompts, edits, labels of tokens, the tokenizer."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.scenes import captions
from experiments.scenes import tokenizer as scene_tokenizer
from experiments.scenes.captions import caption, describe
from experiments.scenes.drawing import draw
from experiments.scenes.edits import altered, instruction, kept
from experiments.scenes.facts import Claim, Facts, Thing, facts_of, holds
from experiments.scenes.kinds import KINDS, kinds_of
from experiments.scenes.prompts import NUMBERS, prompts, score
from experiments.scenes.scene import Scene, compose_varied
from shortcut import shipped

SEEDS = range(600)
GRID = (12, 12)


def facts(time: str = "dusk", biome: str = "forest", **things: list[tuple[str, float]]) -> Facts:
    groups = ("trees", "houses", "boats", "clouds", "bodies")
    return Facts(time, biome, {g: tuple(Thing(*t) for t in things.get(g, [])) for g in groups})


# "three pine trees left of a red house at dusk under a full moon"
DUSK = facts(
    trees=[("pine", 0.1), ("pine", 0.3), ("pine", 0.5)],
    houses=[("red", 0.8)],
    bodies=[("full moon", 0.2)],
)


@pytest.mark.parametrize(
    ("claim", "is_true"),
    [
        (Claim("time", value="dusk"), True),
        (Claim("biome", value="desert"), False),
        (Claim("count", ("trees",), 3), True),
        (Claim("count", ("boats",), 0), True),
        (Claim("several", ("houses",)), False),
        (Claim("all", ("trees",), ("pine", "snowy pine")), True),
        (Claim("all", ("boats",), ("red",)), False),  # there is none
        (Claim("each", ("houses",), ("red", "red")), False),
        (Claim("place", ("houses",), "right"), True),
        (Claim("place", ("clouds",), "left"), False),
        (Claim("left of", ("trees", "houses")), True),
        (Claim("left of", ("boats", "trees")), False),
        (Claim("between", ("houses", "trees")), False),
    ],
)
def test_a_claim(claim: Claim, is_true: bool) -> None:
    assert holds(claim, DUSK) == is_true


def test_captions_are_true_of_their_picture_and_mostly_false_of_another() -> None:
    state, false = random.getstate(), 0
    labels: Counter[str] = Counter()
    for seed in SEEDS:
        words = describe(compose_varied(seed), seed)
        assert words.text.strip(" .") and words.claims
        for claim in words.claims:
            assert holds(claim, facts_of(compose_varied(seed)), tolerance=0), (words.text, claim)
            if claim.what == "place":
                assert any(phrase in words.text for phrase in captions.PLACE_WORDS[claim.value])
        false += not all(holds(c, facts_of(compose_varied(seed + 1))) for c in words.claims)
        labels.update({claim.label for claim in words.claims})
        assert caption(compose_varied(seed), seed) == words.text
    assert false > 0.8 * len(SEEDS)
    assert min(labels[n] for n in ("time", "biome", "place", "order", "colour houses")) > 20
    assert random.getstate() == state


def test_prompts_are_fulfilled_by_their_scene_and_by_no_other() -> None:
    found = prompts()
    assert found == prompts() and Counter(prompt.task for prompt in found) == NUMBERS
    own = [facts_of(compose_varied(prompt.seed)) for prompt in found]
    result = score(zip(found, own, strict=True))
    assert result.overall == 1 and set(result.labels.values()) == {1.0}
    assert score(zip(found, own[1:] + own[:1], strict=True)).overall < 0.3


# Edits


def both_ways() -> list[tuple[int, Facts, Facts]]:
    pairs = [(s, facts_of(compose_varied(s)), facts_of(altered(s))) for s in SEEDS]
    return [*pairs, *((seed, b, a) for seed, a, b in pairs)]


def test_two_scenes_of_a_pair_differ_in_one_thing() -> None:
    for seed in SEEDS:
        scene, other = compose_varied(seed), altered(seed)
        names = {f.name for f in fields(Scene) if getattr(scene, f.name) != getattr(other, f.name)}
        assert len(names) == 1 or ("time" in names and names <= {"time", "body", "stars"})


def test_an_instruction_is_true_afterwards_and_not_before_and_all_else_is_kept() -> None:
    tasks: Counter[str] = Counter()
    for seed, before, after in both_ways():
        asked, others = instruction(before, after, seed), kept(before, after)
        assert all(holds(claim, after, tolerance=0) for claim in asked.words.claims)
        assert not all(holds(claim, before, tolerance=0) for claim in asked.words.claims)
        assert all(holds(claim, facts) for claim in others for facts in (before, after))
        # Of seven one differs; with the hour the sun may become a moon.
        assert len(others) == 6 or (len(others) == 5 and before.time != after.time)
        tasks[asked.task] += 1
    assert tasks.keys() == {"time of day", "remove", "add", "sun or moon", "colour"}
    assert min(tasks.values()) > 0.05 * tasks.total()


# Labels of tokens


def share_changed(scene: Scene, other: Scene) -> torch.Tensor:
    """Return the share (L,) of each token's square that differs between two pictures."""
    before, after = (np.asarray(draw(s), dtype=np.int16) for s in (scene, other))
    differs = torch.from_numpy(np.abs(before - after).max(2) > 16).float()
    return differs.unflatten(1, (12, 8)).unflatten(0, (12, 8)).mean((1, 3)).flatten()


def test_labels_lie_where_things_are_drawn() -> None:
    inside, outside = [], []
    for seed in range(60):
        scene = replace(compose_varied(seed), body=None)  # its light is drawn far around it
        bare = replace(scene, trees=(), houses=(), boats=(), clouds=())
        assert not kinds_of(bare, GRID).any()
        changed_L, kind_L = share_changed(scene, bare), kinds_of(scene, GRID)
        inside.append(changed_L[kind_L > 0])
        outside.append(changed_L[kind_L == 0])
        houses = {KINDS[n] for n in kind_L.tolist() if KINDS[n] and KINDS[n][0] == "houses"}
        assert houses <= {("houses", kind) for kind in facts_of(scene).kinds("houses")}
    assert torch.cat(inside).mean() > 0.5
    assert torch.cat(outside).mean() < 0.05


# The tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    pytest.importorskip("transformers")
    import tiny

    from shortcut.models.lumina_dimoo.prompts import load_tokenizer

    return load_tokenizer(shipped.TEXT_FOLDER, tiny.TEXT_MODEL)


def test_the_shipped_tokenizer_is_what_the_code_makes(tmp_path: Path, tokenizer: Any) -> None:
    scene_tokenizer.make(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    for name in names:
        assert (tmp_path / name).read_bytes() == (shipped.TEXT_FOLDER / name).read_bytes(), name
    assert sorted(tokenizer.get_vocab().values()) == list(range(scene_tokenizer.NUM_TEXT_IDS))


def test_captions_and_instructions_have_no_unknown_word_and_any_text_has_ids(
    tokenizer: Any,
) -> None:
    def ids(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    unknown = tokenizer.unk_token_id
    texts = [caption(compose_varied(50_000_000 + i), i) for i in range(200)]
    texts += [prompt.text for prompt in prompts()]
    texts += [instruction(a, b, seed).words.text for seed, a, b in both_ways()[::3]]
    assert not [text for text in texts if unknown in ids(text)]
    red, house = ids("red house")
    assert ids("Red (zebra) HOUSE!") == [red, unknown, house]
    assert ids("\u65e5\u672c h\u00e9llo") == [unknown, unknown] and ids("?!") == []
    with pytest.raises(ValueError, match="500 words do not fit in front of id 365"):
        scene_tokenizer.vocabulary([f"word{i}" for i in range(500)])
