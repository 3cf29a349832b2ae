"""The trainers of the shipped models on a few tiny pictures, and the command that runs them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from experiments import __main__ as commands
from experiments.judges import file as judge_files
from experiments.judges import reader
from experiments.scenes.scene import compose_varied
from experiments.training import base, heads, text_base
from experiments.training.text_base import Batch, Training, TrainingData
from shortcut import checkpoint, shipped
from shortcut.denoiser import guided_logits
from shortcut.models.lumina_dimoo.prompts import TASKS, load_tokenizer
from shortcut.models.maskgit.transformer import Config
from shortcut.noise import seeded
from shortcut.pipeline import check_head
from shortcut.train.fit import Recipe

RECIPE = Recipe(iterations=60, seed=3, lr=1e-2, warmup=3, ema=0.8, checkpoint_every=10)

# The class model

CLASSES = Config(grid=4, width=32, depth=1, num_heads=2, mlp_width=64, num_codes=16, num_classes=16)
CODES = torch.randint(16, (6, 16), generator=seeded(0), dtype=torch.int16)
STAGES = (
    base.Stage(name="first", recipe=RECIPE, batch_size=8),
    base.Stage(
        name="second", recipe=replace(RECIPE, iterations=30), batch_size=4, kinds_weight=2.0
    ),
)


def test_stages_follow_each_other_and_resume(tmp_path: Path) -> None:
    masks_BL = base.draw_masks(6, 16, seeded(1))
    batch = base.Batch(CODES.long(), torch.arange(6), masks_BL, torch.ones(6, 16).long())
    learn = partial(base.learn, CODES, torch.arange(6), CLASSES)
    whole = learn(STAGES, tmp_path)
    training = base.initialised(CLASSES, 3)
    before = base.loss_of(training, batch)[1]["masked"]
    training.network = whole
    after = base.loss_of(training, batch)[1]["masked"]
    assert after < 0.7 * before
    (tmp_path / "second.ckpt").unlink()
    again = learn(STAGES, tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.state_dict().items())
    first = learn(STAGES[:1], tmp_path).state_dict()
    assert any(not torch.equal(tensor, first[name]) for name, tensor in again.items())


def test_masks_have_the_ratios_of_the_paper() -> None:
    share = base.draw_masks(4000, 144, seeded(0)).float().mean(1)
    assert share.min() > 0
    assert share.mean().item() == pytest.approx(0.637, abs=0.015)  # of arccos: 2 / pi


# The text model

pytest.importorskip("transformers")
GRID = (4, 3)
CONFIG = tiny.TEXT_MODEL


@cache
def tokenizer() -> Any:
    return load_tokenizer(shipped.TEXT_FOLDER, CONFIG)


@cache
def training_data(num_pictures: int = 6, num_edits: int = 2) -> TrainingData:
    codes, others = torch.randint(16, (2, 6, 12), generator=seeded(0), dtype=torch.int16)
    return TrainingData(
        codes=codes,
        altered=others,
        tokenizer=tokenizer(),
        config=CONFIG,
        grid=GRID,
        num_pictures=num_pictures,
        num_edits=num_edits,
    )


def samples(num: int, *sizes: int) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Yield the prompt of a sample as tokens, a source image as one token "IMAGE", and its codes."""
    for i in range(num):
        batch = training_data(*sizes).draw(seeded(0, i))
        for prompt_1P, codes_L in zip(batch.prompts, batch.codes_BL, strict=True):
            names = [
                "IMAGE" if i >= CONFIG.num_text_ids else tokenizer().convert_ids_to_tokens(i)
                for i in prompt_1P[0].tolist()
            ]
            once = [n for i, n in enumerate(names) if n != "IMAGE" or names[i - 1] != "IMAGE"]
            yield once, codes_L


def test_a_picture_stands_behind_its_own_caption_or_behind_none() -> None:
    lands, found = {"forest", "desert", "snow", "beach"}, Counter[str]()
    for tokens, codes_L in samples(20, 8, 0):
        assert tokens[:4] == ["<system>", TASKS["text_to_image"].system, "</system>", "<user>"]
        (seed,) = (training_data().codes == codes_L).all(1).nonzero().flatten().tolist()
        own = {"coast": "beach"}.get(compose_varied(seed).biome, compose_varied(seed).biome)
        assert (lands - {own}).isdisjoint(tokens)
        found["none" if tokens[4:-1] == ["<uncondition>"] else "text"] += 1
    assert 0.03 < found["none"] / found.total() < 0.2


def test_an_edit_has_the_other_picture_of_its_pair_in_the_prompt() -> None:
    found: Counter[str] = Counter()
    both = torch.stack([training_data().codes, training_data().altered]).long()
    for tokens, codes_L in samples(20, 0, 8):
        assert tokens[1] == TASKS["edit"].system
        ((which, _),) = (both == codes_L).all(2).nonzero().tolist()
        found["done" if which else "undone"] += 1
        source = "IMAGE" in tokens
        found[f"{'with' if source else 'without'} source"] += 1
        assert tokens.count("<newline>") == (GRID[0] if source else 0)
        found["without text"] += "<uncondition>" in tokens
    assert min(found.values()) > 5 and found["with source"] > 0.8 * 160


