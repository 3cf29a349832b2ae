"""Tiny checkpoints with random weights, in our form and in the published layouts.

    model(), vq(), head()   -> Checkpoint; they fit each other: 4x4 codes of 16, 3 classes, width 32
    text_model(), text_head() -> the same of Lumina-DiMOO, for the same vq(), with the words of the scenes
    answering_model()       -> a MMaDA-Parallel-A of these sizes, which makes text too
    write_text(folder)      -> model.safetensors with its tokenizer, vq.safetensors, head.safetensors
    published(checkpoint)   -> the dict that the published file of that format holds
    write(path, checkpoint) -> path, written as one of our files or, by suffix, as a published one
    assert_same(a, b)       -> nothing, if both are the same in all but metadata and path
    KINDS                   -> {kind: (one of these functions, what its published file does not say)}
    MODEL_SIZES, HEAD_SIZES -> what the published files do not say, for load(path, **MODEL_SIZES)

Weights depend on `seed` alone; the global random state is not touched.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import models, shipped
from shortcut_pack.shortcut.checkpoint import Metadata
from shortcut_pack.shortcut.models.layers import Bare
from shortcut_pack.shortcut.models.layout import Layout
from shortcut_pack.shortcut.models.lumina_dimoo import head as lumina_head
from shortcut_pack.shortcut.models.lumina_dimoo import mmada
from shortcut_pack.shortcut.models.lumina_dimoo import transformer as lumina
from shortcut_pack.shortcut.models.lumina_dimoo.tokenizer import copy_tokenizer
from shortcut_pack.shortcut.models.maskgit import head as maskgit_head
from shortcut_pack.shortcut.models.maskgit import transformer as maskgit
from shortcut_pack.shortcut.models.maskgit import vqgan as maskgit_vqgan
from shortcut_pack.shortcut.published import publish
from shortcut_pack.shortcut.schedule import Settings, Step, plan

MODEL_CONFIG = maskgit.Config(
    grid=4, width=32, depth=2, num_heads=4, mlp_width=48, num_codes=16, num_classes=3
)
HEAD_CONFIG = maskgit_head.Config(
    model_width=32, width=16, num_blocks=1, num_heads=4, has_time=True
)
VQ_CONFIG = maskgit_vqgan.Config(
    channels=32,
    multipliers=(1, 2),
    blocks_per_level=1,
    attention_levels=(1,),
    latent_channels=8,
    code_width=8,
    num_codes=16,
)
TEXT_CONFIG = lumina.Config(
    width=32,
    depth=2,
    num_heads=4,
    num_kv_heads=4,
    mlp_width=48,
    num_text_ids=640,
    num_codes=16,
    rope_theta=10_000.0,
    norm_eps=1e-5,
)
TEXT_HEAD_CONFIG = lumina_head.Config(
    model_width=32,
    width=16,
    num_blocks=1,
    num_heads=4,
    num_kv_heads=4,
    mlp_width=48,
    rope_theta=10_000.0,
    norm_eps=1e-5,
    has_time=True,
    sees_new=True,
)
MODEL_SIZES = {"num_heads": 4, "num_codes": 16}
HEAD_SIZES = {"num_heads": 4}


def model(
    config: maskgit.Config = MODEL_CONFIG, seed: int = 0, **metadata: Any
) -> checkpoints.Checkpoint:
    """A MaskGIT transformer."""
    return random_checkpoint(maskgit.LAYOUT, config, seed, **metadata)


def head(
    config: maskgit_head.Config = HEAD_CONFIG, seed: int = 1, **metadata: Any
) -> checkpoints.Checkpoint:
    """A shortcut head that fits `model()`; `model_fingerprint=model().fingerprint` says so."""
    return random_checkpoint(maskgit_head.LAYOUT, config, seed, **metadata)


def vq(
    config: maskgit_vqgan.Config = VQ_CONFIG, seed: int = 2, **metadata: Any
) -> checkpoints.Checkpoint:
    """A VQGAN that fits `model()`: 8x8 pixels."""
    return random_checkpoint(maskgit_vqgan.LAYOUT, config, seed, **metadata)


def text_model(
    config: lumina.Config = TEXT_CONFIG, seed: int = 3, **metadata: Any
) -> checkpoints.Checkpoint:
    """A Lumina-DiMOO transformer for images of 4x4 codes."""
    return random_checkpoint(lumina.LAYOUT, config, seed, **{"grid": (4, 4), **metadata})


def text_head(
    config: lumina_head.Config = TEXT_HEAD_CONFIG, seed: int = 4, **metadata: Any
) -> checkpoints.Checkpoint:
    """A shortcut head that fits `text_model()`."""
    return random_checkpoint(lumina_head.LAYOUT, config, seed, **metadata)


def answering_model(layout: Layout = mmada.LAYOUT, seed: int = 5) -> checkpoints.Checkpoint:
    """A MMaDA-Parallel-A like `text_model()`, or a Lumina-DiMOO, with what makes text."""
    model = random_checkpoint(layout, TEXT_CONFIG, seed, grid=(4, 4))
    shape = (TEXT_CONFIG.num_text_ids, TEXT_CONFIG.width)
    weight_VD = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return replace(model, text={"output.weight": weight_VD})


def with_layout(monkeypatch: pytest.MonkeyPatch, changed: Layout) -> None:
    """Puts a changed layout in the place of the one of the same name."""

    def pick(layout: Layout | None) -> Layout | None:
        return changed if layout is not None and layout.name == changed.name else layout

    changed_all = [
        replace(a, model=pick(a.model), vqs=tuple(map(pick, a.vqs)), head=pick(a.head))
        for a in models.ARCHITECTURES
    ]
    monkeypatch.setattr(models, "ARCHITECTURES", changed_all)


def write_text(folder: Path, **metadata: Any) -> Path:
    """A folder with all that a text model needs; `metadata` are the model's."""
    base = text_model(**metadata)
    path = write(folder / "model.safetensors", base)
    copy_tokenizer(shipped.TEXT_FOLDER, path)
    write(folder / "vq.safetensors", vq())
    write(folder / "head.safetensors", text_head(model_fingerprint=base.fingerprint))
    return folder


