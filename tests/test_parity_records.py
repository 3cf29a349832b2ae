"""Check the records of the original trainers, and the training samples that are made of them.

Each check has controls: the same with one thing
wrong on purpose, which must be told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import builders
import pytest
import torch
from golden_sets import GoldenSet, load
from shortcut_pack.shortcut.denoiser import Denoiser, Revealed, positions
from shortcut_pack.shortcut.models.lumina_dimoo import transformer as lumina
from shortcut_pack.shortcut.models.lumina_dimoo.block import SequencePositions
from shortcut_pack.shortcut.models.lumina_dimoo.head import LuminaHead
from shortcut_pack.shortcut.sampler import sample
from shortcut_pack.shortcut.schedule import Settings, plan
from shortcut_pack.shortcut.train.loss import predict, window
from shortcut_pack.shortcut.train.record import Recorder, Trajectories
from test_parity_lumina_sampling import Run, recorded_run
from test_parity_train import Replay
from test_parity_train import build as build_maskgit
from torch import Tensor

Records = dict[str, dict[str, Tensor]]
NAMES = ("cond", "uncond")
NO_PROMPT = -100  # what a published record of the unconditional branch has in place of a prompt
REAL_GRID, NUM_TEXT_IDS = (64, 64), 126_356
REAL_UNCONDITION = [126332, 36289, 289, 3972, 4631, 297, 268, 3019, 12166, 13]
REAL_UNCONDITION += [126333, 126334, 126351, 126335]


def generation_order(run: Trajectories) -> Tensor:
    """Return the step (B, L) that revealed each token; -1 = none, it was known."""
    order_BL = torch.full_like(run.codes_BL, -1)
    for t, revealed in enumerate(run.revealed):
        order_BL.scatter_(1, revealed.index_BK, t)
    return order_BL


def check(golden: GoldenSet, records: Records, prefix: str) -> None:
    """Compare records with those in a set under `prefix`."""
    for key, fields in records.items():
        for field, value in fields.items():
            name = f"record/{prefix}{key}/{field}.pth"
            if value.is_floating_point():
                golden.assert_close(value, name)
            else:
                assert torch.equal(value.long(), golden[name].long()), name


def late(recorder: Recorder) -> None:
    """Spoil a record: the features of each step are those of the step after."""
    following = [*recorder.steps[1:], recorder.steps[0]]
    recorder.steps = [
        (step, features, *rest)
        for (step, _, *rest), (_, features, *_) in zip(recorder.steps, following, strict=True)
    ]


def maskgit_records(no_class: int = 10, spoil: Callable[[Recorder], None] | None = None) -> Records:
    """Return what the original stores of a MaskGIT run, from our trajectories.

    Source: MIGM-Shortcut MaskGIT-Shortcut/Trainer/vit.py sample_makedata; tests/golden/README.md section 8.
    """
    golden = load("maskgit_makedata")
    model, _ = build_maskgit(golden)
    num_tokens, num_steps = model.config.num_tokens, golden.args["step"]
    labels_B = golden["labels"]
    conditions = (labels_B, torch.full_like(labels_B, no_class))
    noise: Any = Replay(
        {t: golden[f"noise/codes/{t:03d}"] for t in range(num_steps)},
        {t: golden[f"noise/gumbel/{t:03d}"] for t in range(num_steps)},
    )
    recorder = Recorder(conditions, torch.float32)
    sample(
        Denoiser(model, conditions),
        torch.zeros(len(labels_B), num_tokens, dtype=torch.long),
        torch.ones(len(labels_B), num_tokens, dtype=torch.bool),
        plan(Settings(num_steps=num_steps), num_tokens, num_tokens),
        noise,
        recorder,
    )
    if spoil is not None:
        spoil(recorder)
    run = recorder.trajectories()
    order_BL = generation_order(run)
    sizes = golden.info["config"]["vit"]
    no_class_token = sizes["codebook_size"] + 1 + sizes["nclass"]
    records = {}
    for i, label in enumerate(run.conditions[0].tolist()):
        for branch, (name, last) in enumerate((("cond", label), ("uncond", no_class_token))):
            records[f"{i:03d}_{label}_{name}"] = {
                "feat": torch.stack([features[branch][i] for features in run.features]),
                "generation_order": torch.cat([order_BL[i], torch.tensor([-1])]),
                "teacher_vq_ids": torch.cat([run.codes_BL[i], torch.tensor([last])]),
            }
    return records


def test_records_of_maskgit_equal_the_original() -> None:
    golden = load("maskgit_makedata")
    prefix, records = f"{golden.args['batch_id']:05d}_", maskgit_records()
    assert [prefix + key for key in records] == golden.info["record_keys"]
    check(golden, records, prefix)
    for control in ({"no_class": 9}, {"spoil": late}):
        with pytest.raises(AssertionError, match="feat"):
            check(golden, maskgit_records(**control), prefix)


def lumina_records(run: Run, spoil: Callable[[Recorder], None] | None) -> Records:
    """Return what the original stores of a Lumina-DiMOO run, from our trajectories.

    Source: MIGM-Shortcut DiMOO-Shortcut generators/image_generation_generator.py
    generate_image_makeshortcutdata; tests/golden/README.md section 8.
    """
    recorder = Recorder(run.conditions, torch.float32)
    denoiser = Denoiser(run.model, run.conditions)
    noise: Any = run.noise
    sample(denoiser, run.codes_BL, run.is_masked_BL, run.steps, noise, recorder)
    if spoil is not None:
        spoil(recorder)
    kept = recorder.trajectories()
    order_1L, none_1L = generation_order(kept), torch.zeros_like(kept.codes_BL, dtype=torch.bool)
    target_1S, records = run.model.target_tokens(kept.codes_BL, none_1L), {}
    for branch, (name, prompt_1P) in enumerate(zip(NAMES, kept.conditions, strict=True)):
        shown_1P = prompt_1P if branch == 0 else torch.full_like(prompt_1P, NO_PROMPT)
        tokens_S = torch.cat([shown_1P, target_1S], 1)[0]
        position_L = run.model.positions_after(prompt_1P, torch.arange(order_1L.shape[1]))
        records[name] = {
            "feat": torch.stack([features[branch][0] for features in kept.features]),
            "generation_order": torch.full_like(tokens_S, -1).scatter(0, position_L, order_1L[0]),
            "teacher_vq_ids": tokens_S,
        }
    return records


def test_records_of_lumina_equal_the_original() -> None:
    run = recorded_run("dimoo_makedata")
    check(run.golden, lumina_records(run, None), "")
    with pytest.raises(AssertionError, match="feat"):
        check(run.golden, lumina_records(run, late), "")
    others = run.conditions[0].roll(1, 1), *run.conditions[1:]
    with pytest.raises(AssertionError):
        check(run.golden, lumina_records(replace(run, conditions=[*others]), None), "")


def real_model() -> lumina.OnGrid:
    """Return a model of the real vocabulary and grid, whose embedding of a token is its id."""
    config = lumina.Config(
        width=8,
        depth=1,
        num_heads=1,
        num_kv_heads=1,
        mlp_width=8,
        num_text_ids=NUM_TEXT_IDS,
        num_codes=8192,
        rope_theta=10_000.0,
        norm_eps=1e-5,
    )
    network = lumina.LuminaDiMOO(config, device="meta")
    ids_V = torch.arange(config.vocabulary, dtype=torch.float32)
    network.token = torch.nn.Embedding.from_pretrained(ids_V.unsqueeze(1).expand(-1, config.width))
    return network.on_grid(*REAL_GRID)


def published_run(golden: GoldenSet, model: lumina.OnGrid) -> Trajectories:
    """Return a published record of both branches as our trajectories; its features are one wide."""
    orders, ids, num_prompt = [], [], []
    for name in NAMES:
        order_S = golden[f"{name}/generation_order.pth"].long()
        num_prompt.append(len(order_S) - model.sequence_length(None))
        position_L = model.image_positions(torch.arange(model.num_tokens), len(order_S))
        orders.append(order_S[position_L])
        ids.append(golden[f"{name}/teacher_vq_ids.pth"][position_L])
    assert torch.equal(orders[0], orders[1]) and torch.equal(ids[0], ids[1])
    order_1L, codes_1L = orders[0].unsqueeze(0), ids[0].unsqueeze(0) - NUM_TEXT_IDS
    counts = order_1L.flatten().bincount().tolist()
    steps, left = [], model.num_tokens
    for step, count in zip(plan(Settings(num_steps=4), left, left), counts, strict=True):
        steps.append(replace(step, num_masked=left, num_revealed=count))
        left -= count
    index = [positions(order_1L == t, count) for t, count in enumerate(counts)]
    features = [golden[f"{name}/feat.pth"] for name in NAMES]
    return Trajectories(
        (
            golden["cond/teacher_vq_ids.pth"][: num_prompt[0]].unsqueeze(0),
            torch.tensor([REAL_UNCONDITION]),
        ),
        steps,
        # The set has no features of the last step, from which nothing is learned here.
        [tuple(f_TSD[min(t, 2)].unsqueeze(0) for f_TSD in features) for t in range(4)],
        [Revealed(codes_1L.gather(1, index_1K), index_1K) for index_1K in index],
        [positions(order_1L > t, step.num_masked_after) for t, step in enumerate(steps)],
        codes_1L,
    )


class RecordingHead(LuminaHead):
    """Remember the calls: new tokens and their positions."""

    def __init__(self) -> None:
        super().__init__(builders.TEXT_HEAD_CONFIG, device="meta")

    def forward(self, features_BSD: Tensor, _: Any, *call: Any) -> Tensor:
        self.call = call
        return features_BSD


def check_sample(
    golden: GoldenSet, model: lumina.OnGrid, run: Trajectories, start: int, step: int
) -> None:
    """Compare what is learned from at step `start` of a run with the original's samples of `step`."""
    part, head = window(run, start, 1), RecordingHead()
    predict(head, model, part)
    new_1ND, new_positions, *_ = head.call
    revealed_K = part.revealed[0].codes_BK[0] + NUM_TEXT_IDS
    assert torch.equal(revealed_K.int(), golden[f"cond/no_prompt/{step}/new_token_ids"])
    is_masked_1L = torch.zeros_like(run.codes_BL, dtype=torch.bool)
    is_masked_1L.scatter_(1, part.masked_index[0], True)
    target_1S = model.target_tokens(run.codes_BL, is_masked_1L)
    where, ids = [], []
    for branch, name in enumerate(NAMES):
        recorded_TSD, sample_of = golden[f"{name}/feat.pth"], f"{name}/prompt/{step}"
        assert torch.equal(part.features[branch][0], recorded_TSD[step])
        assert torch.equal(part.targets[0][branch][0], recorded_TSD[step + 1])
        tokens_S = torch.cat([part.conditions[branch], target_1S], 1)[0]
        assert torch.equal(tokens_S.int(), golden[f"{sample_of}/cur_token_ids"])
        assert golden[f"{sample_of}/n_total"] == model.num_tokens
        where.append(golden[f"{sample_of}/new_token_map"].nonzero().T)
        ids.append(golden[f"{sample_of}/new_token_ids"])
    assert torch.equal(new_1ND[0, :, 0].int(), torch.cat(ids))
    expected = SequencePositions.of(where, head.config)
    assert new_positions.lengths == expected.lengths
    torch.testing.assert_close(new_positions.rotary.cos, expected.rotary.cos)


@pytest.mark.parametrize("step", [0, 1])
def test_training_samples_equal_the_original(step: int) -> None:
    golden, model = load("dimoo_dataset_samples"), real_model()
    run = published_run(golden, model)
    check_sample(golden, model, run, step, step)
    wanted, unwanted = run.conditions
    spoiled = (
        replace(run, revealed=run.revealed[1:] + run.revealed[:1]),
        replace(run, masked_index=run.masked_index[1:] + run.masked_index[:1]),
        replace(run, features=run.features[1:] + run.features[:1]),
        replace(run, conditions=(wanted, unwanted.roll(1, 1))),
        replace(run, conditions=(wanted.roll(1, 1), unwanted)),
    )
    for control in spoiled:
        with pytest.raises(AssertionError):
            check_sample(golden, model, control, step, step)
