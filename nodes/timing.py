"""How long a run took, and how many times as long it would have taken with full passes alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch


class StepClock:
    """Times the steps of a run without making the host wait for the device."""

    def __init__(self, device: torch.device):
        self.is_cuda = device.type == "cuda"
        self.marks = [self._mark()]
        self.was_full: list[bool] = []

    def tick(self, was_full: bool) -> None:
        """Note the end of a step."""
        self.marks.append(self._mark())
        self.was_full.append(was_full)

    def seconds(self) -> tuple[list[float], list[float]]:
        """Return the seconds of each full pass, and of each other step."""
        if self.is_cuda:
            self.marks[-1].synchronize()
        steps = zip(pairwise(self.marks), self.was_full, strict=True)
        taken = [(self._between(*marks), was_full) for marks, was_full in steps]
        return [s for s, was_full in taken if was_full], [
            s for s, was_full in taken if not was_full
        ]

    def _mark(self) -> Any:
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, a: Any, b: Any) -> float:
        return a.elapsed_time(b) / 1000 if self.is_cuda else b - a


class Work(NamedTuple):
    """What runs of one model must have in common to be compared."""

    of_a_pass: Hashable  # what the time of a full pass depends on: size, batch, conditions, patches
    num_steps: int
    num_to_make: tuple[int, ...]  # tokens of each image


@dataclass
class Seen:
    """Seconds of one model that were measured in this process."""

    full_pass: dict[Hashable, float] = field(default_factory=dict)  # by `Work.of_a_pass`
    vanilla: dict[Work, float] = field(default_factory=dict)


class Speed(NamedTuple):
    """How many times as fast as vanilla a run was."""

    ratio: float
    is_measured: bool  # True: a vanilla run of the same work was timed. False: estimated by the time of a full pass
    seconds: float  # of the run, without what the first full pass took longer than the others

    def __str__(self) -> str:
        return f"{'' if self.is_measured else 'about '}{self.ratio:.1f}x vanilla"


SEEN: WeakKeyDictionary[Any, Seen] = WeakKeyDictionary()  # by model


def speed_of(clock: StepClock, work: Work, seen: Seen) -> Speed | None:
    """Compare a run with vanilla, and remember what it took.

    Medians stand for the passes of a kind, and the first full pass counts as the others do: it also loads weights and
    chooses kernels, with and without an accelerator.

    Returns:
        None: no full pass but the first was ever timed, or the run made nothing.
    """
    full, short = clock.seconds()
    if len(full) > 1:
        seen.full_pass[work.of_a_pass] = statistics.median(full[1:])
    full_pass = seen.full_pass.get(work.of_a_pass)
    if full_pass is None or not full:
        return None
    taken = full_pass * len(full) + (statistics.median(short) * len(short) if short else 0)
    if not short:
        seen.vanilla[work] = taken
    vanilla = seen.vanilla.get(work)
    if vanilla is None:
        return Speed(full_pass * (len(full) + len(short)) / taken, False, taken)
    return Speed(vanilla / taken, True, taken)
