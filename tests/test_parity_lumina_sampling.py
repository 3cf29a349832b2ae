"""Whole runs of the original Lumina-DiMOO samplers, replayed with their recorded noise.

Text to image with and without the shortcut head, with ML-Cache, editing with two guidances, in- and out-painting. Every
step must agree. Each kind of run has controls: runs that are wrong on purpose and must be told apart.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from fakes import logits_of
from golden_sets import GoldenSet, load
from lumina_sets import head, network
from shortcut_pack.shortcut.accelerators.ml_cache import MLCache, own_full_steps
from shortcut_pack.shortcut.accelerators.shortcut_head import ShortcutHead
from shortcut_pack.shortcut.denoiser import Denoised, Denoiser, guided_logits, positions
from shortcut_pack.shortcut.models.lumina_dimoo import ARCHITECTURE
from shortcut_pack.shortcut.models.lumina_dimoo import transformer as lumina
from shortcut_pack.shortcut.models.lumina_dimoo.block import SequencePositions
from shortcut_pack.shortcut.models.lumina_dimoo.head import LuminaHead
from shortcut_pack.shortcut.sampler import (
    Trace,
    confidence,
    draw_codes,
    sample,
)
from shortcut_pack.shortcut.schedule import Settings, Step, plan, reveal_counts
from test_parity_sampling import change_steps
from torch import Tensor

SHORTCUT = (
    "dimoo_sampling_t0_shortcut",
    "dimoo_sampling_t1_shortcut",
    "dimoo_sampling_edge_zero_new",
    "dimoo_real_layout",
)
CACHED = ("dimoo_mlcache_t0", "dimoo_mlcache_t1", "lumina_t2i_mlcache_t0")
VANILLA = ("dimoo_sampling_t0_vanilla", "dimoo_sampling_t1_vanilla", "dimoo_sampling_t0_cfg0")
EDITING = ("lumina_i2i_t0", "lumina_i2i_t1")
PAINTING = ("lumina_inpaint_t0", "lumina_extrapolate_t0")
SETS = SHORTCUT + CACHED + VANILLA + EDITING + PAINTING
IDLE = "lumina_inpaint_t0"  # the rules of the originals differ in it
USUAL, RULES = ARCHITECTURE.settings, ARCHITECTURE.rules
GREEDY = replace(USUAL, temperature=0.0, choice_temperature=0.0)
WITH_NOISE = ("dimoo_sampling_t1_shortcut", "dimoo_sampling_t1_vanilla", "lumina_i2i_t1")


@dataclass(frozen=True)
class Replay:
    """Stands in for `Noise`: the uniform numbers that the original drew, at the positions still masked."""

    codes_TN: list[Tensor]  # (1, N, V) of each step; none at temperature 0
    choice_TN: list[Tensor]  # (1, N) of each step

    @classmethod
    def of(cls, golden: GoldenSet) -> Replay:
        names = sorted(name for name in golden.tensors if name.startswith("noise/"))
        draws = [golden[name] for name in names]
        return cls([u for u in draws if u.ndim == 3], [u for u in draws if u.ndim == 2])

    def codes(self, step: int, index_BN: Tensor, logits_BNV: Tensor) -> Tensor:
        return (logits_BNV + gumbel(self.codes_TN[step])).argmax(-1)

    def choice(self, step: int, index_BN: Tensor) -> Tensor:
        return gumbel(self.choice_TN[step])


def gumbel(uniform: Tensor) -> Tensor:
    """As the original makes it."""
    return -torch.log(-torch.log(uniform + 1e-20) + 1e-20)


class Told(MLCache):
    """ML-Cache that notes which positions it runs, a call for each guidance branch."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.positions: list[Tensor] = []

    def _least_sure(self, features_BSD: Tensor) -> Tensor:
        self.positions.append(super()._least_sure(features_BSD))
        return self.positions[-1]


