"""Muon: steps of convolutions and matrices along the orthogonalised momentum, AdamW for all else.

Source: Jordan et al. 2024 (github.com/KellerJordan/Muon): momentum 0.95 with Nesterov, five steps of the Newton-Schulz
iteration with coefficients 3.4445, -4.7750, 2.0315. Scale of a step: Liu et al. 2025 (Moonlight), equation 4.
Differs: torch.optim.Muon takes matrices alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from shortcut.train.fit import Recipe

MOMENTUM, STEPS, COEFFICIENTS = 0.95, 5, (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.AdamW):
    """AdamW whose groups with `is_orthogonal` take orthogonalised steps instead, without weight decay."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore
        """Move all weights that have a gradient."""
        for group in self.param_groups:
            if not group["is_orthogonal"]:
                continue
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:  # AdamW reads a state back only with its step
                    state.update(step=torch.zeros(()), momentum=torch.zeros_like(weight))
                mean = state["momentum"]
                mean.lerp_(weight.grad, 1 - MOMENTUM)
                step = orthogonalised(weight.grad.lerp(mean, MOMENTUM).flatten(1))
                size = 0.2 * max(step.shape) ** 0.5
                weight.sub_(step.view_as(weight), alpha=group["lr"] * size)
                weight.grad = None  # AdamW leaves it alone
        super().step()


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return a matrix with the same singular vectors, its singular values all near 1."""
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = (x / (x.norm() + 1e-7)).bfloat16()
    for _ in range(STEPS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if is_tall else x).to(matrix.dtype)


def muon(network: nn.Module, recipe: Recipe, others_rate: float) -> Muon:
    """Return the optimizer of a network.

    Args:
        others_rate: learning rate of embeddings, norms and biases, by that of convolutions and matrices.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    matrices = {layer.weight for layer in layers}
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    groups = [
        {
            "params": [w for w in weights if (w in matrices) == is_orthogonal],
            "lr": recipe.lr * (1.0 if is_orthogonal else others_rate),
            "is_orthogonal": is_orthogonal,
        }
        for is_orthogonal in (True, False)
    ]
    return Muon(groups, betas=recipe.betas, weight_decay=0.0)
