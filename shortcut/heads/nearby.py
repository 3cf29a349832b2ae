"""What new tokens say to the positions around them, before a head's blocks: a depth-wise convolution over the grid.

The heads of the paper find the neighbours of a position by attention alone, which small ones learn slowly: after 400
iterations on the shipped model such a head had removed 2 % of the divergence of its codes, with this part 8 %.

    B  sequences    N  tokens just revealed    L  image tokens, rows x columns    D  width of the model, or of the head
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..formats import Tensors, sizes


class Nearby(nn.Module):
    """Projected new tokens on an empty grid, convolved channel by channel, then mixed.

    Args:
        kernel: side of the neighbourhood, in codes; odd.
        operations, tensor: as for the heads.
    """

    def __init__(self, model_width: int, width: int, kernel: int, operations: Any, **tensor: Any):
        super().__init__()
        self.proj_in = operations.Linear(model_width, width, **tensor)
        self.around = operations.Conv2d(
            width, width, kernel, padding=kernel // 2, groups=width, **tensor
        )
        self.mix = operations.Linear(width, width, **tensor)

    def forward(self, new_BND: Tensor, index_BN: Tensor, rows: int, columns: int) -> Tensor:
        """What to add to the image positions: (B, L, D).

        Args:
            new_BND: the model's input embeddings of the new tokens; N may be 0.
            index_BN: where they stand among the image tokens.
        """
        new_BND = self.proj_in(new_BND)
        empty_BLD = new_BND.new_zeros(len(new_BND), rows * columns, new_BND.shape[-1])
        grid_BLD = empty_BLD.scatter(1, index_BN.unsqueeze(-1).expand_as(new_BND), new_BND)
        grid_BDhw = grid_BLD.transpose(1, 2).unflatten(2, (rows, columns))
        return self.mix(F.gelu(self.around(grid_BDhw).flatten(2).transpose(1, 2)))


def kernel_of(tensors: Tensors) -> int:
    """Side of the neighbourhood by the tensors of a head; 0 = it has no such part.

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
