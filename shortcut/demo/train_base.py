"""Trains the shipped class-conditional MaskGIT on the codes of the scenes.

Source: Chang et al. 2022, section 3.1: cross-entropy on the masked tokens, ratio of masked tokens arccos-distributed
as in Besnier and Chen 2023; 10 % of the classes dropped for guidance.

    B  images    L  image tokens    V  codebook size
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.maskgit import Config, MaskGIT
from ..models.maskgit_vqgan import VQGAN
from ..train.cpu import sdpa_float32
from ..train.fit import Recipe, fit
from ..weights import fingerprint
from .data import load, to_network
from .scene_places import kinds_of
from .scene_readers import KINDS_WEIGHT, Readers
from .scenes import compose

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
# Then with a reader of places (`scene_readers`); then with one of kinds too and small batches, which teach more in the
# same time.
PLACES_RECIPE = replace(RECIPE, iterations=3600, lr=1.2e-3, warmup=100)
KINDS_RECIPE = replace(RECIPE, iterations=10_000, seed=1, lr=1e-3, warmup=100)
# The original has its loss on known codes too: so the last features tell a head which tokens stand around.
KNOWN_WEIGHT = 0.3
BATCH_SIZE, SMALL_BATCH_SIZE = 64, 16
DROP_CLASS = 0.1

Codes = tuple[Tensor, Tensor, Tensor]  # codes (B, L), classes (B,), True = masked (B, L)


@torch.no_grad()
def encode_all(vqgan: VQGAN, directory: Path, batch_size: int = 25) -> tuple[Tensor, Tensor]:
    """Codes (B, L) int16 and classes (B,) of the pictures of `directory`; the codes are kept there in `codes.pt`."""
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


def loss_of(network: MaskGIT, batch: Codes) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the masked codes."""
    codes_BL, class_B, is_masked_BL = batch
    (features_BSD,) = network.features(codes_BL, is_masked_BL, [class_B])
    return codes_loss(network, features_BSD, codes_BL, is_masked_BL)


def codes_loss(
    network: MaskGIT, features_BSD: Tensor, codes_BL: Tensor, is_counted_BL: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the codes where `is_counted_BL` is True, from the last features."""
    index_BL = torch.arange(codes_BL.shape[1]).expand_as(codes_BL)
    logits_MV = network.logits(features_BSD, index_BL)[is_counted_BL].float()
    target_M = codes_BL[is_counted_BL]
    accuracy = (logits_MV.argmax(-1) == target_M).float().mean()
    return F.cross_entropy(logits_MV, target_M), {"accuracy": accuracy}


class Training(nn.Module):
    """A MaskGIT in training with readers of its last features, which are not kept."""

    def __init__(self, network: MaskGIT):
        super().__init__()
        self.network = network
        self.readers = Readers(network.config.width, (network.config.grid, network.config.grid))


def loss_with_readers(
    training: Training, batch: tuple[Codes, Tensor], kinds_weight: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """As `loss_of`, plus the codes that are known already, and what the readers read."""
    (codes_BL, class_B, is_masked_BL), kind_BL = batch
    network = training.network
    (features_BSD,) = network.features(codes_BL, is_masked_BL, [class_B])
    masked, figures = codes_loss(network, features_BSD, codes_BL, is_masked_BL)
    known, _ = codes_loss(network, features_BSD, codes_BL, ~is_masked_BL)
    features_BLD = features_BSD[:, : codes_BL.shape[1]]
    read, read_figures = training.readers.loss(features_BLD, kind_BL, kinds_weight)
    return masked + KNOWN_WEIGHT * known + read, figures | {"known": known} | read_figures


def draw_masks(num_images: int, num_tokens: int, generator: torch.Generator) -> Tensor:
    """Masks (B, L), True = masked, whose ratio is arccos-distributed; at least one token each."""
    ratio_B1 = torch.rand(num_images, 1, generator=generator).acos() / (math.pi / 2)
    order_BL = torch.rand(num_images, num_tokens, generator=generator).argsort(1)
    return order_BL < (ratio_B1 * num_tokens).ceil().clamp(min=1)


def initialised(config: Config, seed: int) -> MaskGIT:
    """A network with normal weights of deviation 0.02, zero biases; the global random state is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MaskGIT(config, attention=sdpa_float32)
        for module in network.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                torch.nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.zeros_(module.bias)
        torch.nn.init.zeros_(network.output_bias.weight)
    return network


def train(directory: Path, vqgan: VQGAN) -> MaskGIT:
    """Trains on the codes of `directory`/train, with checkpoints in `directory`. Returns the averaged network."""
    codes, classes = encode_all(vqgan, directory / "train")

    def draw(generator: torch.Generator, size: int) -> tuple[Codes, Tensor]:
        """A batch, and the seeds of its scenes."""
        index = torch.randint(len(codes), (size,), generator=generator)
        is_dropped = torch.rand(size, generator=generator) < DROP_CLASS
        class_B = classes[index].masked_fill(is_dropped, CONFIG.num_classes)
        is_masked_BL = draw_masks(size, CONFIG.num_tokens, generator)
        return (codes[index].long(), class_B, is_masked_BL), index

    def draw_codes(generator: torch.Generator) -> Codes:
        return draw(generator, BATCH_SIZE)[0]

    def draw_kinds(generator: torch.Generator, size: int) -> tuple[Codes, Tensor]:
        batch, seed_B = draw(generator, size)
        grid = CONFIG.grid, CONFIG.grid
        return batch, torch.stack([kinds_of(compose(seed), grid) for seed in seed_B.tolist()])

    network = fit(
        initialised(CONFIG, RECIPE.seed),
        draw_codes,
        loss_of,
        RECIPE,
        checkpoint=directory / "base.ckpt",
    )
    with torch.random.fork_rng():
        torch.manual_seed(PLACES_RECIPE.seed)
        training = Training(network)
    for name, recipe, size, kinds_weight in (
        ("base-places", PLACES_RECIPE, BATCH_SIZE, 0.0),
        ("base-kinds", KINDS_RECIPE, SMALL_BATCH_SIZE, KINDS_WEIGHT),
    ):
        training = fit(
            training.train(),
            partial(draw_kinds, size=size),
            partial(loss_with_readers, kinds_weight=kinds_weight),
            recipe,
            checkpoint=directory / f"{name}.ckpt",
        )
    return training.network