@dataclass
class Run:
    """All that a replay needs; a control spoils one of them."""

    golden: GoldenSet
    model: lumina.OnGrid
    head: LuminaHead | None  # None: vanilla
    conditions: list[Tensor]
    codes_BL: Tensor  # at the start
    is_masked_BL: Tensor
    steps: list[Step]
    noise: Replay
    cache: type[Told] | None = None  # with ML-Cache
    share: float = 0.0  # of it

    def check(self) -> None:
        """Runs the sampler and compares every step with the record."""
        golden = self.golden
        accelerator = self.head and ShortcutHead(self.head, self.model, self.conditions)
        if self.cache is not None:
            accelerator = self.cache(self.model, self.conditions, share=self.share)
        denoiser = Denoiser(self.model, self.conditions, accelerator)
        traces: list[Trace] = []
        told: list[tuple[Any, ...]] = []  # what the head got in each call
        hook = self.head and self.head.register_forward_pre_hook(lambda _, args: told.append(args))
        made_BL = sample(
            denoiser, self.codes_BL, self.is_masked_BL, self.steps, self.noise, traces.append
        )
        if hook is not None:
            hook.remove()
        assert len(traces) == golden.info["executed_steps"]
        full = [t.step.index for t in traces if t.denoised.was_full]
        if self.cache is not None and "refresh_steps" in golden:
            assert full == golden["refresh_steps"].nonzero().flatten().tolist()
        elif "full_steps" in golden.info:
            assert full == golden.info["full_steps"]
        codes_BL, is_masked_BL = self.codes_BL, self.is_masked_BL
        for trace in traces:
            self.check_sequence(codes_BL, is_masked_BL, golden["x_before"][trace.step.index])
            if not trace.denoised.was_full and isinstance(accelerator, Told):
                self.check_run_again(accelerator.positions, trace.step)
            elif not trace.denoised.was_full:
                self.check_head_input(told.pop(0), trace.step)
            self.check_step(trace, is_masked_BL)
            codes_BL, is_masked_BL = trace.codes_BL, trace.is_masked_BL
        self.check_sequence(made_BL, is_masked_BL, golden["final_x"][0])
        assert torch.equal(made_BL + self.model.config.num_text_ids, golden["vq_ids"])

    def check_sequence(self, codes_BL: Tensor, is_masked_BL: Tensor, expected_S: Tensor) -> None:
        """Compares what the first branch shows the network."""
        target_BS = self.model.target_tokens(codes_BL, is_masked_BL)
        assert torch.equal(torch.cat([self.conditions[0], target_BS], 1)[0], expected_S)

    def check_step(self, trace: Trace, was_masked_BL: Tensor) -> None:
        """Compares one step; `was_masked_BL` is before it."""
        golden, step = self.golden, trace.step
        prefix = f"step{step.index:02d}/"
        index_BN = positions(was_masked_BL, step.num_masked)
        logits_BNV = logits_of(trace)
        names = ("cond", "uncond")
        for name, branch_BSD in zip(names, trace.denoised.features, strict=False):
            if prefix + f"{name}_last_feat" in golden:
                golden.assert_close(branch_BSD, prefix + f"{name}_last_feat")
            if prefix + f"{name}_logits" in golden:
                raw_BNV = guided_logits(self.model, (branch_BSD,), (), index_BN)
                golden.assert_close(raw_BNV, prefix + f"{name}_logits")
        if prefix + "logits" in golden:
            golden.assert_close(logits_BNV, prefix + "logits")
        drawn_BN = draw_codes(logits_BNV, step, index_BN, self.noise)
        assert torch.equal(drawn_BN, golden[prefix + "sampled"])
        without_noise = replace(step, choice_temperature=0)
        score_BN = confidence(logits_BNV, drawn_BN, without_noise, index_BN, self.noise)
        golden.assert_close(score_BN.exp(), prefix + "conf")
        stays_BN = trace.is_masked_BL.gather(1, index_BN)
        assert torch.equal(stays_BN, golden[prefix + "stay_masked"])
        assert step.num_masked_after == golden["keep_n"][step.index]

    def check_run_again(self, found: list[Tensor], step: Step) -> None:
        """Compares which positions ML-Cache ran, of each branch."""
        for name in ("cond", "uncond"):
            position_1M, mask = found.pop(0), f"step{step.index:02d}/{name}_to_compute_mask"
            if mask in self.golden:
                assert position_1M[0].tolist() == self.golden[mask][0].nonzero().flatten().tolist()

    def check_head_input(self, told: tuple[Any, ...], step: Step) -> None:
        """Compares which tokens were new to the head, where they stand, and how many were masked."""
        golden, prefix = self.golden, f"step{step.index:02d}/"
        _, _, new_BND, new_positions, ratio_B, wanted = told
        assert wanted is None  # the published head predicts every position
        target_BS = golden["x_before"][step.index : step.index + 1, self.conditions[0].shape[1] :]
        tokens, where = [], []
        for name, prompt_BP in zip(("cond", "uncond"), self.conditions, strict=True):
            is_new_BS = golden[prefix + f"{name}_new_token_map"]
            tokens.append(torch.cat([prompt_BP, target_BS], 1)[is_new_BS])
            where.append(is_new_BS.nonzero()[:, 1].unsqueeze(0))
        assert torch.equal(new_BND[0], self.model.model.embed_tokens(torch.cat(tokens)))
        expected = SequencePositions.of(where, self.head.config)
        assert new_positions.lengths == expected.lengths
        torch.testing.assert_close(new_positions.rotary.cos, expected.rotary.cos)
        torch.testing.assert_close(ratio_B, golden[prefix + "mask_ratio"], rtol=0, atol=1e-7)


