"""Training of the small text model and of its head, on tiny random pictures: samples, loss, resuming."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from shortcut_pack.shortcut import shipped
from shortcut_pack.shortcut.denoiser import guided_logits
from shortcut_pack.shortcut.flops import count_operations
from shortcut_pack.shortcut.models.lumina_dimoo import transformer as lumina
from shortcut_pack.shortcut.models.lumina_dimoo.head import LuminaHead
from shortcut_pack.shortcut.models.lumina_dimoo.prompts import TASKS, load_tokenizer
from shortcut_pack.shortcut.noise import seeded
from shortcut_pack.shortcut.schedule import Settings
from shortcut_pack.shortcut.train.evaluate import evaluate, held_out_runs
from shortcut_pack.shortcut.train.fit import Recipe
from shortcut_pack.shortcut.train.head import Teaching, initialised
from shortcut_pack.shortcut.train.loss import feature_mse
from shortcut_pack.shortcut.train.teacher import Teacher
from torch import Tensor, nn

from experiments import train_text, train_text_head
from experiments.scene_edits import altered, instruction
from experiments.scene_facts import facts_of
from experiments.scenes import compose_varied
from experiments.train_text import (
    Batch,
    Lessons,
    Training,
    draw_masks,
    loss_of,
)

GRID = (4, 3)
NUM_SCENES = 6
CONFIG = builders.TEXT_CONFIG
RECIPE = Recipe(iterations=30, seed=3, lr=1e-2, warmup=3, ema=0.8, checkpoint_every=10)

pytest.importorskip("transformers")


@cache
def tokenizer() -> Any:
    return load_tokenizer(shipped.TEXT_FOLDER, CONFIG)


@cache
def lessons(num_pictures: int = 6, num_edits: int = 2) -> Lessons:
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_SCENES, GRID[0] * GRID[1])
    codes, others = (
        torch.randint(CONFIG.num_codes, shape, generator=generator, dtype=torch.int16)
        for _ in range(2)
    )
    return Lessons(
        codes=codes,
        altered=others,
        tokenizer=tokenizer(),
        config=CONFIG,
        grid=GRID,
        num_pictures=num_pictures,
        num_edits=num_edits,
    )


def batches(num: int, num_pictures: int = 6, num_edits: int = 2) -> list[Batch]:
    source = lessons(num_pictures, num_edits)
    return [source.draw(seeded(0, i)) for i in range(num)]


def words(prompt_1P: Tensor) -> list[str]:
    """The prompt as tokens; its source image is one word, and `scene_of` tells which."""
    names = [
        "IMAGE" if i >= CONFIG.num_text_ids else tokenizer().convert_ids_to_tokens(i)
        for i in prompt_1P[0].tolist()
    ]
    return [n for i, n in enumerate(names) if n != "IMAGE" or names[i - 1] != "IMAGE"]


def is_same(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


# Samples


def test_a_picture_stands_behind_its_own_caption_or_behind_none() -> None:
    found: Counter[str] = Counter()
    for batch in batches(20, 8, 0):
        for prompt_1P, codes_L in zip(batch.prompts, batch.codes_BL, strict=True):
            tokens = words(prompt_1P)
            assert tokens[:4] == ["<system>", TASKS["text_to_image"].system, "</system>", "<user>"]
            assert tokens[-1] == "</user>"
            assert (lessons().codes == codes_L).all(1).any()
            found["none" if tokens[4:-1] == ["<uncondition>"] else "text"] += 1
    assert 0.03 < found["none"] / found.total() < 0.2


def test_a_caption_is_of_its_picture() -> None:
    """Of scenes whose pictures are told apart by their land, captions name that land alone."""
    lands = {"forest", "desert", "snow", "beach"}
    for batch in batches(20, 8, 0):
        for prompt_1P, codes_L in zip(batch.prompts, batch.codes_BL, strict=True):
            (seed,) = (lessons().codes == codes_L).all(1).nonzero().flatten().tolist()
            own = {"coast": "beach"}.get(compose_varied(seed).biome, compose_varied(seed).biome)
            assert (lands - {own}).isdisjoint(words(prompt_1P))


def test_an_edit_has_the_other_picture_of_its_pair_in_the_prompt() -> None:
    newline = CONFIG.special_id("newline")
    found: Counter[str] = Counter()
    for batch in batches(40, 0, 8):
        for prompt_1P, codes_L in zip(batch.prompts, batch.codes_BL, strict=True):
            tokens = words(prompt_1P)
            assert tokens[1] == TASKS["edit"].system
            both = torch.stack([lessons().codes, lessons().altered]).long()
            (place,) = (both == codes_L).all(2).nonzero().tolist()
            which, seed = place
            is_code_P = prompt_1P[0] >= CONFIG.num_text_ids
            if not is_code_P.any():
                found["without source"] += 1
                continue
            source_L = prompt_1P[0][is_code_P] - CONFIG.num_text_ids
            assert torch.equal(source_L, both[1 - which, seed])
            assert tokens[-1] == "</user>" and tokens[-2] == "<eoi>"
            assert (prompt_1P == newline).sum() == GRID[0]
            found["without text" if "<uncondition>" in tokens else "both"] += 1
            found["undone" if which == 0 else "done"] += 1
    assert min(found.values()) > 10
    assert found["both"] > 0.6 * 320


def test_an_edit_says_what_changes() -> None:
    def asked(seed: int, which: int) -> set[str]:
        facts = [facts_of(compose_varied(seed)), facts_of(altered(seed))]
        texts = (
            instruction(facts[1 - which], facts[which], wording).words.text
            for wording in range(400)
        )
        return {text.rstrip(".") for text in texts}

    num_known = num = 0
    for batch in batches(10, 0, 8):
        for prompt_1P, codes_L in zip(batch.prompts, batch.codes_BL, strict=True):
            tokens = words(prompt_1P)
            both = torch.stack([lessons().codes, lessons().altered]).long()
            ((which, seed),) = (both == codes_L).all(2).nonzero().tolist()
            text = " ".join(
                t for t in tokens[4:-1] if t not in ("IMAGE", "<boi>", "<eoi>", "<newline>")
            )
            if text == "<uncondition>" or "<unk>" in text:
                continue
            num += 1
            num_known += text.removesuffix(" .") in asked(seed, which)
    assert num > 40 and num_known > 0.8 * num


def test_words_are_unknown_now_and_then_and_nothing_else() -> None:
    plain = tokenizer()("<system>x</system><user>a red house</user>")["input_ids"]
    prompt_1P = torch.tensor([plain])
    changed = [train_text.with_unknown_words(prompt_1P, CONFIG, seeded(0, i)) for i in range(2000)]
    differs = torch.cat([found != prompt_1P for found in changed])
    is_word = torch.tensor([i < CONFIG.num_text_ids - 275 for i in plain])
    assert not differs[:, ~is_word].any()
    share = train_text.SHARE_UNSURE * train_text.SHARE_UNKNOWN
    assert 0.5 * share < differs[:, is_word].float().mean() < 1.5 * share
    assert all((found[found != prompt_1P] == tokenizer().unk_token_id).all() for found in changed)


def test_masks_are_as_many_as_a_run_has_at_a_random_time() -> None:
    masks = draw_masks(torch.zeros(4000, dtype=torch.bool), (12, 12), seeded(0))
    share = masks.float().mean(1)
    assert share.min() > 0
    # Of cos(pi / 2 * u): mean 2 / pi; half are above cos(pi / 4).
    assert share.mean().item() == pytest.approx(0.637, abs=0.015)
    assert share.median().item() == pytest.approx(0.707, abs=0.02)
    assert masks.float().mean(0).std() < 0.02


def test_regions_leave_the_rest_of_the_picture_known() -> None:
    grid = (12, 12)
    regions = train_text.draw_regions(2000, grid, seeded(0))
    assert regions.any(1).all()
    share = regions.float().mean(1)
    assert share.min() < 0.05 and share.max() == 1 and 0.3 < share.mean() < 0.7
    # In one piece, mostly: neighbours are mostly alike. Of masks by chance half are.
    whole = regions.unflatten(1, grid)
    assert (whole[:, 1:] == whole[:, :-1]).float().mean() > 0.85
    is_row = whole.all(2).any(1) & ~whole.all((1, 2))
    assert is_row.float().mean() > 0.1
    masks = draw_masks(torch.ones(2000, dtype=torch.bool), grid, seeded(0))
    assert not (masks & ~regions).any()
    assert masks.any(1).all()


def test_the_generator_decides_the_batch() -> None:
    first, again, other = (lessons().draw(seeded(0, i)) for i in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.prompts, again.prompts, strict=True))
    assert torch.equal(first.codes_BL, again.codes_BL)
    assert torch.equal(first.is_masked_BL, again.is_masked_BL)
    assert not torch.equal(first.is_masked_BL, other.is_masked_BL)


# Training


def untrained(seed: int = 0) -> Training:
    return train_text.initialised(CONFIG, GRID, seed).eval()


@torch.no_grad()
def test_samples_side_by_side_have_the_features_that_a_run_sees() -> None:
    training, (batch,) = untrained(), batches(1)
    view = training.network.on_grid(*GRID)
    found_BLD = training.image_features(batch)
    index_1L = torch.arange(view.num_tokens).unsqueeze(0)
    for i, prompt_1P in enumerate(batch.prompts):
        codes, is_masked = batch.codes_BL[i : i + 1], batch.is_masked_BL[i : i + 1]
        (alone,) = view.features(codes, is_masked, [prompt_1P])
        wanted = guided_logits(view, (alone,), (), index_1L)
        logits = training.network.code_output(found_BLD[i : i + 1])
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)
        (shifted,) = view.features(codes, ~is_masked, [prompt_1P])  # the control
        assert not torch.allclose(
            logits, guided_logits(view, (shifted,), (), index_1L), rtol=1e-4, atol=1e-5
        )


@torch.no_grad()
def test_the_loss_of_an_untrained_network_is_that_of_guessing() -> None:
    training, (batch,) = untrained(), batches(1)
    loss, figures = loss_of(training, batch)
    assert figures["masked"].item() == pytest.approx(torch.tensor(16.0).log().item(), abs=0.05)
    total = figures["masked"] + 0.3 * figures["known"] + 0.3 * figures["places"]
    torch.testing.assert_close(loss, total)
    loss, figures = loss_of(training, batch, kinds_weight=2.0)
    torch.testing.assert_close(loss, total + 2 * figures["kinds"])


@torch.no_grad()
def test_a_batch_without_known_codes_has_a_loss() -> None:
    (batch,) = batches(1)
    all_masked = replace(batch, is_masked_BL=torch.ones_like(batch.is_masked_BL))
    loss, figures = loss_of(untrained(), all_masked)
    assert loss.isfinite() and figures["known"] == 0


def test_the_loss_falls_on_a_few_pictures() -> None:
    recipe = replace(RECIPE, iterations=120)
    trained = train_text.learn(lessons(), recipe)
    (batch,) = batches(1)
    before = loss_of(untrained(recipe.seed), batch)[1]
    after = loss_of(trained, batch)[1]
    assert after["masked"] < 0.7 * before["masked"]
    assert after["known"] < 0.1 * before["known"]


def test_a_weight_on_kinds_teaches_what_stands_where() -> None:
    recipe = replace(RECIPE, iterations=60)
    (batch,) = batches(1)
    plain, named = (
        loss_of(train_text.learn(lessons(), recipe, kinds_weight=weight), batch)[1]["kinds"]
        for weight in (0.0, 2.0)
    )
    assert named < 0.5 * plain


def test_a_longer_training_goes_on_from_the_first() -> None:
    first = train_text.learn(lessons(), RECIPE)
    longer = replace(RECIPE, iterations=1, lr=1e-6, seed=1)
    then = train_text.learn(lessons(), longer, start=first.train())
    (batch,) = batches(1)
    before, after = (loss_of(network, batch)[0] for network in (first, then))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=0)


class Killed(Exception):
    """The process ended here."""


def test_a_killed_and_resumed_training_gives_the_same_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_text.learn(lessons(), RECIPE)
    file = tmp_path / "text.ckpt"
    calls = []

    def killed(*arguments: Any, **weights: float) -> Any:
        calls.append(1)
        if len(calls) == 25:
            raise Killed
        return loss_of(*arguments, **weights)

    with monkeypatch.context() as patch:
        patch.setattr(train_text, "loss_of", killed)
        with pytest.raises(Killed):
            train_text.learn(lessons(), RECIPE, file)
    # The last checkpoint is of iteration 20.
    assert is_same(train_text.learn(lessons(), RECIPE, file), whole)
    other = train_text.learn(lessons(), replace(RECIPE, seed=4))
    assert not is_same(other, whole)


# The head

HEAD = replace(
    builders.TEXT_HEAD_CONFIG, model_width=CONFIG.width, width=16, mlp_width=32, from_full=True
)
SETTINGS = Settings(**lumina.FORMAT.defaults)
TEACHING = Teaching(
    runs=(),
    images_per_run=8,
    runs_kept=3,
    iterations_per_run=15,
    windows_per_batch=2,
    images_per_window=8,
    max_chain=3,
)


def teacher() -> Any:
    """A random model on its grid, made to listen to its tokens, as a trained one does."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = lumina.LuminaDiMOO(CONFIG).requires_grad_(False).eval()
    for block in network.blocks:
        block.value.weight.mul_(4)
        block.out.weight.mul_(2)
    return network.on_grid(*GRID)


