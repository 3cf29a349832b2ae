"""The plan: token counts and full steps, against the originals' tables and by enumeration."""

from __future__ import annotations

import math
from dataclasses import replace

import builders
import numpy as np
import pytest
import torch
from golden_sets import load
from shortcut_pack.shortcut import schedule, shipped
from shortcut_pack.shortcut.checkpoint import load as load_checkpoint
from shortcut_pack.shortcut.models.lumina_dimoo import ARCHITECTURE
from shortcut_pack.shortcut.schedule import (
    AMUSED,
    AMUSED_LINEAR,
    LUMINA,
    ROUNDED_DOWN,
    SCHEDULES,
    SHARES,
    SamplerRules,
    Settings,
    full_step_indices,
    plan,
    reveal_counts,
)
from shortcut_pack.shortcut.settings import chosen_settings, usual_settings
from shortcut_pack.shortcut.text_schedule import TextSettings

AMUSED_SETTINGS = Settings(num_steps=12, choice_temperature=2.0, schedule=AMUSED)


def recorded_tables() -> dict[tuple[str, int, int], list[int]]:
    """(schedule, steps, tokens) -> the original's counts."""
    tables = {}
    for key, counts in load("maskgit_schedules").info["table"].items():
        side, num_steps, schedule = key.split("_")
        tables[schedule, int(num_steps[1:]), int(side[1:]) ** 2] = counts
    return tables


def recorded_full_steps() -> dict[tuple[int, int], list[int]]:
    """(steps, full steps) -> the original's positions, over all pairs that it accepts."""
    golden = load("refresh_schedules")
    pairs, rows = golden["pairs"].tolist(), golden["refresh_indices"].tolist()
    return {tuple(pair): [i for i in row if i >= 0] for pair, row in zip(pairs, rows, strict=True)}


def half_up(value: float) -> int:
    """The rounding that the originals do not use."""
    return math.floor(value + 0.5)


TABLES = recorded_tables()
WELL_DEFINED = [case for case, counts in TABLES.items() if min(counts) >= 1 and case[1] > 1]


def test_the_record_covers_every_schedule_and_the_cases_where_the_original_fails():
    assert (
        {schedule for schedule, *_ in WELL_DEFINED}
        == set(SHARES)
        == set(SCHEDULES) - set(ROUNDED_DOWN)
    )
    assert len(WELL_DEFINED) >= 40
    assert len(WELL_DEFINED) < len(TABLES)


@pytest.mark.parametrize("case", WELL_DEFINED, ids=lambda case: "-".join(map(str, case)))
def test_counts_equal_the_original(case):
    assert reveal_counts(*case) == TABLES[case]


def test_control_counts_by_truncation_are_told_apart():
    def truncated(schedule: str, num_steps: int, num_tokens: int) -> list[int]:
        shares = [SHARES[schedule](1 - i / (num_steps - 1)) for i in range(num_steps)]
        counts = [max(1, int(share / sum(shares) * num_tokens)) for share in shares]
        return [*counts[:-1], num_tokens - sum(counts[:-1])]

    assert all(truncated(*case) != TABLES[case] for case in WELL_DEFINED if case[0] != "root")


@pytest.mark.parametrize(
    "case",
    [case for case in TABLES if case not in WELL_DEFINED],
    ids=lambda case: "-".join(map(str, case)),
)
def test_counts_are_valid_where_the_originals_are_not(case):
    schedule, num_steps, num_tokens = case
    steps = plan(Settings(num_steps=num_steps, schedule=schedule), num_tokens, num_tokens)
    assert len(steps) == min(num_steps, num_tokens)
    assert min(s.num_revealed for s in steps) >= 1
    assert sum(s.num_revealed for s in steps) == num_tokens


@pytest.mark.parametrize("schedule", SHARES)
def test_every_count_is_at_least_one_and_they_add_up(schedule):
    for num_tokens in (1, 2, 7, 36, 144, 1024):
        for num_steps in {1, 2, 3, 5, 8, 15, 32, 33, num_tokens - 1, num_tokens}:
            if 1 <= num_steps <= min(num_tokens, 200):
                counts = reveal_counts(schedule, num_steps, num_tokens)
                assert len(counts) == num_steps
                assert min(counts) >= 1
                assert sum(counts) == num_tokens


LUMINA_TABLES = {
    tuple(int(part[1:]) for part in key.split("_")): masked
    for key, masked in load("dimoo_keep_tables").info["table"].items()
}


def masked_after(counts: list[int], num_tokens: int) -> list[int]:
    return [num_tokens - sum(counts[: i + 1]) for i in range(len(counts))]


