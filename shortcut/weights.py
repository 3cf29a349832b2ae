"""Checkpoints: from a file to named tensors with their sizes, to a network, and back to a file.

A published file and one of ours end as the same thing, a `Checkpoint`; only the format's data
(FORMAT in each network's file) tells them apart. Everything is strict: a tensor too few or too many
is an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from . import metadata as meta
from .files import read, read_metadata, written_whole
from .formats import Bare, Format, Kind, checked, configure, first_five, publish, recognise
from .heads import maskgit as maskgit_head
from .metadata import Metadata
from .models import lumina, lumina_vq, maskgit, maskgit_vqgan
from .models.layers import Attention, sdpa
from .schedule import Settings

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        maskgit.FORMAT,
        maskgit_vqgan.FORMAT,
        maskgit_head.FORMAT,
        lumina.FORMAT,
        lumina_vq.FORMAT,
    )
}
VERSION = "1"  # of our files; raised when an older reader would misread a newer file
KINDS: dict[Kind, str] = {"model": "model", "vq": "VQ model", "head": "shortcut head"}
FINGERPRINT_VALUES = 4096  # of each tensor
OURS, PUBLISHED = (".safetensors",), (".pth", ".pt", ".ckpt")


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
        totals: dict[torch.dtype, int] = {}
        for tensor in self.tensors.values():
            totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.numel()
        return max(totals, key=lambda dtype: totals[dtype])

    @property
    def num_parameters(self) -> int:
        """Of the network."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def without_tensors(self) -> Checkpoint:
        """The same for keeping beside a network: `check_head` and `settings` need no weights."""
        return replace(self, tensors={})


def load(path: str | Path, kind: Kind | None = None, **known: int) -> Checkpoint:
    """Reads a published file, one of ours, or the only such file in a folder.

    Args:
        kind: what it must be; None = anything known.
        known: config fields that no tensor shows (`num_heads`, `num_codes`), where neither the file
            nor a preset has them.

    Raises:
        FileNotFoundError: there is no such file, or none in the folder.
        ValueError: it is not a checkpoint of a known format, or not a sound one.
    """
    file = find(path, kind)
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
    with _naming(path):
        format, tensors, unknown = _published(raw) if is_published else _ours(raw, metadata)
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
        _check_finite(tensors)
        if format.check_beside is not None and path is not None and is_published:
            format.check_beside(path, config)
        num_names, num_classes = len(described.class_names), getattr(config, "num_classes", 0)
        if num_names not in (0, num_classes):
            raise ValueError(f"its metadata name {num_names} classes, but it has {num_classes}.")
    return Checkpoint(format, config, tensors, fingerprint(tensors), described, path)


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

    It shares the checkpoint's tensors where type and device agree: there is no second copy.

    Args:
        dtype: of the weights; None = as in the file.
        operations: namespace of layers, torch's own or a host's.
        attention: function with the signature of `layers.sdpa`.
        compute_dtype: of the activations, for networks that tell them apart; None = `dtype`.
    """
    dtype = dtype or checkpoint.dtype
    options: dict[str, Any] = {"operations": operations, "attention": attention}
    if compute_dtype is not None:
        options["compute_dtype"] = compute_dtype
    network = checkpoint.format.network(checkpoint.config, dtype=dtype, device="meta", **options)
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
    """Writes a checkpoint, whole or not at all.

    Args:
        path: .safetensors for one of our files; .pth, .pt or .ckpt for the published layout, which
            has no place for metadata.

    Raises:
        ValueError: another suffix, or the published layout of a format that keeps only a part of it.
    """
    path, format = Path(path), checkpoint.format
    suffix = path.suffix.lower()
    if suffix in OURS:
        described = replace(checkpoint.metadata, config=asdict(checkpoint.config))
        strings = {meta.FORMAT: format.name, meta.VERSION: VERSION, **described.dump()}
        tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
        with written_whole(path) as partial:
            save_file(tensors, partial, strings)
    elif suffix in PUBLISHED and format.narrow is not None:
        raise ValueError(
            f"{path}: the published layout of a {format.title} has rows that are dropped on loading "
            f"and cannot be written. Give the output the suffix {OURS[0]} for one of our files."
        )
    elif suffix in PUBLISHED:
        published: dict[str, Any] = publish(format.table, checkpoint.tensors)
        if format.container is not None:
            published = {**format.container_extras, format.container: published}
        with written_whole(path) as partial:
            torch.save(published, partial)
    else:
        raise ValueError(
            f"{path} has the suffix {suffix!r}, expected {', '.join(OURS)} for one of our files or "
            f"{', '.join(PUBLISHED)} for the published layout. Rename the output."
        )


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


def settings(model: Checkpoint) -> Settings:
    """The sampler settings that the model's file states; those of its original for the rest.

    Raises:
        ValueError: the file states one that does not exist or is out of range.
    """
    stated = {k: tuple(v) if isinstance(v, list) else v for k, v in model.metadata.defaults.items()}
    with _naming(model.path):
        try:
            found = replace(Settings(), **{**model.format.defaults, **stated})
            found.check()
        except (TypeError, ValueError) as error:
            raise ValueError(f"its metadata state unusable sampler settings: {error}") from error
    return found


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits that tell trained weights apart, but not the types that they are stored in.

    Hashed are names, shapes and the signs of the first values of each tensor: a conversion between
    float32, float16 and bfloat16 changes values, but no signs.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        is_negative = tensor.flatten()[:FINGERPRINT_VALUES].float().signbit()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(is_negative.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def find(path: str | Path, kind: Kind | None = None) -> Path:
    """`path` itself, or if it is a folder the only known file in it, else in its subfolders.

    A file counts by its published name, or as one of ours by its metadata.

    Raises:
        FileNotFoundError: there is none in the folder.
        ValueError: there are several.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    formats = [format for format in FORMATS.values() if kind in (None, format.kind)]
    for pattern in ("*", "*/*"):
        found = sorted(file for file in path.glob(pattern) if _is_of(file, formats))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(file.relative_to(path)) for file in found)
            raise ValueError(f"{path} holds {len(found)} such files: {names}. Give one of them.")
    names = ", ".join(name for format in formats for name in format.filenames)
    raise FileNotFoundError(
        f"{path} holds no {_either(formats)}. Looked there and in its subfolders for {names} and "
        "for our own .safetensors. Give the file itself."
    )


