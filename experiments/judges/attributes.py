"""The judge of the quality table: a small network that reads a scene's attributes from its picture.

Distributions of pictures are compared in its penultimate features, as photographs are in the pool features of Inception
(Heusel et al. 2017, section 4.1).

    B  images    Y, X  pixel rows, columns    C  channels    D  features
"""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.judges.file import JudgeFile, Widths
from experiments.scenes.dataset import load as load_pictures
from experiments.scenes.dataset import render, to_network
from experiments.scenes.scene import ATTRIBUTE_SIZES
from shortcut.train.fit import Recipe, fit

logger = logging.getLogger(__name__)

WIDTHS = (24, 48, 96, 128)
NUM_FEATURES = 64
RECIPE = Recipe(
    iterations=1000, lr=2e-3, warmup=100, weight_decay=0.02, ema=0.995, checkpoint_every=250
)
BATCH_SIZE = 64
MAX_SHIFT = 2  # pixels
MAX_NOISE = 0.06  # standard deviation, for pixels in [-1, 1]
FIRST_TEST_SEED, NUM_TEST = 30_000_000, 2000  # neither in training nor in the quality table


class Judge(nn.Module):
    """Pictures -> features -> one set of logits for each attribute of `scene.ATTRIBUTE_SIZES`.

    Args:
        widths: channels of the levels; each level halves both sides.
    """

    def __init__(self, widths: Widths = WIDTHS):
        super().__init__()
        self.widths = tuple(widths)
        self.levels = nn.Sequential(*(Level(a, b) for a, b in pairwise((3, *widths))))
        self.features = nn.Linear(2 * widths[-1], NUM_FEATURES)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(NUM_FEATURES, size) for name, size in ATTRIBUTE_SIZES.items()}
        )

    def forward(self, pixels_BCYX: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return features (B, 64) and logits (B, size) of each attribute, for RGB pixels in [-1, 1]."""
        x = self.levels(pixels_BCYX.contiguous(memory_format=torch.channels_last))
        pooled = torch.cat([x.mean((-1, -2)), x.amax((-1, -2))], 1)
        features_BD = F.gelu(self.features(pooled))
        return features_BD, {name: head(features_BD) for name, head in self.heads.items()}


class Level(nn.Module):
    """A strided convolution, then a residual one."""

    def __init__(self, num_in: int, num_out: int, stride: tuple[int, int] = (2, 2)):
        super().__init__()
        self.down = nn.Conv2d(num_in, num_out, 3, stride=stride, padding=1)
        self.norm_down = nn.GroupNorm(8, num_out)
        self.same = nn.Conv2d(num_out, num_out, 3, padding=1)
        self.norm_same = nn.GroupNorm(8, num_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_down(self.down(x)))
        return x + F.relu(self.norm_same(self.same(x)))


FILE = JudgeFile("shortcut scene judge", "judge", "attributes", ATTRIBUTE_SIZES, Judge)


def loss_of(network: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the cross-entropy summed over the attributes, and the accuracy of each."""
    pixels, labels = batch
    _, logits = network(pixels)
    pairs = {name: (logits[name].float(), labels[:, i]) for i, name in enumerate(ATTRIBUTE_SIZES)}
    loss = torch.stack([F.cross_entropy(found, wanted) for found, wanted in pairs.values()]).sum()
    return loss, {
        name: (found.argmax(-1) == wanted).float().mean() for name, (found, wanted) in pairs.items()
    }


def augmented(pixels_BCYX: Tensor, generator: torch.Generator) -> Tensor:
    """Shift pictures by up to 2 pixels, blur some of them, add noise."""
    num = len(pixels_BCYX)
    padded = F.pad(pixels_BCYX, (MAX_SHIFT,) * 4, mode="replicate")
    height, width = pixels_BCYX.shape[-2:]
    corners = torch.randint(2 * MAX_SHIFT + 1, (num, 2), generator=generator).tolist()
    moved = torch.stack(
        [p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, corners, strict=True)]
    )
    return degraded(moved, generator)


def degraded(pixels_BCYX: Tensor, generator: torch.Generator) -> Tensor:
    """Blur some pictures and add noise: what a VQ decoder may do must not change the verdict."""
    num = len(pixels_BCYX)
    blurred = F.avg_pool2d(F.pad(pixels_BCYX, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    # Half of the pictures stay sharp.
    amount = (2 * torch.rand(num, 1, 1, 1, generator=generator) - 1).clamp(min=0)
    deviation = MAX_NOISE * torch.rand(num, 1, 1, 1, generator=generator)
    noise = torch.randn(pixels_BCYX.shape, generator=generator)
    return pixels_BCYX.lerp(blurred, amount) + deviation * noise


def train(directory: Path, recipe: Recipe = RECIPE, widths: Widths = WIDTHS) -> Judge:
    """Train on `directory`/train, with checkpoints in `directory`. Returns the averaged network."""
    pixels, labels = load_pictures(directory / "train")

    def draw_batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(pixels), (BATCH_SIZE,), generator=generator)
        return augmented(to_network(pixels[index]), generator), labels[index]

    network = FILE.initialised(recipe.seed, widths)
    return fit(network, draw_batch, loss_of, recipe, checkpoint=directory / "judge.ckpt")


def make(directory: Path, path: Path) -> None:
    """Train in `directory` and write the judge to `path`, with its test accuracy inside."""
    judge = train(directory)
    figures = accuracy(judge)
    logger.info("right on %d fresh scenes: %s", NUM_TEST, figures)
    trained = {"iterations": RECIPE.iterations, "seed": RECIPE.seed, "accuracy": figures}
    FILE.save(path, judge, trained)


@torch.no_grad()
def judged(
    judge: Judge, pixels_BCYX: Tensor, batch_size: int = 50
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return features (B, 64) and the predicted value (B,) of each attribute, for RGB pixels in [-1, 1]."""
    parts = [judge(part.clamp(-1, 1)) for part in pixels_BCYX.split(batch_size)]
    predicted = {
        name: torch.cat([logits[name].argmax(-1) for _, logits in parts])
        for name in ATTRIBUTE_SIZES
    }
    return torch.cat([features for features, _ in parts]), predicted


def accuracy(judge: Judge) -> dict[str, float]:
    """Return the share of fresh scenes on which each attribute is read correctly."""
    pixels, labels = render(range(FIRST_TEST_SEED, FIRST_TEST_SEED + NUM_TEST))
    _, predicted = judged(judge, to_network(torch.from_numpy(pixels)))
    right = {
        name: predicted[name].numpy() == labels[:, i] for i, name in enumerate(ATTRIBUTE_SIZES)
    }
    return {name: round(float(is_right.mean()), 4) for name, is_right in right.items()}