@pytest.mark.parametrize("case", LUMINA_TABLES, ids=lambda case: "-".join(map(str, case)))
def test_lumina_counts_equal_the_original(case):
    num_tokens, num_steps = case
    counts = reveal_counts(LUMINA, num_steps, num_tokens)
    assert masked_after(counts, num_tokens) == LUMINA_TABLES[case]


AMUSED_TABLES = load("masking_schedules").info["tables"]
AMUSED_NAMES = {"cosine": AMUSED, "linear": AMUSED_LINEAR}


def test_amused_counts_equal_the_original():
    assert len(AMUSED_TABLES) == 170
    for row in AMUSED_TABLES:
        num_tokens = row["masked_at_start"]
        counts = reveal_counts(AMUSED_NAMES[row["schedule"]], row["N"], num_tokens, row["L"])
        expected = row.get("masked_after", [*row["mask_len"], 0])
        assert masked_after(counts, num_tokens) == expected, row


def test_control_amused_counts_in_double_precision_are_told_apart(monkeypatch):
    monkeypatch.setattr(schedule, "float32", float)
    with pytest.raises(AssertionError):
        test_amused_counts_equal_the_original()


def test_amused_temperatures_equal_the_original():
    golden = load("masking_schedules")
    settings = replace(AMUSED_SETTINGS, schedule=AMUSED)
    for num_steps in (2, 12, 48, 64):
        steps = plan(replace(settings, num_steps=num_steps), 4096, 4096)
        expected = golden[f"temperatures/{num_steps}/2_0"]
        found = torch.tensor([step.choice_temperature for step in steps])
        torch.testing.assert_close(found, expected)
        assert [step.steps_left for step in steps] == list(range(num_steps))[::-1]


def test_a_run_of_a_share_of_the_tokens_enters_the_amused_schedule_late():
    """As image to image by strength 0.5 does: half of the steps make cos(pi / 4) of the tokens."""
    settings = replace(AMUSED_SETTINGS, num_steps=12, full_steps=(0, 3, 6))
    whole = plan(settings, 48, 48)
    late = plan(settings, math.ceil(48 * math.cos(math.pi / 4)), 48, denoise=math.cos(math.pi / 4))
    assert [step.index for step in late] == [6, 7, 8, 9, 10, 11]
    assert [step.num_masked_after for step in late] == [s.num_masked_after for s in whole[6:]]
    assert [step.is_full for step in late] == [True] + [False] * 5
    (only,) = plan(settings, 1, 48, denoise=0.01)
    assert (only.num_revealed, only.is_full) == (1, True)
    with_mask = plan(settings, 12, 48)
    assert [step.index for step in with_mask] == list(range(12)), "a mask takes all steps"


def test_control_lumina_counts_in_double_precision_are_told_apart():
    def in_double(num_tokens: int, num_steps: int) -> list[int]:
        shares = [math.cos(math.pi / 2 * (i + 1) / num_steps) for i in range(num_steps - 1)]
        return [max(1, math.floor(num_tokens * share)) for share in shares] + [0]

    wrong = [case for case in LUMINA_TABLES if in_double(*case) != LUMINA_TABLES[case]]
    assert {(48, 12), (1024, 18)} <= set(wrong)


def test_lumina_counts_for_every_size():
    """Against torch on this device, which is an ulp off at times."""
    num_counts = num_different = 0
    for num_steps in (1, 2, 7, 16, 30, 64):
        share_T = torch.cos(0.5 * math.pi * torch.arange(1, num_steps).div(num_steps))
        for num_tokens in (*range(1, 50), 256, 1000, 1024, 4095, 4096, 6144):
            counts = reveal_counts(LUMINA, num_steps, num_tokens)
            assert len(counts) == num_steps
            assert min(counts) >= 0
            assert sum(counts) == num_tokens
            keep_T = (torch.tensor(float(num_tokens)) * share_T).floor().clamp_min(1).int()
            theirs = np.array([*keep_T.tolist(), 0])
            num_different += int((theirs != masked_after(counts, num_tokens)).sum())
            num_counts += num_steps
    assert num_different <= num_counts / 5000


def test_steps_of_lumina_that_reveal_nothing_are_left_out_and_hand_their_full_pass_on():
    steps = plan(Settings(num_steps=24, full_steps=6, schedule=LUMINA), 16, 36)
    table = LUMINA_TABLES[16, 24]
    before = [16, *table[:-1]]
    kept = [i for i in range(24) if table[i] < before[i]]
    assert len(kept) == 16
    assert [(s.index, s.num_masked_after) for s in steps] == [(i, table[i]) for i in kept]
    full = {min(k for k in kept if k >= i) for i in full_step_indices(24, 6)}
    assert {s.index for s in steps if s.is_full} == full
    one = plan(Settings(num_steps=5, full_steps=(0, 2), schedule=LUMINA), 1, 36)
    assert [(s.index, s.num_revealed, s.is_full) for s in one] == [(4, 1, True)]
    assert plan(Settings(schedule=LUMINA), 0, 36) == []


