"""The files that come with the pack: small models of procedural landscapes, their VQGANs and their shortcut heads."""

from __future__ import annotations

from pathlib import Path

import torch

from .checkpoint import Checkpoint, cast

FOLDER = Path(__file__).resolve().parents[1] / "shipped"
MODEL = FOLDER / "scenes-maskgit.safetensors"
VQ = FOLDER / "scenes-vqgan.safetensors"
HEAD = FOLDER / "scenes-maskgit-head.safetensors"
TEXT_FOLDER = FOLDER / "scenes-lumina"  # the text model with its tokenizer, head and VQGAN
TEXT_MODEL = TEXT_FOLDER / "scenes-lumina.safetensors"
TEXT_HEAD = TEXT_FOLDER / "scenes-lumina-head.safetensors"
TEXT_VQ = TEXT_FOLDER / "scenes-lumina-vqgan.safetensors"
# What answers the steps between full passes, where it is more faithful than the head (experiments/RESULTS.md).
ACCELERATORS = {MODEL: "partial"}

# What the nodes list: name -> kind -> file, or a folder for the only file of that kind in it.
NAME, TEXT_NAME = "scenes (shipped)", "scenes text (shipped)"
CHOICES = {
    NAME: {"model": MODEL, "vq": VQ, "head": HEAD},
    TEXT_NAME: {"model": TEXT_FOLDER, "vq": TEXT_FOLDER, "head": TEXT_FOLDER},
}


def files_of(name: str) -> dict[str, Path] | None:
    """Return the files of a shipped model by its name, such as "scenes" or "scenes (shipped)"; None = not shipped."""
    return CHOICES.get(name) or CHOICES.get(f"{name} (shipped)")


def widened(model: Checkpoint, dtype: torch.dtype) -> Checkpoint:
    """Return a shipped model with all weights in the type that it is computed in; another model as it is.

    Narrow weights keep the file small. To widen them in every pass takes as long as a partial pass of so small a model.
    """
    is_ours = model.path is not None and model.path.resolve() == MODEL
    return cast(model, dtype) if is_ours and model.quantized else model
