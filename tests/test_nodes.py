"""The nodes: their frozen interface, and what they do with MODEL, LATENT, masks and heads.

They run on stand-ins for ComfyUI, and on the real one if COMFY_DIR names its folder (see comfy_stubs.py).
"""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first

from __future__ import annotations

import importlib
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import builders
import comfy_stubs
import node_interface
import numpy as np
import pytest
import torch
from comfy_stubs import needs_comfy

comfy_stubs.install()
import comfy.model_management as mm
import comfy.utils
import folder_paths
from shortcut_pack import nodes
from shortcut_pack.nodes import (
    condition,
    folders,
    host,
    latents,
    native,
    patches,
    progress,
)
from shortcut_pack.nodes import (
    run as runs,
)
from shortcut_pack.nodes.load import LoadHead, LoadMIGM
from shortcut_pack.nodes.sample import FlatMaskedSampler
from shortcut_pack.shortcut import shipped
from shortcut_pack.shortcut.accelerators.choice import named
from shortcut_pack.shortcut.generate import generate
from shortcut_pack.shortcut.models import maskgit
from shortcut_pack.shortcut.models.architecture import Request
from shortcut_pack.shortcut.models.maskgit.classes import ClassConditioner
from shortcut_pack.shortcut.schedule import Settings

GRID, NUM_CODES, NUM_CLASSES, L = 4, 16, 3, 16
WIDGETS = {
    "seed": 3,
    "steps": 6,
    "full_steps": 2,
    "cfg": 1.5,
    "cfg_ramp": True,
    "schedule": "arccos",
    "temperature": 1.0,
    "choice_temperature": 4.0,
    "denoise": 1.0,
}
NAMES = ("day forest", "night forest", "night snow")
CLASSES = ClassConditioner(NUM_CLASSES, NAMES)


@pytest.fixture
def model():
    """MODEL of the tiny network."""
    checkpoint = builders.model(class_names=NAMES)
    colours_V3 = torch.linspace(-1, 1, NUM_CODES).unsqueeze(1).expand(-1, 3)
    return native.build_model(checkpoint, "float32", native.CodeIds(2, colours_V3), CLASSES)


@pytest.fixture
def head(model):
    fingerprint = model.model.checkpoint.fingerprint
    return native.build_head(builders.head(model_fingerprint=fingerprint), "float32")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The tiny files in the places of the shipped ones, and ComfyUI's models folder empty."""
    checkpoints = {"model": builders.model(class_names=NAMES), "vq": builders.vq()}
    checkpoints["head"] = builders.head(model_fingerprint=checkpoints["model"].fingerprint)
    for kind, checkpoint in checkpoints.items():
        path = builders.write(tmp_path / "shipped" / f"{kind}.safetensors", checkpoint)
        monkeypatch.setitem(shipped.CHOICES[shipped.NAME], kind, path)
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "get_filename_list", lambda category: [])
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda category: [])
    return tmp_path


def empty(num_images=1, side=GRID):
    return {"samples": torch.zeros(num_images, 1, side, side)}


def image(num_images=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_images, 1, GRID, GRID)
    return {"samples": torch.randint(NUM_CODES, shape, generator=generator).float()}


def cond(chosen=1):
    """The CONDITIONING of a class; NUM_CLASSES = no class."""
    return CLASSES.to_conditioning([Request(label=str(chosen) if chosen < NUM_CLASSES else "")])


def run(model, latent=None, head=None, positive=None, **changes):
    """The LATENT that the sampler makes."""
    latent = empty() if latent is None else latent
    sockets = {"model": model, "positive": positive or cond(), "latent_image": latent}
    if head is not None:
        sockets["head"] = head
    return FlatMaskedSampler.execute(**sockets, **(WIDGETS | changes)).result[0]


def codes(latent):
    return latent["samples"][:, 0].flatten(1).long()


# ------------------------------------------------------------------------------------------- interface


def test_saved_workflows_keep_working(files):
    assert node_interface.current(nodes.NODES) == node_interface.frozen()


def test_every_input_and_output_explains_itself(files):
    for node in nodes.NODES:
        schema = node.define_schema()
        assert schema.description and schema.display_name
        for item in [*schema.inputs, *schema.outputs]:
            assert item.tooltip and item.tooltip.endswith("."), (schema.node_id, item.id)


def test_every_sampler_widget_says_what_it_does_to_speed_or_images():
    for item in FlatMaskedSampler.define_schema().inputs:
        if item.id in (
            "steps",
            "full_steps",
            "cfg",
            "cfg_image",
            "temperature",
            "choice_temperature",
        ):
            assert "Typical" in item.tooltip, item.id


