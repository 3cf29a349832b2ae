"""Make the codes of the training pictures once, in files that a later run goes on from.

B  pictures    h, w  rows, columns of codes    L  codes of one
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.scenes.drawing import pixels_of
from experiments.scenes.edits import altered
from experiments.scenes.scene import Scene, compose
from shortcut.writing import written_whole

GRID = (16, 16)
NUM_PICTURES, NUM_EDITS, CHUNK = 40_000, 16_000, 1_000


def encode(codes_of: Callable[[Tensor], Tensor], directory: Path) -> None:
    """Write the codes of the training pictures and of the altered ones, in files that a later run goes on from.

    Args:
        codes_of: from pixels (B, 3, Y, X) to codes (B, h, w).
    """
    for name, num, scene_of in (
        ("pictures", NUM_PICTURES, compose),
        ("edits", NUM_EDITS, altered),
    ):
        folder = directory / name
        folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, num, CHUNK):
            path = folder / f"{start:06}.npy"
            if not path.exists():
                scenes = [scene_of(seed) for seed in range(start, start + CHUNK)]
                with written_whole(path) as partial, partial.open("wb") as file:
                    np.save(file, _codes(codes_of, scenes).numpy())


def _codes(
    codes_of: Callable[[Tensor], Tensor], scenes: list[Scene], batch_size: int = 50
) -> Tensor:
    """Return codes (B, L) int16 of the pictures of scenes."""
    parts = (scenes[i : i + batch_size] for i in range(0, len(scenes), batch_size))
    return torch.cat([codes_of(pixels_of(part)).flatten(1).to(torch.int16) for part in parts])


def load_codes(directory: Path, name: str) -> Tensor:
    """Return codes (B, L) that `encode` wrote.

    Raises:
        FileNotFoundError: it did not.
    """
    paths = sorted((directory / name).glob("*.npy"))
    if not paths:
        raise FileNotFoundError(f"{directory / name} has no codes. Run the stage codes first.")
    return torch.from_numpy(np.concatenate([np.load(path) for path in paths]))
