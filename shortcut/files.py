"""Files of tensors: read without ever running code from them, written whole or not at all.

It knows containers (safetensors, an index of several of them, PyTorch), not what is in them.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .shards import INDEX_SUFFIX, read_shards, shards_of

# First bytes of what people save under a checkpoint's name by mistake.
IMPOSTORS = {
    b"version https://git-lfs": "a Git LFS pointer. Run `git lfs pull`, or download the file",
    b"<": "a web page, not a checkpoint. Open its link in a browser and download the file itself",
    b"\xff\xd8\xff": "a JPEG picture. Choose a checkpoint",
    b"\x89PNG": "a PNG picture. Choose a checkpoint",
    b"GGUF": "a GGUF file, which is not supported. Choose a .safetensors or .pth file",
}
NO_TENSORS = (
    "not a safetensors or PyTorch file, or cut off. Choose a .safetensors, .pth or .ckpt checkpoint"
)

SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What a file holds, mapped from disk where possible, and its safetensors metadata.

    The content decides how the file is read, not its suffix. Of a PyTorch file only tensors and
    plain containers are read: one that asks for anything else is refused. An index of several
    safetensors files stands for all of them.

    Raises:
        FileNotFoundError: there is no such file, or one that an index names.
        ValueError: it is not a file of tensors, it is damaged, or it asks to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist or is not a file. Check the spelling of the path."
        )
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}). Check its permissions.") from error
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if start.lstrip().startswith(b"{"):
        return read_shards(path, lambda shard: _read_safetensors(shard)[0]), {}
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return _read_pytorch(path, is_zip=start.startswith(b"PK")), {}
    if not start.strip(b"\0"):
        raise ValueError(f"{path} is empty ({path.stat().st_size} bytes). Download it again.")
    what = next(
        (text for mark, text in IMPOSTORS.items() if start.lstrip().startswith(mark)), NO_TENSORS
    )
    raise ValueError(f"{path} is {what}.")


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty if it is none or cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def parts(path: Path) -> list[Path]:
    """The files that `read` reads for `path`: itself and what it names."""
    return [path, *shards_of(path).values()] if path.name.endswith(INDEX_SUFFIX) else [path]


def check_writable(path: Path) -> None:
    """Raises OSError if no file can be written to `path`, its folders made if need be."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Give the name of a file in it.")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {there} is a file, not a folder.")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"{path} cannot be written: {there} does not allow it.")


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to.

    It takes the place of `path` when the block ends, and vanishes when it ends by an error.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # some writers make files that only their owner can read
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_safetensors(
    path: Path,
    layout: Mapping[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Writes a safetensors file from tensors that need not exist all at once.

    Source: the format's own description, github.com/huggingface/safetensors README.md.

    Args:
        layout: tensors of the shapes and types that will come; their values are not looked at.
        tensors: (name, tensor) for each name in `layout`, in any order; each is written as it comes.
    """
    # Wide types first, so that every tensor begins at a multiple of its element size.
    names = sorted(layout, key=lambda name: (-layout[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        tensor, start = layout[name], end
        end = start + tensor.numel() * tensor.itemsize
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for name, tensor in tensors:
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            file.write(values.numpy().data)


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {key: file.get_tensor(key) for key in names}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} is a damaged safetensors file ({error}). It was probably cut off: download or "
            "copy it again."
        ) from error


def _read_pytorch(path: Path, *, is_zip: bool) -> dict[str, Any]:
    try:
        # Files written before PyTorch 1.6 are no zip archives and cannot be mapped.
        raw = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(
            f"{path} is a damaged PyTorch file or none at all ({type(error).__name__}: "
            f"{_first_line(error)}). Download or copy it again."
        ) from error
    if not isinstance(raw, Mapping):
        raise ValueError(
            f"{path} holds a {type(raw).__name__}, expected a dict of tensors. Have its author "
            "save the state_dict() alone."
        )
    return dict(raw)


def _refusal(path: Path, message: str) -> str:
    asked = re.search(r"GLOBAL ([\w.]+)", message)
    found = (
        f"it asks for {asked.group(1)}" if asked else "it is damaged, or asks for more than tensors"
    )
    return (
        f"{path} was refused: {found}, which could run code. Take a .safetensors file instead, or "
        "have its author save the state_dict() alone."
    )


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]
