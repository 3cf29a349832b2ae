"""The shortcut head of Lumina-DiMOO: features now + tokens just revealed -> features of the next step.

Source: arXiv 2602.23996; MIGM-Shortcut DiMOO-Shortcut/model/shortcut_model.py; facts in tests/golden/README.md
section 4.
Differs: all guidance branches go through one pass, for any number of images; types are those of the model's features
where the original runs under autocast.

    B  images    S  one sequence, or all branches side by side    D  width of the model    N  new tokens
    P  prompt tokens    M  positions asked for
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...denoiser import Conditions, Features, MaskedImageModel, Revealed
from ...gather import added_at, tokens_at
from ..architecture import HeadSize
from ..head_base import BaseConfig, BottleneckHead
from ..layers import Attention, MaskRatioModulation
from ..layout import Layout, Tensors, check_heads, count, given, sizes
from .block import Block, SequencePositions, block_table, kv_heads
from .transformer import NORM_EPS, NUM_HEADS, ROPE_THETA, OnGrid, positive
from .transformer import Config as ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(BaseConfig):
    """Sizes of a head. Heads and the MLP's width are those of the model, whatever the head's own width."""

    num_kv_heads: int
    mlp_width: int
    rope_theta: float
    norm_eps: float
    sees_new: bool  # True: attends to the new tokens. False: blind to them (the ablation "no_ca")


class LuminaHead(BottleneckHead):
    """The network."""

    config: Config

    def build(
        self, config: Config, operations: Any, attention: Attention, tensor: dict[str, Any]
    ) -> None:
        width = config.width
        self.build_projections(config, operations, tensor, sees_new=config.sees_new)
        self.blocks = nn.ModuleList(
            HeadBlock(config, operations, attention, tensor) for _ in range(config.num_blocks)
        )
        self.final_norm = operations.RMSNorm(width, eps=config.norm_eps, **tensor)
        self.time = MaskRatioModulation(width, operations, **tensor) if config.has_time else None

    def last_norm(self) -> nn.Module:
        return self.final_norm

    @property
    def hidden_width(self) -> int:
        return self.config.mlp_width

    def token_projections(self) -> list[nn.Module]:
        """Return no layers: the blocks normalise new-token embeddings."""
        return []

    def forward(
        self,
        features_BSD: Tensor,
        positions: SequencePositions,
        new_BND: Tensor,
        new_positions: SequencePositions,
        mask_ratio_B: Tensor,
        wanted: Wanted | None = None,
    ) -> Tensor:
        """Predict the features (B, S, D) of the next step, for sequences that lie side by side.

        Args:
            features_BSD: of the last step, from a full pass or from this head.
            positions: of the features.
            new_BND: the model's input embeddings of the tokens just revealed; a sequence may have none.
            new_positions: of the new tokens, in the same sequences.
            mask_ratio_B: share of the tokens to make that is still masked now, in [0, 1].
            wanted: the positions to predict, the others are handed through; None = all.
        """
        x = self.proj_in(features_BSD)
        new = None
        if self.new_token_proj_in is not None:
            new = self.new_token_proj_in(new_BND), new_positions
        *early, last = self.blocks
        for block in early:
            x = block(x, positions, new)
        x = self.final_norm(last(x, positions, new, wanted))
        if self.time is not None:
            x = self.time(x, mask_ratio_B)
        return added_at(features_BSD, wanted and wanted.axis_BM, self.proj_out(x))

    def next_features(
        self,
        model: MaskedImageModel,
        features: Features,
        conditions: Sequence[Conditions],
        revealed: Revealed,
        mask_ratio: float,
        wanted_BM: Tensor | None = None,
    ) -> Features:
        """Run `forward` for all guidance branches.

        To the first, the full condition, its prompt is new in every step; the others see what was revealed alone.

        Args:
            conditions: prompt tokens (B, P) of each branch.
            wanted_BM: the image positions to predict, the others are handed through; None = all positions.
        """
        view, prompts = cast(OnGrid, model), cast(Sequence[Tensor], conditions)
        wanted = None
        if wanted_BM is not None:
            wanted = [view.positions_after(prompt_BP, wanted_BM) for prompt_BP in prompts]
        new = [
            self._new_tokens(view, prompt_BP, revealed, sees_prompt=branch == 0)
            for branch, prompt_BP in enumerate(prompts)
        ]
        if not view.is_sequential:
            return self._next(features, new, mask_ratio, wanted)
        return tuple(
            self._next((branch_BSD,), [new[i]], mask_ratio, wanted and [wanted[i]])[0]
            for i, branch_BSD in enumerate(features)
        )

    def _new_tokens(
        self, model: OnGrid, prompt_BP: Tensor, revealed: Revealed, *, sees_prompt: bool
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings (B, N, D) of a branch's new tokens, and their positions (B, N)."""
        new_BND = model.embed(revealed.codes_BK)
        position_BN = model.positions_after(prompt_BP, revealed.index_BK)
        if sees_prompt:
            new_BND = torch.cat([model.model.embed_tokens(prompt_BP), new_BND], 1)
            prompt_P = torch.arange(prompt_BP.shape[1], device=position_BN.device)
            position_BN = torch.cat([prompt_P.expand(len(position_BN), -1), position_BN], 1)
        return new_BND.to(self.compute_dtype), position_BN

    def _next(
        self,
        features: Sequence[Tensor],
        new: Sequence[tuple[Tensor, Tensor]],
        mask_ratio: float,
        wanted: Sequence[Tensor] | None,
    ) -> tuple[Tensor, ...]:
        """Run one pass for branches side by side."""
        features_BSD = torch.cat(list(features), 1)
        positions = SequencePositions.whole(
            [f.shape[1] for f in features], self.config, features_BSD.device
        )
        ratio_B = torch.full((len(features_BSD),), mask_ratio, device=features_BSD.device)
        next_BSD = self(
            features_BSD.to(self.compute_dtype),
            positions,
            torch.cat([new_BND for new_BND, _ in new], 1),
            SequencePositions.of([position_BN for _, position_BN in new], self.config),
            ratio_B,
            wanted and Wanted.of(wanted, positions.lengths, self.config),
        )
        return next_BSD.to(features_BSD.dtype).split(positions.lengths, dim=1)