def test_every_node_has_a_help_page(files):
    pages = Path(nodes.__file__).parents[1] / "web" / "docs"
    found = {path.stem for path in pages.glob("*.md")}
    assert found == {node.define_schema().node_id for node in nodes.NODES}


# ------------------------------------------------------------------------------------------- loaders


def test_the_shipped_files_are_always_in_the_lists(monkeypatch):
    monkeypatch.setattr(folder_paths, "get_filename_list", lambda category: [f"{category}.pth"])
    by_id = {
        item.id: item.as_dict()
        for node in (LoadMIGM, LoadHead)
        for item in node.define_schema().inputs
    }
    both = [shipped.NAME, shipped.TEXT_NAME]
    assert by_id["model_name"]["options"] == [*both, "migm.pth"]
    assert by_id["vq_name"]["options"] == ["auto", *both, "migm.pth"]
    assert by_id["head_name"]["options"] == [*both, "migm_heads.pth"]
    assert folders.path_of("migm", shipped.NAME, "vq") == shipped.VQ


def test_folders_are_registered_beside_those_of_extra_model_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {"migm": (["/elsewhere"], set())})
    folders.register_folders()
    paths, extensions = folder_paths.folder_names_and_paths["migm"]
    assert paths[0] == "/elsewhere"
    assert extensions == {".safetensors", ".pth", ".ckpt", ".pt"}
    assert (tmp_path / "migm_heads").is_dir()


def test_load_migm_gives_a_model_and_a_vae_that_fit_each_other(files):
    model, vae, _ = LoadMIGM.execute(shipped.NAME, "auto", "float32").result
    latent_format = model.get_model_object("latent_format")
    assert latent_format.spacial_downscale_ratio == 2
    assert latent_format.colours_V3.shape == (NUM_CODES, 3)
    pixels = vae.decode(run(model)["samples"])
    assert pixels.shape == (1, 8, 8, 3)
    assert pixels.min() >= 0 and pixels.max() <= 1


def test_vae_gives_code_ids_as_float32_also_when_tiled(files):
    _, vae, _ = LoadMIGM.execute(shipped.NAME, "auto", "default").result
    pixels = torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    ids = vae.encode(pixels)
    assert ids.shape == (2, 1, GRID, GRID) and ids.dtype == torch.float32
    assert torch.equal(ids, ids.round()) and ids.min() >= 0 and ids.max() < NUM_CODES
    assert torch.equal(vae.encode_tiled(pixels, tile_x=4, tile_y=4, overlap=2), ids)


# What other nodes make of LATENTs, and what is said about it.
NO_CODES = {
    "blended": (torch.full((1, 1, GRID, GRID), 3.5), r"fractions such as 3\.5.* Latent Blend"),
    "multiplied": (torch.full((1, 1, GRID, GRID), 16.0), r"from 16 to 16.* Latent Multiply"),
    "subtracted": (torch.full((1, 1, GRID, GRID), -1.0), r"from -1 to -1.* Latent Subtract"),
    "of another model": (torch.ones(1, 16, GRID, GRID), "another kind of model"),
    "of a video model": (torch.ones(1, 1, 2, GRID, GRID), "another kind of model"),
    "of a sound model": (torch.ones(1, 1, GRID), "another kind of model"),
    "infinite": (torch.full((1, 1, GRID, GRID), torch.nan), "NaN"),
}


@pytest.mark.parametrize("what", NO_CODES)
def test_what_is_no_code_is_not_decoded(files, what):
    _, vae, _ = LoadMIGM.execute(shipped.NAME, "auto", "default").result
    samples, message = NO_CODES[what]
    with pytest.raises(ValueError, match=message):
        vae.decode(samples)


@needs_comfy
@pytest.mark.parametrize("what", NO_CODES)
def test_what_is_no_code_is_not_decoded_in_tiles_either(files, what):
    _, vae, _ = LoadMIGM.execute(shipped.NAME, "auto", "default").result
    samples, message = NO_CODES[what]
    with pytest.raises(ValueError, match=message):
        vae.decode_tiled(samples, tile_x=4, tile_y=4, overlap=1)


@pytest.mark.parametrize("denoise", [1.0, 0.5])
@pytest.mark.parametrize("what", NO_CODES)
def test_what_is_no_code_is_not_sampled_from(model, what, denoise):
    samples, message = NO_CODES[what]
    with pytest.raises(ValueError, match=message):
        run(model, {"samples": samples}, denoise=denoise)


def test_what_arithmetic_leaves_of_whole_codes_is_taken(model):
    latent = image(seed=4)
    moved = {"samples": latent["samples"] + 1e-4}
    assert torch.equal(
        run(model, moved, denoise=0.5)["samples"], run(model, latent, denoise=0.5)["samples"]
    )


