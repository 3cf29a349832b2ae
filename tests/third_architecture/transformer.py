"""One block of self-attention, cross-attention to the condition, and a scale by pooled condition and timestep.

B  images    L  image tokens    P  condition tokens    C  width of the condition    D  width    V  codebook size
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from shortcut_pack.shortcut.denoiser import Conditions
from shortcut_pack.shortcut.models.key_table import Unbatched
from shortcut_pack.shortcut.models.layers import (
    Attention,
    BaseNetwork,
    FeedForward,
    MultiHeadAttention,
    transformer_bytes,
)
from shortcut_pack.shortcut.models.layout import Layout, Tensors, sizes
from shortcut_pack.shortcut.schedule import Step
from torch import Tensor, nn

NUM_HEADS, SIDE = 4, 8  # positions are learned for up to 8 x 8 codes


@dataclass(frozen=True)
class Config:
    """Sizes, all of them readable from the tensors."""

    width: int
    mlp_width: int
    num_codes: int
    condition_width: int


@dataclass(frozen=True)
class Mood:
    """The condition of one guidance branch: two float tensors."""

    tokens_BPC: Tensor
    pooled_BC: Tensor

    def to(self, device: Any) -> Mood:
        return Mood(self.tokens_BPC.to(device), self.pooled_BC.to(device))

    def __getitem__(self, rows: Any) -> Mood:
        return Mood(self.tokens_BPC[rows], self.pooled_BC[rows])

    def __len__(self) -> int:
        return len(self.pooled_BC)


class MoodModel(BaseNetwork):
    """The network."""

    config: Config

    def build(
        self, config: Config, operations: Any, attention: Attention, tensor: dict[str, Any]
    ) -> None:
        width = config.width
        self.token = operations.Embedding(config.num_codes + 1, width, **tensor)  # the last = mask
        self.position = operations.Embedding(SIDE**2, width, **tensor)
        self.pooled = operations.Linear(config.condition_width, width, **tensor)
        self.context = operations.Linear(config.condition_width, width, **tensor)
        self.time = operations.Linear(1, width, **tensor)
        self.norm = operations.LayerNorm(width, **tensor)
        heads = (width, NUM_HEADS, operations, attention)
        self.self_attention = MultiHeadAttention(*heads, **tensor)
        self.cross_attention = MultiHeadAttention(*heads, **tensor)
        self.feed_forward = FeedForward(width, config.mlp_width, operations, **tensor)
        self.code_output = operations.Linear(width, config.num_codes, **tensor)

    def on_grid(self, rows: int, columns: int, *, is_sequential: bool = False) -> OnGrid:
        if max(rows, columns) > SIDE:
            raise ValueError(f"this model makes images of up to {SIDE} x {SIDE} codes.")
        return OnGrid(self, rows, columns)

    def layers_to_logits(self) -> Sequence[nn.Module]:
        return (self.code_output,)

    def run(self, tokens_BL: Tensor, index_L: Tensor, mood: Mood, ratio: float) -> Tensor:
        """Return features (B, L, D)."""
        kind = self.compute_dtype
        x = self.token(tokens_BL).to(kind) + self.position(index_L).to(kind)
        time_1 = torch.full((1,), ratio, dtype=kind, device=x.device)
        scale_B1D = (self.pooled(mood.pooled_BC.to(kind)) + self.time(time_1)).unsqueeze(1)
        h = self.norm(x) * (1 + scale_B1D)
        x = x + self.self_attention(h, h)
        x = x + self.cross_attention(self.norm(x), self.context(mood.tokens_BPC.to(kind)))
        return x + self.feed_forward(self.norm(x))


@dataclass(frozen=True)
class OnGrid:
    """The network for images of one size."""

    network: MoodModel
    rows: int
    columns: int

    @property
    def config(self) -> Config:
        return self.network.config

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows, self.columns

    def features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step,
    ) -> tuple[Tensor, ...]:
        tokens_BL = codes_BL.masked_fill(is_masked_BL, self.config.num_codes)
        index_L = torch.arange(codes_BL.shape[1], device=codes_BL.device)
        return tuple(
            self.network.run(tokens_BL, index_L, cast(Mood, mood), step.mask_ratio)
            for mood in conditions
        )

    def image_positions(self, index_BN: Tensor, length: int) -> Tensor:
        return index_BN

    def logits(self, features_BND: Tensor, index_BN: Tensor) -> Tensor:
        return self.network.code_output(features_BND).float()

    def sequence_length(self, condition: Conditions | None) -> int:
        return self.rows * self.columns

    def embed(self, codes_BN: Tensor, index_BN: Tensor) -> Tensor:
        return self.network.token(codes_BN).to(self.network.compute_dtype)

    def activation_bytes(self, num_images: int, lengths: Sequence[int]) -> float:
        return transformer_bytes(
            lengths,
            num_images=num_images,
            num_tokens=self.rows * self.columns,
            config=self.config,
            itemsize=self.network.compute_dtype.itemsize,
            is_sequential=True,
        )


def read_config(tensors: Tensors, known: Mapping[str, Any]) -> Config:
    rows, width = sizes(tensors, "token.weight", 2)
    mlp_width, _ = sizes(tensors, "feed_forward.up.weight", 2)
    _, condition_width = sizes(tensors, "pooled.weight", 2)
    return Config(width, mlp_width, rows - 1, condition_width)


LAYOUT = Layout(
    name="mood",
    kind="model",
    title="Mood transformer",
    filenames=("transformer/mood.safetensors",),
    marks=("mood.emb", "mood.pos"),
    table={
        "mood.emb": "token.weight",
        "mood.pos": Unbatched("position.weight"),
        "mood.pool.*": "pooled.*",
        "mood.ctx.*": "context.*",
        "mood.t.*": "time.*",
        "mood.ln.*": "norm.*",
        "mood.sa.qkv_w": tuple(f"self_attention.{p}.weight" for p in ("query", "key", "value")),
        "mood.sa.qkv_b": tuple(f"self_attention.{p}.bias" for p in ("query", "key", "value")),
        "mood.sa.o.*": "self_attention.out.*",
        "mood.ca.*": "cross_attention.*",
        "mood.ff.*": "feed_forward.*",
        "mood.head.*": "code_output.*",
        "ema.*": None,
    },
    config=Config,
    read_config=read_config,
    network=MoodModel,
)
