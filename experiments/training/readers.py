"""Train the last features of a model of scenes to show more than codes, by linear readers.

- Position: the row and the column of each token. A model trained on codes alone showed rows (R2 0.89) but hardly
  columns (R2 0.29), and a shortcut head cannot look for new tokens near a position that it does not know.
- Kind: what stands there (`scenes.kinds`). Many codes look alike, and what tells a red house from a blue one is a
  small part of their cross-entropy.

    B  images    L  image tokens    D  model width    K  kinds of things
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.scenes.kinds import KINDS
from shortcut.grid import Grid

POSITION_WEIGHT, KINDS_WEIGHT = 0.3, 2.0


class Readers(nn.Module):
    """Linear readers of each position's row, column and kind of thing; they are not kept."""

    def __init__(self, width: int, grid: Grid, num_kinds: int = len(KINDS)):
        super().__init__()
        self.grid = grid
        self.position = nn.Linear(width, sum(grid))
        self.kind = nn.Linear(width, num_kinds)

    def loss(
        self, features_BLD: Tensor, kind_BL: Tensor, kinds_weight: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted cross-entropy of what is read from the last features, and the parts without weights."""
        rows, columns = self.grid
        index_BL = torch.arange(rows * columns).expand(kind_BL.shape)
        row_BVL, column_BVL = self.position(features_BLD).float().movedim(-1, 1).split(self.grid, 1)
        position = F.cross_entropy(row_BVL, index_BL // columns) + F.cross_entropy(
            column_BVL, index_BL % columns
        )
        kinds = F.cross_entropy(self.kind(features_BLD).float().movedim(-1, 1), kind_BL)
        loss = POSITION_WEIGHT * position + kinds_weight * kinds
        return loss, {"position": position, "kinds": kinds}
