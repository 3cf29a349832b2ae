"""How far a command is, on stderr: a bar on a terminal, and where that goes to a file a line now and then."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

SECONDS = 30.0  # between lines, and until the first
LINE = "{desc}{n_fmt}/{total_fmt} {unit}s, {elapsed} gone, {remaining} left{postfix}"


def progress_bar(*, is_shown: bool, unit: str, total: int | None = None) -> Any:
    """Return a bar of tqdm; with `is_shown` False it is not drawn."""
    options: dict[str, Any] = {"unit": unit, "total": total, "disable": not is_shown}
    if sys.stderr.isatty():
        return tqdm(file=sys.stderr, smoothing=0.05, **options)
    rarely = {"mininterval": SECONDS, "delay": SECONDS, "miniters": 1}
    return tqdm(file=_Lines(), bar_format=LINE, **rarely, **options)


class _Lines:
    """What tqdm writes over and over in one place, as lines."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()
