"""aMUSEd: a U-ViT over image codes, whose blocks look at a text.

Source: Patil et al. 2024 (arXiv 2401.01808); diffusers models/unets/uvit_2d.py UVit2DModel; facts in
tests/golden/UVIT.md.

Token ids: codes 0 .. V-1, then ids without use, the last of all the mask.
A stage of convolutions at full resolution, or at half of it, a trunk of transformer layers, and a stage back.

    B  images    h, w  rows, columns    L  positions of the grid that a stage or the trunk has    C  channels of a stage
    D  width of the trunk    P  text tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..architecture import Grid
from ..key_table import Unbatched
from ..layers import Attention, KeyValues, MultiHeadAttention
from ..layout import Layout, Tensors, check_heads, count, given, sizes
from ..uvit import UVit
from ..uvit_family import INPUT_TABLE, MICRO_WIDTH, UVitConfig, shared_sizes, stated_in_folder
from ..uvit_parts import (
    EPS,
    CodeOutput,
    Downsample,
    MicroConditions,
    TextCondition,
    TokenInput,
    Upsample,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(UVitConfig):
    """Sizes of an aMUSEd."""

    channels: int  # of the stages
    blocks_per_stage: int
    stage_heads: int  # of the stages' attention
    trunk_width: int
    mlp_width: int
    micro_width: int  # waves of each micro-condition


class Amused(UVit):
    """The network."""

    config: Config

    def build(
        self, config: Config, operations: Any, attention: Attention, tensor: dict[str, Any]
    ) -> None:
        width, channels = config.trunk_width, config.channels

        def linear(num_in: int, num_out: int) -> nn.Module:
            return operations.Linear(num_in, num_out, bias=False, **tensor)

        def norm(size: int) -> nn.Module:
            return operations.RMSNorm(size, eps=EPS, **tensor)

        self.text_in, self.text_norm = linear(config.text_width, width), norm(width)
        self.micro = MicroConditions(
            config.pooled_width, config.micro_width, width, operations, **tensor
        )
        self.embed = TokenInput(config.vocabulary, config.width, channels, operations, **tensor)
        self.downsample = self.upsample = None
        if config.downsamples:
            self.downsample = Downsample(channels, operations, **tensor)
            self.upsample = Upsample(channels, operations, **tensor)
        self.down = Stage(config, operations, attention, tensor)
        self.to_trunk_norm, self.to_trunk = norm(channels), linear(channels, width)
        self.blocks = nn.ModuleList(
            Block(config, operations, attention, tensor) for _ in range(config.depth)
        )
        self.from_trunk_norm, self.from_trunk = norm(width), linear(width, channels)
        self.up = Stage(config, operations, attention, tensor)
        self.output = CodeOutput(channels, config.width, config.num_codes, operations, **tensor)

    def condition_parts(self, condition: TextCondition, steps_left: int) -> tuple[Tensor, Tensor]:
        """Return the text (B, P, D), and a vector (B, D). The network takes no timestep."""
        dtype = self.compute_dtype
        text_BPD = self.text_norm(self.text_in(condition.states_BPC.to(dtype)))
        return text_BPD, self.micro.of(condition, dtype)

    def trunk(
        self,
        x_BMD: Tensor,
        text_BPD: Tensor,
        vector_BD: Tensor,
        grid: Grid,
        kept: Sequence[KeyValues] | None,
        position_BM: Tensor | None,
    ) -> Tensor:
        """Run the blocks. Returns (B, M, D)."""
        for i, block in enumerate(self.in_order(self.blocks)):
            x_BMD = block(x_BMD, text_BPD, vector_BD, kept and kept[i], position_BM)
        return x_BMD

    def num_blocks(self) -> int:
        """Return how many blocks of the trunk keep keys and values."""
        return self.config.depth

    def kept_values(self, num_tokens: int) -> tuple[float, float]:
        """Return how many values a pass keeps: keys and values, and the trunk's output."""
        length = self.trunk_length(num_tokens)
        return (
            2 * self.config.depth * length * self.config.trunk_width,
            length * self.config.channels,
        )

    def pass_values(self, num_tokens: int) -> float:
        """Return how many values are alive at the peak of a pass, for one image of one branch."""
        config = self.config
        length = self.trunk_length(num_tokens)
        stage = length * (3 * 4 * config.channels + 3 * config.channels)
        trunk = length * (3 * config.mlp_width + 3 * config.trunk_width)
        ends = num_tokens * 3 * max(config.channels, config.width)
        return max(stage, trunk, ends)


class Stage(nn.Module):
    """Blocks of convolutions, each with attention to the text behind it."""

    def __init__(
        self, config: Config, operations: Any, attention: Attention, tensor: dict[str, Any]
    ):
        super().__init__()
        numbers = range(config.blocks_per_stage)
        self.res_blocks = nn.ModuleList(ConvNext(config, operations, tensor) for _ in numbers)
        self.attention_blocks = nn.ModuleList(
            TextAttention(config, operations, attention, tensor) for _ in numbers
        )

    def forward(self, x_BhwC: Tensor, text_BPD: Tensor, vector_BD: Tensor) -> Tensor:
        grid = x_BhwC.shape[1:3]
        for res_block, attend in zip(self.res_blocks, self.attention_blocks, strict=True):
            x_BhwC = res_block(x_BhwC, vector_BD)
            x_BhwC = attend(x_BhwC.flatten(1, 2), text_BPD).unflatten(1, grid)
        return x_BhwC