def test_a_type_that_cannot_hold_the_codes_is_refused():
    latents.check_type(torch.ones(1, dtype=torch.bfloat16), 256)
    latents.check_type(torch.zeros(1, dtype=torch.bfloat16), 257)
    with pytest.raises(ValueError, match="bfloat16, which cannot hold all ids below 257"):
        latents.check_type(torch.ones(1, dtype=torch.bfloat16), 257)


def test_as_many_places_in_the_batch_as_images(model):
    with pytest.raises(ValueError, match=r"holds 2 images, and the places of 3"):
        run(model, empty(2) | {"batch_index": [0, 1, 2]})


@pytest.mark.parametrize("vq", ["VQGAN/vq.safetensors", "published/vqvae/vq.safetensors"])
def test_auto_finds_the_vq_beside_a_users_model(files, monkeypatch, vq):
    folder = files / "migm" / "mine"
    builders.write(folder / "model.safetensors", builders.model(seed=7))
    builders.write(folder / vq, builders.vq())
    monkeypatch.setattr(
        folder_paths, "get_full_path_or_raise", lambda category, name: str(folder / name)
    )
    model, _, _ = LoadMIGM.execute("model.safetensors", "auto", "default").result
    assert model.model.checkpoint.fingerprint == builders.model(seed=7).fingerprint


def test_a_vq_of_another_model_is_refused(files):
    config = replace(builders.VQ_CONFIG, num_codes=8)
    builders.write(shipped.CHOICES[shipped.NAME]["vq"], builders.vq(config))
    with pytest.raises(ValueError, match=r"has 8 codes, and .* makes 16\. Give the VQ model"):
        LoadMIGM.execute(shipped.NAME, "auto", "default")


@pytest.mark.parametrize("name", [r"sub\deep\model.safetensors", "sub/deep/model.safetensors"])
def test_paths_of_workflows_of_the_other_system_are_found(name, tmp_path, monkeypatch):
    file = tmp_path / "sub" / "deep" / "model.safetensors"
    builders.write(file, builders.model())

    def existing(category, name):
        if not (tmp_path / name).is_file():
            raise FileNotFoundError(name)
        return str(tmp_path / name)

    monkeypatch.setattr(folder_paths, "get_full_path_or_raise", existing)
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda category: [str(tmp_path)])
    assert folders.path_of("migm", name, "model") == file
    assert LoadMIGM.validate_inputs(name, "auto") is True
    assert folders.path_of("migm", r"sub\deep", "model") == file.parent
    with pytest.raises(FileNotFoundError, match=r"models/migm holds no \.\.\\other"):
        folders.path_of("migm", r"..\other", "model")


def test_a_replaced_file_is_loaded_again(files):
    before = LoadHead.fingerprint_inputs(shipped.NAME, weight_dtype="default")
    assert LoadHead.fingerprint_inputs(shipped.NAME, weight_dtype="default") == before
    config = replace(builders.HEAD_CONFIG, num_blocks=2)
    builders.write(shipped.CHOICES[shipped.NAME]["head"], builders.head(config))
    assert LoadHead.fingerprint_inputs(shipped.NAME, weight_dtype="default") != before


def test_a_missing_file_is_named(files):
    shipped.CHOICES[shipped.NAME]["head"].unlink()
    with pytest.raises(FileNotFoundError, match=r"head\.safetensors"):
        LoadHead.execute(shipped.NAME, "default")


# ------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("text", "chosen"), [("night snow", 2), ("snow night", 2), ("0", 0), ("", 3), ("none", 3)]
)
def test_class_condition_reads_names_and_numbers(model, text, chosen):
    found = condition.ClassCondition.execute(model, text).result[0]
    wanted_B, unwanted_B = CLASSES.from_conditioning(found, None, 2)
    assert (wanted_B.tolist(), unwanted_B.tolist()) == ([chosen] * 2, [NUM_CLASSES] * 2)


def test_a_class_for_each_image(model, head):
    """An image is the same whether the others of its batch have its class or not."""
    wanted = condition.ClassCondition.execute(model, "night snow; 0; none;").result[0]
    unwanted = condition.ClassCondition.execute(model, "1; 2").result[0]
    found = codes(run(model, empty(4), head, wanted, negative=unwanted))
    for image, (chosen, other) in enumerate([(2, 1), (0, 2), (3, 1), (2, 2)]):
        alike = codes(run(model, empty(4), head, cond(chosen), negative=cond(other)))
        assert torch.equal(found[image], alike[image])


