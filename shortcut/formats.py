"""What a checkpoint format is, and how its published tensors and ours turn into each other.

A format lives in the file of its network; `weights.py` lists them all. Nothing here reads a file.

A key table is data: {"their key": our key}. In keys `{}` stands for a number and a final `*` for any rest; both are
carried over in order. Our key may also be
    None                 dropped on purpose,
    a tuple of names     their tensor is these tensors of ours, packed along the first axis,
    Unbatched("name")    their tensor has a leading axis of length 1 that ours has not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["model", "vq", "head"]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Unbatched:
    """Our key of a tensor that is published as (1, ...)."""

    name: str


Table = Mapping[str, str | tuple[str, ...] | Unbatched | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One kind of checkpoint: how to recognise it, how to name its tensors, what network it is for."""

    name: str  # in the metadata of our files
    kind: Kind
    title: str  # in messages: "NAME is a TITLE"
    filenames: tuple[str, ...]  # of the published files
    container: str | None  # entry of the published file that holds the tensors; None: they lie bare
    container_extras: Mapping[str, Any] = field(default_factory=dict)  # other entries that its loader reads
    marks: tuple[str, ...]  # published keys that no other format has all of
    table: Table
    config: type
    # (our tensors, what cannot be read from them, by field name) -> config
    read_config: Callable[[Tensors, Mapping[str, Any]], Any]
    network: type[nn.Module]
    fingerprint_keys: tuple[str, ...]  # our keys of weights that change in any training
    model: str | None = None  # of a head: the name of its model's format
    # (file, config) -> None; raises ValueError if a description lying beside the file contradicts it
    check_beside: Callable[[Path, Any], None] | None = None


class MissingTensor(LookupError):
    """A tensor that the sizes are read from is not there; the argument is our key of it."""


def sizes(tensors: Tensors, name: str, rank: int) -> tuple[int, ...]:
    """Shape of our tensor `name`, which must have `rank` axes, none of them empty."""
    if name not in tensors:
        raise MissingTensor(name)
    shape = tuple(tensors[name].shape)
    if len(shape) != rank or 0 in shape:
        raise ValueError(f"tensor {name!r} has shape {shape}, expected {rank} axes, none of length 0.")
    return shape


def count(tensors: Iterable[str], prefix: str) -> int:
    """How many different names follow `prefix` up to the next dot."""
    return len({key[len(prefix) :].split(".", 1)[0] for key in tensors if key.startswith(prefix)})


def given(known: Mapping[str, Any], name: str, presets: Mapping[int, int], size: int) -> int:
    """The config field `name`, which no tensor shows: as `known` has it, or the preset for `size`."""
    value = known.get(name, presets.get(size))
    if value is None:
        listed = ", ".join(f"{value} for {size}" for size, value in presets.items())
        raise ValueError(
            f"{name} cannot be read from the tensors, and there is no preset for size {size} (presets: {listed}). "
            f"Write the file anew with it: python -m shortcut convert IN OUT.safetensors "
            f"--{name.replace('_', '-')} N"
        )
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}, expected a whole number from 1 up.")
    return value


def check_heads(num_heads: int, width: int) -> int:
    """`num_heads`, if it divides `width`."""
    if width % num_heads:
        raise ValueError(f"num_heads is {num_heads}, expected a divisor of the width {width}.")
    return num_heads


def rename(table: Table, published: Tensors) -> tuple[dict[str, Tensor], list[str]]:
    """Our tensors (views where possible) of published ones, and the keys that the table does not know."""
    ours: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in published.items():
        found = next(((row, m) for theirs, row in table.items() if (m := _match(theirs, key))), None)
        if found is None:
            unknown.append(key)
            continue
        row, match = found
        names = [_fill(name, match.groups()) for name in _names(row)]
        ours.update(zip(names, _unpack(row, key, tensor), strict=True))
    return ours, unknown


def publish(table: Table, ours: Tensors) -> dict[str, Tensor]:
    """The inverse of `rename`. Raises ValueError for a tensor of ours that the table does not know."""
    rows: dict[str, tuple[Any, dict[int, Tensor]]] = {}
    for name, tensor in ours.items():
        theirs, row, index = _origin(table, name)
        rows.setdefault(theirs, (row, {}))[1][index] = tensor
    return {theirs: _pack(row, [parts[i] for i in sorted(parts)]) for theirs, (row, parts) in rows.items()}


def published_name(table: Table, name: str) -> str:
    """The published key that our tensor `name` comes from."""
    return _origin(table, name)[0]


def _origin(table: Table, name: str) -> tuple[str, Any, int]:
    """(published key, row, index among the row's names) of our tensor `name`."""
    for theirs, row in table.items():
        for index, ours in enumerate(_names(row)):
            if match := _match(ours, name):
                return _fill(theirs, match.groups()), row, index
    raise ValueError(f"tensor {name!r} has no name in the published layout.")


def _names(row: str | tuple[str, ...] | Unbatched | None) -> tuple[str, ...]:
    match row:
        case None:
            return ()
        case str():
            return (row,)
        case Unbatched(name):
            return (name,)
        case _:
            return row


def _unpack(row: Any, key: str, tensor: Tensor) -> Iterator[Tensor]:
    if isinstance(row, Unbatched):
        if tensor.ndim < 2 or tensor.shape[0] != 1:
            raise ValueError(f"tensor {key!r} has shape {tuple(tensor.shape)}, expected (1, ...).")
        yield tensor[0]
    elif isinstance(row, tuple):
        if tensor.ndim < 1 or tensor.shape[0] % len(row):
            raise ValueError(
                f"tensor {key!r} has shape {tuple(tensor.shape)}, expected a first axis of {len(row)} equal parts."
            )
        yield from tensor.chunk(len(row))
    elif row is not None:
        yield tensor


def _pack(row: Any, parts: list[Tensor]) -> Tensor:
    if isinstance(row, Unbatched):
        return parts[0].unsqueeze(0)
    return torch.cat(parts) if isinstance(row, tuple) else parts[0]


def _match(pattern: str, key: str) -> re.Match[str] | None:
    return _regex(pattern).fullmatch(key)


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)").replace(r"\*", "(.+)"))


def _fill(pattern: str, values: tuple[str, ...]) -> str:
    left = iter(values)
    return re.sub(r"\{\}|\*", lambda _: next(left), pattern)
