"""Wrapped state dicts: the containers and prefixes that trainers, torch and ComfyUI put around a network's keys.

Known are entries of a training checkpoint that hold tensors, segments that torch's wrappers put anywhere into a key,
and prefixes in front of all keys. ComfyUI's own nodes for saving also lose the metadata of a file, so our networks give
them a tensor of bytes that holds these.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .models.key_table import content
from .models.layout import Layout, own_names

logger = logging.getLogger(__name__)

SAVED = "shortcut.metadata"  # the tensor of bytes: metadata of one of our files, in JSON
# Entries that hold tensors, the preferred first: those that people sample with.
CONTAINERS = ("ema_state_dict", "ema", "model_state_dict", "state_dict", "model", "module")
MAX_DEPTH = 2  # of containers in containers
MAX_CONTAINERS = 64  # looked into at each depth
MAX_METADATA = 2**26  # bytes
SEGMENTS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Prefixes in front of all keys of a network. Beside those of the second kind lie other networks.
ALONE = ("model", "ema_model", "ema", "net", "network")
AMONG_OTHERS = ("diffusion_model", "first_stage_model", "vae", "vq")


def unwrapped(raw: Mapping[str, Any], layouts: Collection[Layout]) -> Mapping[str, Any]:
    """Return the tensors of a network of one of `layouts` under its own keys; `raw` if none is recognised.

    Raises:
        ValueError: the keys have a prefix that is not known.
    """
    found: dict[str, Mapping[str, Any]] = {}
    strange: str | None = None
    for where, tensors in _containers(raw):
        if any(where == name or where.startswith(f"{name}.") for name in found):
            continue
        bare = _without_segments(tensors)
        prefix = _prefix(bare, layouts)
        if prefix is None:
            continue
        if _is_known(prefix):
            found[where] = _below(prefix, bare)
        else:
            strange = strange or prefix
    if not found:
        if strange is None:
            return raw
        known = ", ".join(f"{name}." for name in (*SEGMENTS[:2], *ALONE, *AMONG_OTHERS))
        raise ValueError(
            f"its keys have the prefix {strange!r}, expected none, or of {known}. Have its author save the "
            "state_dict() of the network alone."
        )
    (where, tensors), *others = found.items()
    if others:
        logger.warning(
            "It holds weights more than once: those in %r are loaded, and %s left aside.",
            where,
            ", ".join(repr(name) for name, _ in others),
        )
    return tensors


def has_keys_of(keys: Iterable[str], layout: Layout) -> bool:
    """Return whether a file with these keys holds a network of `layout`, wrapped or not."""
    prefix = _prefix(_without_segments(dict.fromkeys(keys)), [layout])
    return prefix is not None and _is_known(prefix)


def saved_metadata(tensors: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the metadata that the tensor SAVED holds; None if there is none.

    Raises:
        ValueError: it does not hold metadata.
    """
    if SAVED not in tensors:
        return None
    try:
        found = json.loads(content(SAVED, tensors[SAVED], MAX_METADATA))
        if not all(isinstance(text, str) for pair in found.items() for text in pair):
            raise TypeError("expected texts")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"tensor {SAVED!r} does not hold metadata ({type(error).__name__}: {error}). Save the file again."
        ) from error
    return found


def metadata_tensor(metadata: Mapping[str, str]) -> Tensor:
    """Return the tensor that `saved_metadata` reads."""
    return torch.tensor(list(json.dumps(dict(metadata)).encode()), dtype=torch.uint8)


def _containers(
    raw: Mapping[Any, Any], where: str = "", depth: int = 0
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (name, tensors) of all that may hold the tensors."""
    yield where, raw
    if depth == MAX_DEPTH:
        return
    inside = {str(name): value for name, value in raw.items() if isinstance(value, Mapping)}
    for name in sorted(inside, key=_preference)[:MAX_CONTAINERS]:
        yield from _containers(inside[name], f"{where}.{name}" if where else name, depth + 1)


def _preference(name: str) -> int:
    return CONTAINERS.index(name) if name in CONTAINERS else len(CONTAINERS)


def _without_segments(tensors: Mapping[Any, Any]) -> Mapping[str, Any]:
    """Return the tensors without the segments of torch's wrappers in their keys."""
    if not any(segment in str(key).split(".") for key in tensors for segment in SEGMENTS):
        return tensors
    bare: dict[str, Any] = {}
    for key, value in tensors.items():
        name = ".".join(part for part in str(key).split(".") if part not in SEGMENTS)
        if name in bare:
            raise ValueError(
                f"it holds {name!r} twice, with and without the prefix of a wrapper. Have its author save the "
                "state_dict() of the network alone."
            )
        bare[name] = value
    return bare


def _prefix(tensors: Mapping[Any, Any], layouts: Iterable[Layout]) -> str | None:
    """Return what stands in front of the keys of a layout, published or ours; None if no layout has such keys.

    A known prefix is preferred, and of these the shortest.
    """
    found = set()
    for layout in layouts:
        for marks in (layout.marks, own_names(layout)):
            for key in tensors:
                prefix = str(key).removesuffix(marks[0])
                is_whole = prefix == "" or prefix.endswith(".")
                if is_whole and prefix != key and all(prefix + mark in tensors for mark in marks):
                    found.add(prefix)
    return min(found, key=lambda prefix: (not _is_known(prefix), len(prefix)), default=None)


def _is_known(prefix: str) -> bool:
    return all(part in (*ALONE, *AMONG_OTHERS) for part in prefix.split(".")[:-1])


def _below(prefix: str, tensors: Mapping[Any, Any]) -> Mapping[str, Any]:
    """Return the tensors whose keys begin with `prefix`, without it.

    The others stay, and make the file one of unknown keys, unless the prefix is one that lies beside other networks.
    """
    if not prefix:
        return tensors
    below = {
        str(key).removeprefix(prefix): value
        for key, value in tensors.items()
        if str(key).startswith(prefix)
    }
    if set(AMONG_OTHERS).isdisjoint(prefix.split(".")):
        below |= {key: value for key, value in tensors.items() if not str(key).startswith(prefix)}
    return below