@pytest.mark.parametrize(
    ("text", "message"),
    [("3", "between 0 and 2, got 3"), ("cat", "day forest, night forest, night snow")],
)
def test_a_class_that_the_model_has_not_is_refused(model, text, message):
    with pytest.raises(ValueError, match=message):
        condition.ClassCondition.execute(model, text)


def test_conditioning_zero_out_means_no_class():
    zeroed = [[torch.zeros_like(t), options] for t, options in cond()]
    assert CLASSES.from_conditioning(zeroed, None, 1)[0].tolist() == [NUM_CLASSES]


@pytest.mark.parametrize(
    ("conditioning", "message"),
    [
        ([[torch.zeros(1, 77, 768), {}]], r"has shape \(1, 77, 768\), expected \(1, 1, 3\)"),
        ([], "combines 0 conditions"),
        (cond(0) + cond(1), "combines 2 conditions"),
        ([[(cond(0)[0][0] + cond(1)[0][0]) / 2, {}]], "mixes 2 classes"),
        ([[torch.cat([cond(0)[0][0], cond(1)[0][0]], 1), {}]], r"2 classes in a row.*Concat"),
        ([[cond(0)[0][0].expand(2, -1, -1), {}]], r"holds 2 conditions.* batch_size 2"),
        ([[cond(0)[0][0] * 0.5, {}]], r"its class times 0\.5.*ConditioningMultiply"),
        ([[cond(0)[0][0] * -1, {}]], "its class times -1"),
    ],
)
def test_conditioning_that_is_not_one_class_is_refused(conditioning, message):
    with pytest.raises(ValueError, match=message):
        CLASSES.from_conditioning(conditioning, None, 1)
    with pytest.raises(ValueError, match=message):
        CLASSES.from_conditioning(cond(), conditioning, 1)


# Entries that other nodes add to a CONDITIONING, and what is said about them.
ADDED = {
    "Set Area": (
        {"area": (8, 8, 0, 0), "strength": 1.0, "set_area_to_bounds": False},
        r"carries area of Conditioning \(Set Area\), which",
    ),
    "Set Area Strength": ({"strength": 0.5}, r"strength of Conditioning \(Set Area Strength\)"),
    "Set Mask": (
        {"mask": torch.ones(1, 8, 8), "mask_strength": 0.5, "set_area_to_bounds": True},
        r"mask of .*, mask_strength of .*, set_area_to_bounds of Conditioning \(Set Mask\)",
    ),
    "Set Timestep Range": (
        {"start_percent": 0.0, "end_percent": 0.5},
        "carries end_percent of ConditioningSetTimestepRange",
    ),
    "Apply ControlNet": ({"control": object()}, "control of Apply ControlNet"),
    "FluxGuidance": ({"guidance": 3.5}, "guidance of FluxGuidance"),
    "ReferenceLatent": ({"reference_latents": [torch.ones(1)]}, "of ReferenceLatent"),
    "of a pack": ({"their_own": torch.ones(2)}, "their_own of another node"),
}


@pytest.mark.parametrize("node", ADDED)
@pytest.mark.parametrize("side", ["positive", "negative"])
def test_what_other_nodes_add_to_a_condition_is_refused_by_name(model, node, side):
    entries, message = ADDED[node]
    with pytest.raises(ValueError, match=f"^{side} .*{message}"):
        run(model, **{side: [[cond()[0][0], entries]]})


def test_what_changes_nothing_of_a_condition_is_taken(model):
    entries = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "guidance": None}
    encoded = {"pooled_output": torch.ones(1, 4), "attention_mask": torch.ones(1, 1)}
    found = run(model, positive=[[cond()[0][0], entries | encoded]])
    assert torch.equal(found["samples"], run(model)["samples"])


# ------------------------------------------------------------------------------------------- sampler


def test_the_node_gives_what_the_pipeline_gives(model, head):
    network = model.model.diffusion_model
    settings = Settings(
        num_steps=6, full_steps=2, guidance=(1.5,), choice_temperature=4.0, schedule="arccos"
    )
    expected = generate(
        network,
        CLASSES.conditions(Request(label="1"), 2),
        settings,
        maskgit.ARCHITECTURE.rules,
        seed=3,
        image_indices=range(2),
        num_tokens=L,
        accelerator=named("head", head.model),
    )
    assert torch.equal(codes(run(model, empty(2), head)), expected.codes_BL)


def test_a_head_that_answers_no_step_changes_nothing(model, head):
    vanilla = run(model)["samples"]
    assert torch.equal(run(model, head=head, full_steps=6)["samples"], vanilla)
    assert not torch.equal(run(model, head=head, full_steps=1)["samples"], vanilla)
    assert torch.equal(run(model)["samples"], vanilla)


def test_full_steps_have_no_effect_without_a_head(model):
    assert torch.equal(run(model, full_steps=100)["samples"], run(model)["samples"])


