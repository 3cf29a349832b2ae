"""One-step students of MaskGIT and Meissonic: what they see, one pass, and what they are refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import golden_sets
import pytest
import torch
import uvit_folder
import uvit_sets
from PIL import Image
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import one_step
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.generate import generate
from shortcut_pack.shortcut.models.architecture import ONE_STEP
from shortcut_pack.shortcut.models.maskgit import ARCHITECTURE as MASKGIT
from shortcut_pack.shortcut.models.meissonic import ARCHITECTURE as MEISSONIC
from shortcut_pack.shortcut.one_step import OneStepStudent
from shortcut_pack.shortcut.pipeline import Pipeline
from shortcut_pack.shortcut.schedule import Settings, plan
from shortcut_pack.shortcut.settings import with_preset
from torch import Tensor

GRID = (16, 16)
MODELS = ("maskgit", "meissonic")


def student_of(name: str) -> tuple[Any, tuple[Any, ...], Any]:
    """A tiny network for 16 x 16 codes, the condition of two images, and the layer that embeddings go to next."""
    if name == "maskgit":
        config = replace(builders.MODEL_CONFIG, grid=16)
        network = checkpoints.build(builders.model(config))
        return network, (torch.tensor([1, 2]),), network.first_layer
    golden = golden_sets.load("meissonic_sampling_1024")
    network = uvit_sets.network(golden)
    condition = uvit_sets.conditions_of(golden)[0][torch.tensor([0, 0])]
    return network, (condition,), network.downsample


def seen_by(name: str, images: list[int], seed: int = 7) -> tuple[Tensor, Tensor, Tensor, Any]:
    """The token ids and embeddings that a student sees, its codes, and the network."""
    network, (condition,), layer = student_of(name)
    embeddings = network.token if name == "maskgit" else network.embed.embeddings
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, args: Any) -> None:
            found.setdefault(name, args[0])

        return hook

    hooks = [
        embeddings.register_forward_pre_hook(keep("ids")),
        layer.register_forward_pre_hook(keep("x")),
    ]
    try:
        settings = Settings(num_steps=1, guidance=(), is_one_step=True)
        result = generate(
            network.on_grid(*GRID),
            (condition[torch.tensor(images)],),
            settings,
            MASKGIT.rules,
            seed=seed,
            image_indices=images,
            num_tokens=256,
        )
    finally:
        for hook in hooks:
            hook.remove()
    assert result.num_steps == result.num_full == 1
    ids = found["ids"].flatten(1)[:, :256]
    return ids, found["x"].flatten(1, -2)[:, :256], result.codes_BL, network


@pytest.mark.parametrize("name", MODELS)
def test_a_student_sees_random_codes_and_masks_and_noise(name, monkeypatch) -> None:
    ids, noisy, codes_BL, network = seen_by(name, [0, 1])
    is_mask = ids == network.config.mask_id
    assert is_mask.sum(1).tolist() == [154, 154]  # 0.6 of 256, rounded
    assert not torch.equal(is_mask[0], is_mask[1])
    shown = ids[~is_mask]
    assert int(shown.max()) < network.config.num_codes
    assert len(shown.unique()) > network.config.num_codes // 2
    assert not (codes_BL == network.config.mask_id).any()
    # Tokens that it was shown are drawn anew like all others.
    assert (codes_BL[~is_mask] != shown).any()
    monkeypatch.setattr(one_step, "PERTURBATION", 0.0)
    same_ids, plain, *_ = seen_by(name, [0, 1])
    assert torch.equal(ids, same_ids)
    positions = 0.0
    if name == "maskgit":
        positions = network.position.weight[:256]
    noise = (noisy - positions - math.sqrt(0.99) * (plain - positions)) / 0.1
    assert abs(float(noise.mean())) < 0.05
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_an_image_is_the_same_alone_and_its_seed_changes_it(name) -> None:
    *_, together, _ = seen_by(name, [0, 1])
    *_, alone, _ = seen_by(name, [1])
    assert torch.equal(alone[0], together[1])
    *_, other, _ = seen_by(name, [1], seed=8)
    assert not torch.equal(other, alone)


def test_noise_is_the_same_in_each_guidance_branch() -> None:
    network, (condition,), _ = student_of("meissonic")
    model = network.on_grid(*GRID)
    student = OneStepStudent(model, 8, seed=1, image_indices=[0, 1], device="cpu")
    step = plan(Settings(num_steps=1), 256, 256)[0]
    both = student.features(torch.zeros(0), torch.zeros(0), (condition, condition), step)
    torch.testing.assert_close(both[0], both[1], rtol=1e-4, atol=1e-5)


def test_a_bare_table_of_tensors_as_published_is_a_model(tmp_path: Path) -> None:
    published, model = tmp_path / "pytorch_model.bin", tmp_path / "student.safetensors"
    torch.save(builders.published(builders.model())["model_state_dict"], published)
    sizes = [f"--{name.replace('_', '-')}={n}" for name, n in builders.MODEL_SIZES.items()]
    assert main(["convert", str(published), str(model), *sizes]) == 0
    assert checkpoints.load(model).config == builders.MODEL_CONFIG


def test_the_preset_on_the_command_line(tmp_path: Path, capsys) -> None:
    command = ["generate", "--class", "1", "--seed", "3"]
    made = {}
    for name, options in {
        "a": ("--preset", "one_step"),
        "b": ("--steps", "1", "--cfg", "0"),
        "c": ("--preset", "one_step", "--cfg", "50"),
    }.items():
        out = tmp_path / f"{name}.png"
        assert main([*command, "--out", str(out), "--json", *options]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["steps"], report["full_steps"]) == (1, 1)
        made[name] = Image.open(out)
    assert len({picture.tobytes() for picture in made.values()}) == 3
    graph = json.loads(made["a"].text["prompt"])
    assert graph["6"]["inputs"]["preset"] == "one_step"
    assert json.loads(made["b"].text["prompt"])["6"]["inputs"]["preset"] == "custom"
    assert "prompt" not in made["c"].text  # the preset takes no guidance


def test_what_a_student_is_refused(tmp_path: Path) -> None:
    network, conditions, _ = student_of("maskgit")
    settings = Settings(num_steps=1, guidance=(), is_one_step=True)
    with pytest.raises(ValueError, match=r"makes whole pictures\. Leave out the picture to change"):
        generate(
            network,
            conditions,
            settings,
            MASKGIT.rules,
            seed=0,
            image_indices=[0, 1],
            num_tokens=256,
            known_codes_BL=torch.zeros(2, 256, dtype=torch.long),
        )
    with pytest.raises(ValueError, match="a one-step student takes 1 step, got 4"):
        Settings(num_steps=4, is_one_step=True).check()
    folder = uvit_folder.write(tmp_path / "amused", has_text=False)
    amused = checkpoints.load(folder, kind="model")
    with pytest.raises(ValueError, match=r"no preset 'one_step'\. It has quality, balanced, fast"):
        with_preset(Settings(), amused, ONE_STEP)
    assert MEISSONIC.has_students
    with pytest.raises(ValueError, match="has no one-step students"):
        OneStepStudent(
            checkpoints.build(builders.text_model()).on_grid(2, 2),
            8,
            seed=0,
            image_indices=[0],
            device="cpu",
        )


def test_in_python_a_preset_of_one_step_takes_nothing_that_a_single_pass_has_no_use_for() -> None:
    pipeline = Pipeline.load("scenes")
    assert pipeline.accelerator_name == "partial"
    asked = {"label": "night snow", "preset": "one_step"}
    assert len(pipeline.generate(**asked, temperature=0.9)) == 1
    with pytest.raises(ValueError, match="nothing for --accelerator partial to do"):
        pipeline.generate(**asked, accelerator="partial")
    for idle in ({"order": "halton"}, {"schedule": "cosine"}, {"choice_temperature": 3.0}):
        with pytest.raises(
            ValueError, match=f"in one step, where {next(iter(idle))} has no effect"
        ):
            pipeline.generate(**asked, **idle)


def test_the_picture_of_one_step_says_nothing_of_an_accelerator(tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    line = ["generate", "--class", "3", "--preset", "one_step", "--out", str(out)]
    assert main(line) == 0
    with Image.open(out) as picture:
        assert "accelerator" not in json.loads(picture.info["shortcut"])
        assert "Accelerator" not in picture.info["prompt"]
    assert main([*line, "--accelerator", "partial"]) == 1
