"""A shortcut head of layers of plain attention: features now + tokens just revealed -> features of the next step.

It is the one of MaskGIT, and fits any model whose sequences begin with their image tokens, in raster order.

Source: arXiv 2602.23996; MIGM-Shortcut MaskGIT-Shortcut/Network/shortcut_model.py; facts in
tests/golden/README.md section 6.
Differs: no dropout (the published figures were taken with a dropout of 0.1 still active); heads of our own may see what
stands around by convolutions (`nearby`), new tokens also, features in place of self-attention.

    B  sequences (images x guidance branches)    S  sequence: image tokens, then others    D  width of the model
    N  tokens just revealed    M  image positions asked for
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..denoiser import Conditions, Features, MaskedImageModel, Revealed
from ..gather import added_at, tokens_at
from .architecture import Grid, GridModel, HeadSize, ModelConfig
from .head_base import BaseConfig, BottleneckHead
from .layers import Attention, FeedForward, MaskRatioModulation, MultiHeadAttention
from .layout import Layout, MissingTensor, Tensors, check_heads, count, given, sizes
from .nearby import Around, Nearby, kernel_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(BaseConfig):
    """Sizes of a head."""

    # Side of the neighbourhood that `nearby` looks at; 0 = none, as published.
    kernel: int = 0
    # True: self-attention, as published. False: features see their neighbourhood alone, by a convolution.
    attends: bool = True


class TokenHead(BottleneckHead):
    """The network."""

    config: Config

    def build(
        self, config: Config, operations: Any, attention: Attention, tensor: dict[str, Any]
    ) -> None:
        width = config.width
        self.build_projections(config, operations, tensor)
        self.blocks = nn.ModuleList(
            Block(config, operations, attention, tensor) for _ in range(config.num_blocks)
        )
        self.last_layer = nn.Sequential(
            operations.LayerNorm(width, eps=1e-12, **tensor),
            operations.Linear(width, width, **tensor),
            nn.GELU(),
            operations.LayerNorm(width, eps=1e-12, **tensor),
        )
        self.time = MaskRatioModulation(width, operations, **tensor) if config.has_time else None
        self.nearby = None
        if config.kernel:
            self.nearby = Nearby(config.model_width, width, config.kernel, operations, **tensor)

    def forward(
        self,
        features_BSD: Tensor,
        new_BND: Tensor,
        mask_ratio_B: Tensor,
        index_BN: Tensor | None = None,
        wanted_BM: Tensor | None = None,
        grid: Grid | None = None,
    ) -> Tensor:
        """Predict the features (B, S, D) of the next step.

        Args:
            features_BSD: of the last step, from a full pass or from this head.
            new_BND: the model's input embeddings of the tokens just revealed; N may be 0.
            mask_ratio_B: share of the image still masked now, in [0, 1].
            index_BN: where the new tokens stand among the image tokens; a head with `nearby` needs it.
            wanted_BM: the image positions to predict, the others are handed through; None = all of the sequence.
            grid: rows and columns of the image tokens; None = the largest square of which the sequence has tokens.
        """
        rows, columns = grid or (math.isqrt(features_BSD.shape[1]),) * 2
        x, new = self.proj_in(features_BSD), self.new_token_proj_in(new_BND)
        if self.nearby is not None:
            assert index_BN is not None
            near_BLD = self.nearby.of(new_BND, index_BN, rows, columns)
            x = x + F.pad(near_BLD, (0, 0, 0, x.shape[1] - rows * columns))
        *early, last = self.blocks
        for block in early:
            x = block(x, new, (rows, columns))
        x = self.last_layer(last(x, new, (rows, columns), wanted_BM))
        if self.time is not None:
            x = self.time(x, mask_ratio_B)
        return added_at(features_BSD, wanted_BM, self.proj_out(x))

    def last_norm(self) -> nn.Module:
        return self.last_layer[-1]

    @property
    def hidden_width(self) -> int:
        return 4 * self.config.width

    def token_projections(self) -> list[nn.Module]:
        """Return the projections of new-token embeddings that no norm follows."""
        projections = [
            self.new_token_proj_in,
            *([] if self.nearby is None else [self.nearby.proj_in]),
        ]
        return [layer for layer in projections if not isinstance(layer, nn.Identity)]

    def next_features(
        self,
        model: MaskedImageModel,
        features: Features,
        conditions: Sequence[Conditions],
        revealed: Revealed,
        mask_ratio: float,
        wanted_BM: Tensor | None = None,
    ) -> Features:
        """Run `forward` for all guidance branches at once: they see the same tokens, whatever their condition."""
        view = cast(GridModel, model)
        new_BND = view.embed(revealed.codes_BK, revealed.index_BK).to(self.compute_dtype)
        stacked_BSD = torch.cat(features)
        ratio_B = torch.full((len(stacked_BSD),), mask_ratio, device=stacked_BSD.device)
        new_BND = new_BND.repeat(len(features), 1, 1)
        index_BN = revealed.index_BK.repeat(len(features), 1)
        if wanted_BM is not None:
            wanted_BM = wanted_BM.repeat(len(features), 1)
        now_BSD = stacked_BSD.to(self.compute_dtype)
        next_BSD = self(now_BSD, new_BND, ratio_B, index_BN, wanted_BM, view.grid)
        return next_BSD.to(stacked_BSD.dtype).chunk(len(features))


class Block(nn.Module):
    """Cross-attention to the new tokens, feed-forward, self-attention (or what stands around), feed-forward.

    All are residual.

    Only queries are normalised: keys and values are the raw new tokens, respectively the raw features. What stands
    around is of the normalised features, of image tokens alone.
    """

    def __init__(
        self, config: Config, operations: Any, attention: Attention, tensor: dict[str, Any]
    ):
        super().__init__()
        width, hidden = config.width, 4 * config.width

        def norm() -> nn.Module:
            return operations.LayerNorm(width, eps=1e-5, **tensor)

        def attend() -> nn.Module:
            return MultiHeadAttention(width, config.num_heads, operations, attention, **tensor)

        self.cross_norm, self.cross_attention = norm(), attend()
        self.cross_ff_norm, self.cross_ff = norm(), FeedForward(width, hidden, operations, **tensor)
        self.self_norm = norm()
        if config.attends:
            self.self_attention, self.self_around = attend(), None
        else:
            self.self_around = Around(width, config.kernel, operations, **tensor)
        self.self_ff_norm, self.self_ff = norm(), FeedForward(width, hidden, operations, **tensor)

    def forward(
        self, x_BSD: Tensor, new_BND: Tensor, grid: Grid, wanted_BM: Tensor | None = None
    ) -> Tensor:
        """Return (B, S, D), or (B, M, D) for the positions `wanted_BM`: their second half needs no other result."""
        if new_BND.shape[1] > 0:
            x_BSD = x_BSD + self.cross_attention(self.cross_norm(x_BSD), new_BND)
        x_BSD = x_BSD + self.cross_ff(self.cross_ff_norm(x_BSD))
        x_BMD = tokens_at(x_BSD, wanted_BM)
        if self.self_around is None:
            x_BMD = x_BMD + self.self_attention(self.self_norm(x_BMD), x_BSD)
        else:
            image_BLD = self.self_norm(x_BSD[:, : grid[0] * grid[1]])
            around_BMD = self.self_around(image_BLD, *grid, wanted_BM)
            x_BMD = x_BMD + F.pad(around_BMD, (0, 0, 0, x_BMD.shape[1] - around_BMD.shape[1]))
        return x_BMD + self.self_ff(self.self_ff_norm(x_BMD))


def read_config(tensors: Tensors, known: Mapping[str, Any], num_heads: Mapping[int, int]) -> Config:
    """Return sizes from our tensors.

    Args:
        known: config fields that no tensor shows.
        num_heads: of the published models by model width, where `known` has none.
    """
    (width,) = sizes(tensors, "last_layer.0.weight", 1)
    kernel, attends = kernel_of(tensors), "blocks.0.self_around.mix.weight" not in tensors
    if not (kernel or attends):
        raise MissingTensor("nearby.around.weight")
    model_width = width
    if "proj_in.weight" in tensors:
        _, model_width = sizes(tensors, "proj_in.weight", 2)
    return Config(
        model_width=model_width,
        width=width,
        num_blocks=count(tensors, "blocks."),
        num_heads=check_heads(given(known, "num_heads", num_heads, model_width), width),
        has_time=count(tensors, "time.") > 0,
        from_full=bool(known.get("from_full", False)),
        kernel=kernel,
        attends=attends,
    )


KERNEL = 7  # of new heads


def new_head(model: ModelConfig, asked: HeadSize) -> Config:
    """Return sizes of a new head."""
    kernel = KERNEL if asked.kernel is None else asked.kernel
    return Config(
        model_width=model.width,
        width=asked.width,
        num_blocks=asked.num_blocks,
        num_heads=asked.num_heads,
        has_time=True,
        from_full=asked.from_full,
        kernel=kernel,
        attends=kernel == 0,
    )


def guided_kl(config: Config, iterations: int) -> float:
    """Return weight of the divergence of guided codes in a training, beside 1 of the squared error.

    A head that predicts from full passes never sees its own features: what counts at use is the codes. In short
    trainings these get as near with a smaller weight, and the features nearer: after 300 iterations on the shipped
    model the divergence 3 steps on was 0.978, 0.980 and 0.983 with 0.3, 1 and 4, and the error 0.89, 0.96 and 1.01.
    """
    return max(0.3, 4.0 * min(1.0, iterations / 1000) ** 2) if config.from_full else 0.3


def layout_of(name: str, title: str) -> Layout:
    """Return the layout of heads that none but our files hold: their metadata alone recognise them."""
    return Layout(
        name=name,
        kind="head",
        title=title,
        filenames=(),
        marks=(name,),
        table={"*": "*"},
        config=Config,
        read_config=partial(read_config, num_heads={}),
        network=TokenHead,
    )
