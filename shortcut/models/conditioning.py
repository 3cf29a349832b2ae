"""Checks of ComfyUI's CONDITIONING that several conditioners need. It is data: nothing here imports ComfyUI."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .architecture import Conditioning


def only_row(conditioning: Conditioning, name: str) -> tuple[Tensor, dict[str, Any]]:
    """Return the only row of a CONDITIONING and its entries; `name` is the input's, for messages."""
    if len(conditioning) != 1:
        raise ValueError(
            f"{name} combines {len(conditioning)} conditions, expected one. Wire one directly."
        )
    row, entries = conditioning[0]
    return row, entries
