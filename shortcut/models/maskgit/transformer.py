"""MaskGIT: a bidirectional transformer over image codes and one class token.

Source: Chang et al. 2022; Besnier and Chen 2023 (arXiv 2310.14400), llvictorll/Maskgit-pytorch
Network/transformer.py; facts of the published files in tests/golden/README.md section 6.
Differs: positions and output biases sit in Embedding layers, so that a host can move every weight; logits are made for
codebook entries only, at the positions asked for.

Token ids: codes 0..V-1, mask V, class c at V + 1 + c, no class at V + 1 + num_classes.
Sequence: the L codes in raster order, then the class token, so S = L + 1.

    B  images    L  image tokens    S  sequence    D  width    V  codebook size    N  positions asked for
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...denoiser import Conditions, Features, Kept
from ...schedule import Step
from ..key_table import Unbatched
from ..layers import (
    Attention,
    BaseNetwork,
    FeedForward,
    KeyValues,
    MultiHeadAttention,
    key_value_bytes,
    transformer_bytes,
)
from ..layout import Layout, Tensors, check_heads, count, given, sizes


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes of a MaskGIT. All but `num_heads` can be read from its tensors."""

    grid: int  # rows = columns of codes
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    num_codes: int
    num_classes: int

    @property
    def num_tokens(self) -> int:
        """Codes of one image."""
        return self.grid**2

    @property
    def mask_id(self) -> int:
        return self.num_codes

    @property
    def vocabulary(self) -> int:
        """Codes, the mask, the classes and "no class"."""
        return self.num_codes + self.num_classes + 2


