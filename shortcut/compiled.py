"""Blocks of a pass compiled by torch.compile: a speed-up where it works, and never a failure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

InOrder = Callable[[nn.ModuleList], Iterable[Any]]  # as of `layers.BaseNetwork`


class Compiled:
    """Goes through the blocks of a pass, compiled. From the first that cannot be, they run as they are.

    Args:
        in_order: goes through them as they are.
        options: of torch.compile.
    """

    def __init__(self, in_order: InOrder, options: Mapping[str, Any]):
        self.in_order, self.options, self.is_on = in_order, options, True
        self.calls: dict[nn.Module, Callable[..., Tensor]] = {}

    def __call__(self, blocks: nn.ModuleList) -> Iterator[Any]:
        for block in self.in_order(blocks):
            yield partial(self._run, block)

    def _run(self, block: nn.Module, *inputs: Any) -> Tensor:
        if self.is_on:
            try:
                if block not in self.calls:
                    self.calls[block] = torch.compile(block, **self.options)
            except RuntimeError as error:  # no such backend; a Python that is too new
                self._give_up(error)
        if self.is_on:
            try:
                return self.calls[block](*inputs)
            except Exception as error:
                from torch._dynamo.exc import TorchDynamoException  # slow to import before its use

                if not isinstance(error, TorchDynamoException):
                    raise
                self._give_up(error)
        return block(*inputs)

    def _give_up(self, error: Exception) -> None:
        self.is_on = False
        reason = " ".join(str(error).split())[:300]
        logger.warning("torch.compile failed, the model runs as it is: %s", reason)