def recorded_run(name: str) -> Run:
    """The run of the set `name` as the original made it."""
    golden = load(name)
    args, model = golden.args, network(name).on_grid(*golden.args["grid"])
    num_prompt_tokens = args["code_start"] - 2
    target_S = golden["prompt"][0, args["code_start"] : -2]
    codes_BL = target_S.unflatten(0, (model.rows, -1))[:, :-1].reshape(1, -1)
    others = [golden[n] for n in ("uncon_ids", "uncon_text", "uncon_image") if n in golden]
    is_masked_BL = codes_BL == args["mask_token_id"]
    uses_head = args["extra"].get("use_shortcut", False) and args["cfg_scale"] > 0
    guidance = (args["cfg_scale"],)
    if "cfg_img" in args["extra"]:
        guidance = (args["cfg_scale"], args["extra"]["cfg_img"])
    extra, full_steps = args["extra"], args["extra"].get("budget") if uses_head else None
    if uses_cache := extra.get("use_cache", False):
        timing = extra["warmup_ratio"], extra["refresh_interval"]
        full_steps = own_full_steps(args["timesteps"], *timing)
    settings = replace(
        USUAL,
        num_steps=args["timesteps"],
        full_steps=full_steps,
        guidance=guidance,
        temperature=args["temperature"],
        choice_temperature=args["temperature"],
    )
    steps = with_idle_steps(settings, int(is_masked_BL.sum()), model.num_tokens)
    return Run(
        golden,
        model,
        head(name) if uses_head else None,
        [golden["prompt"][:, :num_prompt_tokens], *others],
        codes_BL - model.config.num_text_ids,
        is_masked_BL,
        never_idle(steps) if name == IDLE else steps,
        Replay.of(golden),
        Told if uses_cache else None,
        round(1 - extra.get("cache_ratio", 1), 3),
    )


def with_idle_steps(settings: Settings, num_tokens: int, image_tokens: int) -> list[Step]:
    """The plan of the original, which spends passes on steps that reveal nothing; ours leaves them out."""
    full, left, steps = settings.full_indices(settings.num_steps), num_tokens, []
    ours = {step.num_masked: step for step in plan(settings, num_tokens, image_tokens, RULES)}
    for i, count in enumerate(reveal_counts(settings.schedule, settings.num_steps, num_tokens)):
        steps.append(replace(ours[left], index=i, num_revealed=count, is_full=i in full))
        left -= count
    return steps


def never_idle(steps: list[Step]) -> list[Step]:
    """The plan by the rule of the original Lumina-DiMOO: each step reveals a token at least, the count be what it may.

    We follow MIGM-Shortcut, where such a step reveals nothing.
    """
    left, changed = steps[0].num_masked, []
    for step in steps:
        after = min(step.num_masked_after, left - 1)
        changed.append(replace(step, num_masked=left, num_revealed=left - after))
        left = after
    return changed


@pytest.mark.parametrize("name", SETS)
def test_every_step_equals_the_original(name):
    recorded_run(name).check()


def test_the_rules_of_the_originals_differ_where_a_step_would_reveal_nothing():
    run = recorded_run(IDLE)
    ours = plan(replace(GREEDY, num_steps=7), 9, 30, RULES)
    assert [s.num_masked_after for s in ours] == [8, 7, 5, 3, 2, 0]
    assert [s.num_masked_after for s in run.steps] == [8, 7, 6, 5, 3, 2, 0]
    run.steps = ours
    with pytest.raises(AssertionError):
        run.check()


# Wrong runs, and the sets whose record shows it.


def with_swapped_guidance(run: Run) -> None:
    """The guidance away from the other text meets the branch without the image."""
    run.steps = [replace(step, guidance=step.guidance[::-1]) for step in run.steps]


def with_negative_choice_noise(run: Run) -> None:
    run.noise = replace(run.noise, choice_TN=[1 - u for u in run.noise.choice_TN])


def with_ramp(run: Run) -> None:
    last = len(run.steps) - 1
    run.steps = [
        replace(s, choice_temperature=s.choice_temperature * (1 - s.index / last))
        for s in run.steps
    ]


def with_new_prompts(sees_prompt: bool) -> Callable[[Run], None]:
    """Spoils what the head is told: every branch's prompt is new, or none's."""

    def spoil(run: Run) -> None:
        run.head = copy.deepcopy(run.head)
        assert run.head is not None
        original = run.head._new_tokens
        run.head._new_tokens = lambda *args, **_: original(*args, sees_prompt=sees_prompt)

    return spoil


def with_ratio_of_the_image(run: Run) -> None:
    run.steps = [
        replace(s, mask_ratio=s.num_masked / (2 * run.model.num_tokens)) for s in run.steps
    ]


def without_head(run: Run) -> None:
    run.head = None


