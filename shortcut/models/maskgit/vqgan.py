"""The VQGAN of MaskGIT: pixels -> code ids -> pixels.

Source: Esser et al. 2021 (VQGAN); layout of CompVis/taming-transformers taming/modules/diffusionmodules/model.py and
taming/models/vqgan.py, as published in llvictorll/Maskgit-pytorch VQGAN/last.ckpt.
Differs: the encoder returns code ids directly; there is no loss and no dropout in the network.

    B  images    C  channels    Y, X  pixel rows, columns    h, w  rows, columns of codes    V  codebook size
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...guard import read_yaml, said, shown
from ..layers import Attention, BaseNetwork
from ..layout import Layout, Tensors, count, sizes
from ..vq_layers import (
    Codebook,
    Downsample,
    Host,
    ResBlock,
    Upsample,
)


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes of a VQGAN, all of them readable from its tensors."""

    channels: int  # width of the first and last level
    multipliers: tuple[
        int, ...
    ]  # width of each level as a multiple of `channels`, finest level first
    blocks_per_level: int  # residual blocks of each encoder level; the decoder has one more
    attention_levels: tuple[int, ...]  # indices into `multipliers` of the levels with attention
    latent_channels: int  # channels between encoder and quant_conv
    code_width: int  # width of a codebook entry
    num_codes: int

    @property
    def downscale(self) -> int:
        """Pixels per code along one side."""
        return 2 ** (len(self.multipliers) - 1)


class VQGAN(BaseNetwork):
    """Encoder, codebook and decoder."""

    config: Config

    def build(
        self, config: Config, operations: Any, attention: Attention, tensor: dict[str, Any]
    ) -> None:
        host = Host(operations, attention, tensor)
        self.encoder = Encoder(config, host)
        self.quant_conv = host.conv(config.latent_channels, config.code_width, 1)
        self.quantize = Codebook(config.num_codes, config.code_width, host)
        self.post_quant_conv = host.conv(config.code_width, config.latent_channels, 1)
        self.decoder = Decoder(config, host)

    def encode(self, pixels_BCYX: Tensor) -> Tensor:
        """Return code ids (B, h, w) of RGB pixels in [-1, 1] whose sides are multiples of `config.downscale`."""
        return self.quantize.nearest(self.latents(pixels_BCYX))

    def latents(self, pixels_BCYX: Tensor) -> Tensor:
        """Return the latents that are quantized: (B, code_width, h, w)."""
        return self.quant_conv(self.encoder(pixels_BCYX.to(self.dtype)))

    def decode(self, codes_Bhw: Tensor) -> Tensor:
        """Return RGB pixels (B, 3, Y, X), around [-1, 1] but not clipped, of code ids."""
        latents_BChw = self.quantize(codes_Bhw).to(self.dtype)
        return self.decoder(self.post_quant_conv(latents_BChw))


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of a feature map."""

    def __init__(self, width: int, host: Host):
        super().__init__()
        self.attention = host.attention
        self.norm = host.norm(width)
        self.q, self.k, self.v, self.proj_out = (host.conv(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        h = self.attention(q, k, v, 1).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.proj_out(h)


class Mid(nn.Module):
    """Block, attention, block at the coarsest level."""

    def __init__(self, width: int, host: Host):
        super().__init__()
        self.block_1, self.attn_1 = ResBlock(width, width, host), AttnBlock(width, host)
        self.block_2 = ResBlock(width, width, host)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution, then its change of resolution if it has one."""

    def __init__(self, widths: list[int], has_attention: bool, host: Host):
        super().__init__()
        self.block = nn.ModuleList(ResBlock(a, b, host) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(b, host) for b in widths[1:] if has_attention)

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return self.resample(x)

    def resample(self, x: Tensor) -> Tensor:
        for name in ("downsample", "upsample"):
            if name in self._modules:
                return getattr(self, name)(x)
        return x