class MaskGIT(BaseNetwork):
    """The network. It makes images of one size, so it is its own `GridModel`."""

    config: Config

    def build(
        self, config: Config, operations: Any, attention: Attention, tensor: dict[str, Any]
    ) -> None:
        width, length = config.width, config.num_tokens + 1
        self.token = operations.Embedding(config.vocabulary, width, **tensor)
        self.position = operations.Embedding(length, width, **tensor)
        self.output_bias = operations.Embedding(length, config.vocabulary, **tensor)
        self.first_layer = nn.Sequential(
            operations.LayerNorm(width, eps=1e-12, **tensor),
            operations.Linear(width, width, **tensor),
            nn.GELU(),
            operations.LayerNorm(width, eps=1e-12, **tensor),
            operations.Linear(width, width, **tensor),
        )
        self.blocks = nn.ModuleList(
            Block(config, operations, attention, tensor) for _ in range(config.depth)
        )
        self.last_layer = nn.Sequential(
            operations.LayerNorm(width, eps=1e-12, **tensor),
            operations.Linear(width, width, **tensor),
            nn.GELU(),
            operations.LayerNorm(width, eps=1e-12, **tensor),
        )

    def forward(
        self,
        tokens_BS: Tensor,
        kept: Sequence[KeyValues] | None = None,
        position_BS: Tensor | None = None,
        perturb: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Run token sequences. Returns last-layer features (B, S, D), which a shortcut head predicts.

        Args:
            kept: keeps the keys and values of each block.
            position_BS: where the tokens stand in the kept sequences; None = they are whole sequences.
            perturb: changes the embeddings of the codes, before their positions come to them.
        """
        index = position_BS
        if index is None:
            index = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
        x = self.token(tokens_BS).to(self.compute_dtype)
        if perturb is not None:
            x = torch.cat([perturb(x[:, :-1]), x[:, -1:]], 1)
        x = self.first_layer(x + self.position(index).to(self.compute_dtype))
        for i, block in enumerate(self.in_order(self.blocks)):
            x = block(x, None if kept is None else kept[i], position_BS)
        return self.last_layer(x)

    def on_grid(self, rows: int, columns: int, *, is_sequential: bool = False) -> MaskGIT:
        """Return this network: what a sampler calls, for images of `rows` x `columns` codes.

        Args:
            is_sequential: of no effect: the branches are small beside the weights.

        Raises:
            ValueError: it makes images of another size.
        """
        grid = self.config.grid
        if (rows, columns) != (grid, grid):
            raise ValueError(
                f"this model makes images of {grid} x {grid} codes only, got {rows} x {columns}."
            )
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of an image's codes."""
        return self.config.grid, self.config.grid

    def features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step | None = None,
    ) -> tuple[Tensor, ...]:
        """Run one full pass. Returns features (B, S, D) for each guidance branch.

        Args:
            codes_BL: code ids; those at masked positions are ignored.
            conditions: for each branch the class of each image (B,), `num_classes` for no class.
            step: ignored: the network takes no timestep.
        """
        return self(self._sequences(codes_BL, is_masked_BL, conditions)).chunk(len(conditions))

    def perturbed_features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step | None,
        perturb: Callable[[Tensor], Tensor],
    ) -> Features:
        """Run one full pass of changed embeddings. Returns features (B, S, D) for each guidance branch."""
        tokens_BS = self._sequences(codes_BL, is_masked_BL, conditions)
        return self(tokens_BS, perturb=perturb).chunk(len(conditions))

    def kept_features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step | None = None,
        kept_dtype: torch.dtype | None = None,
        only_first: bool = False,
    ) -> tuple[Features, Kept]:
        """Run one full pass. Returns its features, and the keys and values of each block."""
        rows = len(codes_BL) if only_first else None
        kept = tuple(KeyValues(kept_dtype, rows=rows) for _ in self.blocks)
        tokens_BS = self._sequences(codes_BL, is_masked_BL, conditions)
        return self(tokens_BS, kept).chunk(len(conditions)), kept

    def partial_features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step | None,
        positions: Sequence[Tensor],
        kept: Kept,
    ) -> Features:
        """Run the tokens at `positions` (B, M) of each branch alone. Returns their features (B, M, D)."""
        position_BM = torch.cat(list(positions))
        tokens_BM = self._sequences(codes_BL, is_masked_BL, conditions).gather(1, position_BM)
        return self(tokens_BM, kept, position_BM).chunk(len(conditions))

    def _sequences(
        self, codes_BL: Tensor, is_masked_BL: Tensor, conditions: Sequence[Conditions]
    ) -> Tensor:
        """Return the sequences of all branches, one branch after the other on the axis of images."""
        config = self.config
        image_BL = codes_BL.masked_fill(is_masked_BL, config.mask_id)
        return torch.cat(
            [
                torch.cat([image_BL, (class_B + config.num_codes + 1).unsqueeze(1)], 1)
                for class_B in cast(Sequence[Tensor], conditions)
            ]
        )

    def sequence_length(self, condition: Conditions | None) -> int:
        """Return the positions of any branch: the codes and the class."""
        return self.config.num_tokens + 1

    def image_positions(self, index_BN: Tensor, length: int) -> Tensor:
        """Return the positions of image tokens in a sequence: its codes come first."""
        return index_BN

    def logits(self, features_BND: Tensor, index_BN: Tensor) -> Tensor:
        """Return float32 logits (B, N, V) from the features of the image positions `index_BN`."""
        ids_V = torch.arange(self.config.num_codes, device=features_BND.device)
        codebook_VD = self.token(ids_V).to(features_BND.dtype)
        logits_BNV = (features_BND @ codebook_VD.T).float()
        return logits_BNV + self.output_bias(index_BN)[..., : self.config.num_codes].float()

    def sequence_logits(self, features_BSD: Tensor) -> Tensor:
        """Return float32 logits (B, S, V) at all positions of a sequence; the class's is the last."""
        return self.logits(
            features_BSD, torch.arange(features_BSD.shape[1], device=features_BSD.device)
        )

    def embed(self, codes_BN: Tensor, index_BN: Tensor) -> Tensor:
        """Return the network's input (B, N, D) for `codes_BN` at the image positions `index_BN`."""
        return self.token(codes_BN).to(self.compute_dtype) + self.position(index_BN).to(
            self.compute_dtype
        )

    def activation_bytes(self, num_images: int, lengths: Sequence[int]) -> float:
        """Return the memory that a run needs above the weights."""
        return transformer_bytes(
            lengths,
            num_images=num_images,
            num_tokens=self.config.num_tokens,
            config=self.config,
            itemsize=self.compute_dtype.itemsize,
            is_sequential=False,
        )

    def kept_bytes(
        self, num_images: int, lengths: Sequence[int], kept_dtype: torch.dtype | None = None
    ) -> float:
        """Return the memory of the keys and values that a full pass keeps."""
        return key_value_bytes(
            num_images,
            lengths,
            depth=self.config.depth,
            kv_width=self.config.width,
            itemsize=(kept_dtype or self.compute_dtype).itemsize,
        )

    def layers_to_logits(self) -> Sequence[nn.Module]:
        """Return no layers: logits come from embeddings, which are looked up as copies."""
        return ()


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each around a residual connection."""

    def __init__(
        self, config: Config, operations: Any, attention: Attention, tensor: dict[str, Any]
    ):
        super().__init__()
        width = config.width
        self.attention_norm = operations.LayerNorm(width, eps=1e-5, **tensor)
        self.attention = MultiHeadAttention(
            width, config.num_heads, operations, attention, **tensor
        )
        self.feed_forward_norm = operations.LayerNorm(width, eps=1e-5, **tensor)
        self.feed_forward = FeedForward(width, config.mlp_width, operations, **tensor)

    def forward(
        self,
        x_BSD: Tensor,
        kept: KeyValues | None = None,
        position_BS: Tensor | None = None,
    ) -> Tensor:
        h = self.attention_norm(x_BSD)
        x_BSD = x_BSD + self.attention(h, h, kept, position_BS)
        return x_BSD + self.feed_forward(self.feed_forward_norm(x_BSD))


NUM_HEADS = {768: 16}  # of the published models, by width
NUM_CODES = {2026: 1024}  # of the published models, by vocabulary: 1000 classes


def read_config(tensors: Tensors, known: Mapping[str, Any]) -> Config:
    """Return sizes from our tensors; `num_heads` and `num_codes` from `known` or else by preset."""
    vocabulary, width = sizes(tensors, "token.weight", 2)
    length, _ = sizes(tensors, "position.weight", 2)
    mlp_width, _ = sizes(tensors, "blocks.0.feed_forward.up.weight", 2)
    grid = math.isqrt(length - 1)
    if grid < 1 or grid**2 != length - 1:
        raise ValueError(
            f"it has {length} positions, expected those of a square grid and one more, as 1025."
        )
    num_codes = given(known, "num_codes", NUM_CODES, vocabulary)
    if num_codes > vocabulary - 3:
        raise ValueError(
            f"num_codes is {num_codes}, expected at most {vocabulary - 3}: the vocabulary of {vocabulary} also "
            'holds the mask, at least one class and "no class".'
        )
    return Config(
        grid=grid,
        width=width,
        depth=count(tensors, "blocks."),
        num_heads=check_heads(given(known, "num_heads", NUM_HEADS, width), width),
        mlp_width=mlp_width,
        num_codes=num_codes,
        num_classes=vocabulary - num_codes - 2,
    )


TABLE = {
    "tok_emb.weight": "token.weight",
    "pos_emb": Unbatched("position.weight"),
    "bias": "output_bias.weight",
    # The published layers have a Dropout at 1 and 5.
    "first_layer.0.*": "first_layer.0.*",
    "first_layer.2.*": "first_layer.1.*",
    "first_layer.4.*": "first_layer.3.*",
    "first_layer.6.*": "first_layer.4.*",
    "transformer.layers.{}.0.norm.*": "blocks.{}.attention_norm.*",
    "transformer.layers.{}.0.fn.mha.in_proj_weight": tuple(
        f"blocks.{{}}.attention.{part}.weight" for part in ("query", "key", "value")
    ),
    "transformer.layers.{}.0.fn.mha.in_proj_bias": tuple(
        f"blocks.{{}}.attention.{part}.bias" for part in ("query", "key", "value")
    ),
    "transformer.layers.{}.0.fn.mha.out_proj.*": "blocks.{}.attention.out.*",
    "transformer.layers.{}.1.norm.*": "blocks.{}.feed_forward_norm.*",
    "transformer.layers.{}.1.fn.net.0.*": "blocks.{}.feed_forward.up.*",
    "transformer.layers.{}.1.fn.net.3.*": "blocks.{}.feed_forward.down.*",
    "last_layer.0.*": "last_layer.0.*",
    "last_layer.2.*": "last_layer.1.*",
    "last_layer.4.*": "last_layer.3.*",
}

LAYOUT = Layout(
    name="maskgit",
    kind="model",
    title="MaskGIT transformer",
    filenames=("MaskGIT_ImageNet_512.pth", "MaskGIT_ImageNet_256.pth"),
    container="model_state_dict",
    marks=("tok_emb.weight", "pos_emb", "bias"),
    table=TABLE,
    config=Config,
    read_config=read_config,
    network=MaskGIT,
    num_classes=lambda config: config.num_classes,
    quantizable=("blocks.",),
)