def test_settings_of_lumina_are_those_of_its_original():
    settings, rules = ARCHITECTURE.settings, ARCHITECTURE.rules
    first, *_, last = plan(settings, 30, 36, rules)
    assert (settings.num_steps, first.guidance, last.guidance) == (64, (4.0,), (4.0,))
    assert (first.choice_temperature, last.choice_temperature) == (1, 1)
    assert (first.mask_ratio, last.mask_ratio) == (1, 1 / 30)


def test_training_mask_ratios_of_the_original_are_those_of_the_plan():
    golden = load("maskgit_schedules")
    for name, expected in golden.tensors.items():
        num_steps = int(name.removeprefix("train_mask_ratio/N"))
        ratios = [s.mask_ratio for s in plan(Settings(num_steps=num_steps), 1024, 1024)]
        torch.testing.assert_close(torch.tensor(ratios[1:]), expected, rtol=0, atol=1e-6)


def test_full_steps_equal_the_original_for_every_pair():
    recorded = recorded_full_steps()
    assert len(recorded) > 300
    assert {pair: full_step_indices(*pair) for pair in recorded} == recorded
    for pair, indices in load("refresh_schedules").info["named"].items():
        assert full_step_indices(*map(int, pair.split(","))) == indices


def test_control_full_steps_rounded_half_up_are_told_apart():
    recorded = recorded_full_steps()
    wrong = {}
    for num_steps, num_full in recorded:
        indices = [0]
        for k in range(1, num_full):
            indices.append(max(indices[-1] + 1, half_up(num_steps * (k / num_full))))
        wrong[num_steps, num_full] = indices
    assert wrong != recorded


def test_full_steps_where_the_original_fails():
    for pair, error in load("refresh_schedules").info["errors"].items():
        num_steps, num_full = map(int, pair.split(","))
        if num_full == 1:
            assert full_step_indices(num_steps, num_full) == [0], error
        elif not 1 <= num_full <= num_steps:
            with pytest.raises(
                ValueError, match=rf"between 1 and steps \({num_steps}\), got {num_full}"
            ):
                full_step_indices(num_steps, num_full)


def test_full_steps_are_exactly_as_many_as_asked_for():
    for num_steps in range(1, 129):
        for num_full in range(1, num_steps + 1):
            indices = full_step_indices(num_steps, num_full)
            assert indices[0] == 0
            assert len(set(indices)) == num_full
            assert indices == sorted(indices)
            assert indices[-1] < num_steps


def test_a_power_brings_full_steps_to_the_beginning_and_keeps_their_number():
    assert full_step_indices(32, 8, 1.4) == [0, 2, 5, 8, 12, 17, 21, 27]
    for num_steps in range(1, 65):
        for num_full in range(1, num_steps + 1):
            even, early = (full_step_indices(num_steps, num_full, power) for power in (1, 1.4))
            assert len(set(early)) == num_full
            assert all(e <= o for e, o in zip(early, even, strict=True))
    settings = Settings(num_steps=32, full_steps=8, full_power=1.4)
    assert sorted(settings.full_indices(32)) == full_step_indices(32, 8, 1.4)
    assert replace(settings, full_steps=(0, 9)).full_indices(32) == {0, 9}
    with pytest.raises(ValueError, match="full power must be"):
        replace(settings, full_power=0.5).check()


def test_the_shipped_class_model_asks_for_early_full_steps_and_the_text_model_for_even_ones():
    powers = [
        usual_settings(load_checkpoint(path, kind="model")).full_power
        for path in (shipped.MODEL, shipped.TEXT_MODEL)
    ]
    assert powers == [1.4, 1.0]


def test_plan_counts_down_to_zero():
    steps = plan(Settings(num_steps=8, full_steps=3), 30, 36)
    assert [s.index for s in steps] == list(range(8))
    assert steps[0].num_masked == 30
    assert [s.num_masked for s in steps[1:]] == [s.num_masked_after for s in steps[:-1]]
    assert steps[-1].num_masked_after == 0
    assert steps[0].mask_ratio == 30 / 36
    assert [s.index for s in steps if s.is_full] == full_step_indices(8, 3)


def test_guidance_rises_from_zero_to_full_or_stays():
    ramped = plan(Settings(num_steps=5, guidance=(4.0, 1.0)), 36, 36)
    assert [s.guidance for s in ramped] == [(0, 0), (1, 0.25), (2, 0.5), (3, 0.75), (4, 1)]
    constant = plan(Settings(num_steps=5, guidance=(4.0,), guidance_ramp=False), 36, 36)
    assert {s.guidance for s in constant} == {(4.0,)}
    assert {s.guidance for s in plan(Settings(num_steps=5, guidance=()), 36, 36)} == {()}


