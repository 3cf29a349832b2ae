"""Train the VQGAN of the scenes: encoder and codebook as in `patches`, then the decoder on known codes.

Crops of 64 x 64 pixels first, which cost a quarter of a picture and lie on its grid of codes; whole pictures last.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.scenes.drawing import SIZE, pixels_of
from experiments.scenes.scene import compose
from experiments.training import patches
from experiments.training.muon import muon
from shortcut.models.maskgit.vqgan import VQGAN, Config
from shortcut.train.fit import Recipe, fit

# Of 32 channels each is a group of its own for the norms, which then forget its mean: colours came slowly.
CONFIG = Config(
    channels=64,
    multipliers=(1, 1, 2, 2),
    blocks_per_level=1,
    attention_levels=(),
    latent_channels=128,
    code_width=32,
    num_codes=2048,
)
CROP = 64  # pixels a side
NUM_SEEDS = 1_000_000  # scenes to learn from; fresh ones begin beyond
NUM_MEASURED = 1500  # pictures for the axes and the codebook
ON_CROPS = Recipe(
    iterations=6000,
    lr=3e-3,
    lr_end=3e-4,
    warmup=50,
    betas=(0.9, 0.95),
    ema=0.99,
    autocast=torch.bfloat16,
    checkpoint_every=100,
)
ON_PICTURES = Recipe(
    iterations=1500,
    seed=1,
    lr=1e-3,
    warmup=20,
    betas=(0.9, 0.95),
    ema=0.99,
    autocast=torch.bfloat16,
    checkpoint_every=100,
)
CROPS_PER_BATCH, PICTURES_PER_BATCH = 4, 2
NORMS_RATE = 0.5  # learning rate of norms and biases, by that of the convolutions

Batch = tuple[Tensor, Tensor]  # pixels (B, 3, Y, X), codes (B, h, w)


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
        picture_1CYX = pixels_of([compose(seed)])
        parts.append(picture_1CYX[..., y * step :, x * step :][..., :size, :size])
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)


def measured(num_pictures: int | None = None) -> patches.Patches:
    """Return the axes and centres of the patches of pictures drawn by seed."""
    pixels = crops(num_pictures or NUM_MEASURED, SIZE, torch.Generator().manual_seed(0))
    return patches.measured(pixels, CONFIG.downscale, CONFIG.code_width, CONFIG.num_codes)


def started(found: patches.Patches) -> VQGAN:
    """Return a network whose encoder and codebook are done."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = VQGAN(CONFIG).to(memory_format=torch.channels_last)  # pyright: ignore
    patches.set_encoder(network, found)
    for part in (network.encoder, network.quant_conv, network.quantize):
        part.requires_grad_(False)
    return network


def contrast_loss(found: Tensor, pixels: Tensor) -> Tensor:
    """Return L1 on differences of neighbouring pixels, across plus down."""
    error = found - pixels
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def psnr_db(mse: Tensor) -> Tensor:
    """Return the peak signal to noise ratio of a mean squared error of pixels in [-1, 1]."""
    return -10 * torch.log10(mse.detach() / 4)


def decoder_loss(network: VQGAN, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of pictures from their codes: L1, mean square and L1 on contrasts of neighbours."""
    pixels, codes = batch
    found = network.decode(codes).float()
    l1, mse = F.l1_loss(found, pixels), F.mse_loss(found, pixels)
    contrast = contrast_loss(found, pixels)
    return l1 + mse + contrast, {"l1": l1, "contrast": contrast, "psnr_db": psnr_db(mse)}


def train(directory: Path) -> VQGAN:
    """Train with checkpoints in `directory`. Returns the averaged network."""
    found = measured()
    network = started(found)
    patches.scale_codebook(network, 1 / found.scale_C)

    def draw_from(num: int, size: int) -> Callable[[torch.Generator], Batch]:
        def draw_batch(generator: torch.Generator) -> Batch:
            pixels = crops(num, size, generator)
            return pixels, found.codes(pixels)

        return draw_batch

    for name, recipe, num, size in (
        ("vq-crops", ON_CROPS, CROPS_PER_BATCH, CROP),
        ("vq", ON_PICTURES, PICTURES_PER_BATCH, SIZE),
    ):
        network = fit(
            network,
            draw_from(num, size),
            decoder_loss,
            recipe,
            checkpoint=directory / f"{name}.ckpt",
            make_optimizer=partial(muon, others_rate=NORMS_RATE),
        )
    patches.scale_codebook(network, found.scale_C)
    return network
