"""Partial passes: exact where they must be, for both architectures."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import builders
import golden_sets
import pytest
import torch
import uvit_folder
import uvit_sets
from builders import MODEL_CONFIG
from fakes import classes, logits_of
from golden_sets import tiny_maskgit
from lumina_sets import head, network
from shortcut_pack.shortcut import Pipeline, shipped
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.accelerators import MakeAccelerator
from shortcut_pack.shortcut.accelerators.choice import kept_bytes, named
from shortcut_pack.shortcut.accelerators.partial import Partial
from shortcut_pack.shortcut.denoiser import full_pass, guided_logits, image_features
from shortcut_pack.shortcut.flops import count_flops
from shortcut_pack.shortcut.generate import Result, generate
from shortcut_pack.shortcut.models.amused import ARCHITECTURE as AMUSED
from shortcut_pack.shortcut.models.architecture import HeadSize
from shortcut_pack.shortcut.models.layers import KeyValues
from shortcut_pack.shortcut.models.lumina_dimoo import ARCHITECTURE as LUMINA
from shortcut_pack.shortcut.models.maskgit import ARCHITECTURE as MASKGIT
from shortcut_pack.shortcut.models.meissonic import ARCHITECTURE as MEISSONIC
from shortcut_pack.shortcut.models.uvit import TrunkKept
from shortcut_pack.shortcut.models.uvit_parts import TextCondition, micro_conditions
from shortcut_pack.shortcut.quantized import TARGETS
from shortcut_pack.shortcut.sampler import Trace
from shortcut_pack.shortcut.schedule import SamplerRules, Settings, plan
from shortcut_pack.shortcut.settings import usual_settings
from shortcut_pack.shortcut.train.evaluate import divergence_of_run
from shortcut_pack.shortcut.train.loss import divergence
from shortcut_pack.shortcut.train.teacher import teacher_of
from test_flops import pass_by_hand
from third_architecture.transformer import OnGrid
from torch import Tensor

ROWS, COLUMNS = 3, 5
LENGTHS = (7, 4, 11)  # of prompts: three guidance branches
FLOAT8 = torch.float8_e4m3fn
WITHIN = {"rtol": 1e-5, "atol": 1e-5}
HEAD = "partial+head+neighbours"
WAYS = ("partial", "partial+neighbours", "partial+float8", HEAD, "ml-cache", "taylor", "reuse")
UVITS = {
    "amused": "amused_transformer_256",
    "amused halved": "amused_transformer_512",
    "meissonic": "meissonic_transformer_512",
    "meissonic halved": "meissonic_transformer_1024",
}
CASES = ("maskgit", "lumina", "lumina in turn", *UVITS, "meissonic halved in turn")


@cache
def uvit_of(case: str) -> Any:
    """The tiny network of a case, with the architecture; None of others."""
    name = UVITS.get(case.removesuffix(" in turn"))
    if name is None:
        return None
    architecture = AMUSED if name.startswith("amused") else MEISSONIC
    return uvit_sets.network(golden_sets.load(name)), architecture


def model_of(case: str) -> Any:
    if case == "maskgit":
        return tiny_maskgit()[0]
    is_sequential = case.endswith("in turn")
    if (uvit := uvit_of(case)) is not None:
        return uvit[0].on_grid(4, 6, is_sequential=is_sequential)
    return network("dimoo_backbone").on_grid(ROWS, COLUMNS, is_sequential=is_sequential)


def head_of(case: str) -> Any:
    if (uvit := uvit_of(case)) is not None:
        net, architecture = uvit
        asked = HeadSize(
            width=8,
            num_blocks=1,
            num_heads=2,
            is_large=False,
            from_full=False,
            kernel=None,
        )
        config = architecture.new_head(net.config, asked)
        return checkpoints.build(builders.random_checkpoint(architecture.head, config, seed=1))
    return tiny_maskgit()[1] if case == "maskgit" else head("dimoo_shortcut_head")


def conditions_of(case: str, rows: list[int]) -> tuple[Any, ...]:
    if case == "maskgit":
        return classes(*(row % 10 for row in rows))
    if (uvit := uvit_of(case)) is not None:
        config, generator = uvit[0].config, torch.Generator().manual_seed(3)
        shapes = ((77, config.text_width), (config.pooled_width,))
        return tuple(
            TextCondition(
                *(torch.randn(9, *shape, generator=generator) for shape in shapes),
                micro_conditions().repeat(9, 1),
            )[rows]
            for _ in range(2)
        )
    return tuple(random_ids(9, n, below=28, seed=n)[rows] for n in LENGTHS)


def traced(way: str, **changes: Any) -> list[Trace]:
    traces: list[Trace] = []
    run("maskgit", way, on_step=traces.append, **changes)
    return traces


def settings_of(case: str, **changes: Any) -> tuple[Settings, SamplerRules]:
    uvit = uvit_of(case)
    architecture = MASKGIT if case == "maskgit" else LUMINA if uvit is None else uvit[1]
    guidance = (2.5, 4.0) if architecture is LUMINA else (2.8,)
    usual = replace(architecture.settings, num_steps=6, full_steps=2, guidance=guidance)
    return replace(usual, **changes), architecture.rules


def random_ids(*shape: int, below: int, seed: int = 0) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def some_tokens(model: Any, num_images: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    num_tokens = model.grid[0] * model.grid[1]
    codes_BL = random_ids(num_images, num_tokens, below=model.config.num_codes, seed=seed)
    return codes_BL, random_ids(num_images, num_tokens, below=2, seed=seed + 1).bool()


def run(
    case: str,
    way: str | None,
    rows: list[int] | None = None,
    on_step: Any = None,
    **changes: Any,
) -> Result:
    model, (settings, rules) = model_of(case), settings_of(case, **changes)
    make: MakeAccelerator | None = None if way is None else named(way, head_of(case))
    rows = [0, 1, 2] if rows is None else rows
    return generate(
        model,
        conditions_of(case, rows),
        settings,
        rules,
        seed=5,
        image_indices=rows,
        num_tokens=model.grid[0] * model.grid[1],
        accelerator=make,
        on_step=on_step,
    )


# --- a pass ---


@torch.no_grad()
def test_a_partial_pass_over_all_positions_equals_a_full_pass_of_maskgit():
    net = tiny_maskgit()[0]
    length = net.config.num_tokens + 1
    old_BS, new_BS = (random_ids(2, length, below=net.config.vocabulary, seed=s) for s in (0, 1))
    where_BS = torch.stack(
        [torch.randperm(length, generator=torch.Generator().manual_seed(s)) for s in (2, 3)]
    )

    def renewed(index_BM: Tensor) -> Tensor:
        kept = [KeyValues() for _ in net.blocks]
        net(old_BS, kept)
        return net(new_BS.gather(1, index_BM), kept, index_BM)

    expected = net(new_BS)
    rows_B1 = torch.arange(2).unsqueeze(1)
    torch.testing.assert_close(renewed(where_BS), expected[rows_B1, where_BS], **WITHIN)
    # Control: with one position left out its old keys and values show.
    error = renewed(where_BS[:, 1:]) - expected[rows_B1, where_BS[:, 1:]]
    assert error.abs().max() > 1e-3


@torch.no_grad()
def test_a_partial_pass_over_all_positions_equals_a_full_pass_of_lumina():
    net = network("dimoo_backbone")
    lengths = [9, 5]
    old = [random_ids(2, n, below=28, seed=n) for n in lengths]
    new = [random_ids(2, n, below=28, seed=n + 20) for n in lengths]

    def renewed(positions: list[Tensor]) -> tuple[Tensor, ...]:
        kept = [KeyValues() for _ in net.blocks]
        net(old, kept)
        tokens = [t.gather(1, p) for t, p in zip(new, positions, strict=True)]
        return net(tokens, kept, (positions, lengths))

    def compare(positions: list[Tensor]) -> float:
        errors = [
            (found - whole[torch.arange(2).unsqueeze(1), p]).abs().max().item()
            for found, whole, p in zip(renewed(positions), net(new), positions, strict=True)
        ]
        return max(errors)

    where = [torch.stack([torch.arange(n), torch.arange(n).flip(0)]) for n in lengths]
    assert compare(where) < 1e-5
    assert compare([where[0], where[1][:, 1:]]) > 1e-3
    assert compare([where[0][:, 1:], where[1]]) > 1e-3


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_image_tokens_run_alone_have_the_features_of_the_full_pass(case):
    model, conditions = model_of(case), conditions_of(case, [0, 1])
    step = plan(settings_of(case)[0], 12, 15)[0]
    tokens = some_tokens(model)
    features = model.features(*tokens, conditions, step)
    found, kept = model.kept_features(*tokens, conditions, step)
    assert all(map(torch.equal, found, features))
    index_BM = torch.tensor([[3, 0, 11], [14, 7, 2]])
    rows_B1 = torch.arange(2).unsqueeze(1)
    where = [model.image_positions(index_BM, f_BSD.shape[1]) for f_BSD in features]
    partly = model.partial_features(*tokens, conditions, step, where, kept)
    assert len(partly) == len(conditions)
    for part_BMD, whole_BSD, where_BM in zip(partly, features, where, strict=True):
        torch.testing.assert_close(part_BMD, whole_BSD[rows_B1, where_BM], **WITHIN)
    # Control: at other tokens they differ.
    others = model.partial_features(*some_tokens(model, seed=9), conditions, step, where, kept)
    assert (others[0] - partly[0]).abs().max() > 1e-3


@pytest.mark.parametrize("case", UVITS)
@torch.no_grad()
def test_a_partial_pass_over_all_image_tokens_follows_changed_tokens_as_a_full_pass(case):
    model, conditions = model_of(case), conditions_of(case, [0, 1])
    step, num_tokens = plan(settings_of(case)[0], 12, 15)[0], model.grid[0] * model.grid[1]
    old, new = some_tokens(model), some_tokens(model, seed=9)
    expected = model.features(*new, conditions, step)

    def error(index_BM: Tensor) -> float:
        _, kept = model.kept_features(*old, conditions, step)
        where = [model.image_positions(index_BM, f_BSD.shape[1]) for f_BSD in expected]
        found = model.partial_features(*new, conditions, step, where, kept)
        rows_B1 = torch.arange(2).unsqueeze(1)
        pairs = zip(found, expected, where, strict=True)
        return max((part - whole[rows_B1, at]).abs().max().item() for part, whole, at in pairs)

    all_BM = torch.stack([torch.arange(num_tokens), torch.arange(num_tokens).flip(0)])
    # The text of Meissonic looks at the image, and a partial pass leaves it as it was.
    renews_text = case.startswith("amused")
    assert error(all_BM) < 1e-5 if renews_text else 1e-5 < error(all_BM) < 0.05
    # Control: with one token alone, old keys and values of the others show.
    assert error(all_BM[:, :1]) > (1e-3 if renews_text else 2 * error(all_BM))


@pytest.mark.parametrize("target", list(TARGETS))
def test_partial_passes_of_meissonic_run_with_quantized_weights(target, tmp_path):
    folder = uvit_folder.write(tmp_path, "meissonic_sampling_512", has_text=False)
    file = checkpoints.cast(checkpoints.load(folder, "model"), TARGETS[target])
    model = checkpoints.build(file).on_grid(4, 4)
    config, generator = model.config, torch.Generator().manual_seed(0)
    shapes = (1, 77, config.text_width), (1, config.pooled_width)
    text = (torch.randn(*shape, generator=generator) for shape in shapes)
    result = generate(
        model,
        (TextCondition(*text, micro_conditions()),),
        replace(MEISSONIC.settings, num_steps=6, full_steps=2, guidance=()),
        MEISSONIC.rules,
        seed=1,
        image_indices=[0],
        num_tokens=16,
        accelerator=named("partial", None),
    )
    assert (result.num_full, result.num_steps) == (2, 6)


@torch.no_grad()
def test_branches_in_turn_equal_branches_side_by_side():
    found = [run(case, "partial").codes_BL for case in ("lumina", "lumina in turn")]
    assert torch.equal(*found)


@torch.no_grad()
def test_keys_and_values_in_float8_are_near_and_never_overflow():
    key_BSD = torch.tensor([[[1000.0, -1.03, 0.0]]])
    kept = KeyValues(FLOAT8)
    kept.joined(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), None)
    found, _ = kept.joined(key_BSD, key_BSD, torch.tensor([[1]]))
    assert found.dtype is torch.float32
    assert found[0].tolist() == [[0, 0, 0], [448, -1, 0]]


@torch.no_grad()
def test_keys_and_values_are_kept_in_the_type_of_the_computation():
    net = tiny_maskgit(torch.bfloat16)[0]
    step = plan(Settings(num_steps=2), 36, 36)[0]
    _, kept = net.kept_features(*some_tokens(net), classes(1, 2), step)
    assert all(kv.key_BSD.dtype is kv.value_BSD.dtype is torch.bfloat16 for kv in kept)


# --- a run ---


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_all_full_is_bit_identical_to_vanilla(case, way):
    found = run(case, way, full_steps=6)
    expected = run(case, None, full_steps=None)
    assert torch.equal(found.codes_BL, expected.codes_BL)
    assert found.num_full == expected.num_full == expected.num_steps


def test_a_run_whose_steps_are_all_full_makes_no_accelerator():
    """For one, full passes run branch by branch, which may round differently, and keep what nobody asks for."""

    def never(*_: Any) -> Any:
        raise AssertionError("no step needs an accelerator")

    model, (settings, rules) = model_of("maskgit"), settings_of("maskgit", full_steps=6)
    given = (model, conditions_of("maskgit", [0]), settings, rules)
    num_tokens = model.grid[0] * model.grid[1]
    found = generate(*given, seed=5, image_indices=[0], num_tokens=num_tokens, accelerator=never)
    assert found.num_full == found.num_steps == 6


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_an_image_is_the_same_in_a_batch_and_alone(case, way):
    together = run(case, way).codes_BL
    for row in range(3):
        assert torch.equal(run(case, way, [row]).codes_BL[0], together[row])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", ["partial", "ml-cache", "taylor"])
def test_what_a_run_keeps_leaks_into_no_other(case, way):
    first, second = run(case, way, [0, 1]), run(case, way, [4, 3])
    assert not torch.equal(first.codes_BL, second.codes_BL)
    assert torch.equal(run(case, way, [4, 3]).codes_BL, second.codes_BL)
    assert torch.equal(run(case, way, [0, 1]).codes_BL, first.codes_BL)


def test_positions_are_chosen_from_the_features_at_hand_and_codes_from_fresh_ones():
    """In the first step after a full pass the positions are those of kept features; the codes are not."""
    traces: dict[str, list[Trace]] = {"partial": [], "reuse": []}
    run("maskgit", "partial", on_step=traces["partial"].append, full_steps=1)
    run("maskgit", "reuse", on_step=traces["reuse"].append, full_steps=1)
    ours, theirs = traces["partial"][1], traces["reuse"][1]
    assert torch.equal(ours.revealed.index_BK, theirs.revealed.index_BK)
    model = model_of("maskgit")
    before = traces["partial"][0]
    full = model.features(
        before.codes_BL, before.is_masked_BL, conditions_of("maskgit", [0, 1, 2]), ours.step
    )
    index_BK, guidance = ours.revealed.index_BK, ours.step.guidance
    wanted = guided_logits(model, full, guidance, index_BK)
    fresh, stale = (
        logits_of(ours),
        guided_logits(model, theirs.denoised.features, guidance, index_BK),
    )
    assert divergence(fresh, wanted) < divergence(stale, wanted)


@pytest.mark.parametrize("case", CASES)
def test_guidance_points_where_it_did_in_the_last_full_pass(case):
    """The condition's branch alone is run, and the features of the others move as its features do."""
    traces: list[Trace] = []
    run(case, "partial", [0], on_step=traces.append, full_steps=2)
    model, directions = model_of(case), [torch.empty(0)]
    all_BL = torch.arange(model.grid[0] * model.grid[1]).unsqueeze(0)
    before_BLD = torch.empty(0)
    for trace in traces:
        features = trace.denoised.features
        first_BLD, *others = (image_features(model, each_BSD, all_BL) for each_BSD in features)
        found = [first_BLD - other_BLD for other_BLD in others]
        if trace.denoised.was_full:
            directions = found
        else:
            for now_BLD, then_BLD in zip(found, directions, strict=True):
                torch.testing.assert_close(now_BLD, then_BLD, rtol=1e-4, atol=1e-4)
            assert (first_BLD - before_BLD).abs().max() > 1e-3
        before_BLD = first_BLD
    assert directions and min(each_BLD.abs().max() for each_BLD in directions) > 1e-2


