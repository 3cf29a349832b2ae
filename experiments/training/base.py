"""Train the shipped class model, a MaskGIT, on the codes of the scenes.

Source: Chang et al. 2022, section 3.1: cross-entropy on the masked tokens, ratio of masked tokens arccos-distributed
as in Besnier and Chen 2023; 10 % of the classes dropped for guidance.

    B  images    L  image tokens    V  codebook size
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.scenes.dataset import load, to_network
from experiments.scenes.scene import compose
from experiments.training.pictures import SCENES, Pictures
from experiments.training.readers import KINDS_WEIGHT, Readers
from shortcut.checkpoint import fingerprint
from shortcut.models.maskgit.transformer import Config, MaskGIT
from shortcut.models.maskgit.vqgan import VQGAN
from shortcut.train.cpu import sdpa_float32
from shortcut.train.fit import MakeOptimizer, Recipe, fit

CONFIG = Config(
    grid=12, width=192, depth=6, num_heads=3, mlp_width=768, num_codes=512, num_classes=16
)
RECIPE = Recipe(
    iterations=4000,
    lr=1.5e-3,
    warmup=200,
    betas=(0.9, 0.96),
    weight_decay=0.03,
    ema=0.998,
    autocast=torch.bfloat16,
    checkpoint_every=250,
)
PICTURES = replace(SCENES, compose=compose)
# The original has its loss on known codes too: so the last features tell a head which tokens stand around.
KNOWN_WEIGHT = 0.3
DROP_CLASS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the training; the next goes on with its averaged network."""

    name: str  # of its checkpoint
    recipe: Recipe
    batch_size: int
    kinds_weight: float = 0.0  # of the loss on the kinds of things


STAGES = (
    Stage(name="base", recipe=RECIPE, batch_size=64),
    Stage(
        name="base-longer",
        recipe=replace(RECIPE, iterations=3600, lr=1.2e-3, warmup=100),
        batch_size=64,
    ),
    # Small batches teach more in the same time.
    Stage(
        name="base-kinds",
        recipe=replace(RECIPE, iterations=10_000, seed=1, lr=1e-3, warmup=100),
        batch_size=16,
        kinds_weight=KINDS_WEIGHT,
    ),
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures: their codes and classes, where they are masked, and what they show where."""

    codes_BL: Tensor
    class_B: Tensor
    is_masked_BL: Tensor
    kind_BL: Tensor  # numbers in `scenes.kinds.KINDS`


@torch.no_grad()
def encode_all(vqgan: VQGAN, directory: Path, batch_size: int = 25) -> tuple[Tensor, Tensor]:
    """Return codes (B, L) int16 and classes (B,) of the pictures of `directory`; `codes.pt` there keeps the codes."""
    pixels, labels = load(directory)
    class_B = labels[:, 0] * 4 + labels[:, 1]
    cache, key = directory / "codes.pt", fingerprint(vqgan.state_dict())
    if cache.exists() and (saved := torch.load(cache, weights_only=True))["vqgan"] == key:
        return saved["codes"], class_B
    parts = [
        vqgan.encode(to_network(part).to(memory_format=torch.channels_last))
        .flatten(1)
        .to(torch.int16)
        for part in pixels.split(batch_size)
    ]
    torch.save({"vqgan": key, "codes": torch.cat(parts)}, cache)
    return torch.cat(parts), class_B


class Training(nn.Module):
    """A MaskGIT in training with readers of its last features, which are not kept."""

    def __init__(self, network: MaskGIT, num_kinds: int):
        super().__init__()
        self.network, grid = network, network.config.grid
        self.readers = Readers(network.config.width, (grid, grid), num_kinds)


def loss_of(
    training: Training, batch: Batch, kinds_weight: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of the codes and of what the readers read, weighted."""
    (features_BSD,) = training.network.features(batch.codes_BL, batch.is_masked_BL, [batch.class_B])
    index_BL = torch.arange(batch.codes_BL.shape[1]).expand_as(batch.codes_BL)
    features_BLD = features_BSD[:, : batch.codes_BL.shape[1]]
    logits_BLV = training.network.logits(features_BLD, index_BL)
    loss, figures = codes_loss(logits_BLV, batch.codes_BL, batch.is_masked_BL)
    read, read_figures = training.readers.loss(features_BLD, batch.kind_BL, kinds_weight)
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


def initialised(config: Config, seed: int, num_kinds: int = SCENES.num_labels) -> Training:
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
        return Training(network, num_kinds)


def train(directory: Path, vqgan: VQGAN) -> MaskGIT:
    """Train on the codes of `directory`/train, with checkpoints in `directory`. Returns the averaged network."""
    codes, classes = encode_all(vqgan, directory / "train")
    return learn(codes, classes, CONFIG, STAGES, directory)


def learn(
    codes: Tensor,
    classes: Tensor,
    config: Config,
    stages: Sequence[Stage],
    directory: Path,
    pictures: Pictures = PICTURES,
    make_optimizer: MakeOptimizer | None = None,
) -> MaskGIT:
    """Train on codes (B, L) and classes (B,) of the pictures 0, 1, 2 ..., with checkpoints in `directory`."""

    def draw(generator: torch.Generator, size: int) -> Batch:
        seed_B = torch.randint(len(codes), (size,), generator=generator)
        is_dropped_B = torch.rand(size, generator=generator) < DROP_CLASS
        grid = config.grid, config.grid
        return Batch(
            codes[seed_B].long(),
            classes[seed_B].masked_fill(is_dropped_B, config.num_classes),
            draw_masks(size, config.num_tokens, generator),
            torch.stack([pictures.labels(pictures.compose(s), grid) for s in seed_B.tolist()]),
        )

    training = initialised(config, stages[0].recipe.seed, pictures.num_labels)
    for stage in stages:
        training = fit(
            training.train(),
            partial(draw, size=stage.batch_size),
            partial(loss_of, kinds_weight=stage.kinds_weight),
            stage.recipe,
            checkpoint=directory / f"{stage.name}.ckpt",
            make_optimizer=make_optimizer,
        )
    return training.network
