"""Whole runs of the original MaskGIT-Shortcut sampler, replayed with their recorded noise.

Every step must agree. Each set has controls: runs that are wrong on purpose and must be told apart.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from fakes import logits_of, run
from golden_sets import GoldenSet, load, tiny_maskgit
from shortcut_pack.shortcut.accelerators.shortcut_head import ShortcutHead
from shortcut_pack.shortcut.denoiser import Denoiser, guided_logits
from shortcut_pack.shortcut.sampler import (
    Trace,
    confidence,
    positions,
    sample,
)
from shortcut_pack.shortcut.schedule import Settings, Step, plan
from torch import Tensor

SETS = ("vanilla", "shortcut", "root", "linear", "square", "cosine", "none_b1", "random", "init")
NUM_TOKENS = 36


@dataclass(frozen=True)
class Replay:
    """Stands in for `Noise`: the codes and the noise on the confidence that the original drew."""

    codes_TBL: Tensor
    choice_TBL: Tensor | None  # None: the run had none

    def codes(self, step: int, index_BN: Tensor, logits_BNV: Tensor) -> Tensor:
        return self.codes_TBL[step].gather(1, index_BN)

    def choice(self, step: int, index_BN: Tensor) -> Tensor:
        assert self.choice_TBL is not None, "this run draws no noise on the confidence"
        return self.choice_TBL[step].gather(1, index_BN)


@dataclass
class Run:
    """All that a replay needs; a control spoils one of them."""

    golden: GoldenSet
    model: Any
    head: Any  # None: vanilla
    steps: list[Step]
    noise: Replay

    def check(self) -> None:
        """Runs the sampler and compares every step with the record."""
        golden = self.golden
        labels_B = golden["labels"]
        codes_BL = torch.full((len(labels_B), NUM_TOKENS), self.model.config.mask_id)
        if "init_code" in golden:
            codes_BL = golden["init_code"].flatten(1)
        is_masked_BL = codes_BL == self.model.config.mask_id
        conditions = (labels_B, torch.full_like(labels_B, self.model.config.num_classes))
        predictor = self.head and ShortcutHead(self.head, self.model, conditions)
        denoiser = Denoiser(self.model, conditions, predictor)
        traces: list[Trace] = []
        made_BL = sample(denoiser, codes_BL, is_masked_BL, self.steps, self.noise, traces.append)
        assert len(traces) == golden.info["executed_steps"]
        assert [t.step.index for t in traces if t.denoised.was_full] == golden.info["full_steps"]
        for before, trace in zip([None, *traces], traces, strict=False):
            if before is not None and not trace.denoised.was_full:
                self.check_head_input(before, trace)
            self.check_step(trace, is_masked_BL)
            is_masked_BL = trace.is_masked_BL
        assert torch.equal(made_BL, golden["final_code"].flatten(1))

    def check_step(self, trace: Trace, was_masked_BL: Tensor) -> None:
        """Compares one step; `was_masked_BL` is before it."""
        golden, step = self.golden, trace.step
        prefix = f"step{step.index:02d}/"
        index_BN = positions(was_masked_BL, step.num_masked)
        logits_BNV = logits_of(trace)
        if prefix + "feat" in golden:
            golden.assert_close(torch.cat(trace.denoised.features), prefix + "feat")
        if prefix + "raw_logit" in golden:
            everywhere_BL = torch.arange(NUM_TOKENS).expand(len(was_masked_BL), -1)
            raw = [
                guided_logits(self.model, (branch,), (), everywhere_BL)
                for branch in trace.denoised.features
            ]
            golden.assert_close(torch.cat(raw), prefix + "raw_logit")
        if prefix + "logit" in golden:
            expected_BNV = golden[prefix + "logit"].gather(
                1, index_BN.unsqueeze(-1).expand_as(logits_BNV)
            )
            golden.assert_near(logits_BNV / step.temperature, expected_BNV, prefix + "logit")
        if prefix + "conf" in golden:
            drawn_BN = self.noise.codes(step.index, index_BN, logits_BNV)
            score_BN = confidence(logits_BNV, drawn_BN, step, index_BN, self.noise)
            is_probability = golden.args["randomize"] == "none"
            score_BN = score_BN.exp() if is_probability else score_BN
            golden.assert_near(
                score_BN, golden[prefix + "conf"].gather(1, index_BN), prefix + "conf"
            )
        assert step.num_revealed == golden[prefix + "k"]
        expected_BL = golden["masks_after"][step.index].flatten(1) == 1
        assert torch.equal(trace.is_masked_BL, expected_BL), f"{prefix}: other positions"
        shown_BL = trace.codes_BL.masked_fill(trace.is_masked_BL, -1)
        assert torch.equal(shown_BL, golden["final_code"].flatten(1).masked_fill(expected_BL, -1))

    def check_head_input(self, before: Trace, trace: Trace) -> None:
        """Compares what the head was told: which tokens are new, and how many are masked."""
        golden, prefix = self.golden, f"step{trace.step.index:02d}/"
        is_new_BS = torch.zeros_like(golden[prefix + "new_token_map"][: len(golden["labels"])])
        is_new_BS.scatter_(1, before.revealed.index_BK, True)
        for branch in (0, 1):
            rows = slice(branch * len(is_new_BS), (branch + 1) * len(is_new_BS))
            assert torch.equal(is_new_BS, golden[prefix + "new_token_map"][rows])
            assert torch.equal(before.revealed.codes_BK, golden[prefix + "new_token_ids"][rows])
        ratio_B = golden[prefix + "mask_ratio"]
        torch.testing.assert_close(
            torch.full_like(ratio_B, trace.step.mask_ratio), ratio_B, rtol=0, atol=1e-7
        )


def recorded_run(name: str) -> Run:
    """The run of the set `name` as the original made it."""
    golden = load(f"maskgit_sampling_{name}")
    model, head = tiny_maskgit()
    choice = {"linear": "noise/gumbel/", "random": "noise/rand/", "none": None}[
        golden.args["randomize"]
    ]
    noise = Replay(golden.numbered("noise/codes/"), choice and golden.numbered(choice))
    return Run(
        golden, model, head if golden.args["use_shortcut"] else None, recorded_plan(golden), noise
    )


def recorded_plan(golden: GoldenSet) -> list[Step]:
    """The plan of the original's options.

    It counts for a whole image even when some tokens are given, and ends when none is missing.
    """
    args = golden.args
    settings = Settings(
        num_steps=args["step"],
        full_steps=args["budget"] if args["use_shortcut"] else None,
        guidance=(args["w"],),
        schedule=args["sched_mode"],
        temperature=1 / args["sm_temp"],
        choice_temperature={"linear": args["r_temp"], "random": math.inf, "none": 0.0}[
            args["randomize"]
        ],
    )
    steps = plan(settings, NUM_TOKENS, NUM_TOKENS)
    assert [s.num_revealed for s in steps] == golden["schedule"].tolist()
    assert [s.is_full for s in steps] == golden["refresh_steps"].tolist()
    if "init_code" not in golden:
        return steps
    missing = int((golden["init_code"] == golden.info["config"]["vit"]["codebook_size"]).sum())
    left = []
    for step in steps:
        revealed = min(step.num_revealed, missing)
        left.append(
            replace(
                step, num_masked=missing, num_revealed=revealed, mask_ratio=missing / NUM_TOKENS
            )
        )
        missing -= revealed
    return [step for step in left if step.num_masked > 0]


@pytest.mark.parametrize("name", SETS)
def test_every_step_equals_the_original(name):
    recorded_run(name).check()


def change_steps(**changes: Callable[[Step], Any]) -> Callable[[Run], None]:
    """Spoils a run: fields of every step as a function of the step."""

    def spoil(run: Run) -> None:
        run.steps = [
            replace(s, **{name: change(s) for name, change in changes.items()}) for s in run.steps
        ]

    return spoil


def without_ramp(run: Run) -> None:
    run.steps = [replace(step, guidance=(run.golden.args["w"],)) for step in run.steps]


def without_annealing(run: Run) -> None:
    run.steps = [replace(step, choice_temperature=run.golden.args["r_temp"]) for step in run.steps]


def with_negative_choice_noise(run: Run) -> None:
    assert run.noise.choice_TBL is not None
    run.noise = replace(run.noise, choice_TBL=-run.noise.choice_TBL)


def with_normalised_keys(run: Run) -> None:
    """Keys and values through the norm of the queries, as in a usual transformer."""
    run.head = copy.deepcopy(run.head)
    for block in run.head.blocks:
        for norm, attention in (
            (block.cross_norm, block.cross_attention),
            (block.self_norm, block.self_attention),
        ):
            attention.register_forward_pre_hook(lambda _, args, norm=norm: (args[0], norm(args[1])))


def with_late_mask_ratio(run: Run) -> None:
    """The head is told the ratio after the step."""
    run.head = copy.deepcopy(run.head)
    after = {step.mask_ratio: step.num_masked_after / NUM_TOKENS for step in run.steps}
    before = sorted(after)

    def shifted(_, args):
        ratio_B = args[1].clone()
        for ratio in before:
            ratio_B = torch.where((args[1] - ratio).abs() < 1e-6, after[ratio], ratio_B)
        return args[0], ratio_B

    run.head.time.register_forward_pre_hook(shifted)


def without_head(run: Run) -> None:
    run.head = None


# What is wrong, and the sets whose record shows it: those with logits, or else those where it
# reveals other positions.
WITH_LOGITS = ("vanilla", "shortcut", "none_b1", "init")
WITH_SHORTCUT_LOGITS = ("shortcut", "none_b1", "init")
SCHEDULED = ("root", "linear", "square", "cosine")
NEGATIVE = change_steps(guidance=lambda step: tuple(-weight for weight in step.guidance))
CONTROLS = {
    "negative guidance": (NEGATIVE, WITH_LOGITS + SCHEDULED),
    "guidance without ramp": (without_ramp, WITH_LOGITS + SCHEDULED),
    "sampling temperature ignored": (
        change_steps(temperature=lambda _: 1.0, score_temperature=lambda _: 1.0),
        SCHEDULED,
    ),
    "confidence at another temperature": (
        change_steps(score_temperature=lambda step: 2 * step.score_temperature),
        WITH_LOGITS + SCHEDULED,
    ),
    "choice temperature not annealed": (
        without_annealing,
        ("vanilla", "shortcut", "init", *SCHEDULED, "none_b1"),
    ),
    "choice noise negative": (
        with_negative_choice_noise,
        ("vanilla", "shortcut", "init", *SCHEDULED, "random"),
    ),
    "keys normalised": (with_normalised_keys, WITH_SHORTCUT_LOGITS),
    "mask ratio of the next step": (with_late_mask_ratio, WITH_SHORTCUT_LOGITS),
    "no head": (without_head, (*WITH_SHORTCUT_LOGITS, *SCHEDULED, "random")),
    "one full step too many": (
        change_steps(is_full=lambda step: step.is_full or step.index == 1),
        (*WITH_SHORTCUT_LOGITS, *SCHEDULED, "random"),
    ),
}


@pytest.mark.parametrize(
    ("control", "name"),
    [(control, name) for control, (_, names) in CONTROLS.items() for name in names],
)
def test_control_a_wrong_run_is_told_apart(control, name):
    run = recorded_run(name)
    CONTROLS[control][0](run)
    with pytest.raises(AssertionError):
        run.check()


def outcome(label: str, settings: Settings, num_images: int = 2, num_branches: int = 2) -> Tensor:
    """Codes of a vanilla run with our own noise, checked to be complete."""
    model, _ = tiny_maskgit()
    classes_B = torch.arange(num_images)
    conditions = (classes_B, torch.full_like(classes_B, 10))[:num_branches]
    codes_BL, traces = run(model, conditions, settings, num_tokens=NUM_TOKENS)
    assert not traces[-1].is_masked_BL.any(), label
    assert codes_BL.min() >= 0, label
    assert codes_BL.max() < 32, label
    return codes_BL


def test_every_option_of_the_original_works_where_it_crashes_too():
    """All recorded modes but "warm_up": it always fails in the original, so nothing defines it."""
    choice = {"linear": 7.0, "random": math.inf, "none": 0.0}
    special = {
        "cfg_w_0": Settings(num_steps=4, guidance=(0.0,)),
        "step_1": Settings(num_steps=1),
        "step_2": Settings(num_steps=2),
    }
    outcomes = load("maskgit_mode_outcomes").info["outcomes"]
    crashed = {label for label, what in outcomes.items() if what != "ok"}
    assert {"cfg_w_0", "step_1", "random_B1", "none_B2", "none_B3"} <= crashed
    for label in outcomes:
        if label in special:
            outcome(label, special[label])
        elif not label.startswith("warm_up"):
            mode, num_images = label.split("_B")
            outcome(label, Settings(num_steps=4, choice_temperature=choice[mode]), int(num_images))


def test_guidance_zero_is_the_run_without_a_second_branch():
    zero = outcome("cfg_w_0", Settings(num_steps=6, guidance=(0.0,)))
    without = outcome("one branch", Settings(num_steps=6, guidance=()), num_branches=1)
    assert torch.equal(zero, without)
    assert not torch.equal(zero, outcome("cfg 3", Settings(num_steps=6, guidance=(3.0,))))