def _is_of(file: Path, formats: list[Format]) -> bool:
    if file.suffix.lower() in OURS:
        return read_metadata(file).get(meta.FORMAT) in {format.name for format in formats}
    return any(file.name in format.filenames for format in formats) and file.is_file()


def _published(raw: Mapping[str, Any]) -> tuple[Format, dict[str, Tensor], list[str]]:
    """(format, tensors under our names, unknown keys)."""
    recognised = recognise(FORMATS.values(), raw)
    if recognised is None:
        raise ValueError(
            f"it is no {_either(FORMATS.values())}. Its {len(raw)} entries: {first_five(raw)}. "
            "Choose another file."
        )
    return recognised


def _ours(
    raw: Mapping[str, Any], metadata: Mapping[str, str]
) -> tuple[Format, dict[str, Tensor], list[str]]:
    """As `_published`, of one of our files."""
    name, version = metadata[meta.FORMAT], metadata.get(meta.VERSION)
    if name not in FORMATS or version != VERSION:
        raise ValueError(
            f"it has format {name!r} version {version}, expected version {VERSION} of "
            f"{', '.join(FORMATS)}. If a newer version of this project wrote it, update."
        )
    return FORMATS[name], {key: checked(key, value) for key, value in raw.items()}, []


def _either(formats: Iterable[Format]) -> str:
    return " or ".join(format.title for format in formats)


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        # One sum is several times cheaper than a test of each value, and shows the same.
        if not tensor.float().sum().isfinite():
            raise ValueError(
                f"tensor {name!r} holds NaN, infinite or, in {tensor.dtype}, too large values. "
                "Choose another file, or another type if this is a conversion."
            )


@contextmanager
def _naming(path: Path | None) -> Iterator[None]:
    """Puts the file in front of an error's text."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path or 'this checkpoint'}: {error}") from error
