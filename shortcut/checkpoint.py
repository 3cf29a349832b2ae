"""Checkpoints: from a file to named tensors with their sizes, to a network, and back to a file.

A published file and one of ours become the same thing, a `Checkpoint`; only the data of their layout tells them apart.
Everything is strict: a missing or an unknown tensor is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from . import companions, kitchen, models, quantized, weight_formats
from .containers import INDEX_SUFFIX
from .files import FORMAT_KEY, OUR_SUFFIX, Metadata, find, read, write_safetensors
from .guard import naming
from .models.architecture import Architecture, Network
from .models.key_table import checked
from .models.layers import Attention, Bare, sdpa
from .models.layout import TEXT_PREFIX, Kind, Layout, configure
from .quantized import Target
from .recognition import VERSION, VERSION_KEY, bare, by_own_names, by_published_keys, our_layout
from .unwrap import SAVED, saved_metadata
from .values import check_finite, fingerprint
from .writing import written_whole

KINDS: dict[Kind, str] = {"model": "model", "vq": "VQ model", "head": "shortcut head"}
MAX_ENTRIES = 2**16  # of a file; Lumina-DiMOO has 292 tensors


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A network's weights under our names, strictly those that its configuration needs.

    The tensors may be mapped from the file, and networks built from them share them. For quantized
    weights they are what `quantized.py` describes.
    """

    layout: Layout
    config: Any
    tensors: Mapping[str, Tensor]
    fingerprint: str
    metadata: Metadata = field(default_factory=Metadata)
    path: Path | None = None
    quantized: Mapping[str, str] = field(default_factory=dict)  # {name of a weight: its format}
    # Of a head: fields of `Layout.from_model` that neither its file nor a model told: as published.
    assumed: frozenset[str] = frozenset()
    # Of a model saved by ComfyUI: {name: content} of what belongs beside it; see `companions.py`
    companions: Mapping[str, bytes] = field(default_factory=dict)
    # Of a model that answers in text: the tensors of `Layout.text_output`; empty = the file lacks them
    text: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        """The architecture of a model or a head."""
        return models.architecture_of(self.layout)

    @property
    def name(self) -> str:
        """The name for messages: the file's, or the folder's of a model in several files or folders."""
        if self.path is None:
            return f"this {self.layout.title}"
        is_folder = self.path.name.endswith(INDEX_SUFFIX) or self.folder != self.path.parent
        return (self.folder if is_folder else self.path).name

    @property
    def folder(self) -> Path:
        """The folder of all that was published with it: that of its file, or the one above a file in its subfolder."""
        assert self.path is not None
        subfolders = {PurePath(name).parent.name for name in self.layout.filenames} - {""}
        parent = self.path.parent
        return parent.parent if parent.name in subfolders else parent

    @property
    def dtype(self) -> torch.dtype:
        """The type that most of the weights have, quantized ones aside."""
        totals: dict[torch.dtype, int] = {}
        stored = quantized.members(self.quantized)
        for name, tensor in self.tensors.items():
            if name not in stored:
                totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.numel()
        return max(totals, key=lambda dtype: totals[dtype])

    @property
    def quantizable(self) -> Mapping[str, torch.Size]:
        """The names and shapes of the weights that may be quantized, in the network's order."""
        return self.layout.quantizable_weights(self.config)

    @property
    def num_parameters(self) -> int:
        """The number of the network's parameters."""
        extras = quantized.extras(self.quantized)
        return sum(
            quantized.num_values(tensor, self.quantized.get(name))
            for name, tensor in self.tensors.items()
            if name not in extras
        )

    def without_tensors(self) -> Checkpoint:
        """Return the description alone, to keep beside a network."""
        return replace(self, tensors={}, text={})

    def with_text(self) -> Checkpoint:
        """Return the checkpoint with the tensors of text among the others, as our files have them."""
        text = {TEXT_PREFIX + name: tensor for name, tensor in self.text.items()}
        return replace(self, tensors={**self.tensors, **text}, text={})

    def text_part(self) -> Checkpoint:
        """Return what only text needs of a model, as a checkpoint. Raises ValueError if there is nothing of it."""
        network = self.layout.text_output
        if network is None:
            raise ValueError(f"{self.name} is a {self.layout.title}, which makes images only.")
        if not self.text:
            raise ValueError(
                f"{self.name} makes images only: the part of its weights that makes text was left out of the file. "
                "Use the published folder, or convert it again."
            )
        layout = replace(self.layout, network=network, quantizable=())
        return replace(self, layout=layout, tensors=self.text, text={}, quantized={})

    def converted(
        self, target: Target, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) of all that `cast` gives, made one after the other.

        Raises:
            ValueError: as `cast`.
        """
        with naming(self.path):
            for name, tensor in self._recast(self.tensors, target, device):
                check_finite({name: tensor}, is_full=True)
                yield name, tensor

    def shapes(self, target: Target | None = None) -> dict[str, Tensor]:
        """Return the tensors on the meta device, as `target` says if given."""
        shapes = {name: tensor.to("meta") for name, tensor in self.tensors.items()}
        with naming(self.path):
            return shapes if target is None else dict(self._recast(shapes, target, "meta"))

    def _recast(
        self, tensors: Mapping[str, Tensor], target: Target, device: torch.device | str
    ) -> Iterator[tuple[str, Tensor]]:
        format = quantized.format_of(target)
        chosen = {} if format is None else formats_for(self, format)
        return quantized.recast(tensors, self.quantized, target, chosen, device)


def cast(
    checkpoint: Checkpoint,
    target: Target,
    device: torch.device | str = "cpu",
    through: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Checkpoint:
    """Return the checkpoint with all weights in a type, or a model's large ones in a quantized format.

    Args:
        device: quantizes, a tensor at a time; all of them come to lie where they were.
        through: what the tensors go through as they are made, such as a progress bar.

    Raises:
        ValueError: a value does not fit, or the weights cannot be taken from or to that format.
    """
    tensors = dict(through(checkpoint.converted(target, device)))
    format = quantized.format_of(target)
    chosen = {} if format is None else formats_for(checkpoint, format)
    return replace(checkpoint, tensors=tensors, quantized=chosen)


def formats_for(checkpoint: Checkpoint, format: str) -> dict[str, str]:
    """Return {weight: format} of a model that is to have a quantized format. Raises ValueError for other networks."""
    layout = checkpoint.layout
    if not layout.quantizable:
        raise ValueError(
            f"{format} is for the large weights of a model, and this is a {layout.title}. Choose float16 or bfloat16."
        )
    return kitchen.formats_of(checkpoint.quantizable, layout.lookups, format)


def load(
    path: str | Path, kind: Kind | None = None, *, model: Checkpoint | None = None, **known: int
) -> Checkpoint:
    """Read a published file or index of files, one of ours, or the only such file in a folder.

    Args:
        kind: what it must be; None = anything known.
        model: of a head, which takes from it what its own file does not state (`Layout.from_model`).
        known: config fields that no tensor shows (`num_heads`, `num_codes`), where neither the file
            nor a preset has them.

    Raises:
        FileNotFoundError: there is no such file, or none in the folder, or a part is missing.
        OSError: the system refuses to read it.
        ValueError: it is not a checkpoint of a known format, or not a sound one.
    """
    file = find(Path(path), models.layouts(kind))
    raw, metadata = read(file)
    return from_tensors(raw, metadata, file, kind, model=model, **known)


def from_tensors(
    raw: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    path: str | Path | None = None,
    kind: Kind | None = None,
    *,
    model: Checkpoint | None = None,
    **known: int,
) -> Checkpoint:
    """Do as `load`, with tensors that the host has read already.

    Args:
        raw: the dict that the file holds, or that its container holds.
        metadata: of the safetensors file, if it is one.
        path: for messages, and to find what lies beside the file.
        model, known: as for `load`.
    """
    path = Path(path) if path is not None else None
    metadata = metadata or {}
    with naming(path):
        if len(raw) > MAX_ENTRIES:
            raise ValueError(f"it has {len(raw)} entries, expected at most {MAX_ENTRIES}.")
        unknown: list[str] = []
        raw = bare(weight_formats.marked(raw, metadata), metadata, kind)
        if (saved := saved_metadata(raw)) is not None:
            metadata = saved
        files = companions.unpacked(raw)
        extra = {SAVED, *(companions.PREFIX + name for name in files)}
        raw = {key: value for key, value in raw.items() if key not in extra}
        weights, stored, formats = weight_formats.split(raw)
        layout = our_layout(metadata) if FORMAT_KEY in metadata else by_own_names(weights)
        is_published = layout is None
        if layout is None:
            layout, tensors, unknown = by_published_keys(weights, path)
            stored, formats = weight_formats.renamed(layout.table, stored, formats)
        else:
            tensors = {key: checked(key, value) for key, value in weights.items()}
        if kind not in (None, layout.kind):
            raise ValueError(
                f"it is a {layout.title}, expected a {KINDS[kind]}. Give it as the {KINDS[layout.kind]} instead."
            )
        described = Metadata.parse(metadata)
        beside: Mapping[str, Any] = {}
        if layout.read_beside is not None and path is not None and is_published:
            beside = layout.read_beside(path)
        inherited = _inherited(layout, model)
        config, tensors, text = configure(
            layout,
            tensors,
            described=described.config,
            beside=beside,
            known=known,
            inherited=inherited,
            unknown=unknown,
            is_published=is_published,
        )
        if formats or any(tensor.dtype in quantized.FLOAT8 for tensor in tensors.values()):
            network = layout.network(config, device="meta", operations=Bare)
            tensors, formats = weight_formats.settled(network, layout, tensors, stored, formats)
        check_finite({**tensors, **text})
        if layout.check_beside is not None and path is not None and is_published:
            layout.check_beside(path, config)
        num_names, num_classes = len(described.class_names), layout.num_classes(config)
        if num_names not in (0, num_classes):
            raise ValueError(f"its metadata name {num_names} classes, but it has {num_classes}.")
    weights = {name: tensors[name] for name in tensors.keys() - quantized.extras(formats)}
    told = {*inherited, *known, *described.config, *beside}
    return Checkpoint(
        layout,
        config,
        tensors,
        described.fingerprint or fingerprint(weights),
        replace(described, fingerprint="" if formats else described.fingerprint, unquantized=()),
        path,
        formats,
        frozenset(layout.from_model) - told,
        files,
        text,
    )


def _inherited(layout: Layout, model: Checkpoint | None) -> dict[str, Any]:
    """Return what a head takes from its model; nothing of a head for another architecture."""
    if model is None or layout != model.architecture.head:
        return {}
    return {name: getattr(model.config, name) for name in layout.from_model}


def pack(
    network: Network, layout: Layout, *, dtype: torch.dtype | None = None, **metadata: Any
) -> Checkpoint:
    """Return the checkpoint of a network.

    Args:
        dtype: of the weights; None = as they are, and then shared with the network.
        metadata: fields of `Metadata`.
    """
    tensors = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    checkpoint = Checkpoint(
        layout, network.config, tensors, fingerprint(tensors), Metadata(**metadata)
    )
    return checkpoint if dtype is None else cast(checkpoint, dtype)


def build(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    operations: Any = Bare,
    attention: Attention = sdpa,
    compute_dtype: torch.dtype | None = None,
) -> Network:
    """Build the network, in eval mode and without gradients.

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
    if operations is Bare and (why := quantized.why_not_held(device, checkpoint.tensors.values())):
        said = f"{checkpoint.name} has float8 weights, which {device} cannot hold ({why}): it makes them {dtype}."
        logging.getLogger(__name__).warning(said)
        checkpoint = cast(checkpoint, dtype)
    is_ours_to_compute = bool(checkpoint.quantized) and operations is Bare
    if is_ours_to_compute:
        operations = quantized.Operations
    options: dict[str, Any] = {"operations": operations, "attention": attention}
    if compute_dtype is not None:
        options["compute_dtype"] = compute_dtype
    network = checkpoint.layout.network(checkpoint.config, dtype=dtype, device="meta", **options)
    if is_ours_to_compute:
        with naming(checkpoint.path):
            quantized.check_computed(checkpoint.quantized)
            quantized.check_layers(network, checkpoint.quantized)
    stored = quantized.members(checkpoint.quantized)
    state = {
        name: tensor.to(device) if name in stored else tensor.to(device, dtype)
        for name, tensor in checkpoint.tensors.items()
    }
    network.load_state_dict(state, strict=True, assign=True)
    network.eval().requires_grad_(False)
    return network