@pytest.mark.parametrize("way", WAYS)
def test_every_step_reveals_masked_tokens_alone(way):
    known: list[Tensor] = []

    def check(trace: Trace) -> None:
        revealed_BL = torch.zeros_like(trace.is_masked_BL).scatter(1, trace.revealed.index_BK, True)
        assert (revealed_BL.sum(1) == trace.step.num_revealed).all()
        assert not known or not (revealed_BL & ~known[-1]).any()
        known.append(trace.is_masked_BL)

    run("maskgit", way, on_step=check)
    assert not known[-1].any()


def test_taylor_goes_on_in_a_straight_line_by_the_number_of_steps():
    steps = plan(Settings(num_steps=8, full_steps=(0, 2, 5)), 36, 36)
    known: list[Tensor] = []
    for trace in traced("taylor", num_steps=8, full_steps=(0, 2, 5)):
        (now_BSD, *_), i = trace.denoised.features, trace.step.index
        known.append(now_BSD)
        if steps[i].is_full:
            continue
        start, before = (0, 0) if i < 2 else (2, 0) if i < 5 else (5, 2)
        pace = (known[start] - known[before]) / max(1, start - before)
        torch.testing.assert_close(now_BSD, known[start] + (i - start) * pace)


def test_with_a_head_it_says_where_and_the_model_what():
    by_head, by_both = traced("head", full_steps=1), traced("partial+head", full_steps=1)
    assert torch.equal(by_head[1].revealed.index_BK, by_both[1].revealed.index_BK)
    first, second = (logits_of(t[1]) for t in (by_both, traced("partial", full_steps=1)))
    assert first.shape == second.shape  # of the tokens to reveal alone
    assert not torch.equal(by_head[1].revealed.codes_BK, by_both[1].revealed.codes_BK)


