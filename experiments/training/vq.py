"""Train the shipped VQGAN on the scenes: L1 on pixels and contrasts, codebook by moving averages.

Source: van den Oord et al. 2017, appendix A.1 (codebook by exponential moving averages) and equation 3 (commitment);
replacement of unused entries as in Dhariwal et al. 2020 (Jukebox), section 3.1.

    B  images    C  code width    V  codebook size    M  code positions of the whole batch
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.scenes.dataset import load, to_network
from shortcut.models.maskgit.vqgan import VQGAN, Config
from shortcut.train.fit import Recipe, fit

CONFIG = Config(
    channels=32,
    multipliers=(1, 1, 2, 3),
    blocks_per_level=1,
    attention_levels=(3,),
    latent_channels=96,
    code_width=32,
    num_codes=512,
)
# Quantizing from the first step leaves latents of three dimensions, the mean colour; an autoencoder first does not.
AUTOENCODER_RECIPE = Recipe(
    iterations=600,
    lr=1.5e-3,
    lr_end=1e-3,
    betas=(0.9, 0.95),
    ema=0.98,
    weight_decay=1e-4,
    checkpoint_every=200,
)
RECIPE = Recipe(
    iterations=1600,
    lr=1.2e-3,
    warmup=50,
    betas=(0.9, 0.95),
    ema=0.995,
    weight_decay=1e-4,
    checkpoint_every=200,
)
BATCH_SIZE = 16
COMMITMENT = 0.25
CONTRAST_WEIGHT, CONTRAST_DISTANCES = 1.5, (1, 2, 4)
LATENT_PULL = 1e-3

Batch = tuple[
    Tensor, torch.Generator
]  # pixels (B, 3, Y, X), and the generator for the revival of codes


class Quantizer(nn.Module):
    """A VQGAN in training: it quantizes with a straight-through gradient and moves the codebook itself."""

    def __init__(self, vqgan: VQGAN, decay: float = 0.98, revive_below: float = 0.05):
        super().__init__()
        self.vqgan, self.decay, self.revive_below = vqgan, decay, revive_below
        self.vqgan.quantize.embedding.weight.requires_grad_(False)
        num_codes, width = vqgan.quantize.embedding.weight.shape
        self.count_V: Tensor
        self.sum_VC: Tensor
        self.register_buffer("count_V", torch.zeros(num_codes))
        self.register_buffer("sum_VC", torch.zeros(num_codes, width))

    @torch.no_grad()
    def start_codebook(self, pixels: Tensor) -> None:
        """Take the codebook from the latents of `pixels`; each code counts as used once a batch."""
        flat_MC = self.vqgan.latents(pixels).movedim(1, -1).flatten(0, -2)
        num_codes = len(self.count_V)
        spread = torch.linspace(0, len(flat_MC) - 1, num_codes).long()
        self.vqgan.quantize.embedding.weight.copy_(flat_MC[spread])
        self.sum_VC.copy_(flat_MC[spread])
        self.count_V.fill_(1.0)

    def forward(self, pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return reconstruction (B, 3, Y, X), commitment loss, number of codes used by this batch."""
        latents = self.vqgan.latents(pixels).float()
        codes = self.vqgan.quantize.nearest(latents.detach())
        self._move_codebook(latents.detach(), codes, generator)
        quantized = self.vqgan.quantize(codes).detach()
        commitment = F.mse_loss(latents, quantized)
        straight_through = latents + (quantized - latents).detach()
        return (
            self.vqgan.decode_latents(straight_through),
            commitment,
            torch.tensor(codes.unique().numel()),
        )

    @torch.no_grad()
    def _move_codebook(self, latents: Tensor, codes: Tensor, generator: torch.Generator) -> None:
        flat_MC, codes_M = latents.movedim(1, -1).flatten(0, -2), codes.flatten()
        weight_VC = self.vqgan.quantize.embedding.weight
        one_hot_MV = F.one_hot(codes_M, len(weight_VC)).float()
        self.count_V.lerp_(one_hot_MV.sum(0), 1 - self.decay)
        self.sum_VC.lerp_(one_hot_MV.T @ flat_MC, 1 - self.decay)
        is_unused_V1 = (self.count_V < self.revive_below).unsqueeze(1)
        pick_V = torch.randint(len(flat_MC), (len(weight_VC),), generator=generator)
        mean_VC = self.sum_VC / self.count_V.clamp(min=1e-6).unsqueeze(1)
        weight_VC.copy_(torch.where(is_unused_V1, flat_MC[pick_V], mean_VC))
        # A revived code starts with the weight of a code used once a batch, or it would be replaced again at once.
        self.count_V.masked_fill_(is_unused_V1.squeeze(1), 1.0)
        self.sum_VC.copy_(torch.where(is_unused_V1, flat_MC[pick_V], self.sum_VC))


