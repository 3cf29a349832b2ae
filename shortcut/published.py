"""Checkpoints in the layout that their authors publish, as PyTorch files: for programs that read no safetensors.

Such a file has tensors alone: what ours say besides, such as names of classes, has no place in it.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .guard import naming
from .models.key_table import Row, Table, Unbatched, origin
from .models.layout import Tensors
from .quantized import Target, format_of
from .writing import written_whole

SUFFIXES = (".pth", ".pt", ".ckpt")


def save(path: str | Path, checkpoint: Checkpoint, *, dtype: Target | None = None) -> None:
    """Write a PyTorch file, whole or not at all.

    Args:
        dtype: of the weights; None = unchanged.

    Raises:
        ValueError: the weights cannot be published so.
        WriteError: the file cannot be written.
    """
    content = published(checkpoint, dtype)
    with written_whole(path) as partial:
        torch.save(content, partial)


def published(checkpoint: Checkpoint, dtype: Target | None = None) -> dict[str, Any]:
    """Return what the published file holds.

    Raises:
        ValueError: it is not published as a PyTorch file, has no place for a tensor, or is quantized.
    """
    layout = checkpoint.layout
    with naming(checkpoint.path):
        if not any(PurePath(file).suffix in SUFFIXES for file in layout.filenames):
            raise ValueError(
                f"a {layout.title} is not published as a PyTorch file. Give the output the suffix .safetensors."
            )
        if checkpoint.quantized if dtype is None else format_of(dtype) is not None:
            raise ValueError(
                "programs that read PyTorch files know no quantized weights. Give the output the suffix .safetensors, "
                "or the weights another type."
            )
        tensors = checkpoint.tensors if dtype is None else dict(checkpoint.converted(dtype))
        content = publish(layout.table, tensors)
    return content if layout.container is None else {layout.container: content}


def publish(table: Table, tensors: Tensors) -> dict[str, Tensor]:
    """Return our tensors as they are published: the inverse of `layout.rename`, but for what that drops.

    Raises:
        ValueError: a tensor has no place there.
    """
    parts: dict[str, tuple[Row, dict[int, Tensor]]] = {}
    for name, tensor in tensors.items():
        key, row, place = origin(table, name)
        parts.setdefault(key, (row, {}))[1][place] = tensor
    return {
        key: _joined(row, [found[i] for i in sorted(found)]) for key, (row, found) in parts.items()
    }


def _joined(row: Row, tensors: list[Tensor]) -> Tensor:
    """Return a copy of the published tensor of a row of the table: torch.save would write all of a mapped file."""
    joined = torch.cat(tensors) if len(tensors) > 1 else tensors[0].clone()
    return row.published(joined) if isinstance(row, Unbatched) else joined
