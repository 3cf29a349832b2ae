"""Files of tensors: found in folders, read without ever running code from them, written whole or not at all.

It knows containers (safetensors, an index of several of them, PyTorch), not what their tensors mean.

One of our files has "shortcut.format" and "shortcut.version" in its metadata beside the fields of `Metadata`.
Large models are published in several safetensors files (shards) with an index, model.safetensors.index.json:
{"metadata": {...}, "weight_map": {"NAME": "model-00001-of-00004.safetensors", ...}}
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .containers import (
    INDEX_SUFFIX,
    SAFETENSORS_DTYPES,
    read_header,
    read_pytorch,
    read_safetensors,
)
from .guard import named, parse_json, read_json, shown
from .unwrap import has_keys_of

if TYPE_CHECKING:
    from .models.layout import Layout

OUR_SUFFIX = ".safetensors"
METADATA_PREFIX = "shortcut."
FORMAT_KEY = METADATA_PREFIX + "format"  # in the metadata of our files: the name of their layout
SHARD_PATTERN = "*-of-*.safetensors"

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

MAX_INDEX = 2**24  # bytes; that of Lumina-DiMOO has 40 thousand
SAME_DOWNLOAD = "The files are of different downloads or damaged: download the index and the files it names again."


@dataclass(frozen=True, slots=True)
class Metadata:
    """What one of our files says besides its tensors: each field is one entry "shortcut.FIELD" in JSON.

    A published file says nothing: all empty.
    """

    config: Mapping[str, Any] = field(default_factory=dict)  # of the network
    title: str = ""
    class_names: tuple[str, ...] = ()  # of a class-conditional model, in the order of the ids
    defaults: Mapping[str, Any] = field(default_factory=dict)  # sampler settings that suit a model
    grid: tuple[int, ...] = ()  # of a model of any size: rows and columns that it was trained on
    model_fingerprint: str = ""  # of the model that a head belongs to
    # Of weights that are quantized or were once, before that: no other shows from what is stored.
    fingerprint: str = ""
    unquantized: tuple[
        str, ...
    ] = ()  # large weights that stayed as they were where others were quantized
    code_colours: str = ""  # of a VQ model, for previews: six hex digits for each code, RRGGBB
    trained: Mapping[str, Any] = field(default_factory=dict)  # how: steps, schedule, data, figures

    @classmethod
    def parse(cls, strings: Mapping[str, str]) -> Metadata:
        """Read a file's metadata. Raises ValueError if an entry does not hold what it should."""
        names = [item.name for item in fields(cls) if METADATA_PREFIX + item.name in strings]
        return cls(**{name: _parse(name, strings[METADATA_PREFIX + name]) for name in names})

    def dump(self) -> dict[str, str]:
        """Return the strings that `parse` reads."""
        return {
            METADATA_PREFIX + k: json.dumps(v, sort_keys=True) for k, v in asdict(self).items() if v
        }


STRINGS = ("title", "model_fingerprint", "fingerprint", "code_colours")
ITEMS = {"class_names": str, "grid": int, "unquantized": str}  # of lists
TYPES = {**dict.fromkeys(STRINGS, str), **dict.fromkeys(ITEMS, list)}  # the others: dict


