"""Trains the shipped VQGAN on the scenes: L1 on pixels and on their edges, codebook by moving averages.

Source: van den Oord et al. 2017, appendix A.1 (codebook by exponential moving averages) and equation 3 (commitment);
replacement of unused entries as in Dhariwal et al. 2020 (Jukebox), section 3.1.

    B  images    C  code width    V  codebook size    M  code positions of the whole batch
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.maskgit_vqgan import VQGAN, Config
from ..train.fit import Recipe, fit
from .data import load, to_network

CONFIG = Config(
    channels=32,
    multipliers=(1, 1, 2, 3),
    blocks_per_level=1,
    attention_levels=(3,),
    latent_channels=96,
    code_width=32,
    num_codes=512,
)
RECIPE = Recipe(iterations=2200, lr=1.5e-3, warmup=100, betas=(0.9, 0.95), ema=0.995, weight_decay=1e-4, checkpoint_every=200)
BATCH_SIZE = 16
COMMITMENT = 0.25
EDGE_WEIGHT = 1.0


class Quantizer(nn.Module):
    """A VQGAN in training: it quantizes with a straight-through gradient and moves the codebook itself."""

    def __init__(self, vqgan: VQGAN, decay: float = 0.98, revive_below: float = 0.05):
        super().__init__()
        self.vqgan, self.decay, self.revive_below = vqgan, decay, revive_below
        self.vqgan.quantize.embedding.weight.requires_grad_(False)
        num_codes, width = vqgan.quantize.embedding.weight.shape
        self.register_buffer("count_V", torch.zeros(num_codes))
        self.register_buffer("sum_VC", torch.zeros(num_codes, width))

    def forward(self, pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Returns reconstruction (B, 3, Y, X), commitment loss, number of codes used by this batch."""
        latents = self.vqgan.latents(pixels).float()
        codes = self.vqgan.quantize.nearest(latents.detach())
        self._move_codebook(latents.detach(), codes, generator)
        quantized = self.vqgan.quantize(codes).detach()
        commitment = F.mse_loss(latents, quantized)
        straight_through = latents + (quantized - latents).detach()
        return self.vqgan.decode_latents(straight_through), commitment, torch.tensor(codes.unique().numel())

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


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical differences of neighbouring pixels."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def loss_of(network: Quantizer, batch: tuple[Tensor, torch.Generator]) -> tuple[Tensor, dict[str, Tensor]]:
    """L1 on pixels and on edges, plus the commitment of the encoder to its codes."""
    pixels, generator = batch
    found, commitment, used = network(pixels, generator)
    l1 = F.l1_loss(found, pixels)
    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(found), edges(pixels), strict=True))
    mse = F.mse_loss(found, pixels)
    return l1 + mse + EDGE_WEIGHT * edge + COMMITMENT * commitment, {"l1": l1, "psnr_db": -10 * torch.log10(mse.detach() / 4), "commitment": commitment, "codes_used": used}


def train(directory: Path) -> VQGAN:
    """Trains on `directory`/train, with checkpoints in `directory`. Returns the averaged network."""
    pixels, _ = load(directory / "train")

    def draw_batch(generator: torch.Generator) -> tuple[Tensor, torch.Generator]:
        index = torch.randint(len(pixels), (BATCH_SIZE,), generator=generator)
        return to_network(pixels[index]).contiguous(memory_format=torch.channels_last), generator

    with torch.random.fork_rng():
        torch.manual_seed(RECIPE.seed)
        network = Quantizer(VQGAN(CONFIG)).to(memory_format=torch.channels_last)
    return fit(network, draw_batch, loss_of, RECIPE, checkpoint=directory / "vq.ckpt").vqgan