def test_an_architecture_without_partial_passes_is_refused():
    model: Any = None
    view = OnGrid(model, 4, 4)
    with pytest.raises(
        ValueError, match=r"this model makes no partial passes.*Use head, taylor or reuse"
    ):
        Partial(view, ())


def test_in_python_an_accelerator_is_chosen_by_name_once_or_for_a_call():
    loaded = Pipeline.load("scenes text", accelerator="partial")
    options: dict[str, Any] = {"prompt": "two pines", "seed": 3, "steps": 6, "full_steps": 2}
    (by_partial,) = loaded.generate(**options)
    usual = Pipeline.load("scenes text")
    (by_head,) = usual.generate(**options)
    (for_a_call,) = usual.generate(**options, accelerator="partial")
    assert by_partial.tobytes() == for_a_call.tobytes() != by_head.tobytes()
    assert usual.generate(**options)[0].tobytes() == by_head.tobytes()
    with pytest.raises(
        ValueError, match=r"accelerator must be one of head, reuse, taylor, partial, .*'x'"
    ):
        usual.generate(**options, accelerator="x")


def test_a_shipped_model_has_the_accelerator_that_suits_it_unless_told_otherwise():
    # What suits it is in experiments/RESULTS.md.
    assert Pipeline.load("scenes").accelerator_name == "partial"
    assert Pipeline.load("scenes text").accelerator_name == "head"
    assert Pipeline.load("scenes", head=shipped.HEAD).accelerator_name == "head"
    assert Pipeline.load("scenes", accelerator="head").accelerator_name == "head"
    without = Pipeline.load("scenes", head="none")
    assert without.accelerator_name is None and without.head is None