class RunsTheSurest(Told):
    def _least_sure(self, features_BSD: Tensor) -> Tensor:
        return super()._least_sure(-features_BSD)


class RunsImageTokens(Told):
    """Of an image's tokens alone: the text in front counts in the original."""

    def _least_sure(self, features_BSD: Tensor) -> Tensor:
        index_1L = torch.arange(self.model.rows * self.model.columns).unsqueeze(0)
        where_1L = self.model.image_positions(index_1L, features_BSD.shape[1])
        found = super()._least_sure(
            features_BSD.gather(1, where_1L.unsqueeze(2).expand(-1, -1, 64))
        )
        self.positions[-1] = where_1L.gather(1, found)
        return self.positions[-1]


def with_cache(cache: type[Told]) -> Callable[[Run], None]:
    def spoil(run: Run) -> None:
        run.cache = cache

    return spoil


def with_larger_share(run: Run) -> None:
    run.share += 0.05


def without_newlines(run: Run) -> None:
    """Logits of positions that are off by one a row."""

    class Shifted(lumina.OnGrid):
        def _position_in_rows(self, index_BN: Tensor) -> Tensor:
            return index_BN

    run.model = Shifted(run.model.model, run.model.rows, run.model.columns, False)


NEGATIVE = change_steps(guidance=lambda step: tuple(-weight for weight in step.guidance))
CONTROLS = {
    "negative guidance": (NEGATIVE, tuple(set(SETS) - {"dimoo_sampling_t0_cfg0"})),
    "guidances swapped": (with_swapped_guidance, EDITING),
    "choice noise negative": (with_negative_choice_noise, WITH_NOISE),
    "choice temperature ramped": (with_ramp, WITH_NOISE),
    "confidence at another temperature": (change_steps(score_temperature=lambda _: 2.0), SETS),
    "codes at another temperature": (change_steps(temperature=lambda _: 0.5), WITH_NOISE),
    "prompt never new": (with_new_prompts(False), SHORTCUT),
    "every prompt new": (with_new_prompts(True), SHORTCUT),
    "another mask ratio": (with_ratio_of_the_image, SHORTCUT),
    "no head": (without_head, SHORTCUT),
    "one full step too many": (
        change_steps(is_full=lambda step: step.is_full or step.index == 1),
        SHORTCUT,
    ),
    "another full step": (
        change_steps(is_full=lambda step: step.is_full or step.index == 5),
        CACHED,
    ),
    "more tokens run again": (with_larger_share, CACHED),
    "the surest tokens run again": (with_cache(RunsTheSurest), CACHED),
    "image tokens run again": (with_cache(RunsImageTokens), CACHED[:2]),
    "newlines forgotten": (without_newlines, SETS),
}


@pytest.mark.parametrize(
    ("control", "name"),
    [(control, name) for control, (_, names) in CONTROLS.items() for name in sorted(names)],
)
def test_control_a_wrong_run_is_told_apart(control, name):
    run = recorded_run(name)
    CONTROLS[control][0](run)
    with pytest.raises(AssertionError):
        run.check()


def one_step(probabilities: list[float], num_masked_after: int) -> list[bool]:
    """Which positions stay masked after a greedy step whose likeliest codes have these probabilities."""
    num_codes, num_tokens = 32, len(probabilities)
    top_N = torch.tensor(probabilities)
    logits_NV = ((1 - top_N) / (num_codes - 1)).log().unsqueeze(1).repeat(1, num_codes)
    logits_NV[:, 3] = top_N.log()
    settings = replace(GREEDY, num_steps=1)
    (step,) = plan(settings, num_tokens, num_tokens, RULES)
    step = replace(step, num_revealed=num_tokens - num_masked_after)
    traces: list[Trace] = []
    sample(
        lambda *_: Denoised(lambda _: logits_NV.unsqueeze(0), (), True),
        torch.zeros(1, num_tokens, dtype=torch.long),
        torch.ones(1, num_tokens, dtype=torch.bool),
        [step],
        Replay([], []),
        traces.append,
    )
    return traces[0].is_masked_BL[0].tolist()


@pytest.mark.parametrize(
    "case", load("masking_rule_cases").info["cases"].items(), ids=lambda c: c[0]
)
def test_the_least_confident_stay_masked(case):
    """As in MIGM-Shortcut. Which of equals stay is up to the device; how many is not, unlike in the original."""
    recorded = case[1]
    probabilities, expected = recorded["probs"], recorded["migm_shortcut_stay_masked"]
    stays = one_step(probabilities, recorded["keep"])
    assert sum(stays) == recorded["keep"] == sum(expected)
    assert sorted(p for p, s in zip(probabilities, stays, strict=True) if s) == sorted(
        p for p, s in zip(probabilities, expected, strict=True) if s
    )
    if len(set(probabilities)) == len(probabilities):
        assert stays == expected