class HeadBlock(nn.Module):
    """A block of the model that attends to the new tokens, then one that attends to the features."""

    def __init__(
        self, config: Config, operations: Any, attention: Attention, tensor: dict[str, Any]
    ):
        super().__init__()
        self.cross_attention = Block(config, operations, attention, tensor)
        self.self_attention = Block(config, operations, attention, tensor)

    def forward(
        self,
        x_BSD: Tensor,
        positions: SequencePositions,
        new: tuple[Tensor, SequencePositions] | None,
        wanted: Wanted | None = None,
    ) -> Tensor:
        """Return (B, S, D), or (B, M, D) for `wanted`: the second half needs no other result.

        Args:
            new: the new tokens; None = both halves attend to the features.
        """
        x_BSD = self.cross_attention(x_BSD, positions, new)
        if wanted is None:
            return self.self_attention(x_BSD, positions)
        x_BMD = tokens_at(x_BSD, wanted.axis_BM)
        return self.self_attention(x_BMD, wanted.positions, (x_BSD, positions))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Some tokens of sequences that lie side by side."""

    axis_BM: Tensor  # where they stand on the common axis
    positions: SequencePositions

    @classmethod
    def of(cls, wanted: Sequence[Tensor], lengths: Sequence[int], config: Config) -> Wanted:
        """Select the positions `wanted` (B, M) of each sequence; `lengths` are the tokens of the sequences."""
        starts = accumulate(lengths, initial=0)
        axis = [position_BM + start for position_BM, start in zip(wanted, starts, strict=False)]
        return cls(torch.cat(axis, 1), SequencePositions.of(wanted, config))


def read_config(tensors: Tensors, known: Mapping[str, Any]) -> Config:
    """Return sizes from our tensors; what they do not show from `known`, or else by preset.

    Without a bottleneck the tensors do not show whether the head sees new tokens; it does unless `known` denies it.
    """
    (width,) = sizes(tensors, "final_norm.weight", 1)
    model_width = width
    sees_new = known.get("sees_new", True)
    if "proj_in.weight" in tensors:
        _, model_width = sizes(tensors, "proj_in.weight", 2)
        sees_new = "new_token_proj_in.weight" in tensors
    kv_width, _ = sizes(tensors, "blocks.0.cross_attention.key.weight", 2)
    mlp_width, _ = sizes(tensors, "blocks.0.cross_attention.feed_forward.gate.weight", 2)
    num_heads = check_heads(given(known, "num_heads", NUM_HEADS, model_width), width)
    return Config(
        model_width=model_width,
        width=width,
        num_blocks=count(tensors, "blocks."),
        num_heads=num_heads,
        num_kv_heads=kv_heads(kv_width, width, num_heads),
        mlp_width=mlp_width,
        rope_theta=positive(known, "rope_theta", ROPE_THETA),
        norm_eps=positive(known, "norm_eps", NORM_EPS),
        has_time=count(tensors, "time.") > 0,
        sees_new=sees_new,
        from_full=bool(known.get("from_full", False)),
    )


def new_head(model: ModelConfig, asked: HeadSize) -> Config:
    """Return sizes of a new head. Raises ValueError if it shall look at a neighbourhood."""
    if asked.kernel:
        raise ValueError(
            f"a head of Lumina-DiMOO cannot look at a neighbourhood, got kernel {asked.kernel}. Leave it out."
        )
    return Config(
        model_width=model.width,
        width=asked.width,
        num_blocks=asked.num_blocks,
        num_heads=asked.num_heads,
        num_kv_heads=model.num_kv_heads if asked.is_large else asked.num_heads,
        mlp_width=model.mlp_width if asked.is_large else 2 * asked.width,
        rope_theta=model.rope_theta,
        norm_eps=model.norm_eps,
        has_time=True,
        sees_new=True,
        from_full=asked.from_full,
    )


TABLE = {
    "proj_in.*": "proj_in.*",
    "proj_out.*": "proj_out.*",
    "new_token_proj_in.*": "new_token_proj_in.*",
    **block_table("blocks.{}.cross_attn", "blocks.{}.cross_attention"),
    **block_table("blocks.{}.self_attn", "blocks.{}.self_attention"),
    "ln_f.weight": "final_norm.weight",
    "time_embedder.mlp.0.*": "time.time_in.*",
    "time_embedder.mlp.2.*": "time.time_out.*",
    "adaLN_modulation.*": "time.modulation.*",
}

LAYOUT = Layout(
    name="lumina-dimoo-head",
    kind="head",
    title="Lumina-DiMOO shortcut head",
    filenames=("dimoo-shortcut.pth",),
    marks=("blocks.0.cross_attn.attn_norm.weight", "ln_f.weight"),
    table=TABLE,
    config=Config,
    read_config=read_config,
    network=LuminaHead,
    from_model=("num_heads", "rope_theta", "norm_eps"),
)
