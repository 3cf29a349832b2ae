"""Which file of a folder is meant."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from . import metadata as meta
from .files import read_metadata
from .models.layout import Format
from .shards import SHARD_PATTERN

OURS = (".safetensors",)  # suffixes of our files


def find(path: Path, formats: Iterable[Format]) -> Path:
    """`path` itself, or if it is a folder the only file of `formats` in it, else in its subfolders.

    A file counts by its published name, or as one of ours by its metadata.

    Raises:
        FileNotFoundError: there is none in the folder.
        ValueError: there are several.
    """
    if not path.is_dir():
        return path
    formats = list(formats)
    for pattern in ("*", "*/*"):
        found = sorted(file for file in path.glob(pattern) if _is_of(file, formats))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(file.relative_to(path)) for file in found)
            raise ValueError(f"{path} holds {len(found)} such files: {names}. Give one of them.")
    names = ", ".join(name for format in formats for name in format.filenames)
    shards = sorted(path.glob(SHARD_PATTERN))
    raise FileNotFoundError(
        f"{path} holds no {titles(formats)}. "
        + (
            f"It holds {shards[0].name}, a part of one, but not the index that names all parts: "
            "download model.safetensors.index.json into it."
            if shards and any(format.kind == "model" for format in formats)
            else f"Looked there and in its subfolders for {names} and for our own .safetensors. "
            "Give the file itself."
        )
    )


def titles(formats: Iterable[Format]) -> str:
    """What files of these formats are called."""
    return " or ".join(format.title for format in formats)


def _is_of(file: Path, formats: list[Format]) -> bool:
    if file.suffix.lower() in OURS and (name := read_metadata(file).get(meta.FORMAT)):
        return name in {format.name for format in formats}
    return any(file.name in format.filenames for format in formats) and file.is_file()
