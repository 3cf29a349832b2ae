"""Some tokens of sequences: taken out, or changed where they stand.

B  sequences    S  tokens of a sequence    M  places    D  width
"""

from __future__ import annotations

import torch
from torch import Tensor


def at_places(x_BSD: Tensor, place_BM: Tensor | None) -> Tensor:
    """What stands at the places `place_BM` of each sequence: (B, M, D). None = all, as it is."""
    if place_BM is None:
        return x_BSD
    # Whole rows are copied: `gather` goes element by element, which takes several times as long on a CPU.
    rows = x_BSD.flatten(0, 1).index_select(0, _row(place_BM, x_BSD.shape[1]))
    return rows.unflatten(0, place_BM.shape)


def added_at(x_BSD: Tensor, place_BM: Tensor | None, change_BMD: Tensor) -> Tensor:
    """The sequences with `change_BMD` added at the places `place_BM`, each named once. None = everywhere."""
    if place_BM is None:
        return x_BSD + change_BMD
    row = _row(place_BM, x_BSD.shape[1])
    return x_BSD.flatten(0, 1).index_add(0, row, change_BMD.flatten(0, 1)).view_as(x_BSD)


def _row(place_BM: Tensor, length: int) -> Tensor:
    """Which rows (B * M,) of sequences laid end to end stand at `place_BM`."""
    start_B1 = length * torch.arange(len(place_BM), device=place_BM.device).unsqueeze(1)
    return (place_BM + start_B1).flatten()