class ConvNext(nn.Module):
    """A depthwise convolution and a perceptron around a residual connection, then scaled and shifted.

    Its response norm sees the whole grid: a feature at one position depends on all.
    """

    def __init__(self, config: Config, operations: Any, tensor: dict[str, Any]):
        super().__init__()
        width, hidden = config.channels, 4 * config.channels
        self.depthwise = operations.Conv2d(
            width, width, 3, padding=1, groups=width, bias=False, **tensor
        )
        self.norm = operations.RMSNorm(width, eps=EPS, **tensor)
        self.up = operations.Linear(width, hidden, bias=False, **tensor)
        # In embeddings of one entry, so that a host can move them.
        self.gamma, self.beta = (operations.Embedding(1, hidden, **tensor) for _ in range(2))
        self.down = operations.Linear(hidden, width, bias=False, **tensor)
        self.modulation = operations.Linear(config.trunk_width, 2 * width, bias=False, **tensor)

    def forward(self, x_BhwC: Tensor, vector_BD: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x_BhwC.movedim(-1, 1)).movedim(1, -1))
        x_BhwC = x_BhwC + self.down(self._normed_response(F.gelu(self.up(h))))
        scale, shift = _modulation(self.modulation, vector_BD, x_BhwC)
        return x_BhwC * (1 + scale) + shift

    def _normed_response(self, h_BhwC: Tensor) -> Tensor:
        """Return gamma * h * n + beta + h, where n is a channel's length over the grid, relative to the mean one's."""
        length_B11C = torch.linalg.vector_norm(h_BhwC, dim=(1, 2), keepdim=True)
        relative_B11C = length_B11C / (length_B11C.mean(-1, keepdim=True) + 1e-6)
        first = torch.zeros(1, dtype=torch.long, device=h_BhwC.device)
        gamma_1C, beta_1C = (part(first).to(h_BhwC.dtype) for part in (self.gamma, self.beta))
        return gamma_1C * (h_BhwC * relative_B11C) + beta_1C + h_BhwC


class TextAttention(nn.Module):
    """Attention to the text, twice."""

    def __init__(
        self, config: Config, operations: Any, attention: Attention, tensor: dict[str, Any]
    ):
        super().__init__()
        width, text_width = config.channels, config.trunk_width
        self.text_in = None
        if width != text_width:
            self.text_in = operations.Linear(text_width, width, bias=False, **tensor)
        self.norm1, self.norm2 = (operations.RMSNorm(width, eps=EPS, **tensor) for _ in range(2))
        heads = (width, config.stage_heads, operations, attention)
        self.attn1, self.attn2 = (
            MultiHeadAttention(*heads, bias=False, **tensor) for _ in range(2)
        )

    def forward(self, x_BLC: Tensor, text_BPD: Tensor) -> Tensor:
        if self.text_in is not None:
            text_BPD = self.text_in(F.silu(text_BPD))
        x_BLC = x_BLC + self.attn1(self.norm1(x_BLC), text_BPD)
        return x_BLC + self.attn2(self.norm2(x_BLC), text_BPD)


class Modulated(nn.Module):
    """A norm, scaled and shifted by the vector of the conditions."""

    def __init__(self, norm: nn.Module, width: int, operations: Any, tensor: dict[str, Any]):
        super().__init__()
        self.norm = norm
        self.linear = operations.Linear(width, 2 * width, bias=False, **tensor)

    def forward(self, x_BLD: Tensor, vector_BD: Tensor) -> Tensor:
        scale, shift = _modulation(self.linear, vector_BD, x_BLD)
        return self.norm(x_BLD) * (1 + scale) + shift


