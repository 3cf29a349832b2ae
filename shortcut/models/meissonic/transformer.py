"""Meissonic: image codes and a text attend to each other in a transformer of joint and of single blocks.

Source: Bai et al. 2024 (arXiv 2410.08261); viiika/Meissonic src/transformer.py; facts in tests/golden/UVIT.md.
Differs: rotary positions are those of the trunk's own grid, at any size. The original counts half the rows and columns
at height 1024 and all of them at any other, so that a network that halves the sides runs at that height only, and one
that does not at any other only.

Token ids: codes 0 .. V-1, then ids without use, the last of all the mask.
Sequence of the trunk: the text, then the image at its full resolution, or at half of it.

    B  images    h, w  rows, columns    L  image positions of the trunk    P  text tokens    S  text and image
    D  width
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
from ..layers import Attention, KeyValues
from ..layout import Layout, Tensors, count
from ..uvit import UVit
from ..uvit_family import INPUT_TABLE, NUM_TEXT_TOKENS, UVitConfig, shared_sizes, stated_in_folder
from ..uvit_parts import (
    EPS,
    CodeOutput,
    Downsample,
    MicroConditions,
    TextCondition,
    TokenInput,
    TwoLayers,
    Upsample,
    sinusoids,
)
from .block import JointBlock, SingleBlock, Turn

NUM_WAVES = 256  # of the timestep, and of each micro-condition
TIME_SCALE = 1000.0  # of the timestep, which counts the steps left


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(UVitConfig):
    """Sizes of a Meissonic. No tensor shows the rotary axes."""

    single_depth: int
    rope_axes: tuple[int, ...]  # values of a head that turn with nothing, the row, the column

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads


class Meissonic(UVit):
    """The network."""

    config: Config

    def build(
        self, config: Config, operations: Any, attention: Attention, tensor: dict[str, Any]
    ) -> None:
        width = config.width

        def norm() -> nn.Module:
            return operations.RMSNorm(width, eps=EPS, **tensor)

        def linear() -> nn.Module:
            return operations.Linear(width, width, bias=False, **tensor)

        self.text_in = operations.Linear(config.text_width, width, **tensor)
        self.text_norm = norm()
        self.micro = MicroConditions(config.pooled_width, NUM_WAVES, width, operations, **tensor)
        self.time = TwoLayers(NUM_WAVES, width, operations, bias=True, **tensor)
        self.vector = TwoLayers(width, width, operations, bias=True, **tensor)
        self.embed = TokenInput(config.vocabulary, width, width, operations, **tensor)
        self.downsample = self.upsample = self.down = self.up = None
        if config.downsamples:
            self.downsample = Downsample(width, operations, **tensor)
            self.upsample = Upsample(width, operations, **tensor)
        self.to_trunk_norm, self.to_trunk = norm(), linear()
        parts = (config, operations, attention, tensor)
        self.blocks = nn.ModuleList(JointBlock(*parts) for _ in range(config.depth))
        self.single_blocks = nn.ModuleList(SingleBlock(*parts) for _ in range(config.single_depth))
        self.from_trunk_norm, self.from_trunk = norm(), linear()
        self.output = CodeOutput(width, width, config.num_codes, operations, **tensor)

    def condition_parts(self, condition: TextCondition, steps_left: int) -> tuple[Tensor, Tensor]:
        """Return the text (B, P, D), and a vector (B, D) of the timestep and all else."""
        dtype = self.compute_dtype
        text_BPD = self.text_norm(self.text_in(condition.states_BPC.to(dtype)))
        time_B = torch.full((len(text_BPD),), steps_left * TIME_SCALE, device=text_BPD.device)
        vector_BD = self.time(sinusoids(time_B, NUM_WAVES).to(dtype))
        return text_BPD, F.silu(vector_BD + self.vector(self.micro.of(condition, dtype)))

    def trunk(
        self,
        x_BMD: Tensor,
        text_BPD: Tensor,
        vector_BD: Tensor,
        grid: Grid,
        kept: Sequence[KeyValues] | None,
        position_BM: Tensor | None,
    ) -> Tensor:
        """Run the blocks. Returns (B, M, D). In a partial pass the text is not run: what was kept of it stays."""
        turn, length = Turn.on_grid(*grid, self.config.rope_axes, x_BMD.device), text_BPD.shape[1]
        if position_BM is not None:
            turn, text_BPD = turn.at(position_BM), text_BPD[:, :0]
            position_BM = position_BM + length
        more = iter([None] * self.num_blocks() if kept is None else kept)
        for block in self.in_order(self.blocks):
            text_BPD, x_BMD = block(text_BPD, x_BMD, vector_BD, turn, next(more), position_BM)
        length, x_BSD = text_BPD.shape[1], torch.cat([text_BPD, x_BMD], 1)
        for block in self.in_order(self.single_blocks):
            x_BSD = block(x_BSD, vector_BD, turn, next(more), position_BM)
        return x_BSD[:, length:]

    def num_blocks(self) -> int:
        """Return how many blocks of the trunk keep keys and values."""
        return self.config.depth + self.config.single_depth

    def kept_values(self, num_tokens: int) -> tuple[float, float]:
        """Return how many values a pass keeps: keys and values, and the trunk's output."""
        length, width = self.trunk_length(num_tokens), self.config.width
        return 2 * self.num_blocks() * (length + NUM_TEXT_TOKENS) * width, length * width

    def pass_values(self, num_tokens: int) -> float:
        """Return how many values are alive at the peak of a pass, for one image of one branch."""
        length = self.trunk_length(num_tokens) + NUM_TEXT_TOKENS
        return self.config.width * max(16 * length, 3 * num_tokens)