# --- its cost ---


@pytest.mark.parametrize("way", ["partial", "partial+neighbours"])
def test_operations_of_partial_passes_are_those_of_the_tokens_run(way):
    model, settings = (
        checkpoints.build(builders.model(MODEL_CONFIG)),
        Settings(num_steps=5, full_steps=2),
    )
    class_B = torch.zeros(1, dtype=torch.long)
    found = count_flops(
        model,
        None,
        settings,
        (class_B, class_B),
        (4, 4),
        rules=SamplerRules(),
        accelerator=way,
    )
    steps = plan(settings, 16, 16)
    num_run = num_logits = 0
    for before, step in pairwise(steps):
        if not step.is_full:
            num_run += before.num_revealed + step.num_revealed
            if way == "partial+neighbours":
                num_run += min(8 * before.num_revealed, step.num_masked - step.num_revealed)
            num_logits += step.num_revealed  # drawn from fresh logits, after the choice from all
    num_logits += sum(step.num_masked for step in steps)
    # Queries, projections and feed-forward of the condition's tokens run; they attend to all 17 positions.
    assert found.partial * 17 == 2 * num_run * pass_by_hand(MODEL_CONFIG, sequences=1)
    assert found.full == 2 * 2 * pass_by_hand(MODEL_CONFIG, sequences=2)
    assert found.logits == 2 * num_logits * MODEL_CONFIG.width * MODEL_CONFIG.num_codes
    assert found.total == found.full + found.partial + found.logits