def test_full_steps_above_steps_are_refused(model, head):
    with pytest.raises(ValueError, match="full steps must be between 1 and steps"):
        run(model, head=head, full_steps=7)


def test_guidance_off_and_one_step(model, head):
    latent = run(model, head=head, cfg=0.0, steps=1, full_steps=1)
    assert latent["samples"].shape == (1, 1, GRID, GRID)


def test_an_image_of_a_batch_can_be_made_again_alone(model, head):
    batch = run(model, empty(3), head)["samples"]
    alone = run(model, empty() | {"batch_index": [2]}, head)
    assert torch.equal(alone["samples"][0], batch[2])


def test_a_negative_seed_from_a_linked_int_works(model):
    assert torch.equal(run(model, seed=-1)["samples"], run(model, seed=2**64 - 1)["samples"])


def test_negative_class_replaces_no_class(model):
    neutral = run(model, cfg=5.0)["samples"]
    assert torch.equal(run(model, cfg=5.0, negative=cond(NUM_CLASSES))["samples"], neutral)
    assert not torch.equal(run(model, cfg=5.0, negative=cond(0))["samples"], neutral)


def test_only_what_the_mask_covers_changes(model, head):
    latent = image(2)
    pixel_mask = torch.zeros(1, 1, 8, 8)
    pixel_mask[..., :5] = 1  # pixel columns 0 to 4 of 8: two code columns, and half of the third
    found = run(model, latent | {"noise_mask": pixel_mask}, head)["samples"]
    assert torch.equal(found[..., 2:], latent["samples"][..., 2:])
    assert not torch.equal(found[..., :2], latent["samples"][..., :2])


def test_each_image_may_have_its_own_mask(model):
    latent = image(2)
    pixel_mask = torch.zeros(2, 8, 8)
    pixel_mask[0] = 1
    found = run(model, latent | {"noise_mask": pixel_mask})["samples"]
    assert torch.equal(found[1], latent["samples"][1])
    assert not torch.equal(found[0], latent["samples"][0])


def test_denoise_keeps_a_share_of_the_image(model):
    latent = image(seed=4)
    kept = [
        (run(model, latent, denoise=d)["samples"] == latent["samples"]).sum()
        for d in (0.25, 0.5, 1.0)
    ]
    assert kept[0] >= 12 and kept[1] >= 8
    assert kept[2] < kept[1] < kept[0]


def test_an_empty_mask_changes_nothing_and_says_so(model, caplog):
    latent = image()
    with caplog.at_level(logging.INFO):
        found = run(model, latent | {"noise_mask": torch.zeros(1, 1, 8, 8)})
    assert torch.equal(found["samples"], latent["samples"])
    assert "nothing to make" in caplog.text


def test_no_mask_and_no_places_may_be_said_by_none(model):
    found = run(model, empty(2) | {"noise_mask": None, "batch_index": None})
    assert torch.equal(found["samples"], run(model, empty(2))["samples"])


@pytest.mark.parametrize("mask", [{}, {"noise_mask": torch.ones(1, 1, 8, 8)}])
def test_an_empty_latent_that_is_to_stay_in_part_is_doubted(model, mask, caplog):
    run(model, empty() | mask, denoise=1.0 if mask else 0.5)
    assert "latent_image is empty, so what is not made anew is code 0" in caplog.text
    caplog.clear()
    run(model, image() | mask, denoise=1.0 if mask else 0.5)
    assert "latent_image is empty" not in caplog.text


def test_the_input_latent_is_left_alone(model):
    latent = image() | {"noise_mask": torch.ones(1, 1, 8, 8), "downscale_ratio_spacial": 2}
    samples = latent["samples"].clone()
    found = run(model, latent)
    assert torch.equal(latent["samples"], samples) and "downscale_ratio_spacial" in latent
    assert found["samples"].dtype == torch.float32
    assert "downscale_ratio_spacial" not in found and "noise_mask" in found


OTHER_SIZE = {"samples": torch.ones(1, 1, 2 * GRID, 2 * GRID)}


@pytest.mark.parametrize(
    ("latent", "denoise"),
    [
        (OTHER_SIZE, 1.0),
        (empty(side=2 * GRID), 0.5),
        (empty(side=2 * GRID) | {"noise_mask": torch.ones(1, 1, 16, 16)}, 1.0),
    ],
)
def test_an_image_of_a_size_that_the_model_does_not_make_is_refused(model, latent, denoise):
    expected = r"is for an image of 16 x 16 pixels.* makes 8 x 8 only\. Set that size"
    with pytest.raises(ValueError, match=expected):
        run(model, latent, denoise=denoise)


