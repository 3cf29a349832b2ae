"""The sampler node with a tiny model of each family: batches, masks, denoise, weights, what the host does meanwhile.

They run on stand-ins for ComfyUI, and on the real one if COMFY_DIR names its folder (see comfy_stubs.py).
"""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import builders
import comfy_stubs
import golden_sets
import pytest
import torch
import uvit_sets
from comfy_stubs import needs_comfy

comfy_stubs.install()
import comfy.model_management as mm
import comfy.utils
import folder_paths
from shortcut_pack.nodes import native
from shortcut_pack.nodes.condition import ClassCondition, TextCondition
from shortcut_pack.nodes.native import model_of
from shortcut_pack.nodes.sample import FlatMaskedSampler
from shortcut_pack.nodes.train import TrainHead
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import shipped
from shortcut_pack.shortcut.models.architecture import HeadSize
from shortcut_pack.shortcut.models.lumina_dimoo.conditioner import PromptConditioner
from shortcut_pack.shortcut.models.lumina_dimoo.prompts import load_tokenizer
from shortcut_pack.shortcut.models.maskgit.classes import ClassConditioner
from shortcut_pack.shortcut.models.uvit_parts import TextCondition as TextStates
from shortcut_pack.shortcut.pipeline import conditioner_of
from test_nodes import Bar, show_previews
from test_nodes_weights import lora_of
from text_nodes import WIDGETS

GRID = (4, 4)
SETS = {"amused": "amused_transformer_512", "meissonic": "meissonic_transformer_1024"}
# Family -> a layer as its file names it, and as the network does.
LAYERS = {
    "maskgit": ("transformer.layers.1.1.fn.net.0", "blocks.1.feed_forward.up"),
    "lumina": ("model.transformer.blocks.1.up_proj", "blocks.1.feed_forward.up"),
    "amused": ("transformer_layers.0.ff.net.0.proj", "blocks.0.up"),
    "meissonic": ("single_transformer_blocks.0.proj_mlp", "single_blocks.0.up"),
}


@dataclass
class Family:
    name: str
    checkpoint: checkpoints.Checkpoint
    weight_dtype: str = "float32"  # "default": as the tensors are

    def __post_init__(self) -> None:
        colours_V3 = torch.linspace(-1, 1, self.checkpoint.config.num_codes).unsqueeze(1)
        latent_format = native.CodeIds(16, colours_V3.expand(-1, 3))
        self.model = native.build_model(
            self.checkpoint, self.weight_dtype, latent_format, self.conditioner()
        )

    def conditioner(self) -> Any:
        if self.name == "maskgit":
            return ClassConditioner(3, ())
        if self.name == "lumina":
            tokenizer = load_tokenizer(shipped.TEXT_FOLDER, builders.TEXT_CONFIG)
            return PromptConditioner(builders.TEXT_CONFIG, tokenizer, "tiny.safetensors")
        return conditioner_of(self.checkpoint)

    def sockets(self, number: int = 0) -> dict[str, Any]:
        """Positive and negative, of one of several requests."""
        if self.name == "maskgit":
            return {"positive": ClassCondition.execute(self.model, str(number)).result[0]}
        if self.name == "lumina":
            text = ("a red house", "a moon", "two palms")[number]
            return {"positive": TextCondition.execute(self.model, text, "text_to_image").result[0]}
        return {"positive": self.clip_text(number), "negative": self.clip_text(9)}

    def clip_text(self, seed: int) -> list:
        config, generator = self.checkpoint.config, torch.Generator().manual_seed(seed)
        states = torch.randn(1, 77, config.text_width, generator=generator)
        pooled = torch.randn(1, config.pooled_width, generator=generator)
        return [[states, {"pooled_output": pooled}]]

    def run(self, latent: Any = None, number: int = 0, model: Any = None, **changes: Any) -> Any:
        given = {
            "model": model or self.model,
            "latent_image": {"samples": torch.zeros(2, 1, *GRID)} if latent is None else latent,
            **self.sockets(number),
        }
        return FlatMaskedSampler.execute(**(given | WIDGETS | {"cfg": 3.0} | changes)).result[0]

    def head(self) -> Any:
        """A head that was not trained."""
        architecture, config = self.checkpoint.architecture, self.checkpoint.config
        asked = HeadSize(
            width=config.width // 2,
            num_blocks=1,
            num_heads=2,
            is_large=False,
            from_full=False,
            kernel=None,
        )
        assert architecture.head is not None and architecture.new_head is not None
        made = builders.random_checkpoint(
            architecture.head,
            architecture.new_head(config, asked),
            seed=1,
            model_fingerprint=self.checkpoint.fingerprint,
        )
        return native.build_head(made, "float32")


def checkpoint_of(name: str) -> checkpoints.Checkpoint:
    if name in SETS:
        found = uvit_sets.checkpoint(golden_sets.load(SETS[name]))
        return replace(found, metadata=replace(found.metadata, grid=GRID))
    return builders.model() if name == "maskgit" else builders.text_model()


@pytest.fixture(scope="module", params=LAYERS)
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param, checkpoint_of(request.param))


def test_each_image_of_a_batch_has_its_seed_and_can_be_made_alone(family: Family) -> None:
    both = family.run()["samples"]
    assert not torch.equal(both[0], both[1])
    second = {"samples": torch.zeros(1, 1, *GRID), "batch_index": [1]}
    assert torch.equal(family.run(second)["samples"][0], both[1])
    assert not torch.equal(family.run(number=1)["samples"], both)
    assert not torch.equal(family.run(seed=4)["samples"], both)


