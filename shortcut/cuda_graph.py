"""Recorded runs: the kernels of a whole run as one CUDA graph, which one call starts.

A small model does not fill a card. MaskGIT-512 takes 0.115 s of an H100 for 8 of 32 full passes
(experiments/RESULTS.md), of which its products need 0.016; the rest is the launching of some thousand kernels. All that
a run does follows from its plan and from shapes, so it can be recorded with everything in it: passes, head, draws.

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

from .generate import Made, Run, StartRun

MOST = 4  # recordings that are kept


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded run."""

    run: Run  # kept with all that it reads besides its inputs
    inputs: tuple[Tensor, ...]  # where it reads them
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

    def start(self, name: Hashable) -> StartRun:
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
            recording = Recording(run, mine, self.record(run, mine))
        self.kept[key] = recording
        return recording.made_of(inputs)


class Graphs:
    """Records runs as CUDA graphs of one device, which work one after the other in the same memory."""

    def __init__(self) -> None:
        self.pool: Any = None
        self.aside: Any = (
            None  # the stream of all recordings, as torch asks where they share memory
        )

    def __call__(self, run: Run, inputs: tuple[Tensor, ...]) -> Callable[[], Made]:
        """Run once, so that nothing is set up while recording, then record. Returns what starts the recording.

        Raises:
            RuntimeError: something in the run cannot be recorded.
        """
        with torch.cuda.device(inputs[0].device):
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            self.aside = self.aside or torch.cuda.Stream()
            self.aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.aside):
                run(*inputs)
            torch.cuda.current_stream().wait_stream(self.aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=self.aside):
                made = run(*inputs)

        def replay() -> Made:
            graph.replay()
            return made

        return replay