@pytest.mark.parametrize("guidance", [(0.0,), (2.0,)])
@pytest.mark.parametrize("way", ["head", "partial+head"])
def test_a_head_whose_features_are_not_finite_ends_the_run(
    way: str, guidance: tuple[float]
) -> None:
    """Also where it only says which tokens come first."""
    model, head = checkpoints.build(builders.model()), checkpoints.build(builders.head())
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        generate(
            model.on_grid(4, 4),
            (torch.zeros(1, dtype=torch.long),) * 2,
            Settings(num_steps=5, full_steps=2, guidance=guidance),
            SamplerRules(),
            seed=0,
            image_indices=[0],
            num_tokens=16,
            accelerator=named(way, head),
        )


def test_operations_of_the_other_accelerators_with_partial_passes():
    model, head = checkpoints.build(builders.model()), checkpoints.build(builders.head())
    settings, class_B = Settings(num_steps=5, full_steps=2), torch.zeros(1, dtype=torch.long)
    found = {
        way: count_flops(
            *(model, head, settings, (class_B, class_B), (4, 4)),
            rules=SamplerRules(),
            accelerator=way,
        )
        for way in ("head", "partial", "partial+head", "ml-cache")
    }
    both = found["partial+head"]
    assert both.partial == found["partial"].partial > 0
    assert both.head == found["head"].head > 0
    # ML-Cache runs 2 of the 17 positions in each of the 3 steps that are not full.
    assert found["ml-cache"].partial * 17 == 2 * (2 * 3) * pass_by_hand(MODEL_CONFIG, sequences=2)


