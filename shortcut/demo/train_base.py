"""Trains the shipped class-conditional MaskGIT on the codes of the scenes.

Source: Chang et al. 2022, section 3.1: cross-entropy on the masked tokens, ratio of masked tokens arccos-distributed
as in Besnier and Chen 2023; 10 % of the classes dropped for guidance.

    B  images    L  image tokens    V  codebook size
"""

from __future__ import annotations

import math
from dataclasses import replace
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
# Then with places: after the first recipe the last features told rows (R2 0.89) but hardly columns (R2 0.29), and a
# head cannot look for new tokens near a place that it does not know.
PLACES_RECIPE = replace(RECIPE, iterations=3600, lr=1.2e-3, warmup=100)
PLACES_WEIGHT = 0.3
# The original has its loss on known codes too: so the last features tell a head which tokens stand around.
KNOWN_WEIGHT = 0.3
BATCH_SIZE = 64
DROP_CLASS = 0.1


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


def loss_of(
    network: MaskGIT, batch: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
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


class Places(nn.Module):
    """A MaskGIT in training with a linear reader of each position's row and column; the reader is not kept."""

    def __init__(self, network: MaskGIT):
        super().__init__()
        self.network = network
        self.reader = nn.Linear(network.config.width, 2 * network.config.grid)


def places_loss(
    training: Places, batch: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """As `loss_of`, plus the cross-entropies of what a head needs to see in the last features.

    These are the row and the column of each position, and the codes that are known already.
    """
    codes_BL, class_B, is_masked_BL = batch
    network, grid = training.network, training.network.config.grid
    (features_BSD,) = network.features(codes_BL, is_masked_BL, [class_B])
    loss, figures = codes_loss(network, features_BSD, codes_BL, is_masked_BL)
    known, _ = codes_loss(network, features_BSD, codes_BL, ~is_masked_BL)
    row_logits, column_logits = (
        training.reader(features_BSD[:, :-1]).float().flatten(0, 1).chunk(2, 1)
    )
    index_M = torch.arange(grid * grid).repeat(len(codes_BL))
    places = F.cross_entropy(row_logits, index_M // grid) + F.cross_entropy(
        column_logits, index_M % grid
    )
    figures |= {"places": places, "known": known}
    return loss + PLACES_WEIGHT * places + KNOWN_WEIGHT * known, figures


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

    def draw_batch(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        index = torch.randint(len(codes), (BATCH_SIZE,), generator=generator)
        is_dropped = torch.rand(BATCH_SIZE, generator=generator) < DROP_CLASS
        class_B = classes[index].masked_fill(is_dropped, CONFIG.num_classes)
        return codes[index].long(), class_B, draw_masks(BATCH_SIZE, CONFIG.num_tokens, generator)

    network = fit(
        initialised(CONFIG, RECIPE.seed),
        draw_batch,
        loss_of,
        RECIPE,
        checkpoint=directory / "base.ckpt",
    )
    with torch.random.fork_rng():
        torch.manual_seed(PLACES_RECIPE.seed)
        training = Places(network)
    checkpoint = directory / "places.ckpt"
    return fit(training, draw_batch, places_loss, PLACES_RECIPE, checkpoint=checkpoint).network
