"""Accelerated masked image generation in plain PyTorch. Nothing in here knows ComfyUI.

    from shortcut import Pipeline

The flow of a run, and where it lives:

    file --files, checkpoint--> model, VQ model, head         request --models/<architecture>--> conditions
    settings --schedule--> plan                               seed --noise--> the random numbers of the whole run
    plan + model + accelerator --denoiser--> guided logits --sampler--> codes --VQ model--> pixels --image--> PNG

Letters that end the names of tensors:

    B  images in the batch       S  whole sequence a model sees       V  codebook size
    L  image tokens              D  feature width                     T  number of steps
    N  tokens still masked       K  tokens revealed by a step         h, w / Y, X  rows, columns of codes / pixels
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import Pipeline

__all__ = ["Pipeline"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use: `python -m shortcut --help` needs no PyTorch."""
    if name == "Pipeline":
        from .pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