def test_regions_leave_the_rest_of_the_picture_known() -> None:
    regions = text_base.draw_regions(1000, (12, 12), seeded(0))
    share = regions.float().mean(1)
    assert share.min() > 0 and 0.3 < share.mean() < 0.7
    masks = text_base.draw_masks(torch.ones(1000, dtype=torch.bool), (12, 12), seeded(0))
    assert masks.any(1).all() and not (masks & ~regions).any()
    prompt_1P = torch.tensor([tokenizer()("<user>a red house</user>")["input_ids"]] * 1)
    found = [text_base.with_unknown_words(prompt_1P, CONFIG, seeded(1, i)) for i in range(500)]
    is_unknown = torch.cat([f != prompt_1P for f in found])
    assert not is_unknown[:, [0, -1]].any() and 0 < is_unknown.float().mean() < 0.1


def untrained(seed: int = 3) -> Training:
    return text_base.initialised(CONFIG, GRID, seed).eval()


def a_batch() -> Batch:
    return training_data().draw(seeded(0))


@torch.no_grad()
def test_samples_side_by_side_have_the_features_that_a_run_sees() -> None:
    training, batch = untrained(), a_batch()
    view = training.network.on_grid(*GRID)
    found_BLD = training.image_features(batch)
    index_1L = torch.arange(view.num_tokens).unsqueeze(0)
    for i, prompt_1P in enumerate(batch.prompts):
        codes, is_masked = batch.codes_BL[i : i + 1], batch.is_masked_BL[i : i + 1]
        (alone,) = view.features(codes, is_masked, [prompt_1P])
        logits = training.network.code_output(found_BLD[i : i + 1])
        wanted = guided_logits(view, (alone,), (), index_1L)
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)


def test_the_loss_begins_at_guessing_and_falls() -> None:
    batch, recipe = a_batch(), replace(RECIPE, iterations=100)
    with torch.no_grad():
        loss, before = text_base.loss_of(untrained(), batch, kinds_weight=2.0)
    assert before["masked"].item() == pytest.approx(torch.tensor(16.0).log().item(), abs=0.05)
    parts = (
        before["masked"] + 0.3 * before["known"] + 0.3 * before["position"] + 2 * before["kinds"]
    )
    torch.testing.assert_close(loss, parts)
    after = text_base.loss_of(text_base.learn(training_data(), recipe, kinds_weight=2.0), batch)[1]
    assert after["masked"] < before["masked"] and after["known"] < 0.8 * before["known"]
    assert after["kinds"] < 0.5 * before["kinds"]


# The commands

PLAN = replace(
    heads.TEXT_PLAN,
    recipe=replace(heads.TEXT_PLAN.recipe, iterations=2),
    rollouts=replace(
        heads.TEXT_PLAN.rollouts,
        images_per_run=2,
        runs_kept=1,
        windows_per_batch=1,
        images_per_window=2,
        max_chain=2,
    ),
)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_the_steps_make_a_text_model_with_tokenizer_and_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Networks of the shipped sizes, hardly trained; `all` leaves out what is finished."""
    folder = tmp_path / "scenes-lumina"
    monkeypatch.setattr(shipped, "TEXT_FOLDER", folder)
    for name in ("TEXT_MODEL", "TEXT_HEAD"):
        monkeypatch.setattr(shipped, name, folder / getattr(shipped, name).name)
    sizes = {"NUM_TRAIN": 12, "NUM_EDITS": 6, "keep_memory": lambda: None}
    for name, value in sizes.items():
        monkeypatch.setattr(commands, name, value)
    monkeypatch.setattr(commands.scene_tokenizer, "CAPTION_SEEDS", range(500))
    stages = [
        replace(stage, recipe=replace(stage.recipe, iterations=2), num_pictures=2, num_edits=1)
        for stage in text_base.STAGES
    ]
    monkeypatch.setattr(text_base, "STAGES", stages)
    small = {"TEXT_PLAN": PLAN, "TEXT_NUM_STEPS": (4,), "NUM_CAPTIONS": 20}
    for name, value in small.items():
        monkeypatch.setattr(heads, name, value)
    steps = ("text-data", "tokenizer", "text-base", "text-head")
    monkeypatch.setattr(commands, "ALL", [f"{name} --dir {{dir}}" for name in steps])
    work = ["--dir", str(tmp_path / "work")]
    assert commands.main(["all", *work, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("to do") == 4 and not folder.exists()
    assert commands.main(["all", *work]) == 0
    model_file, head_file = (checkpoint.load(folder, kind=kind) for kind in ("model", "head"))
    assert model_file.metadata.grid == (12, 12)
    assert model_file.dtype == head_file.dtype == torch.float16
    check_head(head_file, model_file)
    load_tokenizer(folder, model_file.config)
    assert head_file.metadata.trained["held_out"].keys() == {"4 steps"}
    before = capsys.readouterr()
    monkeypatch.setattr(text_base, "train", None)
    assert commands.main(["all", *work]) == 0
    assert capsys.readouterr().out.count("finished  python") == 4, before


def test_every_command_of_all_is_one_that_exists(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert judge_files.JUDGE.exists() and judge_files.TEXT_JUDGE.exists()
    run: list[str] = []
    main = commands.main
    monkeypatch.setattr(commands, "main", lambda words: run.append(words[0]))
    assert main(["all", "--dir", str(tmp_path)]) == 0
    assert run[:3] == ["data", "vq", "base"] and run[-1] == "gallery" and len(run) == 14
    for text in commands.ALL:
        with pytest.raises(SystemExit) as ended:
            main([*text.format(dir=tmp_path, device="cpu").split(), "--help"])
        assert ended.value.code == 0
    assert reader.TRAIN_FOLDER
