"""Files that belong beside a model, such as a tokenizer, in the files that ComfyUI's own nodes save.

These nodes write tensors alone, and who moves their file would lose what lay beside the model: each companion goes with
it as a tensor of bytes, "shortcut.file.saved.tokenizer/tokenizer.json".
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .models.key_table import content

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

PREFIX = "shortcut.file."
STEM = "saved"  # stands for the name of the model's file in the names of companions
MAX_SIZE = 2**28  # bytes of one
NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")  # no folder above, no hidden file


def packed(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the companions of a model's file as tensors; none of a model that has none.

    Raises:
        OSError: they cannot be read any more.
    """
    copy = checkpoint.architecture.copy_companions
    files = dict(checkpoint.companions)
    if not files and copy is not None and checkpoint.path is not None:
        with tempfile.TemporaryDirectory() as folder:
            copy(checkpoint.path, Path(folder, f"{STEM}.safetensors"))
            found = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
    return {
        PREFIX + name: torch.frombuffer(bytearray(data), dtype=torch.uint8)
        for name, data in files.items()
    }


def unpacked(tensors: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the companions among the tensors of a file.

    Raises:
        ValueError: one is none.
    """
    files: dict[str, bytes] = {}
    for key, value in tensors.items():
        if not str(key).startswith(PREFIX):
            continue
        name = key.removeprefix(PREFIX)
        if not NAME.fullmatch(name):
            raise ValueError(f"tensor {key!r} has no name of a file. Save the model again.")
        try:
            files[name] = content(key, value, MAX_SIZE)
        except ValueError as error:
            raise ValueError(
                f"tensor {key!r} does not hold a file ({error}). Save it again."
            ) from error
    return files


@contextmanager
def placed(checkpoint: Checkpoint) -> Iterator[Path | None]:
    """Yield a path beside which the companions are: the file's own, or a temporary one if it holds them itself."""
    if not checkpoint.companions or checkpoint.path is None:
        yield checkpoint.path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, checkpoint.path.name)
        for name, data in checkpoint.companions.items():
            file = Path(folder, re.sub(rf"^{STEM}(?=\.)", lambda _: path.stem, name))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        yield path
