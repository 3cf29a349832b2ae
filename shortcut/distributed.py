"""This process among those that torchrun started, and how they meet.

torchrun stops all others when one ends with an error.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(days=7)  # of a process for the others


@dataclass(frozen=True, slots=True)
class World:
    """Number `rank`, from 0, of `size` processes that do one thing together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> World:
        """As torchrun's environment says; without it this process is alone."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    def share(self, num_rows: int, what: str = "rows") -> slice:
        """This process's part of `num_rows` rows.

        Args:
            what: the rows, for the message.

        Raises:
            ValueError: not every process would get as many.
        """
        if num_rows % self.size:
            raise ValueError(
                f"{num_rows} {what} cannot be shared out evenly among {self.size} processes. Use a number of "
                f"processes that divides {num_rows}."
            )
        part = num_rows // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


ALONE = World()


@contextlib.contextmanager
def meeting(world: World, device_type: str = "cpu") -> Iterator[Callable[[Any], list[Any]]]:
    """A function that gives every process what all gave to it, in their order, when all have called it.

    Args:
        device_type: "cuda": tensors on the GPUs can be exchanged meanwhile too, as
            DistributedDataParallel does.
    """
    if world.size == 1:
        yield lambda mine: [mine]
        return
    import torch.distributed  # not every build of PyTorch has it

    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)

    def gather(mine: Any) -> list[Any]:
        all_of_them: list[Any] = [None] * world.size
        torch.distributed.all_gather_object(all_of_them, mine)
        return all_of_them

    try:
        yield gather
    finally:
        torch.distributed.destroy_process_group()


def from_first(world: World, make: Callable[[], Any]) -> Any:
    """What `make` gives in the first process, in all of a meeting."""
    if world.size == 1:
        return make()
    import torch.distributed

    made = [make() if world.rank == 0 else None]
    torch.distributed.broadcast_object_list(made)
    return made[0]
