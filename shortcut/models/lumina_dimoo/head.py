"""The shortcut head of Lumina-DiMOO: features now + tokens just revealed -> features of the next step.

Source: arXiv 2602.23996; MIGM-Shortcut DiMOO-Shortcut/model/shortcut_model.py; facts in golden/README.md section 4.
Differs: all guidance branches go through one pass, for any number of images; types are those of the model's features
where the original runs under autocast.

    B  images    S  one sequence, or all branches side by side    D  width of the model    N  new tokens
    P  prompt tokens    M  positions asked for
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ...gather import added_at, at_places
from ..layers import Attention, sdpa
from ..layout import (
    Format,
    NewHead,
    Tensors,
    check_heads,
    count,
    given,
    sizes,
)
from ..modulation import MaskRatioModulation
from .block import (
    Block,
    Places,
    block_table,
    kv_heads,
)
from .transformer import (
    NORM_EPS,
    NUM_HEADS,
    ROPE_THETA,
    OnGrid,
    positive,
)
from .transformer import Config as ModelConfig


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes of a head. Heads and the MLP's width are those of the model, whatever the head's own width."""

    model_width: int
    width: int  # model_width / bottleneck, rounded; equal to it = no bottleneck and no projections
    num_blocks: int
    num_heads: int
    num_kv_heads: int
    mlp_width: int
    rope_theta: float
    norm_eps: float
    has_time: bool  # True: modulated by the mask ratio
    sees_new: bool  # True: attends to the new tokens. False: blind to them (the ablation "no_ca")
    from_full: bool = False  # True: predicts from the last full pass. False: from the step before


