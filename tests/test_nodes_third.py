"""The nodes with an architecture that they do not know: `third_architecture`, with native CONDITIONING.

They run on stand-ins for ComfyUI, and on the real one if COMFY_DIR names its folder (see comfy_stubs.py).
"""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first
# ruff: noqa: F811 - fixtures are imported and then named as arguments

from __future__ import annotations

from dataclasses import replace

import builders
import comfy_stubs
import pytest
import torch
from safetensors.torch import save_file

comfy_stubs.install()
import folder_paths
from shortcut_pack.nodes.condition import ClassCondition, TextCondition
from shortcut_pack.nodes.load import LoadHead, LoadMIGM
from shortcut_pack.nodes.sample import FlatMaskedSampler
from shortcut_pack.nodes.train import SaveHead, TrainHead
from shortcut_pack.shortcut import models
from text_nodes import WIDGETS, files  # noqa: F401
from third_architecture import ARCHITECTURE, transformer
from third_architecture import head as mood_head

SIZES = ARCHITECTURE.sizes["mood"]
NAME = "mood/transformer/mood.safetensors"


@pytest.fixture(autouse=True)
def one_line_more(monkeypatch):
    """The line in `models/__init__.py`."""
    monkeypatch.setattr(models, "ARCHITECTURES", [*models.ARCHITECTURES, ARCHITECTURE])


@pytest.fixture
def loaded(files):
    """MODEL, VAE and head of files in ComfyUI's models folder, the model in its published layout."""
    model = builders.random_checkpoint(transformer.LAYOUT, SIZES.model, seed=3)
    file = files / "migm" / NAME
    file.parent.mkdir(parents=True)
    save_file(builders.published(model), file)
    builders.write(file.parent / "vq.safetensors", builders.vq())
    fits = {"model_fingerprint": model.fingerprint}
    head = builders.random_checkpoint(mood_head.LAYOUT, SIZES.head, seed=5, **fits)
    builders.write(files / "migm_heads" / "mood.safetensors", head)
    return *LoadMIGM.execute(NAME, "auto", "float32").result[:2], load_head("mood.safetensors")


def load_head(name):
    return LoadHead.execute(name, "float32").result[0]


def clip_text(seed):
    """CONDITIONING as CLIP Text Encode makes it."""
    generator = torch.Generator().manual_seed(seed)
    row, pooled = (torch.randn(1, *shape, 12, generator=generator) for shape in ((3,), ()))
    return [[row, {"pooled_output": pooled}]]


def run(model, positive, head=None, **changes):
    latent = {"samples": torch.zeros(2, 1, 3, 5)}
    sockets = {"model": model, "positive": positive, "latent_image": latent, "head": head}
    return FlatMaskedSampler.execute(**(sockets | WIDGETS | changes)).result[0]


def test_it_runs_with_native_conditioning_and_a_head(loaded):
    model, vae, head = loaded
    calm = run(model, clip_text(0))
    assert calm["samples"].shape == (2, 1, 3, 5)
    assert vae.decode(calm["samples"]).shape == (2, 6, 10, 3)
    for other in (
        run(model, clip_text(1)),
        run(model, clip_text(0), negative=clip_text(1)),
        run(model, clip_text(0), head),
    ):
        assert not torch.equal(other["samples"], calm["samples"])
    assert torch.equal(run(model, clip_text(0), head, full_steps=6)["samples"], calm["samples"])


def test_without_guidance_one_branch_runs(loaded):
    model, _, head = loaded
    assert run(model, clip_text(0), head, cfg=0.0)["samples"].shape == (2, 1, 3, 5)


def test_only_what_the_mask_covers_changes(loaded):
    model, _, head = loaded
    latent = {"samples": torch.full((1, 1, 3, 5), 7.0), "noise_mask": torch.zeros(1, 1, 6, 10)}
    latent["noise_mask"][..., :4] = 1
    found = run(model, clip_text(0), head, latent_image=latent)["samples"]
    assert (found[..., 2:] == 7).all() and not (found[..., :2] == 7).all()


def test_text_condition_serves_it_and_class_condition_names_it(loaded):
    model, vae, _ = loaded
    positive = TextCondition.execute(model, "calm", "text_to_image").result[0]
    row, entries = positive[0]
    assert row.shape == (1, 3, 12) and entries["pooled_output"].shape == (1, 12)
    assert run(model, positive)["samples"].shape == (2, 1, 3, 5)
    with pytest.raises(ValueError, match="Use Text Condition in place of Class Condition"):
        ClassCondition.execute(model, "1")
    with pytest.raises(ValueError, match=r"task is not for a Mood transformer"):
        TextCondition.execute(model, "calm", "edit")
    with pytest.raises(ValueError, match=r"takes no image\. Disconnect it\."):
        TextCondition.execute(model, "calm", "edit", vae=vae, image=torch.zeros(1, 6, 10, 3))


def test_it_has_no_presets(loaded):
    with pytest.raises(ValueError, match=r"Mood transformer has no preset 'fast'\. It has none"):
        run(loaded[0], clip_text(0), preset="fast")


def test_the_widgets_list_what_it_adds(monkeypatch):

    sketching = replace(ARCHITECTURE, tasks={"text_to_image": 0, "sketch": 1})
    monkeypatch.setattr(models, "ARCHITECTURES", [*models.ARCHITECTURES[:-1], sketching])
    (tasks,) = (i for i in TextCondition.define_schema().inputs if i.id == "task")
    options = tasks.as_dict()["options"]
    assert options[0] == "text_to_image" and options[-1] == "sketch"
    assert len(options) == len(set(options))


def test_a_head_for_it_is_trained_in_the_node_and_used(loaded, monkeypatch, tmp_path):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    model = loaded[0]
    with torch.inference_mode():
        head, _ = TrainHead.execute(model, 30, 4, 0, "mood", "calm\nstorm", 0.01).result
        SaveHead.execute(head, "trained")
    last = head.model.checkpoint.metadata.trained["last"]
    assert last["mse"] < 0.9 * last["reuse"]
    assert not model.model.diffusion_model.code_output.weight_function
    saved = load_head("trained_00001_.safetensors")
    found = [run(model, clip_text(0), h)["samples"] for h in (head, saved, None)]
    assert torch.equal(*found[:2]) and not torch.equal(*found[1:])
