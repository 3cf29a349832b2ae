"""How much memory tensors take at most, measured on torch's meta device: without values, at any size.

Differs from a GPU: what a kernel takes for itself is not seen. `fused` stands for attention that keeps no scores.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Adds up the bytes of tensors made in it, as long as they live; `networks` are there already.

    `peak` is the most at a time; `peaks` the same for each part, see `during`.
    """

    def __init__(self, *networks: nn.Module):
        super().__init__()
        self.weights = [p.untyped_storage() for net in networks for p in net.parameters()]
        self.live: dict[int, Any] = {id(storage): None for storage in self.weights}
        self.now = self.peak = 0
        self.peaks: dict[str, int] = {}
        self.part: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in self.live:
                self._add(tensor.untyped_storage())
        return out

    def during(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with which `part` begins; it ends where another begins."""

        def watched(*args: Any) -> Any:
            self.part, self.peaks[part] = part, max(self.now, self.peaks.get(part, 0))
            return function(*args)

        return watched

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def gone(_: Any) -> None:
            del self.live[key]
            self.now -= size

        self.live[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
        if self.part is not None:
            self.peaks[self.part] = max(self.peaks[self.part], self.now)


def fused(q_BSD: Tensor, k_BTD: Tensor, v_BTD: Tensor, num_heads: int) -> Tensor:
    """Attention as the kernels of GPUs do it, without its values."""
    return torch.empty_like(q_BSD)
