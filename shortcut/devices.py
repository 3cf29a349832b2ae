"""Devices by name, and what to do when one has no memory left."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import torch


def checked_devices(names: Sequence[str]) -> list[torch.device]:
    """Return the devices of these names. Raises ValueError as `checked_device`, and if two are the same."""
    devices: list[torch.device] = []
    for name in names:
        device = torch.empty(0, device=checked_device(name)).device  # "cuda" with its number
        if device in devices:
            raise ValueError(
                f"device {name!r} is named twice: every copy of the model takes a device of its own. Name others, such "
                "as --device cuda:0 --more-devices cuda:1."
            )
        devices.append(device)
    return devices


def checked_device(name: str) -> torch.device:
    """Return the device called `name`; under torchrun `cuda` is the one of this process.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.zeros(1, device=device).item()  # which a device without values, meta, cannot do
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {name!r} cannot be used here ({error}). Use --device cpu."
        ) from error
    return device


@contextlib.contextmanager
def advice_on_memory() -> Iterator[None]:
    """Say what to do when the device has no memory left."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RuntimeError(
            f"the device is out of memory. Use --sequential, --dtype bfloat16, smaller pictures or fewer at a time, or "
            f"convert the weights to float8. ({error})"
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory is exhausted: only CUDA has a type of its own for that.

    cuDNN and cuBLAS have their own words, also where they find no room for any way to compute.
    """
    marks = "out of memory", "not enough memory", "alloc_cpu", "ALLOC_FAILED", "find an engine"
    is_typed = isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)
    return is_typed or any(mark in str(error) for mark in marks)