def test_an_empty_latent_of_another_size_gets_the_only_one_and_the_node_says_so(model, caplog):
    """A workflow has one that was saved with a model of another size under the same name."""
    found = run(model, empty(2, side=2 * GRID))
    assert torch.equal(found["samples"], run(model, empty(2))["samples"])
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1 and "makes 8 x 8 pixels only, and makes that" in said[0]
    assert said[0].endswith("latent_image is empty and for 16 x 16")


def test_a_model_of_another_kind_is_refused(model):
    model.model = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"MODEL is a Identity.* Use Load MIGM"):
        run(model)


def test_a_head_of_another_model_is_refused(model):
    other = native.build_head(builders.head(model_fingerprint="0123456789abcdef"), "default")
    with pytest.raises(ValueError, match="was trained for the model 0123456789abcdef"):
        run(model, head=other)


def test_a_head_that_names_no_model_is_used_with_a_warning(model, caplog):
    run(model, head=native.build_head(builders.head(), "default"))
    assert "could be verified" in caplog.text


class EasyCache:
    """A node that leaves a holder with its name, and wrappers under a key."""

    @classmethod
    def patch(cls, model):
        model.model_options["transformer_options"]["easycache"] = SimpleNamespace(name="EasyCache")
        model.wrappers = {kind: {"easycache": [print]} for kind in ("outer_sample", "apply_model")}


class HyperTile:
    @classmethod
    def patch(cls, model):
        patches = {"attn1_patch": [lambda q: q], "attn1_output_patch": [partial(lambda q: q)]}
        model.model_options["transformer_options"]["patches"] = patches


class SkipLayer:
    @classmethod
    def patch(cls, model):
        replaced = {"attn1": {("middle", 0): lambda q: q}}
        model.model_options["transformer_options"]["patches_replace"] = replaced


class RescaleCFG:
    def patch(self, model):
        model.model_options["sampler_cfg_function"] = self.change
        model.model_options["disable_cfg1_optimization"] = True

    def change(self, args): ...


class ModelSamplingSD3:
    @classmethod
    def patch(cls, model):
        class Sampling(torch.nn.Module): ...

        model.object_patches = {"model_sampling": Sampling()}


@pytest.mark.parametrize("node", [EasyCache, HyperTile, SkipLayer, RescaleCFG, ModelSamplingSD3])
def test_a_patch_that_cannot_act_is_named_once_in_the_log(model, node, caplog):
    plain = run(model)["samples"]
    node().patch(model) if node is RescaleCFG else node.patch(model)
    for _ in range(2):
        assert torch.equal(run(model)["samples"], plain)
    (line,) = [m for m in caplog.messages if "has no effect" in m]
    name = node.__name__
    assert line == f"Shortcut Masked Sampler: {name} has no effect on a masked image model"


def test_a_patch_that_cannot_act_is_named_on_the_node_in_every_run(model, monkeypatch):
    shown = []
    monkeypatch.setattr(host, "show_on_node", shown.append)
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    EasyCache.patch(model)
    HyperTile.patch(model)
    for _ in range(2):
        run(model, full_steps=6)
    lines = [f"{name} has no effect on a masked image model" for name in ("EasyCache", "HyperTile")]
    for first, while_running, last in (shown[:3], shown[3:]):
        assert first == "\n".join(lines), "at once, and for the whole run"
        assert while_running.endswith(f"\n{first}") and last.endswith(f"\n{first}")


def test_what_acts_is_not_named(model):
    model.object_patches = {"diffusion_model.norm": object(), "latent_format": object()}
    model.callbacks = {"on_pre_run": {None: [print]}}
    options = model.model_options["transformer_options"]
    options |= {"optimized_attention_override": print, "read_by_the_override": 3}
    assert patches.without_effect(model) == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (
            {"model_options": {"transformer_options": {}, "context_handler": object()}},
            "Context Windows",
        ),
        ({"model_options": {"transformer_options": {"rope_options": {"x": 2.0}}}}, "ScaleROPE"),
        ({"wrappers": {"apply_model": {"torch.compile": [print]}}}, "torch.compile"),
        ({"wrappers": {"diffusion_model": {None: [print]}}}, "torch.compile"),
        ({"callbacks": {"on_prepare_state": {"theirs": [print]}}}, "theirs"),
        ({"object_patches": {"manual_cast_dtype": torch.float16}}, "ModelComputeDtype"),
    ],
)
def test_patches_that_name_no_node_are_named_by_what_they_change(model, changes, name):
    for attribute, value in changes.items():
        setattr(model, attribute, value)
    assert patches.without_effect(model) == [name]


