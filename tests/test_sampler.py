"""The loop: what it reveals, what it leaves alone, and what an image depends on."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import (
    UNGUIDED,
    L,
    TableModel,
    V,
    classes,
    logits_of,
    oracle,
    run,
    some_masked,
    tiny_run,
    uniform,
    varied,
)
from golden_sets import tiny_maskgit
from shortcut_pack.shortcut import sampler
from shortcut_pack.shortcut.accelerators.shortcut_head import ShortcutHead
from shortcut_pack.shortcut.denoiser import Denoised, Denoiser
from shortcut_pack.shortcut.generate import masked_at_start
from shortcut_pack.shortcut.noise import Noise
from shortcut_pack.shortcut.sampler import positions, sample
from shortcut_pack.shortcut.schedule import Settings, plan
from torch.utils._python_dispatch import TorchDispatchMode

# --- what is revealed ---


@pytest.mark.parametrize("schedule", ["root", "linear", "square", "cosine", "arccos"])
@pytest.mark.parametrize(
    ("num_steps", "num_masked"), [(1, 36), (5, 36), (36, 36), (4, 17), (32, 3), (3, 1)]
)
def test_every_step_leaves_as_many_masked_as_planned(schedule, num_steps, num_masked):
    settings = Settings(num_steps=num_steps, schedule=schedule, **UNGUIDED)
    is_masked_BL = some_masked(2, num_masked)
    codes_BL = torch.arange(2 * L).view(2, L) % V
    made_BL, traces = run(
        varied(1, L, V),
        [torch.zeros(2, dtype=torch.long)],
        settings,
        num_tokens=L,
        codes_BL=codes_BL,
        is_masked_BL=is_masked_BL,
    )
    assert [t.step for t in traces] == plan(settings, num_masked, L)
    was_masked_BL = is_masked_BL
    for trace in traces:
        assert trace.is_masked_BL.sum(1).tolist() == [trace.step.num_masked_after] * 2
        index_BK, codes_BK = trace.revealed.index_BK, trace.revealed.codes_BK
        assert was_masked_BL.gather(1, index_BK).all()
        assert (index_BK.diff(dim=1) > 0).all()
        assert torch.equal(trace.is_masked_BL, was_masked_BL.scatter(1, index_BK, False))
        assert torch.equal(trace.codes_BL.gather(1, index_BK), codes_BK)
        assert torch.equal(trace.codes_BL[~was_masked_BL], made_BL[~was_masked_BL])
        was_masked_BL = trace.is_masked_BL
    assert not was_masked_BL.any()
    assert torch.equal(made_BL[~is_masked_BL], codes_BL[~is_masked_BL])


def test_a_step_may_reveal_nothing():
    steps = plan(Settings(num_steps=3, **UNGUIDED), L, L)
    idle = replace(steps[0], num_revealed=0)
    made_BL, traces = run(varied(1, L, V), [torch.tensor([0])], [idle, *steps], num_tokens=L)
    assert traces[0].is_masked_BL.all()
    assert traces[0].revealed.codes_BK.shape == (1, 0)
    assert not traces[-1].is_masked_BL.any()
    assert made_BL.shape == (1, L)


def test_a_head_step_after_nothing_was_revealed():
    steps = plan(Settings(num_steps=4, full_steps=1), L, L)
    idle = replace(steps[0], num_revealed=0)
    model, head = tiny_maskgit()
    predictor = ShortcutHead(head, model, classes(1))
    _, traces = run(model, classes(1), [idle, *steps[1:2]], num_tokens=L, accelerator=predictor)
    assert [t.denoised.was_full for t in traces] == [True, False]
    assert logits_of(traces[1]).isfinite().all()


@pytest.mark.parametrize(
    ("num_tokens", "denoise", "num_made"),
    [(50, 0.3, 15), (25, 0.6, 15), (45, 0.6, 27), (7, 0.5, 4)],
)
def test_a_share_of_the_tokens_is_made_anew(num_tokens, denoise, num_made):
    known_BL = torch.zeros(1, num_tokens, dtype=torch.long)
    assert masked_at_start(1, [0], num_tokens, known_BL, None, denoise).sum() == num_made
    with pytest.raises(ValueError, match="are for codes to start from, and there are none"):
        masked_at_start(1, [0], num_tokens, None, None, denoise)


def test_known_tokens_are_what_the_network_sees_and_never_change():
    is_masked_BL = some_masked(2, 20)
    codes_BL = torch.randint(V, (2, L), generator=torch.Generator().manual_seed(1))
    given_BL = codes_BL.clone()
    made_BL, _ = tiny_run(
        (1, 2), Settings(num_steps=8, full_steps=3), codes_BL=codes_BL, is_masked_BL=is_masked_BL
    )
    assert torch.equal(made_BL[~is_masked_BL], codes_BL[~is_masked_BL])
    assert torch.equal(codes_BL, given_BL), "the caller's codes were changed in place"
    others_BL = codes_BL.where(is_masked_BL, (codes_BL + 1) % V)
    with_others_BL, _ = tiny_run(
        (1, 2), Settings(num_steps=8, full_steps=3), codes_BL=others_BL, is_masked_BL=is_masked_BL
    )
    assert not torch.equal(made_BL[is_masked_BL], with_others_BL[is_masked_BL])


def test_what_stands_at_masked_positions_has_no_effect():
    is_masked_BL = some_masked(1, 20)
    runs = [
        tiny_run(
            (3,),
            Settings(num_steps=6, full_steps=2),
            codes_BL=torch.full((1, L), 7).masked_fill(is_masked_BL, junk),
            is_masked_BL=is_masked_BL,
        )[0]
        for junk in (0, 31, V)
    ]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_all_known_is_returned_without_asking_the_model():
    model = uniform(L, V)
    codes_BL = torch.arange(L)[None] % V
    made_BL, traces = run(
        model,
        [torch.tensor([0])],
        Settings(**UNGUIDED),
        num_tokens=L,
        codes_BL=codes_BL,
        is_masked_BL=torch.zeros(1, L, dtype=torch.bool),
    )
    assert torch.equal(made_BL, codes_BL)
    assert (traces, model.num_passes) == ([], 0)


def test_more_steps_than_tokens_reveals_one_a_step():
    is_masked_BL = some_masked(2, 3)
    _, traces = tiny_run((1, 2), Settings(num_steps=32, full_steps=8), is_masked_BL=is_masked_BL)
    assert [t.step.num_revealed for t in traces] == [1, 1, 1]


def test_a_model_that_knows_the_image_makes_it():
    images_CL = torch.randint(V, (3, L), generator=torch.Generator().manual_seed(0))
    for settings in (Settings(num_steps=1, **UNGUIDED), Settings(num_steps=9, **UNGUIDED)):
        made_BL, _ = run(oracle(images_CL, V), [torch.tensor([2, 0, 1])], settings, num_tokens=L)
        assert torch.equal(made_BL, images_CL[[2, 0, 1]])


def test_a_model_that_knows_nothing_makes_all_codes_alike():
    made_BL, _ = run(
        uniform(400, 4), [torch.zeros(10, dtype=torch.long)], Settings(**UNGUIDED), num_tokens=400
    )
    counts_V = made_BL.flatten().bincount(minlength=4)
    assert (((counts_V - 1000) ** 2) / 1000).sum() < 16.3  # 99.9 % for 3 degrees of freedom


# --- temperatures ---


def test_temperature_zero_takes_the_most_likely_code():
    model = varied(1, L, V)
    settings = Settings(num_steps=6, temperature=0, choice_temperature=0, **UNGUIDED)
    runs = [
        run(model, [torch.tensor([0])], settings, num_tokens=L, seed=seed)[0] for seed in (0, 1)
    ]
    assert torch.equal(runs[0], model.table_CLV.argmax(-1))
    assert torch.equal(runs[1], runs[0])


def test_temperature_scales_the_distribution_of_codes():
    model = TableModel(torch.tensor([2.0, 0.0]).expand(1, 4000, 2))
    for temperature in (0.5, 1.0, 2.0):
        settings = Settings(num_steps=1, temperature=temperature, **UNGUIDED)
        made_BL, _ = run(model, [torch.tensor([0])], settings, num_tokens=4000)
        expected = 1 / (1 + math.exp(2 / temperature))
        deviation = math.sqrt(expected * (1 - expected) / 4000)
        assert abs(made_BL.float().mean() - expected) < 4 * deviation


def test_choice_temperature_zero_reveals_the_most_confident():
    model = varied(1, L, V)
    settings = Settings(num_steps=6, temperature=0, choice_temperature=0, **UNGUIDED)
    _, traces = run(model, [torch.tensor([0])], settings, num_tokens=L)
    order_L = model.table_CLV[0].log_softmax(-1).amax(-1).argsort(descending=True)
    revealed = 0
    for trace in traces:
        expected = order_L[revealed : revealed + trace.step.num_revealed]
        assert set(trace.revealed.index_BK[0].tolist()) == set(expected.tolist())
        revealed += trace.step.num_revealed


def test_infinite_choice_temperature_reveals_at_random_whatever_the_model_says():
    settings = Settings(num_steps=6, choice_temperature=math.inf, **UNGUIDED)
    orders = [
        [
            t.revealed.index_BK.tolist()
            for t in run(varied(1, L, V, seed), [torch.tensor([0])], settings, num_tokens=L)[1]
        ]
        for seed in (0, 1)
    ]
    assert orders[0] == orders[1]
    other_seed = run(varied(1, L, V), [torch.tensor([0])], settings, num_tokens=L, seed=1)[1]
    assert [t.revealed.index_BK.tolist() for t in other_seed] != orders[0]


def test_confidence_decides_more_as_choice_temperature_falls():
    model = varied(1, 400, V)
    ranks = []
    for temperature in (0.0, 1.0, 100.0):
        settings = Settings(num_steps=8, temperature=0, choice_temperature=temperature, **UNGUIDED)
        _, traces = run(model, [torch.tensor([0])], settings, num_tokens=400)
        confidence_L = model.table_CLV[0].log_softmax(-1).amax(-1)
        index_K = torch.cat([t.revealed.index_BK[0] for t in traces[:3]])
        ranks.append((confidence_L.argsort().argsort()[index_K]).float().mean().item())
    assert ranks[0] > ranks[1] > ranks[2]


# --- what an image depends on ---


@pytest.mark.parametrize("use_head", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_an_image_of_a_batch_equals_the_same_image_alone(use_head, temperature):
    settings = Settings(num_steps=8, full_steps=3, temperature=temperature)
    ids, is_masked_BL = (4, 0, 7), some_masked(3, 30)
    codes_BL = torch.randint(V, (3, L), generator=torch.Generator().manual_seed(2))
    options = {"use_head": use_head, "seed": 11}
    batch, _ = tiny_run(ids, settings, codes_BL=codes_BL, is_masked_BL=is_masked_BL, **options)
    for place in range(3):
        alone, _ = tiny_run(
            ids[place : place + 1],
            settings,
            codes_BL=codes_BL[place : place + 1],
            is_masked_BL=is_masked_BL[place : place + 1],
            image_indices=[place],
            **options,
        )
        assert torch.equal(alone[0], batch[place])


def test_an_image_does_not_depend_on_its_neighbours():
    settings = Settings(num_steps=8, full_steps=3)
    first, _ = tiny_run((4, 0, 7), settings)
    second, _ = tiny_run((9, 0, 3), settings)
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0])
    swapped, _ = tiny_run((7, 0, 4), settings, image_indices=[2, 1, 0])
    assert torch.equal(swapped, first.flip(0))


def test_images_of_a_batch_and_of_other_seeds_differ():
    settings = Settings(num_steps=8, full_steps=3)
    made, _ = tiny_run((4, 4), settings)
    assert not torch.equal(made[0], made[1])
    assert torch.equal(made, tiny_run((4, 4), settings)[0])
    assert not torch.equal(made, tiny_run((4, 4), settings, seed=1)[0])


def test_no_global_random_state_is_read_or_moved():
    settings = Settings(num_steps=4, full_steps=2)
    first, _ = tiny_run((1, 2), settings)
    with torch.random.fork_rng():
        torch.manual_seed(1234)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()
        second, _ = tiny_run((1, 2), settings)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        np.testing.assert_equal(np.random.get_state(), before[2])
    assert torch.equal(first, second)


# --- memory ---


@pytest.mark.parametrize("at_once", [1, 7, 50])
def test_pieces_of_positions_make_the_same_pictures(at_once, monkeypatch):
    settings, draw, sizes = Settings(num_steps=6, full_steps=3), Noise.codes, []
    whole, _ = tiny_run((1, 2, 3), settings)

    def watched(noise, step, index_BN, logits_BNV):
        sizes.append(index_BN.numel())
        return draw(noise, step, index_BN, logits_BNV)

    monkeypatch.setattr(sampler, "AT_ONCE", at_once)
    monkeypatch.setattr(Noise, "codes", watched)
    made, _ = tiny_run((1, 2, 3), settings)
    assert torch.equal(made, whole)
    assert max(sizes) == max(1, at_once // 3) * 3


# --- failures and the hook ---


class Failing:
    """Answers uniform logits, but `value` for one code at one position of one image in one step."""

    def __init__(self, value: float, step: int):
        self.value, self.step = value, step

    def __call__(self, step, tokens) -> Denoised:
        logits_BNV = torch.zeros(*tokens.index_BN.shape, V)
        if step.index == self.step:
            logits_BNV[-1, -1, 5] = self.value
        return Denoised(lambda _: logits_BNV, (), True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", [0, 3])
def test_logits_that_are_not_finite_are_an_error(value, step):
    steps = plan(Settings(num_steps=4, **UNGUIDED), L, L)
    noise = Noise.draw(0, range(2), 4, L, "cpu")
    codes_BL, is_masked_BL = torch.zeros(2, L, dtype=torch.long), torch.ones(2, L, dtype=torch.bool)
    with pytest.raises(FloatingPointError, match=r"not finite.*float16.*bfloat16"):
        sample(Failing(value, step), codes_BL, is_masked_BL, steps, noise)
    assert sample(Failing(1.0, step), codes_BL, is_masked_BL, steps, noise).shape == (2, L)


def test_an_exception_of_the_hook_ends_the_run_and_comes_out():
    class Interrupted(Exception):
        pass

    def interrupt(trace):
        if trace.step.index == 2:
            raise Interrupted

    model = varied(1, L, V)
    steps = plan(Settings(num_steps=8, **UNGUIDED), L, L)
    noise = Noise.draw(0, [0], 8, L, "cpu")
    start = torch.zeros(1, L, dtype=torch.long), torch.ones(1, L, dtype=torch.bool)
    with pytest.raises(Interrupted):
        sample(Denoiser(model, [torch.tensor([0])]), *start, steps, noise, interrupt)
    assert model.num_passes == 3


def test_positions_are_ascending():
    is_masked_BL = torch.tensor([[True, False, True, True], [False, True, True, True]])
    assert positions(is_masked_BL, 3).tolist() == [[0, 2, 3], [1, 2, 3]]


# --- nothing waits for the device ---


def loop_inputs(device: str):
    """Arguments of `sample` for a run with head and guidance, on `device`."""
    model, head = (network.to(device) for network in copy.deepcopy(tiny_maskgit()))
    conditions = tuple(c.to(device) for c in classes(1, 2))
    steps = plan(Settings(num_steps=8, full_steps=3), 30, L)
    codes_BL = torch.zeros(2, L, dtype=torch.long, device=device)
    is_masked_BL = some_masked(2, 30).to(device)
    denoiser = Denoiser(model, conditions, ShortcutHead(head, model, conditions))
    return denoiser, codes_BL, is_masked_BL, steps, Noise.draw(0, range(2), 8, L, device)


class NoSync(TorchDispatchMode):
    """Fails operations whose result has a size that only the device knows; counts reads."""

    FORBIDDEN = ("aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal")

    def __init__(self):
        super().__init__()
        self.num_reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        assert not name.startswith(self.FORBIDDEN), name
        if name.startswith("aten::index"):
            indices = args[1] if isinstance(args[1], list | tuple) else []
            assert not any(i is not None and i.dtype is torch.bool for i in indices), name
        self.num_reads += name.startswith("aten::_local_scalar_dense")
        return func(*args, **(kwargs or {}))


def test_the_host_reads_one_number_at_the_end_of_a_run():
    inputs = loop_inputs("cpu")
    reads_before_step = []
    with NoSync() as watch:
        sample(*inputs, lambda _: reads_before_step.append(watch.num_reads))
    assert reads_before_step == [0] * 8
    assert watch.num_reads == 1


def test_all_steps_run_on_a_device_without_values():
    """Meta tensors have shapes only: whatever needs a value or a copy to the host fails."""
    traces = []
    with pytest.raises(RuntimeError, match="meta"):  # the one check after the last step
        sample(*loop_inputs("meta"), traces.append)
    assert [t.step.index for t in traces] == list(range(8))


# --- number types ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_runs_with_a_head_of_any_type(dtype, head_dtype):
    settings = Settings(num_steps=8, full_steps=3)
    made, traces = tiny_run((1, 2), settings, dtype=dtype, head_dtype=head_dtype)
    assert made.min() >= 0
    assert made.max() < V
    for trace in traces:
        assert logits_of(trace).dtype is torch.float32
        assert {f.dtype for f in trace.denoised.features} == {dtype}
        assert logits_of(trace).isfinite().all()


# Measured with torch 2.13 on a CPU: bfloat16 0.026, float16 0.0034; the bounds are twice that.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.053), (torch.float16, 0.0068)])
def test_half_precision_stays_near_float32(dtype, bound):
    """Relative error of the guided logits of a full step and of a head step."""
    settings = Settings(num_steps=2, full_steps=1, temperature=0, choice_temperature=math.inf)
    _, exact = tiny_run((1, 2), settings)
    _, half = tiny_run((1, 2), settings, dtype=dtype)
    for trace, reference in zip(half, exact, strict=True):
        expected_BNV = logits_of(reference)
        assert (logits_of(trace) - expected_BNV).norm() < bound * expected_BNV.norm()
