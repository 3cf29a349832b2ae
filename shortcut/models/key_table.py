"""Key tables: from the names of published tensors to ours, and back.

A key table is data: {"their key": our key}. In keys `{}` stands for a number and a final `*` for
any rest; both are carried over in order. Our key may also be
    None                 dropped on purpose,
    a tuple of names     their tensor is these tensors of ours, packed along the first axis,
    Unbatched("name")    their tensor has axes of length 1, such as a leading one, that ours has not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor

from ..containers import SAFETENSORS_DTYPES


@dataclass(frozen=True, slots=True)
class Unbatched:
    """Our key of a tensor that is published with axes of length 1 besides."""

    name: str
    axes: tuple[int, ...] = (0,)  # of theirs, ascending

    def ours(self, key: str, tensor: Tensor) -> Tensor:
        """Return our tensor of theirs. Raises ValueError if one of the axes is not there, or longer."""
        shape = tuple(tensor.shape)
        too_few = len(shape) <= max(len(self.axes), *self.axes)
        if too_few or any(shape[axis] != 1 for axis in self.axes):
            raise ValueError(f"tensor {key!r} has shape {shape}, expected 1 at axes {self.axes}.")
        return tensor.squeeze(self.axes)

    def published(self, tensor: Tensor) -> Tensor:
        """Return their tensor of ours."""
        return reduce(Tensor.unsqueeze, self.axes, tensor)


Row = str | tuple[str, ...] | Unbatched | None
Table = Mapping[str, Row]


def checked(key: str, value: Any) -> Tensor:
    """Return `value` detached. Raises ValueError if it is not a dense tensor of floats that files of ours can have."""
    found = value.dtype if isinstance(value, Tensor) else f"a {type(value).__name__}"
    if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
        raise ValueError(f"entry {key!r} is {found}, expected a floating point tensor.")
    if value.dtype not in SAFETENSORS_DTYPES:
        raise ValueError(f"entry {key!r} is {found}. Have its author save it in bfloat16.")
    return dense(key, value)


def dense(key: str, value: Any) -> Tensor:
    """Return `value` detached. Raises ValueError if it is not a dense tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(f"entry {key!r} is a {type(value).__name__}, expected a tensor.")
    plain = Tensor.detach(value)  # a pickle may have given `value` attributes that hide its methods
    # A sparse tensor, or one expanded from a few stored values, can claim any size.
    if plain.layout is not torch.strided or plain.untyped_storage().nbytes() < plain.nbytes:
        raise ValueError(f"tensor {key!r} does not store all its values, expected a dense one.")
    return plain


def content(key: str, value: Any, limit: int = 2**20) -> bytes:
    """Return the bytes that a tensor holds.

    Raises:
        ValueError: it is none of bytes, or longer than `limit`.
    """
    tensor = dense(key, value)
    if tensor.dtype != torch.uint8 or tensor.ndim != 1 or len(tensor) > limit:
        raise ValueError(
            f"it is {tensor.dtype} {tuple(tensor.shape)}, expected at most {limit} bytes"
        )
    return tensor.cpu().numpy().tobytes()


def rename(table: Table, published: Mapping[Any, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Return our tensors (views) of published ones, and the keys that the table does not know.

    Raises:
        ValueError: an entry that is not dropped is no tensor, or cannot be split as the table says.
    """
    ours: dict[str, Tensor] = {}
    unknown = []
    for key, value in published.items():
        if (found := _row(table, str(key))) is None:
            unknown.append(str(key))
            continue
        row, match = found
        if row is not None:
            names = [_fill(name, match.groups()) for name in _names(row)]
            ours.update(zip(names, _unpack(row, key, checked(key, value)), strict=True))
    return ours, unknown


def rename_keys(table: Table, keys: Iterable[str]) -> dict[str, str]:
    """Return {our name: published key} of keys that the table knows and keeps."""
    return {
        _fill(name, match.groups()): key
        for key in keys
        if (found := _row(table, key)) is not None
        for row, match in (found,)
        for name in _names(row)
    }


def _row(table: Table, key: str) -> tuple[Row, re.Match[str]] | None:
    """Return the first row for a published key."""
    return next(((row, m) for theirs, row in table.items() if (m := _match(theirs, key))), None)


def published_key(table: Table, name: str) -> str:
    """Return the published key that our tensor `name` comes from."""
    return origin(table, name)[0]


def origin(table: Table, name: str) -> tuple[str, Row, int]:
    """Return (published key, row, place among the row's names) of our tensor `name`."""
    for theirs, row in table.items():
        for index, ours in enumerate(_names(row)):
            if match := _match(ours, name):
                return _fill(theirs, match.groups()), row, index
    raise ValueError(
        f"tensor {name!r} has no key in the published layout, which only our files have. Give the output the suffix "
        ".safetensors."
    )


def _names(row: Row) -> tuple[str, ...]:
    match row:
        case None:
            return ()
        case str():
            return (row,)
        case Unbatched(name=name):
            return (name,)
        case _:
            return row


def _unpack(row: Row, key: str, tensor: Tensor) -> Iterator[Tensor]:
    shape = tuple(tensor.shape)
    if isinstance(row, Unbatched):
        yield row.ours(key, tensor)
    elif isinstance(row, tuple):
        if len(shape) < 1 or shape[0] % len(row):
            raise ValueError(
                f"tensor {key!r} has shape {shape}, expected a first axis of {len(row)} parts."
            )
        yield from tensor.chunk(len(row))
    else:
        yield tensor


def _match(pattern: str, key: str) -> re.Match[str] | None:
    return _regex(pattern).fullmatch(key)


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)").replace(r"\*", "(.+)"))


def _fill(pattern: str, values: tuple[str, ...]) -> str:
    left = iter(values)
    return re.sub(r"\{\}|\*", lambda _: next(left), pattern)
