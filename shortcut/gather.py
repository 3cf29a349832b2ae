"""Rows of sequences: gathered, or added to or replaced where they stand.

B  sequences    S  tokens of a sequence    M  positions    D  width
"""

from __future__ import annotations

import torch
from torch import Tensor


def tokens_at(x_BSD: Tensor, position_BM: Tensor | None) -> Tensor:
    """Return the tokens (B, M, D) at `position_BM` of each sequence; None = all, unchanged."""
    if position_BM is None:
        return x_BSD
    if not x_BSD.is_contiguous():  # part of a common pass, all of which `flatten` would copy
        return x_BSD[_image(position_BM), position_BM]
    # index_select copies whole rows: `gather` goes element by element, several times as slow on a CPU.
    rows = x_BSD.flatten(0, 1).index_select(0, _row(position_BM, x_BSD.shape[1]))
    return rows.unflatten(0, position_BM.shape)


def added_at(x_BSD: Tensor, position_BM: Tensor | None, change_BMD: Tensor) -> Tensor:
    """Return the sequences with `change_BMD` added at distinct positions `position_BM`; None = everywhere."""
    if position_BM is None:
        return x_BSD + change_BMD
    row = _row(position_BM, x_BSD.shape[1])
    return x_BSD.flatten(0, 1).index_add(0, row, change_BMD.flatten(0, 1)).view_as(x_BSD)


def replaced_at(x_BSD: Tensor, position_BM: Tensor, rows_BMD: Tensor) -> Tensor:
    """Return the sequences with `rows_BMD` in the place of those at distinct positions `position_BM`."""
    return write_at(x_BSD.clone(), position_BM, rows_BMD)


def write_at(x_BSD: Tensor, position_BM: Tensor, rows_BMD: Tensor) -> Tensor:
    """Write `rows_BMD` at distinct positions `position_BM` of the sequences, in place, and return them."""
    row_B1 = _image(position_BM)
    rows_BMD = rows_BMD.to(x_BSD.dtype)
    if x_BSD.dtype.itemsize == 1:  # float8: not every device writes it by index
        x_BSD.view(torch.uint8).index_put_((row_B1, position_BM), rows_BMD.view(torch.uint8))
        return x_BSD
    return x_BSD.index_put_((row_B1, position_BM), rows_BMD)


def _row(position_BM: Tensor, length: int) -> Tensor:
    """Return the rows (B * M,) of `position_BM` in all sequences laid end to end."""
    return (position_BM + length * _image(position_BM)).flatten()


def _image(position_BM: Tensor) -> Tensor:
    """Return the number (B, 1) of each sequence."""
    return torch.arange(len(position_BM), device=position_BM.device).unsqueeze(1)