def test_diffusion_samplers_are_told_what_to_use(model):
    with pytest.raises(ValueError, match="Use the Shortcut Masked Sampler"):
        model.model._apply_model(None, None)


# ------------------------------------------------------------------------------------------- a run


class Bar:
    """A progress bar that keeps what it is told."""

    def __init__(self, total):
        self.total, self.calls = total, []
        Bar.last = self

    def update_absolute(self, value, total, preview):
        self.calls.append((value, total, preview))


def show_previews(monkeypatch, method="Auto"):
    """Sets what the user wants; previews are then free of cost."""
    for limit in ("PREVIEW_INTERVAL", "PREVIEW_COST", "SENDING"):
        monkeypatch.setattr(progress, limit, 0)
    wanted = progress.LatentPreviewMethod[method]
    monkeypatch.setattr(progress.args, "preview_method", wanted)


def test_progress_counts_every_step_and_shows_the_image_emerge(model, head, monkeypatch):
    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    show_previews(monkeypatch)
    run(model, empty(2), head)
    assert [(value, total) for value, total, _ in Bar.last.calls] == [(i + 1, 6) for i in range(6)]
    pictures = [preview[1] for _, _, preview in Bar.last.calls]
    assert {picture.size for picture in pictures} == {(512, 512)}
    shares = [
        (np.asarray(picture.resize((GRID, GRID), 0)) == 128).all(-1).mean() for picture in pictures
    ]
    assert shares[-1] == 0 and shares == sorted(shares, reverse=True) and shares[0] > 0.5


def seconds(monkeypatch, module, *times):
    """A clock that shows these times, then the last for ever."""
    left = [*times]
    clock = SimpleNamespace(perf_counter=lambda: left.pop(0) if len(left) > 1 else left[0])
    monkeypatch.setattr(module, "time", clock)


def preview_of_a_step(monkeypatch, begun, now, done, end):
    """Previews of a run that began at `begun`, and a step. The device is done at `done`, the picture at `end`."""
    seconds(monkeypatch, progress, begun, now, done, end)
    shown = progress.Preview((GRID, GRID), torch.zeros(NUM_CODES, 3))
    codes_BL = torch.zeros(1, L, dtype=torch.long)
    return shown, SimpleNamespace(codes_BL=codes_BL, is_masked_BL=codes_BL.bool())


def test_previews_cost_at_most_their_share_of_a_run(monkeypatch):
    monkeypatch.setattr(progress.args, "preview_method", progress.LatentPreviewMethod.Auto)
    shown, trace = preview_of_a_step(monkeypatch, 0.0, 2.0, 2.5, 2.52)
    assert shown.of(trace) is not None, "2 % of 2 s"
    assert shown.spent == pytest.approx(0.16), (
        "20 ms, and seven times that to send it; not the wait for the device"
    )
    for now, is_shown in ((15.9, False), (16.1, True)):
        seconds(monkeypatch, progress, now)
        assert (shown.of(trace) is not None) == is_shown


def test_no_preview_is_made_where_the_user_wants_none(model, monkeypatch):
    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    show_previews(monkeypatch, "NoPreviews")
    run(model)
    assert [preview for _, _, preview in Bar.last.calls] == [None] * 6


def test_progress_covers_images_with_masks_of_different_sizes(model, monkeypatch):
    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    pixel_mask = torch.zeros(3, 8, 8)
    pixel_mask[0] = 1
    pixel_mask[1, :2, :4] = 1  # two tokens, so two steps
    run(model, image(3) | {"noise_mask": pixel_mask})
    assert [value for value, _, _ in Bar.last.calls] == list(range(1, 9))
    assert Bar.last.total == 8


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 3, 5])
def test_an_interrupt_ends_the_run_within_a_step_and_leaves_no_trace(
    model, head, monkeypatch, after
):
    expected, calls = run(model, head=head)["samples"], []

    def interrupt():
        calls.append(1)
        if len(calls) > after:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(mm, "throw_exception_if_processing_interrupted", interrupt)
        with pytest.raises(Interrupted):
            run(model, head=head)
    assert len(calls) == after + 1
    assert model.model.attention.options == {}
    assert torch.equal(run(model, head=head)["samples"], expected)


def test_running_out_of_memory_gives_advice(model, monkeypatch):
    def fail(*args, **kwargs):
        raise mm.OOM_EXCEPTION("tried to allocate 9 GiB")

    monkeypatch.setattr(runs, "generate", fail)
    with pytest.raises(mm.OOM_EXCEPTION, match=r"Lower the batch size.*9 GiB"):
        run(model)


