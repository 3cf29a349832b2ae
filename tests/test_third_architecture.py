"""A new architecture is a folder and a line: `third_architecture` runs everywhere and changes no file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import builders
import pytest
import third_architecture
import torch
from PIL import Image
from safetensors.torch import save_file
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import models
from shortcut_pack.shortcut.pipeline import Pipeline
from third_architecture import head, transformer

ARCHITECTURE = third_architecture.ARCHITECTURE
SIZES = ARCHITECTURE.sizes["mood"]


def main(arguments: list[str]) -> int:
    from shortcut_pack.shortcut.__main__ import main as run

    return run(arguments)


@pytest.fixture(autouse=True)
def one_line_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line in `models/__init__.py`."""
    monkeypatch.setattr(models, "ARCHITECTURES", [*models.ARCHITECTURES, ARCHITECTURE])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in its published layout, in a subfolder, with a VQ model beside it."""
    model = builders.random_checkpoint(transformer.LAYOUT, SIZES.model, seed=3)
    file = tmp_path / "mood" / "transformer" / "mood.safetensors"
    file.parent.mkdir(parents=True)
    save_file(builders.published(model) | {"ema.decay": torch.zeros(1)}, file)
    builders.write(tmp_path / "mood" / "transformer" / "vq.safetensors", builders.vq())
    return tmp_path / "mood"


def trained_head(folder: Path) -> Path:
    model = checkpoints.load(folder, kind="model")
    found = builders.random_checkpoint(
        head.LAYOUT, SIZES.head, seed=5, model_fingerprint=model.fingerprint
    )
    return builders.write(folder / "head.safetensors", found)


def test_it_is_recognised_by_its_tensors(folder: Path) -> None:
    found = checkpoints.load(folder, kind="model")
    assert (found.layout, found.config) == (transformer.LAYOUT, SIZES.model)
    assert found.architecture is ARCHITECTURE


def test_it_makes_pictures_with_and_without_a_head(folder: Path) -> None:
    plain = Pipeline.load(folder)
    (first,), (again,) = (plain.generate("calm", seed=1) for _ in range(2))
    assert first.size == (8, 8)
    assert first.tobytes() == again.tobytes()
    others = [plain.generate(text, seed=1)[0].tobytes() for text in ("storm", "calm")]
    assert others[0] != first.tobytes() == others[1]
    (wide,) = plain.generate("calm", width=16, height=8)
    assert wide.size == (16, 8)
    fast = Pipeline.load(folder, head=trained_head(folder))
    (vanilla,) = fast.generate("calm", seed=1, steps=8, full_steps=8)
    assert vanilla.tobytes() == first.tobytes()
    (shortcut,) = fast.generate("calm", seed=1, steps=8, full_steps=2)
    assert shortcut.tobytes() != first.tobytes()


def test_its_pass_depends_on_the_step(folder: Path) -> None:
    view = Pipeline.load(folder).model.on_grid(4, 4)
    mood = third_architecture.MoodConditioner(12)._mood("calm")
    codes_BL = torch.zeros(1, 16, dtype=torch.long)
    early, late = (
        view.features(codes_BL, codes_BL.bool(), [mood], step)[0]
        for step in builders.steps(num_steps=4)[:2]
    )
    assert not torch.allclose(early, late)


def test_a_setting_or_a_request_that_it_does_not_know_is_refused(folder: Path) -> None:
    pipeline = Pipeline.load(folder, head=trained_head(folder))
    with pytest.raises(
        ValueError, match=r"label is not for a Mood transformer\. It takes negative, p"
    ):
        pipeline.generate(label="night")
    with pytest.raises(ValueError, match=r"Mood transformer has no preset 'fast'\. It has none"):
        pipeline.generate("calm", preset="fast")


def test_a_model_without_guidance_makes_pictures_and_trains(folder: Path, monkeypatch) -> None:
    class Alone(third_architecture.MoodConditioner):
        def conditions(self, request, num_images):
            return super().conditions(request, num_images)[:1]

        def draw(self, requests):
            draw = super().draw(requests)
            return lambda num_images, generator: draw(num_images, generator)[:1]

    settings = replace(ARCHITECTURE.settings, guidance=())
    changed = replace(ARCHITECTURE, settings=settings, conditioner=Alone.of)
    monkeypatch.setattr(models, "ARCHITECTURES", [changed])
    pipeline = Pipeline.load(folder, head=trained_head(folder))
    (first,) = pipeline.generate("calm", steps=4, full_steps=2)
    (again,) = pipeline.generate("calm", steps=4, full_steps=2)
    assert first.tobytes() == again.tobytes()
    with pytest.raises(ValueError, match=r"has no guidance\. Leave --cfg out"):
        pipeline.generate("calm", cfg=3.0)
    out = folder / "new.safetensors"
    assert main(["train", "--model", str(folder), "--iterations", "3", "--out", str(out)]) == 0


def test_the_command_line_makes_inpaints_and_describes(
    folder: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "a.png"
    run = ["generate", "--model", str(folder), "--prompt", "calm", "--seed", "1"]
    assert main([*run, "--out", str(out)]) == 0
    mask = Image.new("L", (8, 8))
    mask.paste(255, (0, 0, 4, 8))
    mask.save(tmp_path / "mask.png")
    inpaint = ["--image", str(out), "--mask", str(tmp_path / "mask.png"), "--prompt", "storm"]
    painted = tmp_path / "b.png"
    head_file = str(trained_head(folder))
    assert main([*run, *inpaint, "--head", head_file, "--out", str(painted)]) == 0
    before, after = Image.open(out).convert("RGB"), Image.open(painted).convert("RGB")
    assert before.crop((0, 0, 4, 8)).tobytes() != after.crop((0, 0, 4, 8)).tobytes()
    assert main(["info", str(folder / "transformer" / "mood.safetensors")]) == 0
    assert "Mood transformer" in capsys.readouterr().out
    assert main([*run, "--class", "1", "--out", str(out)]) == 1
    assert "--class is not for a Mood transformer. It takes --prompt" in capsys.readouterr().err


def test_cost_counts_it(capsys) -> None:
    assert main(["cost", "mood", "--full-steps", "2", "--steps", "8"]) == 0
    assert "| 8 | 2 |" in capsys.readouterr().out


def test_a_head_that_is_trained_for_it_lowers_the_divergence(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "head.safetensors"
    (tmp_path / "prompts.txt").write_text("calm\nstorm\nlight\n")
    command = ["train", "--model", str(folder), "--prompts", str(tmp_path / "prompts.txt")]
    assert main([*command, "--iterations", "400", "--steps", "8", "--out", str(out)]) == 0
    trained = checkpoints.load(out)
    assert trained.layout == head.LAYOUT
    held_out = trained.metadata.trained["held_out"]["8 steps"]
    assert held_out[0]["kl"] < 0.9 * held_out[0]["kl_reuse"]  # of features kept as they are
    (picture,) = Pipeline.load(folder, head=out).generate("calm", steps=8, full_steps=2)
    assert picture.size == (8, 8)
