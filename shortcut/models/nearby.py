"""What stands around each position, by depth-wise convolutions over the grid: of new tokens, and of features.

The heads of the paper find the neighbours of a position by attention alone, which small ones learn slowly, and their
self-attention takes a good part of their operations. What these parts gain: experiments/RESULTS.md.

    B  sequences    N  tokens just revealed    L  image tokens, rows x columns    M  image positions asked for
    D  width of the model, or of the head
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..gather import tokens_at
from .layout import Tensors, sizes


class Around(nn.Module):
    """A grid convolved channel by channel, then its channels mixed.

    Args:
        kernel: side of the neighbourhood, in codes; odd.
        operations, tensor: as for the heads.
    """

    def __init__(self, width: int, kernel: int, operations: Any, **tensor: Any):
        super().__init__()
        self.around = operations.Conv2d(
            width, width, kernel, padding=kernel // 2, groups=width, **tensor
        )
        self.mix = operations.Linear(width, width, **tensor)

    def forward(
        self, x_BLD: Tensor, rows: int, columns: int, index_BM: Tensor | None = None
    ) -> Tensor:
        """Return the change (B, M, D) of the image positions `index_BM`; None = of all."""
        grid_BDhw = x_BLD.transpose(1, 2).unflatten(2, (rows, columns))
        around_BLD = self.around(grid_BDhw).flatten(2).transpose(1, 2)
        return self.mix(F.gelu(tokens_at(around_BLD, index_BM)))


class Nearby(Around):
    """The same of new tokens, projected, on an empty grid. Arguments as for `Around`."""

    def __init__(self, model_width: int, width: int, kernel: int, operations: Any, **tensor: Any):
        super().__init__(width, kernel, operations, **tensor)
        self.proj_in = operations.Linear(model_width, width, **tensor)

    def of(self, new_BND: Tensor, index_BN: Tensor, rows: int, columns: int) -> Tensor:
        """Return the change (B, L, D) of the image positions.

        Args:
            new_BND: the model's input embeddings of the new tokens; N may be 0.
            index_BN: where they stand among the image tokens.
        """
        new_BND = self.proj_in(new_BND)
        empty_BLD = new_BND.new_zeros(len(new_BND), rows * columns, new_BND.shape[-1])
        index_BND = index_BN.unsqueeze(-1).expand_as(new_BND)
        return self(empty_BLD.scatter(1, index_BND, new_BND), rows, columns)


def kernel_of(tensors: Tensors) -> int:
    """Return side of the neighbourhood by the tensors of a head; 0 = it has no such part.

    Raises:
        ValueError: it is even, or no square.
    """
    name = "nearby.around.weight"
    if name not in tensors:
        return 0
    *_, height, width = sizes(tensors, name, 4)
    if height != width or height % 2 == 0:
        raise ValueError(
            f"tensor {name!r} looks at {height} x {width} codes, expected a square of an odd side."
        )
    return width
