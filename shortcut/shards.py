"""A checkpoint in several safetensors files, as Hugging Face publishes large ones.

Beside the files (shards) lies an index, model.safetensors.index.json, which says where each tensor is:
{"metadata": {...}, "weight_map": {"NAME": "model-00001-of-00004.safetensors", ...}}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

INDEX_SUFFIX = ".index.json"
SHARD_PATTERN = "*-of-*.safetensors"  # names of shards, where the index is missing


def read_shards(
    index: Path, read_safetensors: Callable[[Path], Mapping[str, Any]]
) -> dict[str, Any]:
    """All tensors of the shards that `index` names: exactly those that it says are in each.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: the index is none or contradicts a shard, or a shard is damaged.
    """
    weight_map = read_index(index)
    tensors: dict[str, Any] = {}
    for name, shard in shards_of(index, weight_map).items():
        found = read_safetensors(shard)
        expected = {key for key, place in weight_map.items() if place == name}
        if missing := sorted(expected - found.keys()):
            raise ValueError(
                f"{index} says that tensor {missing[0]!r} is in {name}, but it is not ({len(missing)} "
                f"such tensors). {_ADVICE}"
            )
        for key in sorted(found.keys() - expected):
            place = weight_map.get(key)
            raise ValueError(
                f"{shard} holds tensor {key!r}, which {index.name} "
                + (f"says is in {place}" if place else "does not know")
                + f". {_ADVICE}"
            )
        tensors |= found
    return tensors


def read_index(index: Path) -> dict[str, str]:
    """{tensor: name of its shard}. Raises ValueError if the file is no index."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = set(weight_map.values())
        is_sound = bool(names) and all(isinstance(name, str) for name in names)
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index} is not an index of safetensors files ({type(error).__name__}: {error}). Choose "
            "the model.safetensors.index.json of a published folder, or a checkpoint itself."
        ) from error
    if not is_sound:
        raise ValueError(f"{index} names no files for its tensors. Download it again.")
    for name in names:
        # Shards lie beside the index: an index may not reach for other files.
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names {name!r}, expected a .safetensors file beside it.")
    return weight_map


def shards_of(index: Path, weight_map: Mapping[str, str] | None = None) -> dict[str, Path]:
    """{name: path} of the shards that `index` names, all of which exist.

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


_ADVICE = "The files are of different downloads or damaged: download the index and the files it names again."
