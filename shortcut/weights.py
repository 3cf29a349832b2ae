"""Checkpoints: from a file to named tensors with their sizes, to a network, and back to a file.

A published file and one of ours end as the same thing, a `Checkpoint`; only the format's data
(FORMAT in each network's file) tells them apart. Everything is strict: a tensor too few or too many
is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import metadata as meta
from . import quantized
from .checkpoint import Checkpoint, cast, naming
from .files import read, write_safetensors, written_whole
from .locate import OURS, find, titles
from .metadata import Metadata
from .models.layers import Attention, sdpa
from .models.layout import (
    Bare,
    Format,
    Kind,
    configure,
    first_five,
    publish,
    recognise,
)
from .models.lumina_dimoo import head as lumina_head
from .models.lumina_dimoo import transformer as lumina
from .models.lumina_dimoo import vq as lumina_vq
from .models.maskgit import head as maskgit_head
from .models.maskgit import transformer as maskgit
from .models.maskgit import vqgan as maskgit_vqgan
from .schedule import Settings
from .values import check_finite, fingerprint

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        maskgit.FORMAT,
        maskgit_vqgan.FORMAT,
        maskgit_head.FORMAT,
        lumina.FORMAT,
        lumina_vq.FORMAT,
        lumina_head.FORMAT,
    )
}
VERSION = "1"  # of our files; raised when an older reader would misread a newer file
KINDS: dict[Kind, str] = {"model": "model", "vq": "VQ model", "head": "shortcut head"}
PUBLISHED = (".pth", ".pt", ".ckpt")  # suffixes of files in the published layout


def load(path: str | Path, kind: Kind | None = None, **known: int) -> Checkpoint:
    """Reads a published file or index of files, one of ours, or the only such file in a folder.

    Args:
        kind: what it must be; None = anything known.
        known: config fields that no tensor shows (`num_heads`, `num_codes`), where neither the file
            nor a preset has them.

    Raises:
        FileNotFoundError: there is no such file, or none in the folder, or a part is missing.
        ValueError: it is not a checkpoint of a known format, or not a sound one.
    """
    formats = [format for format in FORMATS.values() if kind in (None, format.kind)]
    file = find(Path(path), formats)
    raw, metadata = read(file)
    return from_tensors(raw, metadata, file, kind, **known)


def from_tensors(
    raw: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    path: str | Path | None = None,
    kind: Kind | None = None,
    **known: int,
) -> Checkpoint:
    """As `load`, of what the host has read already.

    Args:
        raw: the dict that the file holds, or that its container holds.
        metadata: of the safetensors file, if it is one.
        path: for messages, and to find what lies beside the file.
    """
    path = Path(path) if path is not None else None
    metadata = metadata or {}
    is_published = meta.FORMAT not in metadata
    with naming(path):
        stored: Mapping[str, Tensor] = {}
        formats: Mapping[str, str] = {}
        unknown: list[str] = []
        if is_published:
            format, tensors, unknown = _published(raw)
        else:
            format = _our_format(metadata)
            tensors, stored, formats = quantized.split(raw)
        if kind not in (None, format.kind):
            raise ValueError(
                f"it is a {format.title}, expected a {KINDS[kind]}. Give it as the "
                f"{KINDS[format.kind]} instead."
            )
        described = Metadata.parse(metadata)
        beside: Mapping[str, Any] = {}
        if format.read_beside is not None and path is not None and is_published:
            beside = format.read_beside(path)
        config, tensors = configure(
            format,
            tensors,
            described=described.config,
            beside=beside,
            known=known,
            unknown=unknown,
            is_published=is_published,
        )
        tensors = {**tensors, **stored}
        check_finite(tensors)
        if format.check_beside is not None and path is not None and is_published:
            format.check_beside(path, config)
        num_names, num_classes = len(described.class_names), getattr(config, "num_classes", 0)
        if num_names not in (0, num_classes):
            raise ValueError(f"its metadata name {num_names} classes, but it has {num_classes}.")
    weights = {name: tensors[name] for name in tensors.keys() - quantized.extras(formats)}
    return Checkpoint(format, config, tensors, fingerprint(weights), described, path, formats)


def pack(
    network: nn.Module, format: Format, *, dtype: torch.dtype | None = None, **metadata: Any
) -> Checkpoint:
    """The checkpoint of a network of ours.

    Args:
        dtype: of the weights; None = as they are, and then shared with the network.
        metadata: fields of `Metadata`.
    """
    tensors = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    config: Any = network.config
    checkpoint = Checkpoint(format, config, tensors, fingerprint(tensors), Metadata(**metadata))
    return checkpoint if dtype is None else cast(checkpoint, dtype)


def build(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    operations: Any = Bare,
    attention: Attention = sdpa,
    compute_dtype: torch.dtype | None = None,
) -> nn.Module:
    """The network, in eval mode and without gradients.

    It shares the checkpoint's tensors where type and device agree: there is no second copy. Where
    they do not, tensors are copied one by one.

    Args:
        dtype: of the weights; None = as in the file. Quantized weights stay as they are.
        operations: namespace of layers, torch's own or a host's that knows quantized weights.
        attention: function with the signature of `layers.sdpa`.
        compute_dtype: of the activations, for networks that tell them apart; None = `dtype`.

    Raises:
        ValueError: the weights are quantized in a way that torch or the device cannot compute.
    """
    dtype = dtype or checkpoint.dtype
    is_ours_to_compute = bool(checkpoint.quantized) and operations is Bare
    if is_ours_to_compute:
        operations = quantized.Operations
    options: dict[str, Any] = {"operations": operations, "attention": attention}
    if compute_dtype is not None:
        options["compute_dtype"] = compute_dtype
    network = checkpoint.format.network(checkpoint.config, dtype=dtype, device="meta", **options)
    if is_ours_to_compute:
        with naming(checkpoint.path):
            quantized.check_computed(checkpoint.quantized)
            quantized.check_layers(network, checkpoint.quantized)
            quantized.check_device(device)
    stored = quantized.members(checkpoint.quantized)
    state = {
        name: tensor.to(device) if name in stored else tensor.to(device, dtype)
        for name, tensor in checkpoint.tensors.items()
    }
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def save(path: str | Path, checkpoint: Checkpoint, *, dtype: torch.dtype | None = None) -> None:
    """Writes a checkpoint, whole or not at all.

    One of our files is written tensor by tensor, so that another type needs no second copy.

    Args:
        path: .safetensors for one of our files; .pth, .pt or .ckpt for the published layout, which
            has no place for metadata and quantized weights.
        dtype: as for `cast`; None = as they are.

    Raises:
        ValueError: another suffix, what the published layout has no place for, or as `cast`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in OURS:
        described = replace(checkpoint.metadata, config=asdict(checkpoint.config))
        strings = {meta.FORMAT: checkpoint.format.name, meta.VERSION: VERSION, **described.dump()}
        tensors = checkpoint.tensors.items() if dtype is None else checkpoint.in_dtype(dtype)
        with written_whole(path) as partial:
            write_safetensors(partial, checkpoint.layout(dtype), tensors, strings)
    elif suffix in PUBLISHED:
        published = _in_published_layout(
            checkpoint if dtype is None else cast(checkpoint, dtype), path
        )
        with written_whole(path) as partial:
            torch.save(published, partial)
    else:
        raise ValueError(
            f"{path} has the suffix {suffix!r}, expected {', '.join(OURS)} for one of our files or "
            f"{', '.join(PUBLISHED)} for the published layout. Rename the output."
        )


