"""Pairs of scenes that differ in one thing, and the instructions between them."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

from test_scene_tokenizer import ids, tokenizer  # noqa: F401 - a fixture

from experiments.scenes.edits import altered, instruction, kept
from experiments.scenes.facts import Facts, facts_of, holds
from experiments.scenes.scene import Scene, compose_varied
from experiments.scenes.tokenizer import words_of

SEEDS = range(1000)
TASKS = {"time of day", "remove", "add", "sun or moon", "colour"}


def pairs() -> list[tuple[Scene, Scene]]:
    return [(compose_varied(seed), altered(seed)) for seed in SEEDS]


def both_ways() -> list[tuple[int, Facts, Facts]]:
    found = []
    for seed, (scene, other) in enumerate(pairs()):
        a, b = facts_of(scene), facts_of(other)
        found += [(seed, a, b), (seed, b, a)]
    return found


def test_two_scenes_of_a_pair_differ_in_one_thing() -> None:
    for scene, other in pairs():
        changed = {
            f.name for f in fields(Scene) if getattr(scene, f.name) != getattr(other, f.name)
        }
        if "time" in changed:
            assert changed <= {"time", "body", "stars"}
            assert (scene.body is None) == (other.body is None)
        else:
            assert len(changed) == 1 and changed <= {"trees", "houses", "boats", "clouds", "body"}


def test_things_stay_where_they_are() -> None:
    for _, before, after in both_ways():
        for group in ("trees", "houses", "boats", "clouds", "bodies"):
            if before.things[group] and after.things[group]:
                assert before.xs(group) == after.xs(group)


def test_what_an_instruction_asks_for_is_true_afterwards_and_not_before() -> None:
    for seed, before, after in both_ways():
        asked = instruction(before, after, seed).words
        assert asked.claims
        assert all(holds(claim, after, tolerance=0) for claim in asked.claims), asked
        assert not all(holds(claim, before, tolerance=0) for claim in asked.claims), asked


def test_what_is_kept_is_all_but_what_changed() -> None:
    for _, before, after in both_ways():
        claims = kept(before, after)
        assert all(holds(claim, facts) for claim in claims for facts in (before, after))
        # Of seven one differs; with the hour the sun may become a moon.
        assert len(claims) == 6 or (len(claims) == 5 and before.time != after.time)


def test_every_kind_of_change_comes_up_in_many_words() -> None:
    found = [instruction(before, after, seed) for seed, before, after in both_ways()]
    tasks = Counter(item.task for item in found)
    assert set(tasks) == TASKS and min(tasks.values()) > 0.05 * len(found)
    for task in TASKS:
        assert len({item.words.text for item in found if item.task == task}) > 20
    assert 0.1 < sum(item.words.text.endswith(".") for item in found) / len(found) < 0.3


def test_one_of_two_houses_is_named_by_its_colour() -> None:
    for seed, before, after in both_ways():
        colours = before.kinds("houses")
        item = instruction(before, after, seed)
        is_of_a_house = colours != after.kinds("houses") and len(set(colours)) == 2
        if item.task == "colour" and is_of_a_house:
            (old,) = set(colours) - set(after.kinds("houses"))
            assert old in words_of(item.words.text)


def test_all_words_are_known_to_the_tokenizer(tokenizer) -> None:  # noqa: F811
    for seed, before, after in both_ways():
        text = instruction(before, after, seed).words.text
        assert tokenizer.unk_token_id not in ids(tokenizer, text), text


def test_the_seed_decides() -> None:
    assert [altered(seed) for seed in range(20)] == [altered(seed) for seed in range(20)]
    a, b = facts_of(compose_varied(1)), facts_of(altered(1))
    assert instruction(a, b, 7) == instruction(a, b, 7)