@pytest.mark.parametrize("has_head", [False, True])
def test_a_noise_mask_keeps_the_rest(family: Family, has_head: bool) -> None:
    samples = family.run()["samples"]
    mask = torch.zeros(1, *GRID)
    mask[:, :, :2] = 1
    latent = {"samples": samples, "noise_mask": mask}
    more = {"head": family.head()} if has_head else {}
    painted = family.run(latent, 1, **more)["samples"]
    assert torch.equal(painted[..., 2:], samples[..., 2:])
    assert not torch.equal(painted[..., :2], samples[..., :2])


def test_denoise_keeps_a_share(family: Family) -> None:
    samples = family.run()["samples"]
    changed = family.run({"samples": samples}, 1, denoise=0.25)["samples"]
    num_kept = (changed == samples).flatten(1).sum(1)
    assert (num_kept >= 12).all() and (num_kept < 16).any()


def test_a_head_answers_steps(family: Family) -> None:
    full = family.run(full_steps=6)["samples"]
    by_head = family.run(head=family.head())["samples"]
    assert not torch.equal(by_head, full)
    assert torch.equal(family.run(head=family.head(), full_steps=6)["samples"], full)


def test_float8_is_near(family: Family) -> None:
    narrow = Family(
        family.name, checkpoints.cast(family.checkpoint, torch.float8_e4m3fn), "default"
    )
    weight = narrow.model.model.diffusion_model.get_submodule(LAYERS[family.name][1]).weight
    assert getattr(weight, "_qdata", weight).dtype == torch.float8_e4m3fn
    exact, near = (f.run(temperature=0.0, steps=1, full_steps=1) for f in (family, narrow))
    assert (exact["samples"] == near["samples"]).float().mean() > 0.5


def test_the_train_node_makes_a_head_that_serves(family: Family, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    fresh = Family(family.name, family.checkpoint)
    if family.name in SETS:
        config, conditioner = family.checkpoint.config, model_of(fresh.model).conditioner
        shapes = ((1, 7, config.text_width), (1, config.pooled_width), (1, 5))
        text = TextStates(*map(torch.ones, shapes))
        vars(conditioner)["encoder"] = lambda _: text
    prompts = "" if family.name == "maskgit" else "a red house"
    head, _ = TrainHead.execute(fresh.model, 4, 3, 1, "tiny", prompts).result
    layout = family.checkpoint.architecture.head
    assert layout is not None and head.model.checkpoint.layout == layout
    full, by_head = (fresh.run(head=head, full_steps=n)["samples"] for n in (6, 1))
    assert full.shape == by_head.shape and not torch.equal(full, by_head)
    name = "lumina" if family.name == "maskgit" else "maskgit"
    other = Family(name, checkpoint_of(name))
    with pytest.raises(ValueError, match=r"does not go with|was trained for"):
        other.run(head=head)


def test_one_step_is_for_families_with_students(family: Family) -> None:
    if not family.checkpoint.architecture.has_students:
        with pytest.raises(ValueError, match="has no preset 'one_step'"):
            family.run(preset="one_step")
        return
    one = family.run(preset="one_step")["samples"]
    assert torch.equal(family.run(preset="one_step", head=family.head(), steps=9)["samples"], one)
    with pytest.raises(ValueError, match="makes whole pictures"):
        family.run({"samples": one}, preset="one_step", denoise=0.5)


class Interrupted(Exception):
    """Stands in for ComfyUI's."""


def test_previews_are_shown_and_an_interrupt_ends_the_run(family: Family, monkeypatch) -> None:
    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    show_previews(monkeypatch)
    family.run()
    pictures = [preview[1] for _, _, preview in Bar.last.calls]
    assert len(pictures) > 3 and pictures[0].tobytes() != pictures[-1].tobytes()
    calls: list[int] = []

    def interrupt() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Interrupted

    monkeypatch.setattr(mm, "throw_exception_if_processing_interrupted", interrupt)
    with pytest.raises(Interrupted):
        family.run()
    assert len(calls) == 3
    monkeypatch.setattr(mm, "throw_exception_if_processing_interrupted", lambda: None)
    assert family.run()["samples"].shape == (2, 1, *GRID)


@needs_comfy
def test_a_lora_in_published_keys_changes_the_picture(family: Family) -> None:
    import comfy.sd
    from shortcut_pack.nodes import lora

    lora.install()
    published, ours = LAYERS[family.name]
    weight = family.model.model.diffusion_model.get_submodule(ours).weight
    raw = lora_of(published, weight.float())
    patched, _ = comfy.sd.load_lora_for_models(family.model, None, raw, 5.0, 0.0)
    assert set(patched.patches) == {f"diffusion_model.{ours}.weight"}
    before = family.run()["samples"]
    assert not torch.equal(family.run(model=patched)["samples"], before)
    assert torch.equal(family.run()["samples"], before), "taken back"


@needs_comfy
def test_what_stays_behind_under_partial_loading_is_cast_when_it_is_used(family: Family) -> None:
    """Loaded onto the meta device with room for next to nothing: the host can bring each weight."""
    from comfy.model_patcher import ModelPatcher

    fresh = Family(family.name, family.checkpoint)
    for patcher in (fresh.model, fresh.head()):
        away = ModelPatcher(patcher.model, torch.device("meta"), torch.device("cpu"))
        away.load(torch.device("meta"), lowvram_model_memory=64)
        behind = [
            (name, module)
            for name, module in patcher.model.named_modules()
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
            if tensor.device.type == "cpu" and name != "model_sampling"  # ComfyUI's own, not run
        ]
        assert behind
        assert [name for name, module in behind if not hasattr(module, "comfy_cast_weights")] == []
