"""The trainers of the shipped models on a few tiny pictures, and the command that runs their stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from experiments import __main__ as commands
from experiments.scenes.scene import compose
from experiments.training import class_model, codes, patches, stages, text_model, vq
from experiments.training.muon import orthogonalised
from experiments.training.text_model import Batch, Training, TrainingData
from shortcut import checkpoint, shipped
from shortcut.denoiser import guided_logits
from shortcut.models.lumina_dimoo.prompts import TASKS, load_tokenizer
from shortcut.models.maskgit.vqgan import VQGAN
from shortcut.noise import seeded
from shortcut.train.fit import Recipe, fit

RECIPE = Recipe(iterations=60, seed=3, lr=2e-2, warmup=3, ema=0.8, checkpoint_every=10)

# The VQ model


def test_crops_lie_on_the_grid_of_codes() -> None:
    part = vq.crops(3, 64, torch.Generator().manual_seed(0))
    again = vq.crops(3, 64, torch.Generator().manual_seed(0))
    assert part.shape == (3, 3, 64, 64) and torch.equal(part, again)


def test_the_encoder_gives_the_codes_of_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vq, "CONFIG", replace(vq.CONFIG, num_codes=64))
    found = vq.measured(20)
    network = vq.started(found)
    pixels = vq.crops(4, 128, torch.Generator().manual_seed(1))
    wanted = found.project(pixels).view(4, 16, 16, -1).movedim(-1, 1)
    assert torch.nn.functional.mse_loss(network.latents(pixels), wanted) < 1e-3 * wanted.var()
    assert (network.encode(pixels) == found.codes(pixels)).float().mean() > 0.98
    before = network.decode(found.codes(pixels))
    patches.scale_codebook(network, 1 / found.scale_C)
    assert torch.allclose(network.decode(found.codes(pixels)), before, atol=1e-4)


def test_steps_of_convolutions_have_singular_values_near_one() -> None:
    weight = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0)).flatten(1)
    values = torch.linalg.svdvals(orthogonalised(weight))
    assert values.min() > 0.6 and values.max() < 1.3


def test_a_training_with_muon_resumes_exactly(tmp_path: Path) -> None:
    def train(iterations: int, name: str) -> torch.Tensor:
        def draw(generator: torch.Generator) -> torch.Tensor:
            if draws.pop() == "stop":
                raise KeyboardInterrupt
            return torch.randn(4, 3, generator=generator)

        draws = ["go"] * iterations if iterations == 4 else ["stop", "go", "go"]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = torch.nn.Linear(3, 2)
        fit(
            network,
            draw,
            lambda network, x: (network(x).square().mean(), {}),
            replace(class_model.RECIPE, iterations=4),
            checkpoint=tmp_path / name,
            make_optimizer=class_model.OPTIMIZER,
        )
        return network.weight.detach()

    with pytest.raises(KeyboardInterrupt):
        train(2, "ended.ckpt")
    assert torch.equal(train(4, "ended.ckpt"), train(4, "whole.ckpt"))


# The class model


def test_the_loss_of_the_class_model_falls() -> None:
    config = replace(
        class_model.CONFIG, grid=4, width=32, depth=1, num_heads=2, mlp_width=64, num_codes=16
    )
    codes_BL = torch.randint(16, (6, 16), generator=seeded(0))
    masks_BL = class_model.draw_masks(6, 16, seeded(1))
    batch = class_model.Batch(codes_BL, torch.arange(6), masks_BL, torch.ones(6, 16).long())
    training = class_model.initialised(config, 3)
    before = class_model.loss_of(training, batch)[1]
    optimizer = class_model.OPTIMIZER
    training = fit(training, lambda _: batch, class_model.loss_of, RECIPE, make_optimizer=optimizer)
    after = class_model.loss_of(training, batch)[1]
    assert after["masked"] < 0.7 * before["masked"] and after["label"] < 0.5 * before["label"]


def test_masks_have_the_ratios_of_the_paper() -> None:
    share = class_model.draw_masks(4000, 144, seeded(0)).float().mean(1)
    assert share.min() > 0
    assert share.mean().item() == pytest.approx(0.637, abs=0.015)  # of arccos: 2 / pi


# The text model

pytest.importorskip("transformers")
GRID = (4, 3)
CONFIG = tiny.TEXT_MODEL


@cache
def tokenizer() -> Any:
    return load_tokenizer(tiny.tokenizer_folder(), CONFIG)


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
    places, found = {"forest", "desert", "snow", "beach", "lake", "town"}, Counter[str]()
    for tokens, codes_L in samples(20, 8, 0):
        assert tokens[:4] == ["<system>", TASKS["text_to_image"].system, "</system>", "<user>"]
        (seed,) = (training_data().codes == codes_L).all(1).nonzero().flatten().tolist()
        own = {"coast": "beach"}.get(compose(seed).place, compose(seed).place)
        assert (places - {own}).isdisjoint(tokens)
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
    regions = text_model.draw_regions(1000, (12, 12), seeded(0))
    share = regions.float().mean(1)
    assert share.min() > 0 and 0.3 < share.mean() < 0.7
    masks = text_model.draw_masks(torch.ones(1000, dtype=torch.bool), (12, 12), seeded(0))
    assert masks.any(1).all() and not (masks & ~regions).any()
    prompt_1P = torch.tensor([tokenizer()("<user>a red house</user>")["input_ids"]] * 1)
    found = [text_model.with_unknown_words(prompt_1P, CONFIG, seeded(1, i)) for i in range(500)]
    is_unknown = torch.cat([f != prompt_1P for f in found])
    assert not is_unknown[:, [0, -1]].any() and 0 < is_unknown.float().mean() < 0.1


def untrained(seed: int = 3) -> Training:
    return text_model.initialised(CONFIG, GRID, seed).eval()


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


def test_the_loss_of_the_text_model_begins_at_guessing_and_falls() -> None:
    batch, recipe = a_batch(), replace(RECIPE, iterations=100)
    with torch.no_grad():
        loss, before = text_model.loss_of(untrained(), batch)
    assert before["masked"].item() == pytest.approx(torch.tensor(16.0).log().item(), abs=0.05)
    parts = before["masked"] + 0.3 * before["known"] + 0.3 * before["position"] + before["label"]
    torch.testing.assert_close(loss, parts)
    after = text_model.loss_of(text_model.learn(training_data(), recipe), batch)[1]
    assert after["masked"] < before["masked"] and after["known"] < 0.8 * before["known"]
    assert after["label"] < 0.5 * before["label"]


# The stages


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_the_stages_leave_models_that_load_and_are_not_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_vq(directory: Path) -> VQGAN:
        with torch.random.fork_rng():
            return VQGAN(tiny.VQ)

    monkeypatch.setattr(vq, "train", train_vq)
    monkeypatch.setattr(vq, "NUM_MEASURED", 4)
    monkeypatch.setattr(vq, "CONFIG", replace(vq.CONFIG, num_codes=16))
    small: dict[str, Any] = {"width": 32, "depth": 1, "num_heads": 2, "num_codes": 16}
    recipe = replace(class_model.RECIPE, iterations=2)
    sizes = (
        (class_model, "CONFIG", replace(class_model.CONFIG, mlp_width=32, **small)),
        (class_model, "RECIPE", recipe),
        (
            text_model,
            "CONFIG",
            replace(text_model.CONFIG, mlp_width=32, num_kv_heads=2, **small),
        ),
        (text_model, "RECIPE", recipe),
        *((codes, name, number) for name, number in SIZES.items()),
        (stages, "NUM_COLOURED", 4),
        (stages, "NUM_CAPTIONS", 300),
    )
    for module, name, value in sizes:
        monkeypatch.setattr(module, name, value)
    wanted = ("vq", "codes", "class-model", "text-model")
    command = ["models", "--work", str(tmp_path), "--stage", *wanted]
    assert commands.main(command) == 0
    made = (stages.file_of(tmp_path, path) for path in (shipped.MODEL, shipped.TEXT_MODEL))
    model_file, text_file = (checkpoint.load(path, kind="model") for path in made)
    assert len(model_file.metadata.class_names) == 24 and text_file.metadata.grid == (16, 16)
    assert codes.load_codes(tmp_path, "pictures").shape == (8, 256)
    monkeypatch.setattr(vq, "train", None)
    assert commands.main(command) == 0


SIZES = {"NUM_PICTURES": 8, "NUM_EDITS": 4, "CHUNK": 4}
