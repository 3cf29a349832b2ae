"""What a checkpoint format is: how its tensors are recognised, named and checked.

The formats themselves lie with their networks; `weights.py` lists them. Nothing here reads a file.

A key table is data: {"their key": our key}. In keys `{}` stands for a number and a final `*` for
any rest; both are carried over in order. Our key may also be
    None                 dropped on purpose,
    a tuple of names     their tensor is these tensors of ours, packed along the first axis,
    Unbatched("name")    their tensor has a leading axis of length 1 that ours has not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Kind = Literal["model", "vq", "head"]
PRESET_NAMES = ("quality", "balanced", "fast")
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Unbatched:
    """Our key of a tensor that is published as (1, ...)."""

    name: str


class Bare:
    """Torch's layers without initial values, for networks that get theirs from a file.

    On the meta device these values would cost no time but importing what computes their shapes:
    as long as importing torch itself.
    """

    class Linear(nn.Linear):
        def reset_parameters(self) -> None:
            pass

    class Embedding(nn.Embedding):
        def reset_parameters(self) -> None:
            pass

    class Conv2d(nn.Conv2d):
        def reset_parameters(self) -> None:
            pass

    class LayerNorm(nn.LayerNorm):
        def reset_parameters(self) -> None:
            pass

    class RMSNorm(nn.RMSNorm):
        def reset_parameters(self) -> None:
            pass

    class GroupNorm(nn.GroupNorm):
        def reset_parameters(self) -> None:
            pass


Row = str | tuple[str, ...] | Unbatched | None
Table = Mapping[str, Row]


class Preset(NamedTuple):
    """Speed against quality with a shortcut head."""

    num_steps: int
    num_full: int  # of them full passes


@dataclass(frozen=True, slots=True, kw_only=True)
class NewHead:
    """What is asked of a new shortcut head."""

    width: int  # that of its model = no bottleneck
    num_blocks: int
    num_heads: int
    is_large: bool  # True: as the paper's. False: small parts, as suits a small model
    has_time: bool
    from_full: bool  # True: predicts from the last full pass. False: from the step before
    sees_new: bool  # False: blind to the tokens just revealed
    kernel: int | None  # side of the neighbourhood it looks at; 0 = none, None = what suits


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One kind of checkpoint: how to recognise it, to name its tensors, and its network."""

    name: str  # in the metadata of our files
    kind: Kind
    title: str  # in messages: "it is a TITLE"
    filenames: tuple[str, ...]  # of the published files
    container: str | None  # entry of the published file that holds the tensors; None: they lie bare
    container_extras: Mapping[str, Any] = field(default_factory=dict)  # what else its loader reads
    marks: tuple[str, ...]  # published keys that no other format has all of
    table: Table
    config: type
    # (our tensors, config fields that no tensor shows) -> config
    read_config: Callable[[Tensors, Mapping[str, Any]], Any]
    network: type[nn.Module]
    model: str | None = None  # of a head: the name of its model's format
    # Of a head: (config of its model, what is asked) -> config; raises ValueError for what there is no place for
    new_head: Callable[[Any, NewHead], Any] | None = None
    # Of a head: (its config, iterations of its training) -> weight of the divergence of guided codes; the squared
    # error has 1
    guided_kl: Callable[[Any, int], float] = lambda config, iterations: 0.3
    defaults: Mapping[str, Any] = field(default_factory=dict)  # Settings of the original sampler
    source_guidance: tuple[
        float, ...
    ] = ()  # likewise; of text and source images, if it takes these
    conditioning: Literal["class", "text"] | None = None  # of a model: what its conditions say
    # Of a model that makes images of one size only: config -> (rows, columns) of their codes
    only_grid: Callable[[Any], tuple[int, int]] | None = None
    usual_grid: tuple[int, int] | None = None  # of a model of any size: (rows, columns) of most
    presets: Mapping[str, Preset] = field(default_factory=dict)  # of a model: by PRESET_NAMES
    # published file -> fields or properties of config that files beside it state and tensors must obey
    read_beside: Callable[[Path], Mapping[str, Any]] | None = None
    # (published file, config) -> None; raises ValueError if a description beside it contradicts it
    check_beside: Callable[[Path, Any], None] | None = None
    # (published tensors under our names, config) -> those that the network keeps. Views only: the
    # tensors are mapped from the file, and what is not kept is never read.
    narrow: Callable[[Tensors, Any], Tensors] | None = None


