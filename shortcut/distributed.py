"""Read the ranks that torchrun gives, and join the process group.

torchrun stops all others when one ends with an error.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

TIMEOUT = timedelta(days=7)  # of a process that waits for the others


@dataclass(frozen=True, slots=True)
class Ranks:
    """Name this process: its number, from 0, and the number of processes."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """Read torchrun's environment; without it this process is alone."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    def share(self, num_rows: int, what: str = "rows") -> slice:
        """Return this process's part of `num_rows` rows.

        Args:
            what: the rows, for the message.

        Raises:
            ValueError: not every process would get as many.
        """
        if num_rows % self.world_size:
            raise ValueError(
                f"{num_rows} {what} cannot be shared out evenly among {self.world_size} processes. Use a number of "
                f"processes that divides {num_rows}."
            )
        part = num_rows // self.world_size
        return slice(self.rank * part, (self.rank + 1) * part)


ALONE = Ranks()


@contextlib.contextmanager
def process_group(ranks: Ranks, device_type: str = "cpu") -> Iterator[Callable[[Any], list[Any]]]:
    """Join the process group. Yields a function that gathers a value of every process, in their order.

    Args:
        device_type: "cuda": tensors on the GPUs can be exchanged meanwhile too, as
            DistributedDataParallel does.
    """
    if ranks.world_size == 1:
        yield lambda mine: [mine]
        return
    import torch.distributed  # not every build of PyTorch has it

    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=TIMEOUT)

    def gather(mine: Any) -> list[Any]:
        gathered: list[Any] = [None] * ranks.world_size
        torch.distributed.all_gather_object(gathered, mine)
        return gathered

    try:
        yield gather
    finally:
        torch.distributed.destroy_process_group()


def from_first(ranks: Ranks, make: Callable[[], Any]) -> Any:
    """Return in all processes what `make` returns in the first."""
    if ranks.world_size == 1:
        return make()
    import torch.distributed

    made = [make() if ranks.rank == 0 else None]
    torch.distributed.broadcast_object_list(made)
    return made[0]