def save(
    path: str | Path,
    checkpoint: Checkpoint,
    *,
    dtype: Target | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Write a checkpoint as one of our files, whole or not at all.

    It is written tensor by tensor, so that another type needs no second copy.

    Args:
        dtype, device: as for `cast`; dtype None = unchanged.

    Raises:
        ValueError: another suffix than .safetensors, or as `cast`.
    """
    path = Path(path)
    if path.suffix.lower() != OUR_SUFFIX:
        raise ValueError(
            f"{path} has the suffix {path.suffix!r}, expected {OUR_SUFFIX}. Rename the output."
        )
    checkpoint = checkpoint.with_text()
    tensors = checkpoint.tensors.items() if dtype is None else checkpoint.converted(dtype, device)
    with written_whole(path) as partial:
        format = None if dtype is None else quantized.format_of(dtype)
        metadata = metadata_of(
            checkpoint, {} if format is None else formats_for(checkpoint, format)
        )
        write_safetensors(partial, checkpoint.shapes(dtype), tensors, metadata)


def metadata_of(checkpoint: Checkpoint, more: Collection[str] = ()) -> dict[str, str]:
    """Return the metadata that our file of a checkpoint has.

    Args:
        more: names of weights that are quantized in the file, and not in the checkpoint.
    """
    described = replace(checkpoint.metadata, config=asdict(checkpoint.config))
    if names := {*checkpoint.quantized, *more}:
        kept = tuple(name for name in checkpoint.quantizable if name not in names)
        described = replace(described, fingerprint=checkpoint.fingerprint, unquantized=kept)
    return {FORMAT_KEY: checkpoint.layout.name, VERSION_KEY: VERSION, **described.dump()}