def _modulation(linear: nn.Module, vector_BD: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """Return scale and shift, to be spread over the positions of `like`."""
    both = linear(F.silu(vector_BD))
    return both[(slice(None), *[None] * (like.ndim - 2))].chunk(2, dim=-1)


class Block(nn.Module):
    """Attention to itself and to the text, then a gated perceptron."""

    def __init__(
        self, config: Config, operations: Any, attention: Attention, tensor: dict[str, Any]
    ):
        super().__init__()
        width = config.trunk_width

        def modulated(norm: nn.Module) -> Modulated:
            return Modulated(norm, width, operations, tensor)

        heads = (width, config.num_heads, operations, attention)
        self.norm1 = modulated(operations.RMSNorm(width, eps=EPS, **tensor))
        self.attn1 = MultiHeadAttention(*heads, bias=False, **tensor)
        self.norm2 = modulated(operations.RMSNorm(width, eps=EPS, **tensor))
        self.attn2 = MultiHeadAttention(*heads, bias=False, **tensor)
        # The third norm subtracts the mean, unlike the others.
        self.norm3 = modulated(operations.LayerNorm(width, eps=EPS, bias=False, **tensor))
        self.up = operations.Linear(width, 2 * config.mlp_width, bias=False, **tensor)
        self.down = operations.Linear(config.mlp_width, width, bias=False, **tensor)

    def forward(
        self,
        x_BLD: Tensor,
        text_BPD: Tensor,
        vector_BD: Tensor,
        kept: KeyValues | None = None,
        position_BL: Tensor | None = None,
    ) -> Tensor:
        h = self.norm1(x_BLD, vector_BD)
        x_BLD = x_BLD + self.attn1(h, h, kept, position_BL)
        x_BLD = x_BLD + self.attn2(self.norm2(x_BLD, vector_BD), text_BPD)
        value, gate = self.up(self.norm3(x_BLD, vector_BD)).chunk(2, dim=-1)
        return x_BLD + self.down(value * F.gelu(gate))


NUM_HEADS = {1024: 16}  # of the published models, by width of the trunk
STAGE_HEADS = {768: 12}  # the same by channels of the stages


def read_config(tensors: Tensors, known: Mapping[str, Any]) -> Config:
    """Return sizes from our tensors; what they do not show from `known` or else by preset."""
    trunk_width, _ = sizes(tensors, "text_in.weight", 2)
    channels, _ = sizes(tensors, "embed.conv.weight", 2)
    _, mlp_width = sizes(tensors, "blocks.0.down.weight", 2)
    micro_width = known.get("micro_width", MICRO_WIDTH)
    return Config(
        **shared_sizes(tensors, known, NUM_HEADS, micro_width),
        channels=channels,
        blocks_per_stage=count(tensors, "down.res_blocks."),
        stage_heads=check_heads(given(known, "stage_heads", STAGE_HEADS, channels), channels),
        trunk_width=trunk_width,
        mlp_width=mlp_width,
        micro_width=micro_width,
    )


STATED = {  # config.json -> our config
    "block_num_heads": "stage_heads",
    "micro_cond_encode_dim": "micro_width",
    "cond_embed_dim": "pooled_width",
    "num_hidden_layers": "depth",
}
EXPECTED = {
    "_class_name": ("UVit2DModel",),
    "use_bias": (False,),
    "layer_norm_eps": (EPS,),
    "ln_elementwise_affine": (True,),
}


def usual_grid(config: Config) -> Grid:
    """Return the grid of 512 x 512 pixels for a network that halves it, else that of 256 x 256."""
    return (32, 32) if config.downsamples else (16, 16)


def _attention(theirs: str, ours: str) -> dict[str, str]:
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "out"}
    return {f"{theirs}.{t}.weight": f"{ours}.{o}.weight" for t, o in names.items()}


def _stage(theirs: str, ours: str) -> dict[str, Any]:
    """Return rows of the key table for a stage."""
    block, mine = f"{theirs}.res_blocks.{{}}", f"{ours}.res_blocks.{{}}"
    attend, attends = f"{theirs}.attention_blocks.{{}}", f"{ours}.attention_blocks.{{}}"
    return {
        f"{theirs}.{ours}sample.*": f"{ours}sample.*",
        f"{block}.depthwise.*": f"{mine}.depthwise.*",
        f"{block}.norm.*": f"{mine}.norm.*",
        f"{block}.channelwise_linear_1.*": f"{mine}.up.*",
        f"{block}.channelwise_linear_2.*": f"{mine}.down.*",
        **{
            f"{block}.channelwise_norm.{part}": Unbatched(f"{mine}.{part}.weight", (0, 1))
            for part in ("gamma", "beta")
        },
        f"{block}.cond_embeds_mapper.*": f"{mine}.modulation.*",
        f"{attend}.kv_mapper.*": f"{attends}.text_in.*",
        **_attention(f"{attend}.attn1", f"{attends}.attn1"),
        **_attention(f"{attend}.attn2", f"{attends}.attn2"),
        f"{attend}.norm1.*": f"{attends}.norm1.*",
        f"{attend}.norm2.*": f"{attends}.norm2.*",
    }


TABLE = {
    **INPUT_TABLE,
    "encoder_proj.*": "text_in.*",
    **_stage("down_block", "down"),
    **_stage("up_block", "up"),
    **_attention("transformer_layers.{}.attn1", "blocks.{}.attn1"),
    **_attention("transformer_layers.{}.attn2", "blocks.{}.attn2"),
    "transformer_layers.{}.ff.net.0.proj.*": "blocks.{}.up.*",
    "transformer_layers.{}.ff.net.2.*": "blocks.{}.down.*",
    "transformer_layers.{}.*": "blocks.{}.*",
}

LAYOUT = Layout(
    name="amused",
    kind="model",
    title="aMUSEd transformer",
    filenames=(
        "transformer/diffusion_pytorch_model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
    ),
    marks=(
        "encoder_proj.weight",
        "down_block.res_blocks.0.depthwise.weight",
        "transformer_layers.0.norm1.linear.weight",
    ),
    table=TABLE,
    config=Config,
    read_config=read_config,
    network=Amused,
    read_beside=partial(stated_in_folder, names=STATED, expected=EXPECTED, what="aMUSEd"),
    quantizable=("blocks.",),
)