def published_text(folder: Path) -> lumina.Config:
    """Writes a Lumina-DiMOO with the published vocabulary as its folder has it, without a tokenizer; its config."""
    sizes = {"num_text_ids": 126_356, "num_codes": 8192, "width": 8, "mlp_width": 8, "depth": 1}
    config = replace(TEXT_CONFIG, **sizes)
    tensors = publish(lumina.LAYOUT.table, text_model(config).tensors)
    output, embedding = "model.transformer.ff_out.weight", "model.transformer.wte.weight"
    text_VD = torch.randn(config.num_text_ids, 8, generator=torch.Generator().manual_seed(0))
    tensors[output] = torch.cat([text_VD, tensors[output]])
    assert tensors[output].shape == tensors[embedding].shape
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    stated = {"model_type": "llada", "n_heads": 4, "rope_theta": 1e4, "embedding_size": 134_548}
    (folder / "config.json").write_text(json.dumps(stated))
    write(folder / "vqvae" / "vq.safetensors", vq(replace(VQ_CONFIG, num_codes=8192)))
    return config


def published(checkpoint: checkpoints.Checkpoint) -> dict[str, Any]:
    """What torch.load gives of the published file."""
    layout = checkpoint.layout
    tensors = publish(layout.table, checkpoint.tensors)
    if layout.container is None:
        return tensors
    return {"iter": 0, "global_epoch": 0, "optimizer_state_dict": {}, layout.container: tensors}


def write(path: Path, checkpoint: checkpoints.Checkpoint) -> Path:
    """Saves a checkpoint: one of ours, or by suffix in the published layout."""
    if path.suffix == ".safetensors":
        checkpoints.save(path, checkpoint)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(published(checkpoint), path)
    return path


def random_checkpoint(
    layout: Layout, config: Any, seed: int, **metadata: Any
) -> checkpoints.Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    shapes = layout.network(config, device="meta", operations=Bare).state_dict()
    tensors = {
        name: torch.randn(tensor.shape, generator=generator) * 0.2
        + (tensor.ndim == 1 and name.endswith("weight"))  # scales of norms lie around 1
        for name, tensor in shapes.items()
    }
    return checkpoints.Checkpoint(
        layout, config, tensors, checkpoints.fingerprint(tensors), Metadata(**metadata)
    )


def steps(num_steps: int) -> list[Step]:
    """A plan for 16 tokens."""
    return plan(Settings(num_steps=num_steps), 16, 16)


def assert_same(actual: checkpoints.Checkpoint, expected: checkpoints.Checkpoint) -> None:
    assert (actual.layout, actual.config) == (expected.layout, expected.config)
    assert actual.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert actual.tensors[name].dtype == tensor.dtype
        assert torch.equal(actual.tensors[name], tensor), name


KINDS = {
    "model": (model, MODEL_SIZES),
    "head": (head, HEAD_SIZES),
    "vq": (vq, {}),
}