def test_operations_of_partial_passes_of_a_text_model_are_those_of_the_tokens_run():
    model = checkpoints.build(builders.text_model())
    config, rules = builders.TEXT_CONFIG, LUMINA.rules
    settings = replace(LUMINA.settings, num_steps=5, full_steps=2)
    prompts = tuple(torch.zeros(1, n, dtype=torch.long) for n in (6, 3))
    found = count_flops(model, None, settings, prompts, (4, 4), rules=rules, accelerator="partial")
    num_run = sum(
        before.num_revealed + step.num_revealed
        for before, step in pairwise(plan(settings, 16, 16, rules))
        if not step.is_full
    )
    num_positions = 6 + 4 + 20  # of the condition's branch, which alone is run
    a_token = 4 * config.width**2 + 3 * config.width * config.mlp_width
    a_token += 2 * num_positions * config.width
    assert found.partial == 2 * num_run * config.depth * a_token


@pytest.mark.parametrize("case", ["amused halved", "meissonic halved"])
def test_a_halved_trunk_runs_a_place_once_whatever_tokens_it_holds(case):
    """So a step that runs most tokens costs no more than a full pass."""
    model, (settings, rules) = model_of(case), settings_of(case, num_steps=2, full_steps=1)
    conditions = conditions_of(case, [0])
    found = count_flops(
        model.model, None, settings, conditions, model.grid, rules=rules, accelerator="partial"
    )
    assert 0 < found.partial <= found.full


