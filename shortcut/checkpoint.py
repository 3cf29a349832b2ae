"""A checkpoint in memory, and the same in another type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import quantized
from .metadata import Metadata
from .models.layout import Bare, Format
from .shards import INDEX_SUFFIX
from .values import check_finite


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A network's weights under our names, strictly those that its configuration needs.

    The tensors may be mapped from the file, and networks built from them share them. For quantized
    weights they are what `quantized.py` describes.
    """

    format: Format
    config: Any
    tensors: Mapping[str, Tensor]
    fingerprint: str
    metadata: Metadata = field(default_factory=Metadata)
    path: Path | None = None
    quantized: Mapping[str, str] = field(default_factory=dict)  # {name of a weight: its format}

    @property
    def name(self) -> str:
        """For messages: the file's, or the folder's of a model in several files."""
        if self.path is None:
            return f"this {self.format.title}"
        return (self.path.parent if self.path.name.endswith(INDEX_SUFFIX) else self.path).name

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
    def num_parameters(self) -> int:
        """Of the network."""
        extras = quantized.extras(self.quantized)
        return sum(
            quantized.num_values(tensor, self.quantized.get(name))
            for name, tensor in self.tensors.items()
            if name not in extras
        )

    def without_tensors(self) -> Checkpoint:
        """The same for keeping beside a network: `check_head` and `settings` need no weights."""
        return replace(self, tensors={})

    def in_dtype(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of all that `cast` gives, made one after the other.

        Raises:
            ValueError: as `cast`.
        """
        with naming(self.path):
            for name, tensor in self._recast(self.tensors, dtype):
                check_finite({name: tensor}, is_full=True)
                yield name, tensor

    def layout(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The shapes and types of the tensors, in `dtype` if given, on the meta device."""
        shapes = {name: tensor.to("meta") for name, tensor in self.tensors.items()}
        with naming(self.path):
            return shapes if dtype is None else dict(self._recast(shapes, dtype))

    def _recast(
        self, tensors: Mapping[str, Tensor], dtype: torch.dtype
    ) -> Iterator[tuple[str, Tensor]]:
        names = linear_weights(self) if dtype in quantized.FLOAT8 else set()
        return quantized.recast(tensors, self.quantized, dtype, names)


def cast(checkpoint: Checkpoint, dtype: torch.dtype) -> Checkpoint:
    """The same with all weights in `dtype`. Float8 is for the linear weights in a model's blocks;
    the others stay as they are.

    Raises:
        ValueError: a value does not fit, or the weights cannot be taken from or to float8.
    """
    tensors = dict(checkpoint.in_dtype(dtype))
    format = quantized.FLOAT8.get(dtype)
    names = linear_weights(checkpoint) if format is not None else ()
    return replace(checkpoint, tensors=tensors, quantized=dict.fromkeys(names, format))


def linear_weights(checkpoint: Checkpoint) -> set[str]:
    """Names of the weights that may be float8. Raises ValueError if it is not a model's checkpoint."""
    format = checkpoint.format
    if format.kind != "model":
        raise ValueError(
            f"float8 is for the large weights of a model, and this is a {format.title}. Choose float16 or bfloat16."
        )
    network = format.network(checkpoint.config, device="meta", operations=Bare)
    return {
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("blocks.")
    }


@contextmanager
def naming(path: Path | None) -> Iterator[None]:
    """Puts the file in front of an error's text."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path or 'this checkpoint'}: {error}") from error