class LuminaHead(nn.Module):
    """The network. Arguments as for `models.lumina.LuminaDiMOO`."""

    def __init__(
        self,
        config: Config,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        compute_dtype: torch.dtype | None = None,
        operations: Any = nn,
        attention: Attention = sdpa,
    ):
        super().__init__()
        self.config, self.dtype = config, dtype or torch.float32
        self.compute_dtype = compute_dtype or self.dtype
        tensor = {"dtype": dtype, "device": device}
        width = config.width
        has_bottleneck = width != config.model_width

        def projection(num_in: int, num_out: int) -> nn.Module:
            return operations.Linear(num_in, num_out, **tensor) if has_bottleneck else nn.Identity()

        self.proj_in = projection(config.model_width, width)
        self.new_token_proj_in = projection(config.model_width, width) if config.sees_new else None
        self.proj_out = projection(width, config.model_width)
        self.blocks = nn.ModuleList(
            HeadBlock(config, operations, attention, tensor) for _ in range(config.num_blocks)
        )
        self.final_norm = operations.RMSNorm(width, eps=config.norm_eps, **tensor)
        self.time = MaskRatioModulation(width, operations, **tensor) if config.has_time else None

    def output_layers(self) -> list[Any]:
        """The layers that make it hand its input through where they are zero."""
        if isinstance(self.proj_out, nn.Linear):
            return [self.proj_out]
        return [self.final_norm, *([] if self.time is None else [self.time.modulation])]

    def token_projections(self) -> list[Any]:
        """The layers whose outputs, of new tokens, nothing brings to unit size: none, its blocks normalise them."""
        return []

    def forward(
        self,
        features_BSD: Tensor,
        places: Places,
        new_BND: Tensor,
        new_places: Places,
        mask_ratio_B: Tensor,
        wanted: Wanted | None = None,
    ) -> Tensor:
        """Predicted features (B, S, D) of the next step, for sequences that lie side by side.

        Args:
            features_BSD: of the last step, from a full pass or from this head.
            places: of the features.
            new_BND: the model's input embeddings of the tokens just revealed; a sequence may have none.
            new_places: of the new tokens, in the same sequences.
            mask_ratio_B: share of the tokens to make that is still masked now, in [0, 1].
            wanted: the positions to predict, the others are handed through; None = all.
        """
        x = self.proj_in(features_BSD)
        new = None
        if self.new_token_proj_in is not None:
            new = self.new_token_proj_in(new_BND), new_places
        *early, last = self.blocks
        for block in early:
            x = block(x, places, new)
        x = self.final_norm(last(x, places, new, wanted))
        if self.time is not None:
            x = self.time(x, mask_ratio_B)
        return added_at(features_BSD, wanted and wanted.axis_BM, self.proj_out(x))

    def next_features(
        self,
        model: OnGrid,
        features: tuple[Tensor, ...],
        conditions: Sequence[Tensor],
        revealed: Any,
        mask_ratio: float,
        wanted_BM: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """As `forward`, for all guidance branches.

        To the first, the full condition, its prompt is new in every step; the others see what was revealed alone.

        Args:
            conditions: prompt tokens (B, P) of each branch.
            wanted_BM: the image positions to predict, the others are handed through; None = all positions.
        """
        wanted = None
        if wanted_BM is not None:
            wanted = [model.places(wanted_BM, prompt_BP.shape[1]) for prompt_BP in conditions]
        new = [
            self._new_tokens(model, prompt_BP, revealed, sees_prompt=branch == 0)
            for branch, prompt_BP in enumerate(conditions)
        ]
        if not model.is_sequential:
            return self._next(features, new, mask_ratio, wanted)
        return tuple(
            self._next((branch_BSD,), [new[i]], mask_ratio, wanted and [wanted[i]])[0]
            for i, branch_BSD in enumerate(features)
        )

    def _new_tokens(
        self, model: OnGrid, prompt_BP: Tensor, revealed: Any, *, sees_prompt: bool
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (B, N, D) of a branch's new tokens, and their places (B, N)."""
        new_BND = model.embed_codes(revealed.codes_BK)
        place_BN = model.places(revealed.index_BK, prompt_BP.shape[1])
        if sees_prompt:
            new_BND = torch.cat([model.model.embed_tokens(prompt_BP), new_BND], 1)
            prompt_P = torch.arange(prompt_BP.shape[1], device=place_BN.device)
            place_BN = torch.cat([prompt_P.expand(len(place_BN), -1), place_BN], 1)
        return new_BND.to(self.compute_dtype), place_BN

    def _next(
        self,
        features: Sequence[Tensor],
        new: Sequence[tuple[Tensor, Tensor]],
        mask_ratio: float,
        wanted: Sequence[Tensor] | None,
    ) -> tuple[Tensor, ...]:
        """One pass for branches side by side."""
        features_BSD = torch.cat(list(features), 1)
        places = Places.whole([f.shape[1] for f in features], self.config, features_BSD.device)
        ratio_B = torch.full((len(features_BSD),), mask_ratio, device=features_BSD.device)
        next_BSD = self(
            features_BSD.to(self.compute_dtype),
            places,
            torch.cat([new_BND for new_BND, _ in new], 1),
            Places.of([place_BN for _, place_BN in new], self.config),
            ratio_B,
            wanted and Wanted.of(wanted, places.lengths, self.config),
        )
        return next_BSD.to(features_BSD.dtype).split(places.lengths, dim=1)


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
        places: Places,
        new: tuple[Tensor, Places] | None,
        wanted: Wanted | None = None,
    ) -> Tensor:
        """Returns (B, S, D), or (B, M, D) of what is `wanted`: the second half needs no others' result.

        Args:
            new: the new tokens; None = both halves attend to the features.
        """
        x_BSD = self.cross_attention(x_BSD, places, new)
        if wanted is None:
            return self.self_attention(x_BSD, places)
        x_BMD = at_places(x_BSD, wanted.axis_BM)
        return self.self_attention(x_BMD, wanted.places, (x_BSD, places))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Some tokens of sequences that lie side by side."""

    axis_BM: Tensor  # where they stand on the common axis
    places: Places

    @classmethod
    def of(cls, wanted: Sequence[Tensor], lengths: Sequence[int], config: Config) -> Wanted:
        """Those that stand at the places `wanted` (B, M) of each sequence; the sequences have so many tokens."""
        starts = accumulate(lengths, initial=0)
        axis = [place_BM + start for place_BM, start in zip(wanted, starts, strict=False)]
        return cls(torch.cat(axis, 1), Places.of(wanted, config))


def read_config(tensors: Tensors, known: Mapping[str, Any]) -> Config:
    """Sizes from our tensors; what they do not show from `known`, or else by preset.

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


def new_head(model: ModelConfig, asked: NewHead) -> Config:
    """Sizes of a new head. Raises ValueError if it shall look at a neighbourhood."""
    if asked.kernel:
        raise ValueError(
            "only a head of MaskGIT can look at a neighbourhood. Leave out the kernel."
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
        has_time=asked.has_time,
        sees_new=asked.sees_new,
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

FORMAT = Format(
    name="lumina-dimoo-head",
    kind="head",
    title="Lumina-DiMOO shortcut head",
    filenames=("dimoo-shortcut.pth",),
    container=None,
    marks=("blocks.0.cross_attn.attn_norm.weight", "ln_f.weight"),
    table=TABLE,
    config=Config,
    read_config=read_config,
    network=LuminaHead,
    model="lumina-dimoo",
    new_head=new_head,
)