def _parse(name: str, text: str) -> Any:
    expected = TYPES.get(name, dict)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"its metadata {METADATA_PREFIX}{name} cannot be used: {error}") from error
    is_right = isinstance(value, expected)
    if expected is list:
        is_right = is_right and all(isinstance(item, ITEMS[name]) for item in value)
    if not is_right:
        raise ValueError(
            f"its metadata {METADATA_PREFIX}{name} are {text[:80]}, expected a {expected.__name__}."
        )
    return tuple(value) if expected is list else value


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a file holds, mapped from disk where possible, and its safetensors metadata.

    The content decides how the file is read, not its suffix. Of a PyTorch file only tensors and
    plain containers are read: one that asks for anything else is refused. An index of several
    safetensors files stands for all of them.

    What is mapped is read when it is used: such a file may be replaced, as `written_whole` does, but while a model from
    it is in use it must never be shortened, or the system ends the process.

    Raises:
        FileNotFoundError: there is no such file, or one that an index names.
        OSError: the system refuses to read it.
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
        raise named(error, path) from error
    if start[8:9] == b"{":
        return read_safetensors(path)
    if start.lstrip().startswith(b"{"):
        return read_shards(path), {}
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return read_pytorch(path, is_zip=start.startswith(b"PK")), {}
    if not start.strip(b"\0"):
        raise ValueError(f"{path} is empty ({path.stat().st_size} bytes). Download it again.")
    what = next(
        (text for mark, text in IMPOSTORS.items() if start.lstrip().startswith(mark)), NO_TENSORS
    )
    raise ValueError(f"{path} is {what}.")


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty if it is none or cannot be read."""
    try:
        return read_header(path)[1]
    except (OSError, ValueError):
        return {}


def parts(path: Path) -> list[Path]:
    """Return the files that `read` reads for `path`: itself and the shards that it names."""
    return [path, *shards_of(path).values()] if path.name.endswith(INDEX_SUFFIX) else [path]


def find(path: Path, layouts: Collection[Layout]) -> Path:
    """Return `path` itself, or if it is a folder the only file of `layouts` in it, else in its subfolders.

    Of files of several kinds the only model is it: a folder holds what belongs to its model.

    Safetensors files count by their content, or by a published name where they cannot be read; PyTorch files by their
    published names.

    Raises:
        FileNotFoundError: there is none in the folder.
        ValueError: there are several.
    """
    if not path.is_dir():
        return path
    for pattern in ("*", "*/*", "*/*/*"):
        found = sorted(file for file in path.glob(pattern) if _is_of(file, layouts))
        models = [layout for layout in layouts if layout.kind == "model"]
        if len(found) > 1 and len(only := [file for file in found if _is_of(file, models)]) == 1:
            found = only
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(file.relative_to(path)) for file in found)
            raise ValueError(f"{path} holds {len(found)} such files: {names}. Give one of them.")
    names = ", ".join(name for layout in layouts for name in layout.filenames)
    shards = sorted(path.glob(SHARD_PATTERN))
    raise FileNotFoundError(
        f"{path} holds no {' or '.join(layout.title for layout in layouts)}. "
        + (
            f"It holds {shards[0].name}, a part of one, but not the index that names all parts: "
            "download model.safetensors.index.json into it."
            if shards and any(layout.kind == "model" for layout in layouts)
            else f"Looked there and in its subfolders for {names} and for our own .safetensors. "
            "Give the file itself."
        )
    )


def _is_of(file: Path, layouts: Collection[Layout]) -> bool:
    """Return whether a file of a folder is of one of the layouts."""
    if not file.is_file() or file.match(SHARD_PATTERN):
        return False
    if name := read_metadata(file).get(FORMAT_KEY):
        return name in {layout.name for layout in layouts}
    if (keys := _keys(file)) is None:
        return any(file.match(name) for layout in layouts for name in layout.filenames)
    return any(has_keys_of(keys, layout) for layout in layouts)


def _keys(file: Path) -> set[str] | None:
    """Return the names of the tensors of a safetensors file or an index; None if it is neither, or cannot be read."""
    try:
        if file.name.endswith(INDEX_SUFFIX):
            return set(read_index(file))
        if file.suffix.lower() == OUR_SUFFIX:
            return set(read_header(file)[0])
    except (OSError, ValueError):
        return None
    return None


def read_shards(index: Path) -> dict[str, Any]:
    """Return all tensors of the shards that `index` names: exactly those that it says are in each.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: the index is none or contradicts a shard, or a shard is damaged.
    """
    weight_map = read_index(index)
    tensors: dict[str, Any] = {}
    for name, shard in shards_of(index, weight_map).items():
        found, _ = read_safetensors(shard)
        expected = {key for key, place in weight_map.items() if place == name}
        if missing := sorted(expected - found.keys()):
            raise ValueError(
                f"{index} says that tensor {missing[0]!r} is in {name}, but it is not ({len(missing)} "
                f"such tensors). {SAME_DOWNLOAD}"
            )
        for key in sorted(found.keys() - expected):
            place = weight_map.get(key)
            raise ValueError(
                f"{shard} holds tensor {key!r}, which {index.name} "
                + (f"says is in {place}" if place else "does not know")
                + f". {SAME_DOWNLOAD}"
            )
        tensors |= found
    return tensors


def read_index(index: Path) -> dict[str, str]:
    """Return {tensor: name of its shard}. Raises ValueError if the file is no index, OSError if it cannot be read."""
    try:
        weight_map = read_json(index, MAX_INDEX)["weight_map"]
        names = set(weight_map.values())
        is_sound = bool(names) and all(isinstance(name, str) for name in names)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index} is not an index of safetensors files ({type(error).__name__}: {error}). Choose "
            "the model.safetensors.index.json of a published folder, or a checkpoint itself."
        ) from error
    if not is_sound:
        raise ValueError(f"{index} names no files for its tensors. Download it again.")
    for name in names:
        # Shards lie beside the index: an index may not reach for other files.
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(
                f"{index} names {shown(name)}, expected a .safetensors file beside it."
            )
    return weight_map


def shards_of(index: Path, weight_map: Mapping[str, str] | None = None) -> dict[str, Path]:
    """Return {name: path} of the shards that `index` names, all of which exist.

    Raises:
        FileNotFoundError: one does not.
        ValueError: the file is no index.
    """
    weight_map = read_index(index) if weight_map is None else weight_map
    shards = {name: index.with_name(name) for name in sorted(set(weight_map.values()))}
    missing = [name for name, path in shards.items() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index} names {len(shards)} files, of which {len(missing)} are missing in "
            f"{index.parent}: {', '.join(missing)}. Download them into this folder."
        )
    return shards


def write_safetensors(
    path: Path,
    layout: Mapping[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file from tensors that need not exist all at once.

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