def kept_nbytes(kept: Any) -> int:
    """The bytes of all tensors in what a full pass keeps."""
    if isinstance(kept, Tensor):
        return kept.untyped_storage().nbytes()
    if isinstance(kept, KeyValues):
        return kept_nbytes([kept.key_BSD, kept.value_BSD])
    if isinstance(kept, TrunkKept):
        return kept_nbytes([*kept.blocks, kept.out_BLC])
    return sum(map(kept_nbytes, kept))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("way", "dtype"), [("partial", None), ("ml-cache+float8", FLOAT8)])
@torch.no_grad()
def test_the_memory_of_what_is_kept_is_that_of_its_tensors(case, way, dtype):
    model, conditions = model_of(case), conditions_of(case, [0, 1])
    made = named(way, None)(model, conditions)
    assert made.kept_dtype is dtype
    step = plan(settings_of(case)[0], 12, 15)[0]
    features, kept = full_pass(model, made, *some_tokens(model), conditions, step)
    lengths = [model.sequence_length(condition) for condition in conditions]
    assert kept_nbytes(kept) == kept_bytes(way, model, 2, lengths)
    of_which = lengths[:1] if way == "partial" else lengths
    assert kept_nbytes(kept) == model.kept_bytes(2, of_which, dtype)
    assert kept_bytes("reuse", model, 2, lengths) == 0
    whole = model.features(*some_tokens(model), conditions, step)
    for same_BSD, whole_BSD in zip(features, whole, strict=True):  # whatever it keeps
        torch.testing.assert_close(same_BSD, whole_BSD, **WITHIN)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_full_pass_that_keeps_runs_the_network_as_often_as_another(case):
    """All guidance branches together: a small model takes as long for one as for two."""
    model, conditions = model_of(case), conditions_of(case, [0, 1])
    step, runs = plan(settings_of(case)[0], 12, 15)[0], []
    network = model if case == "maskgit" else model.model
    first = next(part for part in network.modules() if isinstance(part, torch.nn.ModuleList))[0]
    with first.register_forward_hook(lambda *_: runs.append(1)):
        for way in (None, "partial", "ml-cache"):
            made = None if way is None else named(way, None)(model, conditions)
            full_pass(model, made, *some_tokens(model), conditions, step)
            runs.append(0)
    ends = [place for place, run in enumerate(runs) if run == 0]
    assert runs[: ends[0]] == runs[ends[0] + 1 : ends[1]] == runs[ends[1] + 1 : ends[2]] != []


# --- what it is for ---


def test_partial_passes_follow_the_model_better_than_the_head_and_than_kept_features():
    """Shipped class model, 8 of 32 full."""
    pipeline = Pipeline.load("scenes")
    teacher = teacher_of(
        pipeline.model_file,
        pipeline.model,
        pipeline.conditioner,
        settings=replace(usual_settings(pipeline.model_file), num_steps=32, full_steps=8),
    )
    no_class = pipeline.model_file.config.num_classes
    conditions = (torch.tensor([1, 12]), torch.full((2,), no_class))
    names = ("partial+neighbours", "partial", "head", "reuse")
    found = [
        divergence_of_run(teacher, named(n, pipeline.head), teacher.settings, conditions, 0).mean()
        for n in names
    ]
    assert found == sorted(found), found
    assert found[1] < 0.8 * found[2]
