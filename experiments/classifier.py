"""The judge of the quality table: a small network that reads a scene's attributes off its picture.

Its penultimate features are also the space in which distributions of pictures are compared, as the
pool features of Inception are for photographs (Heusel et al. 2017, section 4.1).

    B  images    Y, X  pixel rows, columns    C  channels    D  features
"""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shortcut.train.fit import Recipe, fit

from .data import load as load_pictures
from .data import render, to_network
from .judge_file import JudgeFile
from .scenes import ATTRIBUTE_SIZES

logger = logging.getLogger(__name__)

FILE = JudgeFile("shortcut scene judge", "judge", "attributes", ATTRIBUTE_SIZES)
WIDTHS = (24, 48, 96, 128)
NUM_FEATURES = 64
RECIPE = Recipe(
    iterations=1000, lr=2e-3, warmup=100, weight_decay=0.02, ema=0.995, checkpoint_every=250
)
BATCH_SIZE = 64
MAX_SHIFT = 2  # pixels
MAX_NOISE = 0.06  # standard deviation, of pixels in [-1, 1]
FIRST_TEST_SEED, NUM_TEST = 30_000_000, 2000  # neither in training nor in the quality table


class Judge(nn.Module):
    """Pictures -> features -> one set of logits for each attribute of `scenes.ATTRIBUTE_SIZES`.

    Args:
        widths: channels of the levels; each level halves both sides.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        self.widths = tuple(widths)
        self.levels = nn.Sequential(*(Level(a, b) for a, b in pairwise((3, *widths))))
        self.features = nn.Linear(2 * widths[-1], NUM_FEATURES)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(NUM_FEATURES, size) for name, size in ATTRIBUTE_SIZES.items()}
        )

    def forward(self, pixels_BCYX: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Features (B, 64) and the logits (B, size) of each attribute, of RGB pixels in [-1, 1]."""
        x = self.levels(pixels_BCYX.contiguous(memory_format=torch.channels_last))
        pooled = torch.cat([x.mean((-1, -2)), x.amax((-1, -2))], 1)
        features_BD = F.gelu(self.features(pooled))
        return features_BD, {name: head(features_BD) for name, head in self.heads.items()}


class Level(nn.Module):
    """A convolution with a stride, 2 both ways if not said otherwise, then a residual one."""

    def __init__(self, num_in: int, num_out: int, stride: tuple[int, int] = (2, 2)):
        super().__init__()
        self.down = nn.Conv2d(num_in, num_out, 3, stride=stride, padding=1)
        self.norm_down = nn.GroupNorm(8, num_out)
        self.same = nn.Conv2d(num_out, num_out, 3, padding=1)
        self.norm_same = nn.GroupNorm(8, num_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_down(self.down(x)))
        return x + F.relu(self.norm_same(self.same(x)))


def initialised(seed: int, widths: tuple[int, ...] = WIDTHS) -> Judge:
    """A network with torch's initial weights by `seed`; the global random state is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Judge(widths)


def loss_of(network: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy summed over the attributes, and the share of right answers of each."""
    pixels, labels = batch
    _, logits = network(pixels)
    pairs = {name: (logits[name].float(), labels[:, i]) for i, name in enumerate(ATTRIBUTE_SIZES)}
    loss = torch.stack([F.cross_entropy(found, wanted) for found, wanted in pairs.values()]).sum()
    return loss, {
        name: (found.argmax(-1) == wanted).float().mean() for name, (found, wanted) in pairs.items()
    }


def augmented(pixels_BCYX: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted by up to 2 pixels, partly blurred, with noise."""
    num = len(pixels_BCYX)
    padded = F.pad(pixels_BCYX, (MAX_SHIFT,) * 4, mode="replicate")
    height, width = pixels_BCYX.shape[-2:]
    corners = torch.randint(2 * MAX_SHIFT + 1, (num, 2), generator=generator).tolist()
    moved = torch.stack(
        [p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, corners, strict=True)]
    )
    return degraded(moved, generator)


def degraded(pixels_BCYX: Tensor, generator: torch.Generator) -> Tensor:
    """Partly blurred, with noise: what a VQ decoder may do to a picture must not change the verdict."""
    num = len(pixels_BCYX)
    blurred = F.avg_pool2d(F.pad(pixels_BCYX, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    # Half of the pictures stay sharp.
    amount = (2 * torch.rand(num, 1, 1, 1, generator=generator) - 1).clamp(min=0)
    deviation = MAX_NOISE * torch.rand(num, 1, 1, 1, generator=generator)
    noise = torch.randn(pixels_BCYX.shape, generator=generator)
    return pixels_BCYX.lerp(blurred, amount) + deviation * noise


def train(directory: Path, recipe: Recipe = RECIPE, widths: tuple[int, ...] = WIDTHS) -> Judge:
    """Trains on `directory`/train, checkpoints in `directory`. Returns the averaged network."""
    pixels, labels = load_pictures(directory / "train")

    def draw_batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(pixels), (BATCH_SIZE,), generator=generator)
        return augmented(to_network(pixels[index]), generator), labels[index]

    network = initialised(recipe.seed, widths)
    average = fit(network, draw_batch, loss_of, recipe, checkpoint=directory / "judge.ckpt")
    assert isinstance(average, Judge), "fit returns an average of what it is given"
    return average


def make(directory: Path, path: Path) -> None:
    """Trains in `directory` and writes the judge to `path`, with its test accuracy inside."""
    judge = train(directory)
    figures = accuracy(judge)
    logger.info("right on %d fresh scenes: %s", NUM_TEST, figures)
    save(path, judge, {"iterations": RECIPE.iterations, "seed": RECIPE.seed, "accuracy": figures})


@torch.no_grad()
def judged(
    judge: Judge, pixels_BCYX: Tensor, batch_size: int = 50
) -> tuple[Tensor, dict[str, Tensor]]:
    """Features (B, 64) and the predicted value (B,) of each attribute, of RGB pixels in [-1, 1]."""
    parts = [judge(part.clamp(-1, 1)) for part in pixels_BCYX.split(batch_size)]
    predicted = {
        name: torch.cat([logits[name].argmax(-1) for _, logits in parts])
        for name in ATTRIBUTE_SIZES
    }
    return torch.cat([features for features, _ in parts]), predicted


def accuracy(
    judge: Judge, seeds: range = range(FIRST_TEST_SEED, FIRST_TEST_SEED + NUM_TEST)
) -> dict[str, float]:
    """Share of fresh scenes on which each attribute is read correctly."""
    pixels, labels = render(seeds)
    _, predicted = judged(judge, to_network(torch.from_numpy(pixels)))
    right = {
        name: predicted[name].numpy() == labels[:, i] for i, name in enumerate(ATTRIBUTE_SIZES)
    }
    return {name: round(float(is_right.mean()), 4) for name, is_right in right.items()}


def save(path: Path, judge: Judge, trained: dict[str, Any]) -> None:
    """Writes a safetensors file in half precision; `trained` says how and with what result."""
    FILE.save(path, judge, trained)


def load(path: Path) -> Judge:
    """The network of a file made by `save`, in float32 and eval mode.

    Raises:
        FileNotFoundError, ValueError: as `JudgeFile.load`.
    """
    return FILE.load(path, lambda widths: initialised(0, widths))
