"""The VQ model of aMUSEd, which other models have too: pixels -> code ids -> pixels.

It is a VQGAN without attention, with as many blocks in its middle.

Source: Patil et al. 2024 (aMUSEd, arXiv 2401.01808), section 3; diffusers VQModel, whose config.json and keys the
published folder has; tests/golden/README.md section 7.
Differs: callers give and get pixels in [-1, 1], as with every VQ model here; the published network works on [0, 1].
Codes are always looked up in the codebook, none is quantized again on decoding.

    B  images    C  channels    Y, X  pixel rows, columns    h, w  rows, columns of codes    V  codebook size
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ..guard import shown
from .beside import check_expected, stated_beside
from .layers import Attention, BaseNetwork
from .layout import Layout, Tensors, count, sizes
from .vq_layers import (
    Codebook,
    Downsample,
    Host,
    ResBlock,
    Upsample,
)


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes of a VQ model. All but `num_groups` can be read from its tensors."""

    widths: tuple[int, ...]  # channels of each level, finest level first
    blocks_per_level: int  # residual blocks of each encoder level; the decoder has one more
    latent_channels: int  # width of a codebook entry too
    num_codes: int
    num_groups: int  # of all norms

    @property
    def channels(self) -> int:
        """Width of the finest level."""
        return self.widths[0]

    @property
    def downscale(self) -> int:
        """Pixels per code along one side."""
        return 2 ** (len(self.widths) - 1)


PUBLISHED = Config((128, 256, 256, 512, 768), 2, 64, 8192, 32)


class AmusedVQ(BaseNetwork):
    """Encoder, codebook and decoder, without attention."""

    config: Config

    def build(
        self, config: Config, operations: Any, attention: Attention, tensor: dict[str, Any]
    ) -> None:
        host = Host(operations, attention, tensor, config.num_groups)
        width = config.latent_channels
        self.encoder = Encoder(config, host)
        self.quant_conv = host.conv(width, width, 1)
        self.quantize = Codebook(config.num_codes, width, host)
        self.post_quant_conv = host.conv(width, width, 1)
        self.decoder = Decoder(config, host)

    def encode(self, pixels_BCYX: Tensor) -> Tensor:
        """Return code ids (B, h, w) of RGB pixels in [-1, 1] whose sides are multiples of `config.downscale`."""
        return self.quantize.nearest(self.latents(pixels_BCYX))

    def latents(self, pixels_BCYX: Tensor) -> Tensor:
        """Return the latents that are quantized: (B, latent_channels, h, w)."""
        return self.quant_conv(self.encoder((pixels_BCYX.to(self.dtype) + 1) / 2))

    def decode(self, codes_Bhw: Tensor) -> Tensor:
        """Return RGB pixels (B, 3, Y, X), around [-1, 1] but not clipped, of code ids."""
        latents_BChw = self.quantize(codes_Bhw).to(self.dtype)
        return self.decoder(self.post_quant_conv(latents_BChw)) * 2 - 1


