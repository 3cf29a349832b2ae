"""The state of a training in a file, and the log beside it: read, checked to be of this training, written whole."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..containers import check_archive, check_torch
from ..writing import WriteError, locked, written_whole
from .log import Figures, add_to_log, check_log, line_of, log_of, read_log

logger = logging.getLogger(__name__)

SAVE_SECONDS = 600.0  # of work that a kill may cost where iterations are slow


class CheckpointError(OSError):
    """The state of a training cannot be saved."""


@dataclass(slots=True)
class StateFile:
    """The checkpoint and the log beside it; without a path there is neither."""

    path: Path | None
    described: Mapping[str, Any]  # the training
    is_writing: bool
    saved: int = 0  # iterations in the file
    saved_at: float = field(default_factory=lambda: time.perf_counter())

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from the file and its log, which must be ours, until the block ends.

        Raises:
            HeldError: another process is at work on them.
            ValueError: there is a file of another kind in the place of the log.
        """
        if self.path is None or not self.is_writing:
            yield
            return
        with locked(self.path, "a training"):
            check_log(self.path)
            yield

    def is_due(self) -> bool:
        """Return whether the file is so old that a kill would cost much."""
        return time.perf_counter() - self.saved_at >= SAVE_SECONDS

    @contextlib.contextmanager
    def read_by(self) -> Iterator[None]:
        """Turn whatever a damaged state raises in the block into one ValueError that names the file."""
        try:
            yield
        except Exception as error:  # a damaged pickle can raise anything
            raise ValueError(
                f"{self.path} is no checkpoint of a training, or damaged. Remove it to start again."
            ) from error

    def read(self) -> dict[str, Any] | None:
        """Return the state in the file, checked to be of this training; None = there is none."""
        if self.path is None or not self.path.exists():
            return None
        with self.read_by():
            check_torch(self.path)
            check_archive(self.path)
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            found = json.loads(state["recipe"])
            done, num_iterations = state["iteration"], int(found["iterations"])
            if type(done) is not int or not 0 <= done <= num_iterations:
                raise TypeError
        expected = self._stated()
        if wrong := [n for n in sorted({*found, *expected}) if found.get(n) != expected.get(n)]:
            told = "; ".join(f"{n} {found.get(n)}, now {expected.get(n)}" for n in wrong)
            raise ValueError(
                f"{self.path} was made by another recipe ({told}). Train as it was started, or give the new "
                "training another name, or remove the file."
            )
        self.saved = state["iteration"]
        return state

    def save(self, state: Any) -> None:
        """Write the state if it is newer than the file, whole or not at all.

        Raises:
            CheckpointError: it cannot be written; what was there stays.
        """
        if self.path is None or not self.is_writing or not state.is_whole:
            return
        if state.done <= self.saved:
            return
        dumped = state.dump()
        try:
            with written_whole(self.path) as partial:
                torch.save(dumped | {"recipe": json.dumps(self._stated())}, partial)
        except (OSError, RuntimeError) as error:  # torch gives the latter where the disk is full
            raise CheckpointError(self._unsaved(num_bytes(dumped), error)) from error
        self.saved, self.saved_at = state.done, time.perf_counter()

    def save_if_possible(self, state: Any) -> None:
        """Do as `save`, but only warn if it fails: an error that ended the training, or its result, matters more."""
        try:
            self.save(state)
        except CheckpointError as error:
            logger.warning("%s", error)

    def write_log(self, means: Figures) -> None:
        """Add a line to the log, if possible."""
        if self.path is None or not self.is_writing:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            add_to_log(self.path, means)
        except OSError as error:
            logger.warning("%s could not be written (%s)", log_of(self.path), error)

    def cut_log(self, done: int) -> None:
        """Take back what was logged after the checkpoint, which comes again."""
        if self.path is None or not self.is_writing:
            return
        log = log_of(self.path)
        if not log.exists():
            return
        kept = [means for means in read_log(self.path) if means["iteration"] <= done]
        try:
            with written_whole(log) as partial:
                partial.write_text("".join(map(line_of, kept)), encoding="utf-8")
        except OSError as error:
            logger.warning("%s could not be written (%s)", log, error)

    def advice_to_start_anew(self, state: Any) -> str:
        """Return advice for starting anew with another recipe; empty if nothing is in the way."""
        if self.path is None or not state.done:
            return ""
        return (
            f" Delete or rename {self.path} first, which keeps the weights before that iteration and goes on by the "
            "same recipe only, or give the new training another name."
        )

    def _unsaved(self, needed: int, error: Exception) -> str:
        """Return the message for a state of `needed` bytes that cannot be written."""
        assert self.path is not None
        reason, room = (str(error).splitlines() or [type(error).__name__])[0], ""
        if isinstance(error, WriteError):
            reason = error.reason
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self.path.parent).free
            room = f" and {free / 1e6:,.1f} MB are free"
            reason = "the disk is full" if free < needed else reason
        kept = f"iteration {self.saved} is kept" if self.saved else "nothing is kept"
        return (
            f"{self.path} could not be written ({reason}): it takes {needed / 1e6:,.1f} MB{room}. Of the training "
            f"{kept} to go on from. Free some room there, or allow writing."
        )

    def _stated(self) -> dict[str, str]:
        return {name: str(value) for name, value in sorted(self.described.items())}


def num_bytes(value: Any) -> int:
    """Return the bytes of all tensors in nested containers."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(num_bytes, value.values()))
    return sum(map(num_bytes, value)) if isinstance(value, list | tuple) else 0