def test_prompts_of_a_run_are_captions_of_one_length() -> None:
    draw = train_text_head.caption_conditions(tokenizer(), CONFIG, 200)
    lengths: Counter[int] = Counter()
    for i in range(60):
        wanted_BP, unwanted_BP = draw(8, seeded(0, i))
        assert len(wanted_BP) == len(unwanted_BP) == 8
        assert words(unwanted_BP[:1])[4:-1] == ["<uncondition>"]
        assert all(words(prompt_1P)[3] == "<user>" for prompt_1P in wanted_BP.split(1))
        lengths[wanted_BP.shape[1]] += 1
    assert len(lengths) > 15


def test_a_trained_head_is_nearer_to_the_teacher_than_its_last_features(tmp_path: Path) -> None:
    model = teacher()
    head, figures = train_text_head.learn(
        model,
        train_text_head.caption_conditions(tokenizer(), CONFIG, 100),
        SETTINGS,
        config=HEAD,
        recipe=replace(RECIPE, iterations=100),
        teaching=TEACHING,
        num_steps=(6, 8),
        checkpoint=tmp_path / "head.ckpt",
    )
    assert figures["held_out"].keys() == {"6 steps", "8 steps"}
    for rows in figures["held_out"].values():
        assert [row["chain"] for row in rows] == [1, 2, 3]
        assert all(row["error"] < 0.8 for row in rows)
        assert all(row["kl"] < 0.9 * row["kl_reuse"] for row in rows[1:])
    assert head.config.from_full


