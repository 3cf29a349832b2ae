"""The two containers of tensors, safetensors and PyTorch's: read without ever running code from them.

Tensors are mapped from disk where that works, and read where it does not: some file systems cannot map files, and some
names of files cannot be told to the libraries.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from . import pickles
from .guard import guarded, parse_json

SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    **({torch.float8_e8m0fnu: "F8_E8M0"} if hasattr(torch, "float8_e8m0fnu") else {}),
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
INDEX_SUFFIX = ".index.json"  # of the file that names the parts of a network
DTYPES = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()}
MAX_HEADER = 2**25  # bytes; a thousand tensors take 0.1 MB
# Bytes of the pickle in a PyTorch file: of all, and more for each tensor.
MAX_PICKLE, MAX_PICKLED = 2**20, 2048
# CVE-2025-32434: older ones can run code from a file that is read with weights_only=True.
SAFE_TORCH = (2, 6)

DAMAGED_SAFETENSORS = "is a damaged safetensors file"
DAMAGED_PYTORCH = "is a damaged PyTorch file or none at all"
CUT_OFF = "It was probably cut off: download or copy it again."
AGAIN = "Download or copy it again."


def read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        OSError: the system refuses to read it.
        ValueError: it is damaged.
    """
    with guarded(path, DAMAGED_SAFETENSORS, CUT_OFF):
        with path.open("rb") as file:
            _header_length(file)
        try:
            str(path).encode()  # the library takes no other names
            with safe_open(path, framework="pt") as mapped:
                names = list(mapped.keys())
                return {key: mapped.get_tensor(key) for key in names}, mapped.metadata() or {}
        except (OSError, UnicodeEncodeError, RuntimeError) as error:
            if not _is_unmapped(error):
                raise
        return _unmapped_safetensors(path)


def read_header(path: Path) -> tuple[list[str], dict[str, str]]:
    """Return the names of the tensors and the metadata of a safetensors file, without its tensors.

    Raises:
        OSError: the system refuses to read it.
        ValueError: it is damaged.
    """
    with guarded(path, DAMAGED_SAFETENSORS, CUT_OFF), path.open("rb") as file:
        entries, metadata, _ = _header(file)
    return list(entries), metadata


def _header_length(file: BinaryIO) -> int:
    length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER, os.fstat(file.fileno()).st_size - 8):
        raise ValueError(f"its header has {length} bytes")
    return length


def _header(file: BinaryIO) -> tuple[dict[str, Any], dict[str, str], int]:
    """Return (entries, metadata, where the tensors begin) of an open safetensors file."""
    length = _header_length(file)
    entries = parse_json(file.read(length))
    metadata = entries.pop("__metadata__", None) or {}
    if not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata are not texts")
    return entries, metadata, 8 + length


def _unmapped_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Do as `read_safetensors`, with each tensor read into memory of its own."""
    tensors = {}
    with path.open("rb") as file:
        entries, metadata, begin = _header(file)
        size = os.fstat(file.fileno()).st_size - begin
        for name, entry in entries.items():
            start, end = entry["data_offsets"]
            dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
            num_bytes = math.prod(shape) * dtype.itemsize
            if not 0 <= start <= end <= size or end - start != num_bytes:
                raise ValueError(f"tensor {name!r} is at {start} to {end} of {size} bytes")
            values = torch.empty(num_bytes, dtype=torch.uint8)
            file.seek(begin + start)
            if num_bytes and file.readinto(values.numpy()) != num_bytes:  # pyright: ignore
                raise ValueError(f"tensor {name!r} is cut off")
            tensors[name] = values.view(dtype).reshape(shape)
    return tensors, metadata


def _is_unmapped(error: Exception) -> bool:
    """Return whether a file could not be mapped, so that reading it may work."""
    is_refused = isinstance(error, OSError | UnicodeEncodeError)
    return is_refused or "mmap" in str(error)


def read_pytorch(path: Path, *, is_zip: bool) -> dict[str, Any]:
    """Return the dict that a PyTorch file holds. Only tensors and plain containers are read.

    Raises:
        OSError: the system refuses to read it.
        ValueError: it is damaged, asks for more than tensors, or this torch cannot read it safely.
    """
    check_torch(path)
    try:
        with guarded(path, DAMAGED_PYTORCH, AGAIN):
            if is_zip:
                check_archive(path)
            else:
                with path.open("rb") as file:
                    pickles.check(file, path.stat().st_size, pickles.IN_LEGACY)
            raw = _loaded(path, is_zip=is_zip)
    except ValueError as error:
        if isinstance(error.__cause__, pickle.UnpicklingError):
            raise ValueError(_refusal(path, str(error.__cause__))) from error
        raise
    if not isinstance(raw, dict):
        raise ValueError(
            f"{path} holds a {type(raw).__name__}, expected a dict of tensors. Have its author "
            "save the state_dict() alone."
        )
    with guarded(path, DAMAGED_PYTORCH, AGAIN):
        return {
            key: {inner: _plain(item) for inner, item in _plain(value).items()}
            if isinstance(value, dict)
            else _plain(value)
            for key, value in _plain(raw).items()
        }


def check_torch(path: Path) -> None:
    """Raise ValueError if this torch may run code from a PyTorch file."""
    version = tuple(int(digits) for digits in re.findall(r"\d+", torch.__version__)[:2])
    if version < SAFE_TORCH:
        raise ValueError(
            f"{path} is a PyTorch file, which torch {torch.__version__} cannot read safely (CVE-2025-32434). Take a "
            ".safetensors file instead, or update torch to 2.6 or later."
        )


def _loaded(path: Path, *, is_zip: bool) -> Any:
    # Files written before PyTorch 1.6 are no zip archives and cannot be mapped.
    if is_zip:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, UnicodeEncodeError, RuntimeError) as error:
            if not _is_unmapped(error):
                raise
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def check_archive(path: Path) -> None:
    """Raise ValueError if an archive unpacks to more than the file, or its pickle stands for more than tensors."""
    num_bytes = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its parts are compressed, which PyTorch's never are")
        if sum(member.file_size for member in members) > num_bytes:
            raise ValueError("its parts are larger than the file")
        limit = MAX_PICKLE + MAX_PICKLED * len(members)
        for member in members:
            if member.filename.endswith("data.pkl"):
                if member.file_size > limit:
                    raise ValueError(f"it describes its tensors in more than {limit} bytes")
                with archive.open(member) as file:
                    pickles.check(io.BytesIO(file.read()), num_bytes)


def _plain(value: Any) -> Any:
    """Return a dict or a tensor without the attributes that a pickle may have put over its methods.

    Raises:
        ValueError: a tensor has no values.
    """
    if isinstance(value, dict):
        return dict(dict.items(value))
    if not isinstance(value, Tensor):
        return value
    tensor = Tensor.detach(value)
    if tensor.is_meta:
        raise ValueError("it holds a tensor without values")
    return tensor.resolve_neg()


def _refusal(path: Path, message: str) -> str:
    asked = re.search(r"GLOBAL ([\w.]+)", message)
    found = (
        f"it asks for {asked.group(1)}" if asked else "it is damaged, or asks for more than tensors"
    )
    return (
        f"{path} was refused: {found}, which could run code. Take a .safetensors file instead, or "
        "have its author save the state_dict() alone."
    )