class MissingTensor(LookupError):
    """A tensor that sizes are read from is not there; the argument is our key of it."""


def sizes(tensors: Tensors, name: str, rank: int) -> tuple[int, ...]:
    """Shape of our tensor `name`, which must have `rank` axes, none empty."""
    if name not in tensors:
        raise MissingTensor(name)
    shape = tuple(tensors[name].shape)
    if len(shape) != rank or 0 in shape:
        raise ValueError(f"tensor {name!r} has shape {shape}, expected {rank} axes, none empty.")
    return shape


def count(names: Iterable[str], prefix: str) -> int:
    """How many different names follow `prefix` up to the next dot."""
    return len({name[len(prefix) :].split(".", 1)[0] for name in names if name.startswith(prefix)})


def given(known: Mapping[str, Any], name: str, presets: Mapping[int, int], size: int) -> int:
    """The config field `name`, which no tensor shows: from `known`, or the preset for `size`."""
    value = known.get(name, presets.get(size))
    if value is None:
        listed = ", ".join(f"{preset} for {size}" for size, preset in presets.items())
        raise ValueError(
            f"{name} cannot be read from the tensors, and there is no preset for size {size} "
            f"(presets: {listed}). Write the file anew with it: "
            f"python -m shortcut convert IN OUT.safetensors --{name.replace('_', '-')} N"
        )
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}, expected a whole number from 1 up.")
    return value


def check_heads(num_heads: int, width: int) -> int:
    """`num_heads`, if it divides `width`."""
    if width % num_heads:
        raise ValueError(f"num_heads is {num_heads}, expected a divisor of the width {width}.")
    return num_heads


def recognise(
    formats: Iterable[Format], raw: Mapping[Any, Any]
) -> tuple[Format, dict[str, Tensor], list[str]] | None:
    """(format, our tensors, unknown keys) of a published file's dict; None = no known format."""
    for format in formats:
        inner = raw.get(format.container) if format.container is not None else None
        published = inner if isinstance(inner, Mapping) else raw
        if all(mark in published for mark in format.marks):
            return format, *rename(format.table, published)
    return None


def checked(key: str, value: Any) -> Tensor:
    """`value` detached. Raises ValueError if it is not a dense tensor of floating point numbers."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = value.dtype if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"entry {key!r} is {found}, expected a floating point tensor.")
    return dense(key, value)


def dense(key: str, value: Any) -> Tensor:
    """`value` detached. Raises ValueError if it is not a dense tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(f"entry {key!r} is a {type(value).__name__}, expected a tensor.")
    # A sparse tensor, or one expanded from a few stored values, can claim any size.
    if value.layout is not torch.strided or value.untyped_storage().nbytes() < value.nbytes:
        raise ValueError(f"tensor {key!r} does not store all its values, expected a dense one.")
    return value.detach()


