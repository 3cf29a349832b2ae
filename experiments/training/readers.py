"""Train the last features of a model of scenes to show more than codes, by linear readers.

- Position: the row and the column of each token. A model trained on codes alone showed rows (R2 0.89) but hardly
  columns (R2 0.29), and a shortcut head cannot look for new tokens near a position that it does not know.
- Label: what stands there (`facts.LABELS`). Many codes look alike, and what tells a red house from a blue one is a
  small part of their cross-entropy.

    B  images    L  image tokens    D  model width
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.scenes.facts import LABELS
from shortcut.grid import Grid

POSITION_WEIGHT, LABEL_WEIGHT = 0.3, 1.0


class Readers(nn.Module):
    """Linear readers of each position's row, column and label; they are not kept."""

    def __init__(self, width: int, grid: Grid):
        super().__init__()
        self.grid = grid
        self.position = nn.Linear(width, sum(grid))
        self.label = nn.Linear(width, len(LABELS))

    def loss(self, features_BLD: Tensor, label_BL: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted cross-entropy of what is read from the last features, and the parts without weights."""
        rows, columns = self.grid
        index_BL = torch.arange(rows * columns).expand(label_BL.shape)
        row_BVL, column_BVL = self.position(features_BLD).float().movedim(-1, 1).split(self.grid, 1)
        position = F.cross_entropy(row_BVL, index_BL // columns) + F.cross_entropy(
            column_BVL, index_BL % columns
        )
        label = F.cross_entropy(self.label(features_BLD).float().movedim(-1, 1), label_BL)
        loss = POSITION_WEIGHT * position + LABEL_WEIGHT * label
        return loss, {"position": position, "label": label}
