"""How much memory a device has, compared with what a run will take before it begins."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)


def memory_of(device: torch.device) -> tuple[int, int] | None:
    """Return the bytes of a device that are free, and all of them; None = it does not say."""
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + idle, whole  # torch keeps what a run before took, for the next
    if device.type != "cpu":
        return None
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        free, whole = os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:  # free pages alone leave out what the cache of files would give back
                if line.startswith("MemAvailable:"):
                    free = int(line.split()[1]) * 1024
    except (AttributeError, OSError, ValueError, LookupError):  # not Linux
        return None
    return free, whole


def images_that_fit(needed: Callable[[int], float], num_images: int, room: float) -> int:
    """Return how many images of a batch to work on at once: all, or the most that fit, and at least one.

    Args:
        needed: bytes that a run of so many takes above the weights.
        room: bytes that there are for it.
    """
    return next((num for num in range(num_images, 1, -1) if needed(num) <= room), 1)


def check_memory(needed: float, device: torch.device) -> None:
    """Compare what a run needs above the weights with what there is.

    A run that may fit is only warned about: the count is an estimate, and a system can free memory.

    Raises:
        ValueError: it needs more than the device has at all.
    """
    if (memory := memory_of(device)) is None:
        return
    free, whole = memory
    said = f"the run takes about {needed / 1e9:.1f} GB beside the weights, and {device} has"
    advice = "Use --sequential, --dtype bfloat16, or smaller images"
    if needed > whole:
        raise ValueError(f"{said} {whole / 1e9:.1f} GB in all. {advice}.")
    if needed > free:
        logger.warning("%s %.1f GB free. It may run out of memory. %s.", said, free / 1e9, advice)


def images_at_once(needed: Callable[[int], float], num_images: int, device: torch.device) -> int:
    """Return how many images of a batch a device works on at once: those that fit into what is free now.

    Args:
        needed: as for `images_that_fit`.

    Raises:
        ValueError: not even one fits into what the device has at all.
    """
    memory = memory_of(device)
    num = num_images if memory is None else images_that_fit(needed, num_images, memory[0])
    check_memory(needed(num), device)
    if num < num_images:
        logger.info(
            "memory holds %d of %d images at a time: they are made in parts", num, num_images
        )
    return num