def test_attention_of_the_run_gets_the_options_of_the_model(model, monkeypatch):
    seen = []

    def attention(q, k, v, num_heads, transformer_options):
        seen.append(transformer_options)
        return q

    monkeypatch.setattr(host, "optimized_attention", attention)
    model.model_options["transformer_options"] = {"optimized_attention_override": "mine"}
    run(model)
    assert seen and all(o == {"optimized_attention_override": "mine"} for o in seen)


@needs_comfy
def test_comfyuis_queue_is_called_as_it_wants_to_be():
    prefetch = pytest.importorskip("comfy.model_prefetch")
    cpu, blocks = torch.device("cpu"), torch.nn.ModuleList([torch.nn.Identity()])
    patcher = SimpleNamespace(is_dynamic=lambda: True, load_device=cpu)
    assert host.model_prefetch is prefetch
    assert list(host.ahead_of_use(patcher)(blocks)) == list(blocks)


def test_masks_count_by_the_area_that_they_cover():
    pixel_mask = torch.zeros(1, 1, 8, 8)
    pixel_mask[..., 0, 0] = 1  # a quarter of a code's area
    pixel_mask[..., 2:4, 2:4] = 1  # all of it
    pixel_mask[..., 4:6, 0:1] = 1  # half
    is_editable_1L = latents.editable_of(pixel_mask, 1, (GRID, GRID))
    assert is_editable_1L.flatten().nonzero().flatten().tolist() == [5]


# ------------------------------------------------------------------------------------------- real ComfyUI


def partially_loaded(module):
    """`module` with about half of its weights on the device, the rest left behind."""
    import comfy.model_patcher

    meta, cpu = torch.device("meta"), torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(module, load_device=meta, offload_device=cpu)
    patcher.load(meta, lowvram_model_memory=patcher.model_size() // 2)
    return module


@needs_comfy
@pytest.mark.parametrize("part", ["model", "head", "vae"])
def test_what_stays_behind_under_partial_offload_is_moved_on_use(part, model, head, files):
    if part == "vae":
        module = LoadMIGM.execute(shipped.NAME, "auto", "default").result[1].first_stage_model
    else:
        module = {"model": model.model.diffusion_model, "head": head.model}[part]
    left = 0
    for name, child in partially_loaded(module).named_modules():
        tensors = [*child.parameters(recurse=False), *child.buffers(recurse=False)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            left += 1
            assert hasattr(child, "comfy_cast_weights"), f"{part}: {name} would crash on a GPU"
    assert left > 0


@needs_comfy
def test_bfloat16_weights_compute_in_float32_on_the_cpu(head):
    model = native.build_model(
        builders.model(), "bfloat16", native.CodeIds(2, torch.zeros(NUM_CODES, 3)), CLASSES
    )
    network = model.model.diffusion_model
    assert network.token.weight.dtype == torch.bfloat16
    assert network.compute_dtype == torch.float32
    assert run(model, empty(2))["samples"].shape == (2, 1, GRID, GRID)


@needs_comfy
def test_a_native_empty_latent_fits_any_downscale(model):
    latent = {"samples": torch.zeros(2, 4, 1, 1), "downscale_ratio_spacial": 8}
    assert run(model, latent)["samples"].shape == (2, 1, GRID, GRID)


@needs_comfy
def test_a_vae_is_made_without_a_warning_about_weights(files, caplog):
    LoadMIGM.execute(shipped.NAME, "auto", "default")
    assert "VAE weights" not in caplog.text
    logging.getLogger().warning("No VAE weights detected")
    assert "VAE weights" in caplog.text, "the filter must not outlive the loader"


@needs_comfy
@pytest.mark.parametrize(
    ("module", "node", "values"),
    [
        ("easycache", "EasyCache", (0.2, 0.15, 0.95, False)),
        ("easycache", "LazyCache", (0.2, 0.15, 0.95, False)),
        ("freelunch", "FreeU_V2", (1.3, 1.4, 0.9, 0.2)),
        ("hypertile", "HyperTile", (256, 2, 0, False)),
        ("tomesd", "TomePatchModel", (0.3,)),
        ("model_advanced", "ModelSamplingSD3", (3.0,)),
        ("model_advanced", "RescaleCFG", (0.7,)),
        ("differential_diffusion", "DifferentialDiffusion", ()),
    ],
)
def test_nodes_of_comfyui_that_cannot_act_are_named(model, module, node, values):
    extras = importlib.import_module(f"comfy_extras.nodes_{module}")
    made = getattr(extras, node, None) or getattr(extras, f"{node}Node")
    execute = getattr(made, "execute", None) or getattr(made(), made.FUNCTION)
    found = execute(model, *values)
    patched = found[0] if isinstance(found, tuple) else found.result[0]
    assert patches.without_effect(patched) == [node]
    assert torch.equal(run(patched)["samples"], run(model)["samples"])
