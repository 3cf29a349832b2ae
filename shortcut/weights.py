"""Checkpoints: from a file to named tensors with their sizes, to a network, and back to a file.

A published file and one of ours end as the same thing, a `Checkpoint`; only the format's data (`formats.py`, and FORMAT
in each network's file) tells them apart. Everything is strict: a tensor too few or too many is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .files import read, read_metadata, written_whole
from .formats import Format, Kind, MissingTensor, publish, published_name, rename
from .heads import maskgit as maskgit_head
from .models import maskgit, maskgit_vqgan
from .models.layers import Attention, sdpa

FORMATS: dict[str, Format] = {
    format.name: format for format in (maskgit.FORMAT, maskgit_vqgan.FORMAT, maskgit_head.FORMAT)
}
VERSION = 1  # of our files; raised when an older reader would misread a newer file
PREFIX = "shortcut."
KINDS: dict[Kind, str] = {"model": "a masked image model", "vq": "a VQ model", "head": "a shortcut head"}
FINGERPRINT_VALUES = 1 << 20  # of each tensor
OURS, PUBLISHED = (".safetensors",), (".pth", ".pt", ".ckpt")


@dataclass(frozen=True, slots=True)
class Metadata:
    """What one of our files says besides tensors. A published file says nothing: all empty."""

    config: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    class_names: tuple[str, ...] = ()  # of a class-conditional model, in the order of the ids
    defaults: Mapping[str, Any] = field(default_factory=dict)  # sampler settings that suit a model
    model_fingerprint: str = ""  # of the model that a head belongs to
    trained: Mapping[str, Any] = field(default_factory=dict)  # how: steps, schedule, data, figures

    @classmethod
    def parse(cls, strings: Mapping[str, str]) -> Self:
        """From the metadata of a safetensors file. Raises ValueError if it does not hold what it should."""
        found = {}
        for item in fields(cls):
            text = strings.get(PREFIX + item.name)
            if text is not None:
                found[item.name] = _parse_json(item.name, text)
        return cls(**found)

    def dump(self) -> dict[str, str]:
        """The inverse of `parse`."""
        return {PREFIX + k: json.dumps(v, sort_keys=True) for k, v in asdict(self).items() if v}


def _parse_json(name: str, text: str) -> Any:
    kind = {"config": dict, "defaults": dict, "trained": dict, "class_names": list}.get(name, str)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"its metadata are damaged: {PREFIX}{name} is not JSON ({error}).") from error
    if not isinstance(value, kind) or (kind is list and not all(isinstance(v, str) for v in value)):
        raise ValueError(f"its metadata are damaged: {PREFIX}{name} is {text[:80]}, expected a {kind.__name__}.")
    return tuple(value) if kind is list else value


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A network's weights under our names, strictly those that its configuration needs.

    The tensors may be mapped from the file, and networks built from them share them.
    """

    format: Format
    config: Any
    tensors: Mapping[str, Tensor]
    fingerprint: str
    metadata: Metadata = field(default_factory=Metadata)
    path: Path | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return self.path.name if self.path is not None else f"this {self.format.title}"

    @property
    def dtype(self) -> torch.dtype:
        """The type that most of the weights have."""
        sizes: dict[torch.dtype, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
        return max(sizes, key=lambda dtype: sizes[dtype])

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    def without_tensors(self) -> Checkpoint:
        """The same for keeping: all but the weights, so that these can be freed."""
        return replace(self, tensors={})


def load(path: str | Path, kind: Kind | None = None, **known: int) -> Checkpoint:
    """Reads a published file, one of ours, or the only such file in a folder.

    Args:
        kind: what it must be; None = anything known.
        known: config fields that no tensor shows (`num_heads`, `num_codes`), where neither the file nor a preset has
            them.

    Raises:
        FileNotFoundError: there is no such file, or none in the folder.
        ValueError: it is not a checkpoint of a known format, or not a sound one.
    """
    file = find(Path(path), kind)
    raw, metadata = read(file)
    return from_tensors(raw, metadata, file, kind, **known)


def from_tensors(
    raw: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    path: str | Path | None = None,
    kind: Kind | None = None,
    **known: int,
) -> Checkpoint:
    """As `load`, of what the host has read already: `raw` is the file's dict, `metadata` its safetensors metadata."""
    path = Path(path) if path is not None else None
    metadata = metadata or {}
    with _naming(path):
        format, tensors, unknown, is_ours = _recognise(raw, metadata)
        if kind is not None and format.kind != kind:
            raise ValueError(f"it is {KINDS[format.kind]} ({format.title}), expected {KINDS[kind]}.")
        described = Metadata.parse(metadata)
        config = _configure(format, tensors, unknown, is_ours, described.config | known)
        _check_finite(tensors)
        if format.check_beside is not None and path is not None:
            format.check_beside(path, config)
        _check_metadata(described, config)
    return Checkpoint(format, config, tensors, _fingerprint(format, tensors), described, path)


def from_network(network: nn.Module, **metadata: Any) -> Checkpoint:
    """The checkpoint of a network of ours; `metadata` are fields of `Metadata`."""
    format = next(f for f in FORMATS.values() if type(network) is f.network)
    tensors = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    return Checkpoint(
        format, network.config, tensors, _fingerprint(format, tensors), Metadata(**metadata)
    )


def build(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    operations: Any = nn,
    attention: Attention = sdpa,
    compute_dtype: torch.dtype | None = None,
) -> nn.Module:
    """The network, in eval mode and without gradients; it shares the checkpoint's tensors where type and device agree.

    Args:
        dtype: of the weights; None = as in the file.
        operations: namespace of layers, torch.nn or a host's.
        attention: function with the signature of `layers.sdpa`.
        compute_dtype: of the activations, for networks that tell them apart; None = `dtype`.
    """
    dtype = dtype or checkpoint.dtype
    options = {} if compute_dtype is None else {"compute_dtype": compute_dtype}
    network = checkpoint.format.network(
        checkpoint.config, dtype=dtype, device="meta", operations=operations, attention=attention, **options
    )
    state = {name: tensor.to(device, dtype) for name, tensor in checkpoint.tensors.items()}
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def cast(checkpoint: Checkpoint, dtype: torch.dtype) -> Checkpoint:
    """The same with all weights in `dtype`. Raises ValueError if a value does not fit."""
    tensors = {name: tensor.to(dtype) for name, tensor in checkpoint.tensors.items()}
    with _naming(checkpoint.path):
        _check_finite(tensors)
    return replace(checkpoint, tensors=tensors)


def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Writes one of our files (.safetensors) or the published layout (.pth, .pt, .ckpt), whole or not at all.

    The published layout has no place for the metadata.
    """
    path = Path(path)
    if path.suffix.lower() in OURS:
        tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
        config = replace(checkpoint.metadata, config=asdict(checkpoint.config))
        strings = {PREFIX + "format": checkpoint.format.name, PREFIX + "version": str(VERSION)}
        with written_whole(path) as partial:
            save_file(tensors, partial, strings | config.dump())
    elif path.suffix.lower() in PUBLISHED:
        format = checkpoint.format
        published: dict[str, Any] = publish(format.table, checkpoint.tensors)
        if format.container is not None:
            published = {**format.container_extras, format.container: published}
        with written_whole(path) as partial:
            torch.save(published, partial)
    else:
        raise ValueError(
            f"{path} has the suffix {path.suffix!r}, expected {', '.join(OURS)} for one of our files or "
            f"{', '.join(PUBLISHED)} for the published layout. Rename the output."
        )


def check_head(head: Checkpoint, model: Checkpoint) -> str | None:
    """Checks that `head` belongs to `model`. Returns what could not be verified, None if everything was.

    Raises:
        ValueError: it is a head for another format, another width or other weights.
    """
    if head.format.model != model.format.name:
        raise ValueError(
            f"{head.name} is a {head.format.title}, and {model.name} is a {model.format.title}: they do not go "
            "together. Pick the head that was trained for this model."
        )
    if head.config.model_width != model.config.width:
        raise ValueError(
            f"{head.name} is a {head.format.title} for models of width {head.config.model_width}, but {model.name} "
            f"has width {model.config.width}. Pick the head that was trained for this model."
        )
    expected = head.metadata.model_fingerprint
    if not expected:
        return (
            f"{head.name} does not say which model it was trained for: its width {model.config.width} fits "
            f"{model.name}, more could not be verified."
        )
    if expected != model.fingerprint:
        raise ValueError(
            f"{head.name} was trained for the model with fingerprint {expected}, but {model.name} has "
            f"{model.fingerprint}: same size, other weights. Pick the head that was trained for this model."
        )
    return None


def find(path: Path, kind: Kind | None = None) -> Path:
    """`path` itself, or if it is a folder the only file of a known format in it, else in its subfolders.

    A file counts by its published name, or as one of ours by its metadata.
    """
    if not path.is_dir():
        return path
    for pattern in ("*", "*/*"):
        found = sorted(file for file in path.glob(pattern) if _is_candidate(file, kind))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(file.relative_to(path)) for file in found)
            raise ValueError(f"{path} holds {len(found)} files that could be meant: {names}. Give one of them.")
    formats = [format for format in FORMATS.values() if kind in (None, format.kind)]
    names = ", ".join(name for format in formats for name in format.filenames)
    raise FileNotFoundError(
        f"{path} holds no {'checkpoint' if kind is None else KINDS[kind][2:]}: looked there and in its subfolders for "
        f"{names} and for .safetensors files of this project. Give the file itself."
    )


def _is_candidate(file: Path, kind: Kind | None) -> bool:
    formats = [format for format in FORMATS.values() if kind in (None, format.kind)]
    if file.suffix.lower() in OURS and file.is_file():
        return read_metadata(file).get(PREFIX + "format") in {format.name for format in formats}
    return file.is_file() and any(file.name in format.filenames for format in formats)


def _recognise(
    raw: Mapping[str, Any], metadata: Mapping[str, str]
) -> tuple[Format, dict[str, Tensor], list[str], bool]:
    """(format, tensors under our names, keys not understood, True: they were ours already)."""
    name = metadata.get(PREFIX + "format")
    if name is not None:
        version = metadata.get(PREFIX + "version", "")
        if name not in FORMATS or version != str(VERSION):
            raise ValueError(
                f"it has format {name!r} version {version!r}, expected version {VERSION} of one of {_listed()}. "
                "A newer version of this project may have written it: update."
            )
        return FORMATS[name], _only_tensors(raw), [], True
    for format in FORMATS.values():
        inner = raw.get(format.container) if format.container is not None else None
        tensors = inner if isinstance(inner, Mapping) else raw
        if all(mark in tensors for mark in format.marks):
            ours, unknown = rename(format.table, _only_tensors(tensors))
            return format, ours, unknown, False
    keys = ", ".join(repr(key) for key in list(raw)[:5])
    raise ValueError(f"it is none of {_listed()}. It holds {len(raw)} entries: {keys or 'none'}. Choose another file.")


def _only_tensors(raw: Mapping[Any, Any]) -> dict[str, Tensor]:
    for key, value in raw.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or not value.is_floating_point():
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"entry {key!r} is {found}, expected a tensor of floating point numbers.")
    return {key: value.detach() for key, value in raw.items()}


def _configure(
    format: Format, tensors: dict[str, Tensor], unknown: list[str], is_ours: bool, known: Mapping[str, Any]
) -> Any:
    """The configuration that the tensors show, having checked that they are exactly those it needs."""

    def name_of(key: str) -> str:
        return key if is_ours else published_name(format.table, key)

    names = {item.name for item in fields(format.config)}
    if stray := sorted(set(known) - names):
        raise ValueError(f"a {format.title} has no setting {stray[0]!r}, expected one of {sorted(names)}.")
    try:
        config = format.read_config(tensors, known)
    except MissingTensor as missing:
        raise ValueError(_mismatch(format, len(tensors), unknown, [name_of(missing.args[0])])) from missing
    found = json.loads(json.dumps(asdict(config)))
    if wrong := [key for key, value in known.items() if found[key] != value]:
        key = wrong[0]
        raise ValueError(f"{key} is said to be {known[key]!r}, but the tensors say {found[key]!r}.")
    needed = {k: v.shape for k, v in format.network(config, device="meta").state_dict().items()}
    unknown = unknown + [name_of(key) for key in tensors if key not in needed]
    missing = list(dict.fromkeys(name_of(key) for key in needed if key not in tensors))
    if unknown or missing:
        raise ValueError(_mismatch(format, len(tensors), unknown, missing))
    for key, shape in needed.items():
        if tensors[key].shape != shape:
            found_shape = tuple(tensors[key].shape)
            raise ValueError(f"tensor {name_of(key)!r} has shape {found_shape}, expected {tuple(shape)}.")
    return config


def _mismatch(format: Format, num_tensors: int, unknown: list[str], missing: list[str]) -> str:
    said = []
    if unknown:
        said.append(f"{len(unknown)} keys are not of a {format.title}: {_first_five(unknown)}")
    if missing:
        said.append(f"{len(missing)} of its keys are missing: {_first_five(missing)}")
    return f"{'; '.join(said)}. The file is of another model or damaged: choose another, or download it again."


def _first_five(keys: list[str]) -> str:
    shown = ", ".join(repr(key) for key in keys[:5])
    return shown if len(keys) <= 5 else f"{shown} and {len(keys) - 5} more"


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        # One sum is several times cheaper than a test of each value, and shows the same.
        if not tensor.float().sum().isfinite():
            raise ValueError(f"tensor {name!r} holds NaN or infinite values. The training of this file failed: choose another.")


def _check_metadata(metadata: Metadata, config: Any) -> None:
    num_classes = getattr(config, "num_classes", 0)
    if metadata.class_names and len(metadata.class_names) != num_classes:
        raise ValueError(f"its metadata name {len(metadata.class_names)} classes, but its tensors have {num_classes}.")


def _fingerprint(format: Format, tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits that tell trained weights apart, but not the types that they are stored in.

    Hashed are signs: a conversion between float32, float16 and bfloat16 changes any value, but no sign.
    """
    digest = hashlib.sha256()
    for name in format.fingerprint_keys:
        tensor = tensors[name]
        is_negative = torch.signbit(tensor.flatten()[:FINGERPRINT_VALUES].float())
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(is_negative.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _listed() -> str:
    return ", ".join(f"{format.title} ({name})" for name, format in FORMATS.items())


@contextmanager
def _naming(path: Path | None) -> Iterator[None]:
    """Puts the file's name in front of errors."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path or 'this checkpoint'}: {error}") from error
