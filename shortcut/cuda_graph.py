"""Recorded runs: the kernels of a whole run as one CUDA graph, which one call starts.

A small model does not fill a card. MaskGIT-512 takes 0.115 s of an H100 for 8 of 32 full passes (RESULTS.md), of which
its products need 0.016; the rest is the launching of some thousand kernels. All that a run does follows from its plan
and from shapes, so it can be recorded with everything in it: passes, head, draws.

A recording reads its inputs (codes, mask, noise, conditions) and the weights where they were, so new inputs are copied
there, and weights must not move: hosts that move them, as ComfyUI does, cannot use it.

Source: PyTorch's notes on CUDA semantics, "CUDA Graphs".
Not known: the gain. Recordings were tested on CPUs, by the operations that they would hold, and not timed on a card.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

MOST = 4  # recordings that are kept


@dataclass(frozen=True, slots=True)
class Made:
    """What a run made."""

    codes_BL: Tensor
    is_finite: Tensor  # whether all logits were
    num_full: int  # full passes of the model


Run = Callable[..., Made]  # tensors, the conditions last -> what a run makes of them
# (what the run depends on besides shapes, the run, its inputs) -> what it made
Start = Callable[[Hashable, Run, Sequence[Any]], Made]


def unrecorded(key: Hashable, run: Run, inputs: Sequence[Any]) -> Made:
    """Start a run without recording it."""
    return run(*inputs)


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded run."""

    inputs: tuple[Tensor, ...]  # where it reads
    replay: Callable[[], Made]  # what it makes is overwritten by the next one

    def made_of(self, inputs: Sequence[Tensor]) -> Made:
        """Return what the run makes of other inputs of the same shapes."""
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        made = self.replay()
        return Made(made.codes_BL.clone(), made.is_finite.clone(), made.num_full)


class Recordings:
    """Starts runs by their recordings. The last `MOST` are kept, and share the memory of their passes.

    Args:
        record: (run, its inputs) -> what starts it again; None = as CUDA graphs.
    """

    def __init__(
        self, record: Callable[[Run, tuple[Tensor, ...]], Callable[[], Made]] | None = None
    ):
        self.record = record or Graphs()
        self.kept: dict[Hashable, Recording] = {}  # the last used last

    def start(self, name: Hashable) -> Start:
        """Return what starts runs by their recordings under all that their kernels depend on.

        Args:
            name: what a run depends on besides its key, shapes and types.

        Raises:
            ValueError: the conditions of a run are not tensors.
        """
        return partial(self._started, name)

    def _started(self, name: Hashable, key: Hashable, run: Run, inputs: Sequence[Any]) -> Made:
        if not all(isinstance(x, Tensor) for x in inputs):
            raise ValueError(
                "runs of this model cannot be recorded: its conditions are not single tensors. Leave the CUDA graph "
                "out (--cuda-graph)."
            )
        key = name, key, *((x.shape, x.dtype, x.device) for x in inputs)
        if (recording := self.kept.pop(key, None)) is None:
            while len(self.kept) >= MOST:
                del self.kept[next(iter(self.kept))]
            mine = tuple(x.clone() for x in inputs)
            recording = Recording(mine, self.record(run, mine))
        self.kept[key] = recording
        return recording.made_of(inputs)


class Graphs:
    """Records runs as CUDA graphs, which work one after the other in the same memory."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, run: Run, inputs: tuple[Tensor, ...]) -> Callable[[], Made]:
        """Run once, so that nothing is set up while recording, then record. Returns what starts the recording.

        Raises:
            RuntimeError: something in the run cannot be recorded.
        """
        with torch.cuda.device(inputs[0].device):
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                run(*inputs)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                made = run(*inputs)

        def replay() -> Made:
            graph.replay()
            return made

        return replay
