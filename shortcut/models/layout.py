"""The layout of a kind of checkpoint file: how its tensors are recognised, renamed and checked.

The layouts themselves stand beside their networks. Nothing here reads a file.

A key table is data: {"their key": our key}. In keys `{}` stands for a number and a final `*` for
any rest; both are carried over in order. Our key may also be
    None                 dropped on purpose,
    a tuple of names     their tensor is these tensors of ours, packed along the first axis,
    Unbatched("name")    their tensor has axes of length 1, such as a leading one, that ours has not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..guard import check_whole, shown
from .layers import Bare

if TYPE_CHECKING:
    from .architecture import Network

Kind = Literal["model", "vq", "head"]
Tensors = Mapping[str, Tensor]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One kind of checkpoint file: how to recognise it, how to rename its tensors, and its network."""

    name: str  # in the metadata of our files
    kind: Kind
    title: str  # in messages: "it is a TITLE"
    filenames: tuple[
        str, ...
    ]  # of the published files; a name may stand in a subfolder: "vqvae/model.safetensors"
    container: str | None = (
        None  # entry of the published file that holds the tensors; None = top level
    )
    marks: tuple[str, ...]  # published keys that recognise it
    table: Table
    config: type
    # (our tensors, config fields that no tensor shows) -> config
    read_config: Callable[[Tensors, Mapping[str, Any]], Any]
    network: Callable[..., Network]
    # Published file -> why files beside it say that it is of another model, or None. It tells apart models that have
    # the same keys.
    denies: Callable[[Path], str | None] | None = None
    # Published file -> fields or properties of config that files beside it state and tensors must obey
    read_beside: Callable[[Path], Mapping[str, Any]] | None = None
    # (published file, config) -> None; raises ValueError if a description beside it contradicts it
    check_beside: Callable[[Path, Any], None] | None = None
    # (published tensors under our names, config) -> those that the network keeps. Views only: the
    # tensors are mapped from the file, and what is not kept is never read.
    narrow: Callable[[Tensors, Any], Tensors] | None = None
    num_classes: Callable[[Any], int] = lambda config: (
        0
    )  # configuration -> classes that metadata may name
    codebook: str = ""  # of a VQ model: our name of the codebook (V, C)
    from_model: tuple[
        str, ...
    ] = ()  # of a head: fields of its configuration that its model has too, with equal values
    quantizable: tuple[str, ...] = ()  # prefixes of the linear layers whose weights may be float8


# The largest numbers that a configuration may have: what is larger is damaged or hostile, and is never built.
LARGEST = {
    "depth": 1024,
    "num_blocks": 1024,
    "blocks_per_level": 64,
    "num_heads": 4096,
    "grid": 1024,
    "kernel": 255,
}
MAX_SIZE = 2**24  # of any other: widths, vocabularies
MAX_LEVELS = 16  # of a VQ model
MAX_KEY = 200  # characters of a key in a message


class MissingTensor(LookupError):
    """A tensor that sizes are read from is not there; the argument is our key of it."""


def sizes(tensors: Tensors, name: str, rank: int) -> tuple[int, ...]:
    """Return shape of our tensor `name`, which must have `rank` axes, none empty."""
    if name not in tensors:
        raise MissingTensor(name)
    shape = tuple(tensors[name].shape)
    if len(shape) != rank or 0 in shape:
        raise ValueError(f"tensor {name!r} has shape {shape}, expected {rank} axes, none empty.")
    return shape


def count(names: Iterable[str], prefix: str) -> int:
    """Count the different names that follow `prefix` up to the next dot."""
    return len({name[len(prefix) :].split(".", 1)[0] for name in names if name.startswith(prefix)})


def given(known: Mapping[str, Any], name: str, presets: Mapping[int, int], size: int) -> int:
    """Return the config field `name`, which no tensor shows: from `known`, or the preset for `size`."""
    value = known.get(name, presets.get(size))
    if value is None:
        listed = ", ".join(f"{preset} for {size}" for size, preset in presets.items())
        raise ValueError(
            f"{name} cannot be read from the tensors, and there is no preset for size {size} "
            f"(presets: {listed}). Write the file anew with it: "
            f"python -m shortcut convert IN OUT.safetensors --{name.replace('_', '-')} N"
        )
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {shown(value)}, expected a whole number from 1 up.")
    check_whole(name, value, 1, LARGEST.get(name, MAX_SIZE))
    return value


def check_sizes(config: Any) -> None:
    """Raise ValueError if a number of a configuration is larger than any that is meant."""
    for item in fields(config):
        value, largest = getattr(config, item.name), LARGEST.get(item.name, MAX_SIZE)
        values = value if isinstance(value, tuple) else (value,)
        if len(values) > MAX_LEVELS:
            raise ValueError(f"{item.name} has {len(values)} items, expected at most {MAX_LEVELS}.")
        for number in values:
            if isinstance(number, int) and number > largest:
                raise ValueError(f"{item.name} must be at most {largest}, got {shown(number)}.")


