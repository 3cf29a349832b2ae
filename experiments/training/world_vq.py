"""Train the VQGAN of the world's pictures, drawn while it learns: on crops first, on whole pictures last.

A crop of 64 x 64 pixels costs a quarter of a picture, and its codes lie on the grid of the picture's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.scenes.dataset import to_network
from experiments.training.vq import (
    AUTOENCODER_RECIPE,
    RECIPE,
    Batch,
    Quantizer,
    autoencoder_loss,
    quantized_loss,
)
from experiments.world.drawing import SIZE, draw
from experiments.world.scene import compose
from shortcut.models.maskgit.vqgan import VQGAN, Config
from shortcut.train.fit import fit

# Of 32 channels each is a group of its own for the norms, which then forget its mean: colours came slowly.
CONFIG = Config(
    channels=64,
    multipliers=(1, 1, 2, 2),
    blocks_per_level=1,
    attention_levels=(),
    latent_channels=128,
    code_width=32,
    num_codes=1024,
)
CROP = 64  # pixels a side
NUM_SEEDS = 1_000_000  # scenes to learn from; fresh ones begin beyond
# After 500 iterations it paints mean colours alone.
AUTOENCODER = replace(AUTOENCODER_RECIPE, iterations=2500, checkpoint_every=100)
ON_CROPS = replace(RECIPE, iterations=3000, lr_end=4e-4, checkpoint_every=100)
ON_PICTURES = replace(RECIPE, iterations=1500, seed=1, lr=4e-4, warmup=20, checkpoint_every=100)
CROPS_PER_BATCH, PICTURES_PER_BATCH, CROPS_FOR_CODEBOOK = 8, 4, 96


def crops(num: int, size: int, generator: torch.Generator) -> Tensor:
    """Return crops (num, 3, size, size) of so many scenes, at positions of the grid of codes."""
    step = CONFIG.downscale
    places = (SIZE - size) // step + 1
    parts = []
    for _ in range(num):
        seed, y, x = (
            int(torch.randint(most, (), generator=generator))
            for most in (NUM_SEEDS, places, places)
        )
        picture = np.asarray(draw(compose(seed)))
        parts.append(picture[y * step :, x * step :][:size, :size])
    return to_network(torch.from_numpy(np.stack(parts))).contiguous(
        memory_format=torch.channels_last
    )


def train(directory: Path) -> VQGAN:
    """Train with checkpoints in `directory`. Returns the averaged network."""

    def draw_crops(generator: torch.Generator) -> Batch:
        return crops(CROPS_PER_BATCH, CROP, generator), generator

    def draw_pictures(generator: torch.Generator) -> Batch:
        return crops(PICTURES_PER_BATCH, SIZE, generator), generator

    with torch.random.fork_rng():
        torch.manual_seed(AUTOENCODER.seed)
        network = VQGAN(CONFIG).to(memory_format=torch.channels_last)  # pyright: ignore
    network = fit(
        network,
        draw_crops,
        autoencoder_loss,
        AUTOENCODER,
        checkpoint=directory / "autoencoder.ckpt",
    )
    quantizer = Quantizer(network, decay=0.99)
    quantizer.start_codebook(crops(CROPS_FOR_CODEBOOK, CROP, torch.Generator().manual_seed(0)))
    quantizer = fit(
        quantizer, draw_crops, quantized_loss, ON_CROPS, checkpoint=directory / "vq-crops.ckpt"
    )
    return fit(
        quantizer.train(),
        draw_pictures,
        quantized_loss,
        ON_PICTURES,
        checkpoint=directory / "vq.ckpt",
    ).vqgan