class Encoder(nn.Module):
    """Pixels (B, 3, Y, X) -> (B, latent_channels, h, w)."""

    def __init__(self, config: Config, host: Host):
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        self.conv_in = host.conv(3, config.channels, 3)
        self.down = nn.ModuleList()
        previous = config.channels
        for index, width in enumerate(widths):
            chain = [previous] + [width] * config.blocks_per_level
            level = Level(chain, index in config.attention_levels, host)
            if index < len(widths) - 1:
                level.downsample = Downsample(width, host)
            self.down.append(level)
            previous = width
        self.mid = Mid(previous, host)
        self.norm_out = host.norm(previous)
        self.conv_out = host.conv(previous, config.latent_channels, 3)

    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        x = self.conv_in(pixels_BCYX)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B, latent_channels, h, w) -> pixels (B, 3, Y, X).

    `up[i]` is the level of `multipliers[i]`; the last runs first.
    """

    def __init__(self, config: Config, host: Host):
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        self.conv_in = host.conv(config.latent_channels, widths[-1], 3)
        self.mid = Mid(widths[-1], host)
        levels: list[Level] = []
        previous = widths[-1]
        for index in reversed(range(len(widths))):
            chain = [previous] + [widths[index]] * (config.blocks_per_level + 1)
            level = Level(chain, index in config.attention_levels, host)
            if index > 0:
                level.upsample = Upsample(widths[index], host)
            levels.insert(0, level)
            previous = widths[index]
        self.up = nn.ModuleList(levels)
        self.norm_out = host.norm(previous)
        self.conv_out = host.conv(previous, 3, 3)

    def forward(self, latents_BChw: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents_BChw))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def read_config(tensors: Tensors, known: Mapping[str, Any]) -> Config:
    """Return sizes from our tensors; nothing needs to be known beforehand."""
    channels = sizes(tensors, "encoder.conv_in.weight", 4)[0]
    levels = range(count(tensors, "encoder.down."))
    widths = [sizes(tensors, f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in levels]
    if not widths or any(width % channels for width in widths) or channels % 32:
        raise ValueError(
            f"its levels have {widths} channels, expected multiples of {channels}, those of the first "
            "convolution, which must be a multiple of 32."
        )
    num_codes, code_width = sizes(tensors, "quantize.embedding.weight", 2)
    return Config(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks_per_level=count(tensors, "encoder.down.0.block."),
        attention_levels=tuple(i for i in levels if count(tensors, f"encoder.down.{i}.attn.") > 0),
        latent_channels=sizes(tensors, "encoder.conv_out.weight", 4)[0],
        code_width=code_width,
        num_codes=num_codes,
    )


def check_yaml(file: Path, config: Config) -> None:
    """Compare `config` with the model.yaml beside the published `file`, if there is one.

    Raises:
        ValueError: it cannot be read, or it states another size. What it leaves out does not matter.
    """
    description = file.with_name("model.yaml")
    if not description.is_file():
        return
    try:
        params = read_yaml(description)["model"]["params"]
        stated = {**params["ddconfig"], **params}
        if {"resolution", "attn_resolutions"} <= stated.keys():
            sides = [stated["resolution"] // 2**level for level in range(len(config.multipliers))]
            wanted = stated["attn_resolutions"]
            stated["levels with attention"] = [i for i, side in enumerate(sides) if side in wanted]
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise ValueError(
            f"{description} beside it does not describe a VQGAN ({said(error)}). "
            "Download it again, or move it away: the weights alone are enough."
        ) from error
    actual: dict[str, Any] = {
        "double_z": False,
        "z_channels": config.latent_channels,
        "in_channels": 3,
        "out_ch": 3,
        "ch": config.channels,
        "ch_mult": list(config.multipliers),
        "num_res_blocks": config.blocks_per_level,
        "n_embed": config.num_codes,
        "embed_dim": config.code_width,
        "levels with attention": list(config.attention_levels),
    }
    wrong = [
        f"{name} is {shown(stated[name])}, but the tensors say {value}"
        for name, value in actual.items()
        if stated.get(name, value) != value
    ]
    if wrong:
        raise ValueError(
            f"{description} beside it contradicts the tensors: {'; '.join(wrong)}. They belong to "
            "different models: download both again, or move the .yaml away."
        )


# The network keeps the published names.
TABLE = {
    "encoder.*": "encoder.*",
    "quant_conv.*": "quant_conv.*",
    "quantize.embedding.weight": "quantize.embedding.weight",
    "post_quant_conv.*": "post_quant_conv.*",
    "decoder.*": "decoder.*",
    "loss.*": None,  # the discriminator and the perceptual network of its training
}

LAYOUT = Layout(
    name="maskgit-vqgan",
    kind="vq",
    title="VQGAN of MaskGIT",
    filenames=("last.ckpt",),
    container="state_dict",
    marks=(
        "quantize.embedding.weight",
        "encoder.down.0.block.0.norm1.weight",
        "post_quant_conv.weight",
    ),
    table=TABLE,
    config=Config,
    read_config=read_config,
    network=VQGAN,
    check_beside=check_yaml,
    codebook="quantize.embedding.weight",
)