def configure(
    format: Format,
    tensors: Tensors,
    *,
    described: Mapping[str, Any],
    beside: Mapping[str, Any],
    known: Mapping[str, Any],
    unknown: list[str],
    is_published: bool,
) -> tuple[Any, Tensors]:
    """The configuration of our tensors, and those that it needs, checked to be exactly these.

    Args:
        described: the configuration that the file states; may be empty.
        beside: fields or properties of it that files beside it state; may be empty.
        known: the caller's config fields, for those that neither the tensors nor the file show.
        unknown: published keys that the table does not know.
        is_published: True: messages use published keys.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape, or something stated is wrong.
    """

    def key_of(name: str) -> str:
        return published_key(format.table, name) if is_published else name

    names = sorted(item.name for item in fields(format.config))
    if stray := sorted({*described, *known} - set(names)):
        raise ValueError(f"a {format.title} has no {stray[0]!r}, expected {', '.join(names)}.")
    try:
        config = format.read_config(tensors, {**known, **described, **beside})
    except MissingTensor as missing:
        raise ValueError(_mismatch(format, unknown, [key_of(missing.args[0])])) from missing
    sources = (
        ("its metadata say", described),
        ("the files beside it say", beside),
        ("you gave", known),
    )
    for source, stated in sources:
        for name, value in stated.items():
            found = json.loads(json.dumps(getattr(config, name)))  # tuples are lists in JSON
            if found != value:
                raise ValueError(f"{name} is {found}, but {source} {value!r}.")
    if is_published and format.narrow is not None:
        tensors = format.narrow(tensors, config)
    network = format.network(config, device="meta", operations=Bare)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    unknown = unknown + _unique(key_of(name) for name in tensors if name not in shapes)
    absent = _unique(key_of(name) for name in shapes if name not in tensors)
    if unknown or absent:
        raise ValueError(_mismatch(format, unknown, absent))
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            actual, expected = tuple(tensors[name].shape), tuple(shape)
            raise ValueError(f"tensor {key_of(name)!r} has shape {actual}, expected {expected}.")
    return config, tensors


def _mismatch(format: Format, unknown: list[str], missing: list[str]) -> str:
    said = []
    if unknown:
        said.append(f"{len(unknown)} keys are not of a {format.title}: {first_five(unknown)}")
    if missing:
        said.append(f"{len(missing)} keys of a {format.title} are missing: {first_five(missing)}")
    return (
        f"{'; '.join(said)}. The file is of another model or damaged: choose another or download "
        "it again."
    )


def _unique(keys: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(keys))  # several of our tensors may come from one published key


def first_five(keys: Iterable[Any]) -> str:
    """The first five, then how many more."""
    keys = list(keys)
    shown = ", ".join(repr(key) for key in keys[:5]) or "none"
    return shown if len(keys) <= 5 else f"{shown} and {len(keys) - 5} more"


def rename(table: Table, published: Mapping[Any, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Our tensors (views) of published ones, and the keys that the table does not know.

    Raises:
        ValueError: an entry that is not dropped is no tensor, or cannot be split as the table says.
    """
    ours: dict[str, Tensor] = {}
    unknown = []
    for key, value in published.items():
        rows = [(row, m) for theirs, row in table.items() if (m := _match(theirs, str(key)))]
        if not rows:
            unknown.append(str(key))
            continue
        row, match = rows[0]
        if row is not None:
            names = [_fill(name, match.groups()) for name in _names(row)]
            ours.update(zip(names, _unpack(row, key, checked(key, value)), strict=True))
    return ours, unknown


def publish(table: Table, ours: Tensors) -> dict[str, Tensor]:
    """The inverse of `rename`; nothing stands in for what it dropped."""
    rows: dict[str, tuple[Row, dict[int, Tensor]]] = {}
    for name, tensor in ours.items():
        key, row, index = _origin(table, name)
        rows.setdefault(key, (row, {}))[1][index] = tensor
    return {
        key: _pack(row, [parts[index] for index in sorted(parts)])
        for key, (row, parts) in rows.items()
    }


def published_key(table: Table, name: str) -> str:
    """The published key that our tensor `name` comes from."""
    return _origin(table, name)[0]


def _origin(table: Table, name: str) -> tuple[str, Row, int]:
    """(published key, row, place among the row's names) of our tensor `name`."""
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
        case Unbatched(name):
            return (name,)
        case _:
            return row


def _unpack(row: Row, key: str, tensor: Tensor) -> Iterator[Tensor]:
    shape = tuple(tensor.shape)
    if isinstance(row, Unbatched):
        if len(shape) < 2 or shape[0] != 1:
            raise ValueError(f"tensor {key!r} has shape {shape}, expected (1, ...).")
        yield tensor[0]
    elif isinstance(row, tuple):
        if len(shape) < 1 or shape[0] % len(row):
            raise ValueError(
                f"tensor {key!r} has shape {shape}, expected a first axis of {len(row)} parts."
            )
        yield from tensor.chunk(len(row))
    else:
        yield tensor


def _pack(row: Row, parts: list[Tensor]) -> Tensor:
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