def check_heads(num_heads: int, width: int) -> int:
    """Return `num_heads`, if it divides `width`."""
    if width % num_heads:
        raise ValueError(f"num_heads is {num_heads}, expected a divisor of the width {width}.")
    return num_heads


def recognise(
    layouts: Iterable[Layout], raw: Mapping[Any, Any], path: Path | None
) -> tuple[Layout, dict[str, Tensor], list[str]] | None:
    """Return (layout, our tensors, unknown keys) of a published file's dict, or None if no layout has its keys.

    Args:
        path: the file, to ask the files beside it where several models have the same keys; None = not known.

    Raises:
        ValueError: it has the keys of a layout, but the files beside it say that it is of another model.
    """
    denial = None
    for layout in layouts:
        inner = raw.get(layout.container) if layout.container is not None else None
        published = inner if isinstance(inner, Mapping) else raw
        if not all(mark in published for mark in layout.marks):
            continue
        why = layout.denies(path) if layout.denies is not None and path is not None else None
        if why is None:
            return layout, *rename(layout.table, published)
        denial = denial or why
    if denial is not None:
        raise ValueError(denial)
    return None


def checked(key: str, value: Any) -> Tensor:
    """Return `value` detached. Raises ValueError if it is not a dense tensor of floating point numbers."""
    if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
        found = value.dtype if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"entry {key!r} is {found}, expected a floating point tensor.")
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


def configure(
    layout: Layout,
    tensors: Tensors,
    *,
    described: Mapping[str, Any],
    beside: Mapping[str, Any],
    known: Mapping[str, Any],
    inherited: Mapping[str, Any],
    unknown: list[str],
    is_published: bool,
) -> tuple[Any, Tensors]:
    """Return the configuration of our tensors, and those that it needs, checked to be exactly these.

    Args:
        described: the configuration that the file states; may be empty.
        beside: fields or properties of it that files beside it state; may be empty.
        known: the caller's config fields, for those that neither the tensors nor the file show.
        inherited: those of a head that its model has, where nothing else states them.
        unknown: published keys that the table does not know.
        is_published: True: messages use published keys.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape, or something stated is wrong.
    """

    def key_of(name: str) -> str:
        return published_key(layout.table, name) if is_published else name

    names = sorted(item.name for item in fields(layout.config))
    if stray := sorted({*described, *known} - set(names)):
        raise ValueError(f"a {layout.title} has no {shown(stray[0])}, expected {', '.join(names)}.")
    try:
        config = layout.read_config(tensors, {**inherited, **known, **described, **beside})
    except MissingTensor as missing:
        raise ValueError(_mismatch(layout, unknown, [key_of(missing.args[0])])) from missing
    check_sizes(config)
    sources = (
        ("its metadata say", described),
        ("the files beside it say", beside),
        ("you gave", known),
    )
    for source, stated in sources:
        for name, value in stated.items():
            found = json.loads(json.dumps(getattr(config, name)))  # tuples are lists in JSON
            if found != value:
                raise ValueError(f"{name} is {found}, but {source} {shown(value)}.")
    if is_published and layout.narrow is not None:
        tensors = layout.narrow(tensors, config)
    network = layout.network(config, device="meta", operations=Bare)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    unknown = unknown + _unique(key_of(name) for name in tensors if name not in shapes)
    absent = _unique(key_of(name) for name in shapes if name not in tensors)
    if unknown or absent:
        raise ValueError(_mismatch(layout, unknown, absent))
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            actual, expected = tuple(tensors[name].shape), tuple(shape)
            raise ValueError(f"tensor {key_of(name)!r} has shape {actual}, expected {expected}.")
    return config, tensors


def _mismatch(layout: Layout, unknown: list[str], missing: list[str]) -> str:
    said = []
    if unknown:
        said.append(f"{len(unknown)} keys are not of a {layout.title}: {first_five(unknown)}")
    if missing:
        said.append(f"{len(missing)} keys of a {layout.title} are missing: {first_five(missing)}")
    return (
        f"{'; '.join(said)}. The file is of another model or damaged: choose another or download "
        "it again."
    )


def _unique(keys: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(keys))  # several of our tensors may come from one published key


def first_five(keys: Iterable[Any]) -> str:
    """Return the first five, then how many more."""
    keys = list(keys)
    first = ", ".join(repr(key)[:MAX_KEY] for key in keys[:5]) or "none"
    return first if len(keys) <= 5 else f"{first} and {len(keys) - 5} more"


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


def own_names(layout: Layout) -> tuple[str, ...]:
    """Return our names of the tensors that recognise a published file, where all are numbered as there."""
    return tuple(rename_keys(layout.table, layout.marks))


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
    raise ValueError(f"tensor {name!r} has no key in the published layout.")


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