def contrasts(x: Tensor, distance: int) -> tuple[Tensor, Tensor]:
    """Return horizontal and vertical differences of pixels `distance` apart."""
    return x[..., distance:] - x[..., :-distance], x[..., distance:, :] - x[..., :-distance, :]


def contrast_loss(found: Tensor, pixels: Tensor, distances: tuple[int, ...]) -> Tensor:
    """Return L1 on contrasts, summed over distances and both directions."""
    pairs = [
        (a, b)
        for distance in distances
        for a, b in zip(contrasts(found, distance), contrasts(pixels, distance), strict=True)
    ]
    return torch.stack([F.l1_loss(a, b) for a, b in pairs]).sum()


def psnr_db(mse: Tensor) -> Tensor:
    """Return the peak signal to noise ratio of a mean squared error of pixels in [-1, 1]."""
    return -10 * torch.log10(mse.detach() / 4)


def autoencoder_loss(network: VQGAN, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss without quantization; a weak pull keeps the latents near unit size."""
    pixels, _ = batch
    latents = network.latents(pixels)
    found = network.decode_latents(latents)
    l1, mse, size = F.l1_loss(found, pixels), F.mse_loss(found, pixels), latents.square().mean()
    loss = l1 + mse + contrast_loss(found, pixels, (1,)) + LATENT_PULL * size
    return loss, {"l1": l1, "psnr_db": psnr_db(mse), "latent": size}


def quantized_loss(network: Quantizer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss with quantization: pixels, contrasts, commitment of the encoder to its codes.

    Contrasts weigh more: at 9 bits a code, plain errors would put all of them into exact sky colours.
    """
    pixels, generator = batch
    found, commitment, used = network(pixels, generator)
    l1, contrast = F.l1_loss(found, pixels), contrast_loss(found, pixels, CONTRAST_DISTANCES)
    figures = {"l1": l1, "contrast": contrast, "psnr_db": psnr_db(F.mse_loss(found, pixels))}
    loss = l1 + CONTRAST_WEIGHT * contrast + COMMITMENT * commitment
    return loss, figures | {"commitment": commitment, "codes_used": used}


def train(directory: Path) -> VQGAN:
    """Train on `directory`/train, with checkpoints in `directory`. Returns the averaged network."""
    pixels, _ = load(directory / "train")

    def draw_batch(generator: torch.Generator) -> Batch:
        index = torch.randint(len(pixels), (BATCH_SIZE,), generator=generator)
        return to_network(pixels[index]).contiguous(memory_format=torch.channels_last), generator

    with torch.random.fork_rng():
        torch.manual_seed(RECIPE.seed)
        network = VQGAN(CONFIG).to(memory_format=torch.channels_last)  # pyright: ignore
    autoencoder = fit(
        network,
        draw_batch,
        autoencoder_loss,
        AUTOENCODER_RECIPE,
        checkpoint=directory / "autoencoder.ckpt",
    )
    quantizer = Quantizer(autoencoder)
    quantizer.start_codebook(to_network(pixels[: 4 * BATCH_SIZE]))
    return fit(
        quantizer, draw_batch, quantized_loss, RECIPE, checkpoint=directory / "vq.ckpt"
    ).vqgan
