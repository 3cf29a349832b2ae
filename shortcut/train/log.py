"""The log of a training: figures as JSON lines beside its checkpoint, and in words with the time left."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..guard import parse_json

Figures = dict[str, float]
START = b'{"loss": '  # of each line


def log_of(checkpoint: Path) -> Path:
    """Return where the log of a training lies: JSON lines."""
    return checkpoint.with_suffix(".jsonl")


def read_log(checkpoint: Path) -> list[Figures]:
    """Return the figures logged so far; a line that was cut off, or has a damaged byte, does not count."""
    return [figures for line in _lines(checkpoint) if (figures := _figures(line)) is not None]


def check_log(checkpoint: Path) -> None:
    """Raise ValueError if there is a file in the place of the log that is none of a training."""
    lines = [line for line in _lines(checkpoint) if line.strip(b"\0 \r\t")]
    # Of a log that a kill cut there may be no whole line.
    if lines and not any(_figures(line) or START.startswith(line[: len(START)]) for line in lines):
        raise ValueError(
            f"{log_of(checkpoint)} is no log of a training, but would be overwritten by one. Give another name, or "
            "move that file."
        )


def add_to_log(checkpoint: Path, figures: Figures) -> None:
    """Add a line. Raise OSError if it cannot be written."""
    with log_of(checkpoint).open("ab+") as log:
        is_cut = False
        if log.tell() > 0:
            log.seek(-1, 2)
            is_cut = log.read(1) != b"\n"
        log.write((b"\n" if is_cut else b"") + line_of(figures).encode())


def line_of(figures: Figures) -> str:
    """Return figures as a line of a log."""
    return json.dumps(figures) + "\n"


def _lines(checkpoint: Path) -> list[bytes]:
    log = log_of(checkpoint)
    try:
        return log.read_bytes().split(b"\n") if log.is_file() else []
    except OSError:
        return []


def _figures(line: bytes) -> Figures | None:
    """Return what a line of a log holds; None = it is no such line, or not whole."""
    try:
        found: Any = parse_json(line)
    except ValueError:
        return None
    is_sound = isinstance(found, dict) and _is_count(found.get("iteration"))
    if not is_sound or not all(_is_number(value) for value in found.values()):
        return None
    return found if {"loss", "seconds_per_iteration"} <= found.keys() else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value) and value == int(value) and value > 0


def in_words(means: Figures, iterations: int) -> str:
    """Return figures as `fit` logs them, with the time left."""
    figures = "  ".join(f"{name} {v:.4g}" for name, v in means.items() if name != "iteration")
    return f"{means['iteration']}/{iterations}  {figures}  {time_left(means, iterations)}"


def time_left(means: Figures, iterations: int) -> str:
    """Return the time that the remaining iterations will take at the mean rate until then."""
    left = round((iterations - means["iteration"]) * means["seconds_per_iteration"])
    if left < 90:
        return f"{left} s left"
    minutes = round(left / 60)
    return f"{minutes} min left" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min left"
