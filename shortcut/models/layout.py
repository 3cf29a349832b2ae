"""The layout of a kind of checkpoint file: how its tensors are recognised, renamed and checked.

The layouts themselves stand beside their networks. Nothing here reads a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..guard import check_whole, shown
from .key_table import Table, published_key, rename, rename_keys
from .layers import Bare

if TYPE_CHECKING:
    from .architecture import Network

Kind = Literal["model", "vq", "head"]
Tensors = Mapping[str, Tensor]


TEXT_PREFIX = "text_output."  # of our names of tensors that only text needs


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
    # Of a model that answers in text: the network of the tensors TEXT_PREFIX*, which images do without
    text_output: Callable[..., Network] | None = None
    num_classes: Callable[[Any], int] = lambda config: (
        0
    )  # configuration -> classes that metadata may name
    codebook: str = ""  # of a VQ model: our name of the codebook (V, C)
    from_model: tuple[
        str, ...
    ] = ()  # of a head: fields of its configuration that its model has too, with equal values
    quantizable: tuple[str, ...] = ()  # prefixes of the linear layers whose weights may be float8
    lookups: tuple[str, ...] = ()  # weights of large embeddings, which may be float8 too

    def quantizable_weights(self, config: Any) -> dict[str, torch.Size]:
        """Return the names and shapes of the weights that may be quantized, in the network's order."""
        if not self.quantizable:
            return {}
        network = self.network(config, device="meta", operations=Bare)
        return {
            f"{name}.weight": module.weight.shape
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear) and name.startswith(self.quantizable)
        }


# The largest numbers that a configuration may have: what is larger is damaged or hostile, and is never built.
TYPED = ("num_heads", "num_codes")  # fields that `convert` has options for
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
        advice = "Put the config.json of the published folder beside the file."
        if name in TYPED:
            option = f"--{name.replace('_', '-')} N"
            advice = f"Write the file anew with it: python -m shortcut convert IN OUT.safetensors {option}"
        listed = ", ".join(f"{preset} for {size}" for size, preset in presets.items())
        raise ValueError(
            f"{name} cannot be read from the tensors, and there is no preset for size {size} "
            f"(presets: {listed}). {advice}"
        )
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
) -> tuple[Any, Tensors, Tensors]:
    """Return the configuration of our tensors, those that it needs, checked to be exactly these, and those of text.

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
    text = {name: tensor for name, tensor in tensors.items() if name.startswith(TEXT_PREFIX)}
    shapes = _shapes(layout.network(config, device="meta", operations=Bare))
    if text and layout.text_output is not None:
        output = layout.text_output(config, device="meta", operations=Bare)
        shapes |= {TEXT_PREFIX + name: shape for name, shape in _shapes(output).items()}
    unknown = unknown + _unique(key_of(name) for name in tensors if name not in shapes)
    absent = _unique(key_of(name) for name in shapes if name not in tensors)
    if unknown or absent:
        raise ValueError(_mismatch(layout, unknown, absent))
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            actual, expected = tuple(tensors[name].shape), tuple(shape)
            raise ValueError(f"tensor {key_of(name)!r} has shape {actual}, expected {expected}.")
    tensors = {name: tensor for name, tensor in tensors.items() if name not in text}
    return config, tensors, {n.removeprefix(TEXT_PREFIX): tensor for n, tensor in text.items()}


def _shapes(network: Network) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


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


def own_names(layout: Layout) -> tuple[str, ...]:
    """Return our names of the tensors that recognise a published file, where all are numbered as there."""
    return tuple(rename_keys(layout.table, layout.marks))
