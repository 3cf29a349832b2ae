"""Layers that several model files share with identical numerics.

Every network of this package is built from an `operations` namespace (`torch.nn`, or a host's own layers) and an
`attention` function, so that a host can bring weight offloading, quantized weights and its own attention kernels.

    B  images or sequences    S, T  query and key positions    D  width (all heads together)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

# (q_BSD, k_BTD, v_BTD, num_heads) -> out_BSD, unmasked softmax attention scaled by (D / num_heads) ** -0.5.
Attention = Callable[..., Tensor]


def sdpa(q_BSD: Tensor, k_BTD: Tensor, v_BTD: Tensor, num_heads: int) -> Tensor:
    """Unmasked multi-head attention by torch's own fused kernel. Returns (B, S, D)."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q_BSD, k_BTD, v_BTD))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class MultiHeadAttention(nn.Module):
    """Attention with biased projections; queries, keys and values come as given (no norm inside).

    Source: the arithmetic of torch.nn.MultiheadAttention with the packed projection split in three.
    """

    def __init__(
        self, width: int, num_heads: int, operations: Any, attention: Attention, **tensor: Any
    ):
        super().__init__()
        self.num_heads, self.attention = num_heads, attention
        self.query, self.key, self.value, self.out = (
            operations.Linear(width, width, **tensor) for _ in range(4)
        )

    def forward(self, x_BSD: Tensor, context_BTD: Tensor) -> Tensor:
        """Attends from `x_BSD` to `context_BTD`. Returns (B, S, D)."""
        q, k, v = self.query(x_BSD), self.key(context_BTD), self.value(context_BTD)
        return self.out(self.attention(q, k, v, self.num_heads))


class FeedForward(nn.Module):
    """Linear, GELU (erf), Linear."""

    def __init__(self, width: int, hidden: int, operations: Any, **tensor: Any):
        super().__init__()
        self.up = operations.Linear(width, hidden, **tensor)
        self.down = operations.Linear(hidden, width, **tensor)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BSD)))