def test_choice_temperature_falls_to_zero_unless_infinite():
    falling = plan(Settings(num_steps=5, choice_temperature=8.0), 36, 36)
    assert [s.choice_temperature for s in falling] == [8, 6, 4, 2, 0]
    endless = plan(Settings(num_steps=5, choice_temperature=math.inf), 36, 36)
    assert {s.choice_temperature for s in endless} == {math.inf}


def test_temperature_zero_leaves_the_confidence_defined():
    (step,) = plan(Settings(num_steps=1, temperature=0), 36, 36)
    assert (step.temperature, step.score_temperature) == (0, 1)


def test_choice_temperature_and_that_of_the_score_may_stay():
    settings = Settings(num_steps=5, temperature=0.5, choice_temperature=2.0)
    steps = plan(settings, 36, 36, SamplerRules(choice_ramp=False))
    assert {s.choice_temperature for s in steps} == {2}
    assert {s.score_temperature for s in steps} == {0.5}
    fixed = plan(settings, 36, 36, SamplerRules(score_temperature=1.0))
    assert {s.score_temperature for s in fixed} == {1}


def test_one_step_reveals_everything_at_full_guidance():
    (step,) = plan(Settings(num_steps=1, guidance=(3.0,)), 36, 36)
    assert (step.num_revealed, step.is_full, step.guidance, step.choice_temperature) == (
        36,
        True,
        (3.0,),
        0,
    )


def test_nothing_to_make_is_an_empty_plan():
    assert plan(Settings(), 0, 36) == []


def test_more_steps_than_tokens_makes_one_token_a_step():
    steps = plan(Settings(num_steps=32, full_steps=8), 5, 36)
    assert [s.num_revealed for s in steps] == [1] * 5
    assert all(s.is_full for s in steps)


@pytest.mark.parametrize(("steps", "num_full"), [(None, 12), (20, 12), (16, 4)])
def test_full_steps_that_a_file_states_are_for_its_own_number_of_steps(steps, num_full):
    file = builders.model(defaults={"num_steps": 20, "full_steps": 12})
    found = chosen_settings(file, num_guided=1, accelerator="partial", steps=steps)
    assert found.full_steps == num_full


def test_full_steps_as_a_list():
    steps = plan(Settings(num_steps=8, full_steps=(0, 1, 6)), 36, 36)
    assert [s.index for s in steps if s.is_full] == [0, 1, 6]
    shortened = plan(Settings(num_steps=8, full_steps=(0, 1, 6)), 4, 36)
    assert [s.index for s in shortened if s.is_full] == [0, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"schedule": "sine"}, "schedule must be one of .*, got 'sine'"),
        ({"temperature": -0.1}, "temperature must be a finite number of at least 0, got -0.1"),
        ({"temperature": math.nan}, "temperature must be a finite number"),
        ({"guidance": (math.inf,)}, "cfg must be a finite number of at least 0, got inf"),
        ({"guidance": (-1.0,)}, "cfg must be a finite number of at least 0, got -1.0"),
        (
            {"choice_temperature": math.nan},
            "choice temperature must be a finite number of at least 0, got nan",
        ),
        (
            {"choice_temperature": -1.0},
            "choice temperature must be a finite number of at least 0, got -1.0",
        ),
        ({"choice_temperature": "7"}, "choice temperature must be a number, got '7'"),
        ({"full_steps": 2.5}, "full steps must be a whole number or a tuple of steps, got 2.5"),
        ({"full_steps": 0}, r"full steps must be between 1 and steps \(32\), got 0"),
        (
            {"full_steps": 33},
            r"full steps must be between 1 and steps \(32\), got 33. Lower full steps",
        ),
        ({"full_steps": (1, 2)}, r"must contain 0 and stay below steps \(32\), got \[1, 2\]"),
        ({"full_steps": (0, 32)}, r"must contain 0 and stay below steps \(32\), got \[0, 32\]"),
        ({"full_steps": ()}, r"must contain 0 .* got \[\]"),
    ],
)
@pytest.mark.parametrize("num_tokens", [0, 3, 36])
def test_a_setting_out_of_range_is_refused_whatever_there_is_to_make(wrong, message, num_tokens):
    with pytest.raises(ValueError, match=message):
        plan(Settings(**wrong), num_tokens, 36)


@pytest.mark.parametrize("temperature", [1e-40, 5e-324, 9e-7])
def test_a_temperature_that_no_logit_can_be_divided_by_is_an_error(temperature: float):
    with pytest.raises(ValueError, match=r"temperature must be 0, .* or at least 1e-06, got"):
        Settings(temperature=temperature).check()
    with pytest.raises(ValueError, match=r"text temperature must be 0"):
        TextSettings(temperature=temperature).check()
    Settings(temperature=1e-6).check()
