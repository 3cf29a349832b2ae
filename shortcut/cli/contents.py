"""What decided a picture, by its content: digests of networks, conditions and files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..models.architecture import Branches
from ..pipeline import Pipeline

NUM_FIRST = 1024  # bytes of each tensor that are hashed as they are
DIGITS = 16

_digests: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # of networks, which do not change


def of_networks(pipeline: Pipeline) -> str:
    """Return a digest of all weights that make a picture, in the types that they are used in, and their sizes."""
    digest = hashlib.sha256()
    for file, network in (
        (pipeline.model_file, pipeline.model),
        (pipeline.vq_file, pipeline.vq),
        (pipeline.head_file, pipeline.used_head),
    ):
        if file is None or network is None:
            continue
        if network not in _digests:
            config = sorted(asdict(file.config).items())
            _digests[network] = f"{file.layout.name} {config} {_of_state(network)}"
        digest.update(_digests[network].encode())
    return digest.hexdigest()[:DIGITS]


def of_conditions(branches: Branches) -> str:
    """Return a digest of the first image's conditions, such as the tokens of its prompt."""
    named = [(str(i), _tensors_of(branch[:1])) for i, branch in enumerate(branches)]
    return of_tensors((name + field, row) for name, rows in named for field, row in rows)


def _tensors_of(condition: Any) -> list[tuple[str, Tensor]]:
    """Return the tensors that a condition is made of, by the names of its fields; of a tensor alone ""."""
    if isinstance(condition, Tensor):
        return [("", condition)]
    return [(item.name, getattr(condition, item.name)) for item in fields(condition)]


def of_file(path: Path) -> str:
    """Return the SHA-256 of a file. Raise OSError if it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def name_of(path: Path) -> str:
    """Return the name of a file without its folder, whichever system wrote the path."""
    return re.split(r"[\\/]", str(path))[-1]


def of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a digest of names, shapes, types, first bytes, and the sum of all bits: any one other value shows."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        values = tensor.detach().contiguous().flatten().view(torch.uint8)
        digest.update(values[:NUM_FIRST].cpu().numpy().tobytes())
        for piece in values.split(2**28):
            is_wide = piece.numel() % 4 == 0 and piece.storage_offset() % 4 == 0
            bits = piece.view(torch.int32) if is_wide else piece
            digest.update(str(int(bits.sum(dtype=torch.int64))).encode())
    return digest.hexdigest()[:DIGITS]


def _of_state(network: Any) -> str:
    state = network.state_dict()
    return of_tensors((n, v) for n, v in sorted(state.items()) if isinstance(v, Tensor))
