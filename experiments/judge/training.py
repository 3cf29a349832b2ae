"""Train the judge on pictures of scenes, some of them blurred and noisy.

B  images    C  colour channels    Y, X  pixel rows, columns
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.judge.reader import UNSURE, Reader, read, save, targets
from experiments.scenes.captions import describe
from experiments.scenes.claims import holds
from experiments.scenes.drawing import pixels_of
from experiments.scenes.facts import seen_facts
from experiments.scenes.scene import compose
from shortcut.train.fit import Recipe, fit

RECIPE = Recipe(
    iterations=2500, lr=2e-3, warmup=100, weight_decay=0.02, ema=0.998, checkpoint_every=100
)
BATCH_SIZE, NUM_SEEDS = 32, 1_000_000
FIRST_TEST_SEED, NUM_TEST = 30_000_000, 1000
MAX_NOISE = 0.06  # standard deviation, for pixels in [-1, 1]


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures and what `Reader` should say of them."""

    pixels_BCYX: Tensor
    wanted: dict[str, Tensor]


def loss_of(network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the cross-entropy summed over all that is read, and the share of pictures on which each is read right."""
    logits, loss, figures = network(batch.pixels_BCYX), torch.zeros(()), {}
    for name, wanted in batch.wanted.items():
        found = logits[name].float()
        loss = loss + F.cross_entropy(found, wanted, ignore_index=UNSURE, reduction="sum")
        is_right = (found.argmax(1) == wanted) | (wanted == UNSURE)
        figures[name] = is_right.view(len(wanted), -1).all(1).float().mean()
    return loss / len(batch.pixels_BCYX), figures


def degraded(pixels_BCYX: Tensor, generator: torch.Generator) -> Tensor:
    """Blur some pictures and add noise: what a VQ decoder may do must not change the verdict."""
    num = len(pixels_BCYX)
    blurred = F.avg_pool2d(F.pad(pixels_BCYX, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    # Half of the pictures stay sharp.
    amount = (2 * torch.rand(num, 1, 1, 1, generator=generator) - 1).clamp(min=0)
    deviation = MAX_NOISE * torch.rand(num, 1, 1, 1, generator=generator)
    noise = torch.randn(pixels_BCYX.shape, generator=generator)
    return pixels_BCYX.lerp(blurred, amount) + deviation * noise


def train(directory: Path) -> Reader:
    """Train with checkpoints in `directory`. Returns the averaged network."""

    def draw_batch(generator: torch.Generator) -> Batch:
        seeds = torch.randint(NUM_SEEDS, (BATCH_SIZE,), generator=generator).tolist()
        scenes = [compose(seed) for seed in seeds]
        wanted = targets(seen_facts(scene) for scene in scenes)
        return Batch(degraded(pixels_of(scenes), generator), wanted)

    network = Reader.initialised(RECIPE.seed)
    return fit(network, draw_batch, loss_of, RECIPE, checkpoint=directory / "judge.ckpt")


def make(directory: Path, path: Path, through: Callable[[Tensor], Tensor]) -> None:
    """Train and write the judge, with the share of true claims that it confirms, on pictures and `through` the VQ."""
    reader = train(directory)
    figures = {
        "captions": accuracy(reader),
        "captions through the VQ model": accuracy(reader, through=through),
    }
    trained = {"iterations": RECIPE.iterations, "seed": RECIPE.seed, "accuracy": figures}
    save(path, reader, trained)


def accuracy(
    reader: Reader, num: int = NUM_TEST, through: Callable[[Tensor], Tensor] = lambda x: x
) -> float:
    """Return the share of fresh pictures on which all claims of a caption are confirmed.

    Args:
        through: what happens to the pixels first.
    """
    right = 0
    for start in range(FIRST_TEST_SEED, FIRST_TEST_SEED + num, 50):
        seeds = range(start, min(start + 50, FIRST_TEST_SEED + num))
        scenes = [compose(seed) for seed in seeds]
        found = read(reader, through(pixels_of(scenes)))
        for seed, scene, facts in zip(seeds, scenes, found, strict=True):
            right += all(holds(claim, facts) for claim in describe(scene, seed).claims)
    return right / num
