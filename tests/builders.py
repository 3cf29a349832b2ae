"""Tiny checkpoints with random weights, in our form and in the published layouts.

    model(), vq(), head()   -> Checkpoint; they fit each other: 4x4 codes of 16, 3 classes, width 32
    published(checkpoint)   -> the dict that the published file of that format holds
    write(path, checkpoint) -> path, written as one of our files or, by suffix, as a published one
    assert_same(a, b)       -> nothing, if both are the same in all but metadata and path
    KINDS                   -> {kind: (one of these functions, what its published file does not say)}
    MODEL_SIZES, HEAD_SIZES -> what the published files do not say, for load(path, **MODEL_SIZES)

Weights depend on `seed` alone; the global random state is not touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from shortcut_pack.shortcut import weights
from shortcut_pack.shortcut.formats import Bare, Format, publish
from shortcut_pack.shortcut.heads import maskgit as maskgit_head
from shortcut_pack.shortcut.metadata import Metadata
from shortcut_pack.shortcut.models import maskgit, maskgit_vqgan

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
MODEL_SIZES = {"num_heads": 4, "num_codes": 16}
HEAD_SIZES = {"num_heads": 4}


def model(
    config: maskgit.Config = MODEL_CONFIG, seed: int = 0, **metadata: Any
) -> weights.Checkpoint:
    """A MaskGIT transformer."""
    return _checkpoint(maskgit.FORMAT, config, seed, metadata)


def head(
    config: maskgit_head.Config = HEAD_CONFIG, seed: int = 1, **metadata: Any
) -> weights.Checkpoint:
    """A shortcut head that fits `model()`; `model_fingerprint=model().fingerprint` says so."""
    return _checkpoint(maskgit_head.FORMAT, config, seed, metadata)


def vq(
    config: maskgit_vqgan.Config = VQ_CONFIG, seed: int = 2, **metadata: Any
) -> weights.Checkpoint:
    """A VQGAN that fits `model()`: 8x8 pixels."""
    return _checkpoint(maskgit_vqgan.FORMAT, config, seed, metadata)


def published(checkpoint: weights.Checkpoint) -> dict[str, Any]:
    """What torch.load gives of the published file."""
    format = checkpoint.format
    tensors = publish(format.table, checkpoint.tensors)
    if format.container is None:
        return tensors
    return {**format.container_extras, format.container: tensors}


def write(path: Path, checkpoint: weights.Checkpoint) -> Path:
    """Saves a checkpoint; the suffix decides the layout."""
    weights.save(path, checkpoint)
    return path


def _checkpoint(
    format: Format, config: Any, seed: int, metadata: dict[str, Any]
) -> weights.Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    shapes = format.network(config, device="meta", operations=Bare).state_dict()
    tensors = {
        name: torch.randn(tensor.shape, generator=generator) * 0.2
        + (tensor.ndim == 1 and name.endswith("weight"))  # scales of norms lie around 1
        for name, tensor in shapes.items()
    }
    return weights.Checkpoint(
        format, config, tensors, weights.fingerprint(tensors), Metadata(**metadata)
    )


def assert_same(actual: weights.Checkpoint, expected: weights.Checkpoint) -> None:
    assert (actual.format, actual.config) == (expected.format, expected.config)
    assert actual.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert actual.tensors[name].dtype == tensor.dtype
        assert torch.equal(actual.tensors[name], tensor), name


KINDS = {
    "model": (model, MODEL_SIZES),
    "head": (head, HEAD_SIZES),
    "vq": (vq, {}),
}
