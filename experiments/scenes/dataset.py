"""Render the training pictures of the shipped models once into one array file.

B  images    Y, X  pixel rows, columns    h, w  rows, columns of codes
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.scenes.drawing import draw
from experiments.scenes.scene import Scene, attributes, compose

SIZE = 96  # pixels a side
CHUNK = 500


def render(
    seeds: range, size: int = SIZE, compose: Callable[[int], Scene] = compose
) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures (B, Y, X, 3) uint8 and attribute labels (B, number of attributes) int64 of scenes."""
    scenes = [compose(seed) for seed in seeds]
    pixels = np.stack([np.asarray(draw(scene, size)) for scene in scenes])
    return pixels, np.array([list(attributes(scene).values()) for scene in scenes])


def make(
    directory: Path,
    num: int,
    first_seed: int,
    size: int = SIZE,
    compose: Callable[[int], Scene] = compose,
) -> None:
    """Render scenes `first_seed` .. `first_seed + num - 1` into `pixels.npy` and `labels.npy` below `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    starts = range(first_seed, first_seed + num, CHUNK)
    chunks = [range(s, min(s + CHUNK, first_seed + num)) for s in starts]
    with ProcessPoolExecutor() as pool:
        parts = list(pool.map(partial(render, size=size, compose=compose), chunks))
    np.save(directory / "pixels.npy", np.concatenate([p for p, _ in parts]))
    np.save(directory / "labels.npy", np.concatenate([a for _, a in parts]))


def load(directory: Path) -> tuple[Tensor, Tensor]:
    """Return pictures (B, Y, X, 3) uint8, mapped from disk, and labels (B, attributes), both made by `make`."""
    for name in ("pixels.npy", "labels.npy"):
        if not (directory / name).exists():
            raise FileNotFoundError(
                f"{directory / name} not found. Make it with: python -m experiments data (text-data for the text "
                f"model) --dir {directory.parent}"
            )
    pixels = np.load(directory / "pixels.npy", mmap_mode="c")
    return torch.from_numpy(pixels), torch.from_numpy(np.load(directory / "labels.npy"))


def to_network(pixels_BYXC: Tensor) -> Tensor:
    """Convert uint8 (B, Y, X, 3) to float32 (B, 3, Y, X) in [-1, 1]."""
    return pixels_BYXC.movedim(-1, 1).float().div(127.5).sub(1)
