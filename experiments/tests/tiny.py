"""Write tiny models with random weights, which fit the scenes and each other.

classes(folder) -> {"model", "head", "vq", "judge"} of the class model: 16x16 codes of 16
text(folder)    -> the same of the text model: 16x16 codes of 16, with a tokenizer of its captions
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from experiments.judge import reader
from experiments.training.stages import make_tokenizer
from shortcut import checkpoint as checkpoints
from shortcut.checkpoint import Checkpoint
from shortcut.files import Metadata
from shortcut.models.layers import Bare
from shortcut.models.layout import Layout
from shortcut.models.lumina_dimoo import head as lumina_head
from shortcut.models.lumina_dimoo import transformer as lumina
from shortcut.models.lumina_dimoo.tokenizer import copy_tokenizer
from shortcut.models.maskgit import head as maskgit_head
from shortcut.models.maskgit import transformer as maskgit
from shortcut.models.maskgit import vqgan

MODEL = maskgit.Config(
    grid=16, width=64, depth=2, num_heads=4, mlp_width=48, num_codes=16, num_classes=24
)
HEAD = maskgit_head.Config(model_width=64, width=16, num_blocks=1, num_heads=4, has_time=True)
_ROPE: dict[str, Any] = {"mlp_width": 48, "rope_theta": 10_000.0, "norm_eps": 1e-5}
TEXT_MODEL = lumina.Config(
    width=32, depth=2, num_heads=4, num_kv_heads=4, num_text_ids=640, num_codes=16, **_ROPE
)
_HEADS: dict[str, Any] = {"num_blocks": 1, "num_heads": 4, "num_kv_heads": 4}
TEXT_HEAD = lumina_head.Config(
    model_width=32, width=16, has_time=True, sees_new=True, **_HEADS, **_ROPE
)


# 8 x 8 pixels per code.
VQ = vqgan.Config(
    channels=32,
    multipliers=(1, 1, 1, 1),
    blocks_per_level=1,
    attention_levels=(),
    latent_channels=8,
    code_width=8,
    num_codes=16,
)


def checkpoint(layout: Layout, config: Any, seed: int, **metadata: Any) -> Checkpoint:
    """Return random weights by the seed; scales of norms lie around 1."""
    generator = torch.Generator().manual_seed(seed)
    shapes = layout.network(config, device="meta", operations=Bare).state_dict()
    tensors = {
        name: torch.randn(tensor.shape, generator=generator) * 0.2
        + (tensor.ndim == 1 and name.endswith("weight"))
        for name, tensor in shapes.items()
    }
    mark = checkpoints.fingerprint(tensors)
    return Checkpoint(layout, config, tensors, mark, Metadata(**metadata))


def model() -> Checkpoint:
    defaults = {"guidance": [2.0], "num_steps": 4}
    return checkpoint(maskgit.LAYOUT, MODEL, 0, defaults=defaults)


def head(model_file: Checkpoint, config: Any = HEAD, seed: int = 1) -> Checkpoint:
    mark = model_file.fingerprint
    return checkpoint(maskgit_head.LAYOUT, config, seed, model_fingerprint=mark)


def classes(folder: Path) -> dict[str, Path]:
    paths = {n: folder / f"{n}.safetensors" for n in ("model", "head", "vq", "judge")}
    checkpoints.save(paths["model"], model())
    checkpoints.save(paths["head"], head(model()))
    checkpoints.save(paths["vq"], checkpoint(vqgan.LAYOUT, VQ, 2))
    reader.save(paths["judge"], reader.Reader.initialised(0, (8,) * 5), {})
    return paths


@cache
def tokenizer_folder() -> Path:
    """Return a folder with a tokenizer of the scenes' words."""
    folder = Path(tempfile.mkdtemp())
    make_tokenizer(folder, 1_000)
    return folder


def text(folder: Path) -> dict[str, Path]:
    paths = {n: folder / f"{n}.safetensors" for n in ("model", "head", "vq", "judge")}
    network = checkpoint(lumina.LAYOUT, TEXT_MODEL, 3, grid=(16, 16))
    fits = {"model_fingerprint": network.fingerprint}
    checkpoints.save(paths["model"], network)
    copy_tokenizer(tokenizer_folder(), paths["model"])
    checkpoints.save(paths["head"], checkpoint(lumina_head.LAYOUT, TEXT_HEAD, 4, **fits))
    checkpoints.save(paths["vq"], checkpoint(vqgan.LAYOUT, VQ, 2))
    reader.save(paths["judge"], reader.Reader.initialised(0, (8,) * 5), {})
    return paths


def arguments(files: dict[str, Path]) -> list[str]:
    """Return the options that name the files."""
    return [part for name, path in files.items() for part in (f"--{name}", str(path))]
