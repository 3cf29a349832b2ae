"""Train the shipped class model, a MaskGIT, on the codes of the scenes.

Source: Chang et al. 2022, section 3.1: cross-entropy on the masked tokens, ratio of masked tokens arccos-distributed
as in Besnier and Chen 2023; 10 % of the classes dropped for guidance.

    B  images    L  image tokens    V  codebook size
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.scenes.facts import labels_of
from experiments.scenes.scene import CLASSES, compose
from experiments.training.codes import GRID, load_codes
from experiments.training.muon import muon
from experiments.training.readers import Readers
from experiments.training.vq import CONFIG as VQ
from shortcut.models.maskgit.transformer import Config, MaskGIT
from shortcut.train.cpu import sdpa_float32
from shortcut.train.fit import Recipe, fit

CONFIG = Config(
    grid=GRID[0],
    width=256,
    depth=7,
    num_heads=4,
    mlp_width=1024,
    num_codes=VQ.num_codes,
    num_classes=len(CLASSES),
)
RECIPE = Recipe(
    iterations=3500,
    lr=3e-3,
    warmup=100,
    betas=(0.9, 0.96),
    ema=0.998,
    autocast=torch.bfloat16,
    checkpoint_every=100,
)
OPTIMIZER = partial(muon, others_rate=0.5)
BATCH_SIZE = 16  # small batches teach more in the same time
# The original has its loss on known codes too: so the last features tell a head which tokens stand around.
KNOWN_WEIGHT = 0.3
DROP_CLASS = 0.1


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures: their codes and classes, where they are masked, and what they show where."""

    codes_BL: Tensor
    class_B: Tensor
    is_masked_BL: Tensor
    label_BL: Tensor  # numbers in `facts.LABELS`


class Training(nn.Module):
    """A MaskGIT in training with readers of its last features, which are not kept."""

    def __init__(self, network: MaskGIT):
        super().__init__()
        self.network, grid = network, network.config.grid
        self.readers = Readers(network.config.width, (grid, grid))


def loss_of(training: Training, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of the codes and of what the readers read, weighted."""
    (features_BSD,) = training.network.features(batch.codes_BL, batch.is_masked_BL, [batch.class_B])
    index_BL = torch.arange(batch.codes_BL.shape[1]).expand_as(batch.codes_BL)
    features_BLD = features_BSD[:, : batch.codes_BL.shape[1]]
    logits_BLV = training.network.logits(features_BLD, index_BL)
    loss, figures = codes_loss(logits_BLV, batch.codes_BL, batch.is_masked_BL)
    read, read_figures = training.readers.loss(features_BLD, batch.label_BL)
    return loss + read, figures | read_figures


def codes_loss(
    logits_BLV: Tensor, codes_BL: Tensor, is_masked_BL: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the cross-entropy of the masked codes plus the weighted one of the known codes."""
    loss_BL = F.cross_entropy(logits_BLV.float().movedim(-1, 1), codes_BL, reduction="none")
    masked, known = (_mean(loss_BL, is_in_BL) for is_in_BL in (is_masked_BL, ~is_masked_BL))
    is_right_BL = (logits_BLV.argmax(-1) == codes_BL).float()
    figures = {"masked": masked, "known": known, "accuracy": _mean(is_right_BL, is_masked_BL)}
    return masked + KNOWN_WEIGHT * known, figures


def _mean(value_BL: Tensor, is_counted_BL: Tensor) -> Tensor:
    """Return the mean where `is_counted_BL` is True; 0 if it is nowhere."""
    return (value_BL * is_counted_BL).sum() / is_counted_BL.sum().clamp(min=1)


def draw_masks(num_images: int, num_tokens: int, generator: torch.Generator) -> Tensor:
    """Return masks (B, L), True = masked, whose ratio is arccos-distributed; at least one token each."""
    ratio_B1 = torch.rand(num_images, 1, generator=generator).acos() / (math.pi / 2)
    order_BL = torch.rand(num_images, num_tokens, generator=generator).argsort(1)
    return order_BL < (ratio_B1 * num_tokens).ceil().clamp(min=1)


def initialised(config: Config, seed: int) -> Training:
    """Return a network with normal weights of deviation 0.02, zero biases; the global random state is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MaskGIT(config, attention=sdpa_float32)
        for module in network.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                torch.nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.zeros_(module.bias)
        torch.nn.init.zeros_(network.output_bias.weight)
        return Training(network)


def train(directory: Path) -> MaskGIT:
    """Train on the codes of `directory`, with checkpoints there. Returns the averaged network."""
    codes = load_codes(directory, "pictures")
    class_B = torch.tensor([compose(seed).class_id for seed in range(len(codes))])

    def draw(generator: torch.Generator) -> Batch:
        seed_B = torch.randint(len(codes), (BATCH_SIZE,), generator=generator)
        is_dropped_B = torch.rand(BATCH_SIZE, generator=generator) < DROP_CLASS
        return Batch(
            codes[seed_B].long(),
            class_B[seed_B].masked_fill(is_dropped_B, CONFIG.num_classes),
            draw_masks(BATCH_SIZE, CONFIG.num_tokens, generator),
            torch.stack([labels_of(compose(seed), GRID) for seed in seed_B.tolist()]),
        )

    training = initialised(CONFIG, RECIPE.seed).train()
    checkpoint = directory / "class-model.ckpt"
    training = fit(training, draw, loss_of, RECIPE, checkpoint=checkpoint, make_optimizer=OPTIMIZER)
    return training.network