def _in_published_layout(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """What the published file at `path` would hold."""
    format = checkpoint.format
    no_place = "quantized weights" if checkpoint.quantized else ""
    if format.narrow is not None:
        no_place = "fewer rows than it has: the others were dropped on loading"
    if getattr(checkpoint.config, "from_full", False):
        no_place = "what tells that a head predicts from the last full pass"
    if getattr(checkpoint.config, "kernel", 0):
        no_place = "the part of a head that looks at the neighbourhood of new tokens"
    if no_place:
        raise ValueError(
            f"{path}: the published layout of a {format.title} has no place for {no_place}. Give the output the "
            f"suffix {OURS[0]} for one of our files."
        )
    published = publish(format.table, checkpoint.tensors)
    if format.container is None:
        return published
    return {**format.container_extras, format.container: published}


def check_head(head: Checkpoint, model: Checkpoint) -> str | None:
    """Checks that `head` belongs to `model`. Neither needs its tensors.

    Returns:
        What could not be verified, as a sentence; None if everything was.

    Raises:
        ValueError: it is no head, or one for another format, another width or other weights.
    """
    problem = None
    expected = head.metadata.model_fingerprint
    if head.format.model != model.format.name:
        problem = f"is a {head.format.title}, which does not go with a {model.format.title}"
    elif head.config.model_width != model.config.width:
        problem = f"is for a width of {head.config.model_width}, not {model.config.width}"
    elif expected and expected != model.fingerprint:
        problem = f"was trained for the model {expected}, not {model.fingerprint}"
    if problem is not None:
        raise ValueError(
            f"{head.name} {problem} as in {model.name}. Pick the head that was trained for this "
            "model."
        )
    if expected:
        return None
    return (
        f"{head.name} does not say which model it was trained for. Its width {model.config.width} "
        f"fits {model.name}; nothing else could be verified."
    )


def settings(model: Checkpoint, *, has_sources: bool = False) -> Settings:
    """The sampler settings that the model's file states; those of its original for the rest.

    Args:
        has_sources: True: for conditions with source images, which have two guidance weights.

    Raises:
        ValueError: the file states one that does not exist or is out of range.
    """
    stated = {k: tuple(v) if isinstance(v, list) else v for k, v in model.metadata.defaults.items()}
    source_guidance = stated.pop("source_guidance", model.format.source_guidance)
    if has_sources:
        stated["guidance"] = source_guidance
    with naming(model.path):
        try:
            found = replace(Settings(), **{**model.format.defaults, **stated})
            found.check()
        except (TypeError, ValueError) as error:
            raise ValueError(f"its metadata state unusable sampler settings: {error}") from error
    return found


def _published(raw: Mapping[str, Any]) -> tuple[Format, dict[str, Tensor], list[str]]:
    """(format, tensors under our names, unknown keys)."""
    recognised = recognise(FORMATS.values(), raw)
    if recognised is None:
        raise ValueError(
            f"it is no {titles(FORMATS.values())}. Its {len(raw)} entries: {first_five(raw)}. "
            "Choose another file."
        )
    return recognised


def _our_format(metadata: Mapping[str, str]) -> Format:
    """The format that one of our files says it has."""
    name, version = metadata[meta.FORMAT], metadata.get(meta.VERSION)
    if name not in FORMATS or version != VERSION:
        raise ValueError(
            f"it has format {name!r} version {version}, expected version {VERSION} of "
            f"{', '.join(FORMATS)}. If a newer version of this project wrote it, update."
        )
    return FORMATS[name]
