"""How much memory a device has, compared with what a run will take before it begins."""

from __future__ import annotations

import logging
import os

import torch

logger = logging.getLogger(__name__)


def memory_of(device: torch.device) -> tuple[int, int] | None:
    """Return the bytes of a device that are free, and all of them; None = it does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
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
    advice = "Use --sequential, --dtype bfloat16, fewer or smaller images"
    if needed > whole:
        raise ValueError(f"{said} {whole / 1e9:.1f} GB in all. {advice}.")
    if needed > free:
        logger.warning("%s %.1f GB free. It may run out of memory. %s.", said, free / 1e9, advice)