class Encoder(nn.Module):
    """RGB pixels (B, 3, Y, X) in [0, 1] -> (B, latent_channels, h, w)."""

    def __init__(self, config: Config, host: Host):
        super().__init__()
        widths = config.widths
        self.conv_in = host.conv(3, widths[0], 3)
        self.levels = nn.ModuleList()
        for index, width in enumerate(widths):
            chain = [widths[max(index - 1, 0)]] + [width] * config.blocks_per_level
            is_last = index == len(widths) - 1
            self.levels.append(Level(chain, None if is_last else Downsample(width, host), host))
        self.mid = middle(widths[-1], host)
        self.norm_out = host.norm(widths[-1])
        self.conv_out = host.conv(widths[-1], config.latent_channels, 3)

    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        x = self.conv_in(pixels_BCYX)
        for layer in layers(self.levels):
            x = layer(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B, latent_channels, h, w) -> RGB pixels (B, 3, Y, X) around [0, 1]."""

    def __init__(self, config: Config, host: Host):
        super().__init__()
        widths = config.widths[::-1]
        self.conv_in = host.conv(config.latent_channels, widths[0], 3)
        self.mid = middle(widths[0], host)
        self.levels = nn.ModuleList()
        for index, width in enumerate(widths):
            chain = [widths[max(index - 1, 0)]] + [width] * (config.blocks_per_level + 1)
            is_last = index == len(widths) - 1
            self.levels.append(Level(chain, None if is_last else Upsample(width, host), host))
        self.norm_out = host.norm(widths[-1])
        self.conv_out = host.conv(widths[-1], 3, 3)

    def forward(self, latents_BChw: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents_BChw))
        for layer in layers(self.levels):
            x = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Level(nn.Module):
    """Holds the blocks of one resolution, then its change of resolution if it has one."""

    def __init__(self, widths: list[int], resample: nn.Module | None, host: Host):
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(a, b, host) for a, b in pairwise(widths))
        self.resample = resample or nn.Identity()


def layers(levels: nn.ModuleList) -> Iterator[nn.Module]:
    """Yield the layers of all levels. Called one by one, none of their inputs is held longer than needed."""
    for level in levels:
        yield from cast(nn.ModuleList, level.blocks)
        yield cast(nn.Module, level.resample)


def middle(width: int, host: Host) -> nn.Sequential:
    """Return the two blocks of the coarsest level between encoder or decoder and codes."""
    return nn.Sequential(ResBlock(width, width, host), ResBlock(width, width, host))


NUM_GROUPS = {128: 32}  # of the published model, by the width of the finest level


def read_config(tensors: Tensors, known: Mapping[str, Any]) -> Config:
    """Return sizes from our tensors; `num_groups` from `known` or else by preset."""
    levels = range(count(tensors, "encoder.levels."))
    widths = [sizes(tensors, f"encoder.levels.{i}.blocks.0.conv1.weight", 4)[0] for i in levels]
    channels = sizes(tensors, "encoder.conv_in.weight", 4)[0]
    num_codes, code_width = sizes(tensors, "quantize.embedding.weight", 2)
    num_groups = known.get("num_groups", NUM_GROUPS.get(channels))
    if num_groups is None:
        raise ValueError(
            "the number of groups of its norms cannot be read from the tensors. Put the config.json of the published "
            "folder beside the file."
        )
    if not isinstance(num_groups, int) or num_groups < 1 or any(w % num_groups for w in widths):
        raise ValueError(
            f"its norms have {num_groups!r} groups, expected a divisor of the widths {widths}."
        )
    return Config(
        widths=tuple(widths),
        blocks_per_level=count(tensors, "encoder.levels.0.blocks."),
        latent_channels=code_width,
        num_codes=num_codes,
        num_groups=num_groups,
    )


# What the network is built for, as a config.json of diffusers says it; defaults of diffusers need not be stated.
EXPECTED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("VQModel",),
    "in_channels": (3,),
    "out_channels": (3,),
    "act_fn": ("silu", "swish"),
    "norm_type": ("group",),
    "mid_block_add_attention": (False,),
    "lookup_from_codebook": (True,),
}
STATED = {  # config.json -> our config
    "block_out_channels": "widths",
    "layers_per_block": "blocks_per_level",
    "latent_channels": "latent_channels",
    "num_vq_embeddings": "num_codes",
    "norm_num_groups": "num_groups",
}


def read_beside(file: Path) -> dict[str, Any]:
    """Return the config fields that the config.json beside the published `file` states; empty if there is none.

    Raises:
        ValueError: it cannot be read, or describes another network than this one.
    """
    stated = stated_beside(file)
    levels = stated.get("block_out_channels", [])
    if not isinstance(levels, list):
        raise ValueError(
            f"{file.with_name('config.json')} beside it says block_out_channels = {shown(levels)}, expected a list. "
            "Download it again."
        )
    num_levels = len(levels)
    expected = {
        **EXPECTED,
        "down_block_types": (["DownEncoderBlock2D"] * num_levels,),
        "up_block_types": (["UpDecoderBlock2D"] * num_levels,),
        "vq_embed_dim": (None, stated.get("latent_channels")),
    }
    advice = "Choose the vqvae folder of the model."
    check_expected(file, stated, expected, "the VQ model of aMUSEd", advice)
    return {ours: stated[theirs] for theirs, ours in STATED.items() if theirs in stated}


def _stack(theirs: str, blocks: str, resampler: str) -> dict[str, str]:
    """Return rows of the key table for the encoder or the decoder."""
    block, ours = f"{theirs}.{blocks}.{{}}.resnets.{{}}", f"{theirs}.levels.{{}}.blocks.{{}}"
    return {
        f"{theirs}.conv_in.*": f"{theirs}.conv_in.*",
        f"{block}.conv_shortcut.*": f"{ours}.nin_shortcut.*",
        f"{block}.*": f"{ours}.*",
        f"{theirs}.{blocks}.{{}}.{resampler}.0.*": f"{theirs}.levels.{{}}.resample.*",
        f"{theirs}.mid_block.resnets.{{}}.*": f"{theirs}.mid.{{}}.*",
        f"{theirs}.conv_norm_out.*": f"{theirs}.norm_out.*",
        f"{theirs}.conv_out.*": f"{theirs}.conv_out.*",
    }


TABLE = {
    **_stack("encoder", "down_blocks", "downsamplers"),
    "quant_conv.*": "quant_conv.*",
    "quantize.embedding.weight": "quantize.embedding.weight",
    "post_quant_conv.*": "post_quant_conv.*",
    **_stack("decoder", "up_blocks", "upsamplers"),
}

LAYOUT = Layout(
    name="lumina-vq",  # by the model whose files were read first
    kind="vq",
    title="aMUSEd VQ model",
    filenames=("diffusion_pytorch_model.safetensors",),
    marks=(
        "quantize.embedding.weight",
        "encoder.down_blocks.0.resnets.0.norm1.weight",
        "post_quant_conv.weight",
    ),
    table=TABLE,
    config=Config,
    read_config=read_config,
    network=AmusedVQ,
    read_beside=read_beside,
    codebook="quantize.embedding.weight",
)