NUM_HEADS = {1024: 8}  # of the published model, by width
ROPE_AXES = (16, 56, 56)  # of the published model


def read_config(tensors: Tensors, known: Mapping[str, Any]) -> Config:
    """Return sizes from our tensors; what they do not show from `known` or else by preset."""
    shared = shared_sizes(tensors, known, NUM_HEADS, NUM_WAVES)
    axes, head_width = known.get("rope_axes", ROPE_AXES), shared["width"] // shared["num_heads"]
    if not isinstance(axes, list | tuple) or len(axes) != 3 or sum(axes) != head_width:
        raise ValueError(
            f"rope_axes is {axes!r}, expected three numbers of sum {head_width}. Download config.json again."
        )
    if any(not isinstance(axis, int) or axis < 2 or axis % 2 for axis in axes):
        raise ValueError(
            f"rope_axes is {axes!r}, expected even numbers from 2 up. Download config.json again."
        )
    single_depth = count(tensors, "single_blocks.")
    return Config(**shared, single_depth=single_depth, rope_axes=tuple(axes))


def usual_grid(config: Config) -> Grid:
    """Return the grid of 1024 x 1024 pixels for a network that halves it, else that of 512 x 512."""
    return (64, 64) if config.downsamples else (32, 32)


STATED = {  # config.json -> our config
    "axes_dims_rope": "rope_axes",
    "num_layers": "depth",
    "num_single_layers": "single_depth",
    "joint_attention_dim": "text_width",
    "pooled_projection_dim": "pooled_width",
}
EXPECTED = {
    "_class_name": ("Transformer2DModel",),
    "guidance_embeds": (False,),
    "patch_size": (1,),
}


def _projections(theirs: str, ours: str, names: tuple[str, ...]) -> dict[str, str]:
    mine = ("query", "key", "value", "query_norm", "key_norm")
    return {f"{theirs}.attn.{t}.*": f"{ours}.attn.{o}.*" for t, o in zip(names, mine, strict=True)}


def _stream(ours: str, norm: str, names: tuple[str, ...], out: str, ff: str) -> dict[str, str]:
    """Return rows of the key table for one stream of a joint block."""
    theirs, mine = "transformer_blocks.{}", f"blocks.{{}}.{ours}"
    return {
        f"{theirs}.{norm}.linear.*": f"{mine}.modulation.*",
        **_projections(theirs, mine, names),
        f"{theirs}.attn.{out}.*": f"{mine}.out.*",
        f"{theirs}.{ff}.net.0.proj.*": f"{mine}.up.*",
        f"{theirs}.{ff}.net.2.*": f"{mine}.down.*",
    }


_OWN = ("to_q", "to_k", "to_v", "norm_q", "norm_k")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k")

TABLE = {
    **INPUT_TABLE,
    "context_embedder.*": "text_in.*",
    "time_text_embed.timestep_embedder.*": "time.*",
    "time_text_embed.text_embedder.*": "vector.*",
    "down_block.downsample.*": "downsample.*",
    "up_block.upsample.*": "upsample.*",
    **_stream("image", "norm1", _OWN, "to_out.0", "ff"),
    **_stream("text", "norm1_context", _ADDED, "to_add_out", "ff_context"),
    "single_transformer_blocks.{}.norm.linear.*": "single_blocks.{}.modulation.*",
    **_projections("single_transformer_blocks.{}", "single_blocks.{}", _OWN),
    "single_transformer_blocks.{}.proj_mlp.*": "single_blocks.{}.up.*",
    "single_transformer_blocks.{}.proj_out.*": "single_blocks.{}.out.*",
}

LAYOUT = Layout(
    name="meissonic",
    kind="model",
    title="Meissonic transformer",
    filenames=(
        "transformer/diffusion_pytorch_model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
    ),
    marks=(
        "time_text_embed.timestep_embedder.linear_1.weight",
        "single_transformer_blocks.0.proj_mlp.weight",
        "mlm_layer.conv2.weight",
    ),
    table=TABLE,
    config=Config,
    read_config=read_config,
    network=Meissonic,
    read_beside=partial(stated_in_folder, names=STATED, expected=EXPECTED, what="Meissonic"),
    quantizable=("blocks.", "single_blocks."),
)