def test_an_untrained_head_is_reuse() -> None:
    model, head = teacher(), initialised(HEAD, 0)
    draw = train_text_head.caption_conditions(tokenizer(), CONFIG, 20)
    teaching = replace(TEACHING, runs=(replace(SETTINGS, num_steps=6),))
    (run,) = held_out_runs(
        Teacher(model=model, draw_conditions=draw, settings=SETTINGS, num_tokens=model.num_tokens),
        RECIPE,
        teaching,
    )
    for row in evaluate(head, model, run, 2):
        assert row["error"] == pytest.approx(1)
        assert row["kl"] == pytest.approx(row["kl_reuse"])


@torch.no_grad()
def test_only_masked_image_positions_count_in_the_loss() -> None:
    model = teacher()
    index_BN = torch.tensor([[0, 5]])
    (features_BSD,) = model.features(
        torch.zeros(1, 12).long(), torch.ones(1, 12).bool(), [torch.zeros(1, 9).long()]
    )
    place_N = model.places(index_BN, 9)[0]
    elsewhere = torch.ones(features_BSD.shape[1], dtype=torch.bool)
    elsewhere[place_N] = False
    other_BSD = features_BSD + elsewhere.view(1, -1, 1)
    assert feature_mse(model, other_BSD, features_BSD, index_BN) == 0
    other_BSD[:, place_N[1]] += 1
    assert feature_mse(model, other_BSD, features_BSD, index_BN).item() == pytest.approx(0.5)


def test_a_pass_of_the_shipped_head_takes_less_than_a_twelfth_of_a_full_pass() -> None:
    model = lumina.LuminaDiMOO(train_text.CONFIG, device="meta")
    head = LuminaHead(train_text_head.CONFIG, device="meta")
    prompts = [torch.zeros(1, length, dtype=torch.long) for length in (26, 6)]
    settings = replace(SETTINGS, num_steps=12, full_steps=4)
    found = count_operations(model, head, settings, prompts, train_text.GRID)
    assert found.head / 8 < found.full / 4 / 12
    num_bytes = 2 * sum(p.numel() for net in (model, head) for p in net.parameters())
    assert num_bytes < 8_000_000
