"""What a command loads once for all its pictures: model, VQ model, head, tokenizer."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import shipped, weights
from .accelerators.shortcut_head import ShortcutPredictor
from .checkpoint import Checkpoint
from .cli.options import given_text
from .generate import PredictorOf
from .models.lumina_dimoo import prompts
from .models.lumina_dimoo.tokenizer import tokenizer_folder

logger = logging.getLogger(__name__)

LARGE = 2**33  # bytes of weights in float32 above which they keep the type of their file


@dataclass(frozen=True, slots=True)
class Tools:
    """Networks on one device. The files say what they are; they have no tensors."""

    model_file: Checkpoint
    model: Any
    head_file: Checkpoint | None
    head: Any | None
    vq_file: Checkpoint
    vq: Any
    tokenizer: Any | None  # of a text model
    device: torch.device
    is_sequential: bool

    @property
    def downscale(self) -> int:
        """Pixels per code along one side."""
        return self.vq.config.downscale

    @property
    def predictor(self) -> PredictorOf | None:
        """What makes the predictor of a run; None = vanilla."""
        return self.head and partial(ShortcutPredictor, self.head)

    @torch.no_grad()
    def encode(self, pixels_BCYX: Tensor) -> Tensor:
        """Codes (B, h, w) on the CPU of RGB pixels in [-1, 1]."""
        with advice_on_memory():
            return self.vq.encode(pixels_BCYX.to(self.device)).cpu()

    @torch.no_grad()
    def decode(self, codes_Bhw: Tensor) -> Tensor:
        """Pixels (B, 3, Y, X), one image at a time so that memory does not grow with the batch."""
        with advice_on_memory():
            return torch.cat([self.vq.decode(codes_1hw) for codes_1hw in codes_Bhw.split(1)])


def load(options: argparse.Namespace) -> Tools:
    """Loads what the options name, checked to fit each other.

    Raises:
        FileNotFoundError, ValueError: as `weights.load`, `check_head`, `load_tokenizer`; no such device.
    """
    device = checked_device(options.device)
    files = shipped.CHOICES[shipped.TEXT_NAME if given_text(options) else shipped.NAME]
    model, vq, head = files["model"], files["vq"], files["head"]
    if options.model is not None:
        model, vq, head = options.model, None, "none"
    model_file = weights.load(model, kind="model")
    assert model_file.path is not None
    vq_file = weights.load(options.vq or vq or model_file.path.parent, kind="vq")
    if vq_file.config.num_codes != model_file.config.num_codes:
        raise ValueError(
            f"{vq_file.name} has {vq_file.config.num_codes} codes, and {model_file.name} makes "
            f"{model_file.config.num_codes}. Give the VQ model that belongs to it as --vq."
        )
    head_file = _head_file(options.head or head, model_file)
    tokenizer = None
    if model_file.format.conditioning == "text":
        folder = tokenizer_folder(model_file.path)
        tokenizer = prompts.load_tokenizer(folder, model_file.config)
    dtype = dtype_of(options.dtype, model_file)
    return Tools(
        model_file=model_file.without_tensors(),
        model=weights.build(model_file, dtype=dtype, device=device),
        head_file=head_file and head_file.without_tensors(),
        head=head_file and weights.build(head_file, dtype=dtype, device=device),
        vq_file=vq_file.without_tensors(),
        vq=weights.build(vq_file, dtype=torch.float32, device=device),
        tokenizer=tokenizer,
        device=device,
        is_sequential=options.sequential,
    )


@contextlib.contextmanager
def advice_on_memory() -> Iterator[None]:
    """Says what to do when the device has no memory left."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RuntimeError(
            f"the device is out of memory. Use --sequential, --dtype bfloat16, a smaller picture or --batch-size, or "
            f"convert the weights to float8. ({error})"
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is exhausted: only CUDA has a type of its own for that."""
    marks = "out of memory", "not enough memory", "alloc_cpu"
    is_typed = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_typed or any(mark in str(error) for mark in marks)


def checked_device(name: str) -> torch.device:
    """The device called `name`; under torchrun `cuda` is the one of this process.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {name!r} cannot be used here ({error}). Use --device cpu."
        ) from error
    return device


def dtype_of(name: str | None, model_file: Checkpoint) -> torch.dtype:
    """The type called `name`; None = float32, or the file's own where that would be large."""
    if name is not None:
        return getattr(torch, name)
    is_large = 4 * model_file.num_parameters > LARGE
    return model_file.dtype if is_large else torch.float32


def _head_file(path: Path | str, model_file: Checkpoint) -> Checkpoint | None:
    """The head's file, checked against the model; None = vanilla."""
    if path == "none":
        return None
    head_file = weights.load(Path(path), kind="head")
    unverified = weights.check_head(head_file, model_file)
    if unverified:
        logger.warning(unverified)
    return head_file
