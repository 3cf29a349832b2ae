"""The judge of the world's pictures: it reads what stands where, and its features tell distributions apart.

B  images    C  channels of its features
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.judges.attributes import degraded
from experiments.judges.file import FOLDER, JudgeFile
from experiments.judges.reader import Batch, Reader, Sight, loss_of, read, targets
from experiments.scenes.dataset import to_network
from experiments.scenes.facts import holds
from experiments.world.captions import describe
from experiments.world.drawing import draw
from experiments.world.facts import GROUPS, seen_facts
from experiments.world.scene import PLACES, STYLES, TIMES, WEATHERS, Scene, compose
from shortcut.train.fit import Recipe, fit

PATH = FOLDER / "world-judge.safetensors"
SIGHT = Sight(
    classes={"time": TIMES, "biome": PLACES, "weather": WEATHERS, "style": STYLES},
    groups=GROUPS,
    num_columns=32,
    peak_window=5,
)
FILE = JudgeFile(
    "shortcut world reader",
    "world --stage judge",
    "groups",
    {**SIGHT.classes, **GROUPS},
    partial(Reader, sight=SIGHT),
)
WIDTHS = (24, 48, 64, 96, 128)
RECIPE = Recipe(
    iterations=2500, lr=2e-3, warmup=100, weight_decay=0.02, ema=0.998, checkpoint_every=100
)
BATCH_SIZE, NUM_SEEDS = 32, 1_000_000
FIRST_TEST_SEED, NUM_TEST = 30_000_000, 1000


def pictures(scenes: Sequence[Scene]) -> Tensor:
    """Return the pictures (B, 3, 128, 128) of scenes."""
    return to_network(torch.from_numpy(np.stack([np.asarray(draw(scene)) for scene in scenes])))


def train(directory: Path, recipe: Recipe = RECIPE) -> Reader:
    """Train with checkpoints in `directory`. Returns the averaged network."""

    def draw_batch(generator: torch.Generator) -> Batch:
        seeds = torch.randint(NUM_SEEDS, (BATCH_SIZE,), generator=generator).tolist()
        scenes = [compose(seed) for seed in seeds]
        wanted = targets((seen_facts(scene) for scene in scenes), SIGHT)
        return Batch(degraded(pictures(scenes), generator), wanted)

    network = FILE.initialised(recipe.seed, WIDTHS)
    return fit(network, draw_batch, loss_of, recipe, checkpoint=directory / "judge.ckpt")


def make(directory: Path, path: Path, through: Callable[[Tensor], Tensor]) -> None:
    """Train and write the judge, with the share of true claims that it confirms, on pictures and `through` the VQ."""
    reader = train(directory)
    figures = {
        "captions": accuracy(reader),
        "captions through the VQ model": accuracy(reader, through=through),
    }
    trained = {"iterations": RECIPE.iterations, "seed": RECIPE.seed, "accuracy": figures}
    FILE.save(path, reader, trained)


@torch.no_grad()
def accuracy(
    reader: Reader, num: int = NUM_TEST, through: Callable[[Tensor], Tensor] = lambda x: x
) -> float:
    """Return the share of fresh pictures on which all claims of a caption are confirmed."""
    right = 0
    for start in range(FIRST_TEST_SEED, FIRST_TEST_SEED + num, 50):
        seeds = range(start, min(start + 50, FIRST_TEST_SEED + num))
        scenes = [compose(seed) for seed in seeds]
        found = read(reader, through(pictures(scenes)), sight=SIGHT)
        for seed, scene, facts in zip(seeds, scenes, found, strict=True):
            right += all(holds(claim, facts) for claim in describe(scene, seed).claims)
    return right / num


@torch.no_grad()
def features(reader: Reader, pixels_BCYX: Tensor) -> np.ndarray:
    """Return features (B, C) of pictures, means over the columns."""
    parts = [reader.seen(part.clamp(-1, 1)).mean(2) for part in pixels_BCYX.split(50)]
    return torch.cat(parts).double().numpy()
