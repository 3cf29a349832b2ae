"""The log of a training: figures as JSON lines beside its checkpoint, and in words with the time left."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

Figures = dict[str, float]


def log_of(checkpoint: Path) -> Path:
    """Return where the log of a training lies: JSON lines."""
    return checkpoint.with_suffix(".jsonl")


def read_log(checkpoint: Path) -> list[Figures]:
    """Return the figures logged so far; a line that was cut off does not count."""
    path, logged = log_of(checkpoint), []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            logged.append(json.loads(line))
    return logged


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
