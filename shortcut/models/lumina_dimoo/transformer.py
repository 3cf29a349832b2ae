"""Lumina-DiMOO: a bidirectional transformer (LLaDA) over text and image tokens.

Source: Xin et al. 2025 (arXiv 2510.06308), Alpha-VLLM/Lumina-DiMOO model/modeling_llada.py; Nie et al. 2025, LLaDA
(arXiv 2502.09992); facts of the published files in tests/golden/README.md sections 3 and 5.
Differs: the output matrix is cut in two, for images and for text (`TextOutput`), and logits are made at the positions
asked for; all guidance branches go through one pass; a batch may hold several images; rounding in bfloat16
(`block.py`).

Token ids: text 0 .. num_text_ids - 1, the last of them special (`SPECIAL_IDS`), code c at num_text_ids + c.
Sequence: prompt, BOA, BOI, for each row its codes and a newline, EOI, EOA.

    B  images    L  image tokens    P  prompt tokens    S  one sequence, or all branches side by side
    D  width    V  codebook size    N  positions asked for
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...denoiser import Conditions, Features, Kept
from ...guard import shown
from ...schedule import Step
from ..layers import Attention, BaseNetwork, KeyValues, key_value_bytes, transformer_bytes
from ..layout import Layout, Tensors, check_heads, count, given, sizes
from .block import Block, Part, SequencePositions, block_table, kv_heads
from .config import check_vocabulary, denies, read_beside, split_output

# Token -> its id, counted from the end of the text ids.
SPECIAL_IDS = {
    "newline": -272,
    "system": -24,
    "/system": -23,
    "user": -22,
    "/user": -21,
    "mask": -20,
    "boi": -7,  # begin and end of an image
    "eoi": -6,
    "uncondition": -5,
    "boa": -2,  # begin and end of the answer
    "eoa": -1,
}


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes of a Lumina-DiMOO."""

    width: int
    depth: int
    num_heads: int
    num_kv_heads: int  # fewer than `num_heads`: each serves as many heads in a row
    mlp_width: int
    num_text_ids: int
    num_codes: int
    rope_theta: float
    norm_eps: float

    @property
    def vocabulary(self) -> int:
        """Text ids and codes."""
        return self.num_text_ids + self.num_codes

    def special_id(self, name: str) -> int:
        """Return the id of a token in `SPECIAL_IDS`."""
        return self.num_text_ids + SPECIAL_IDS[name]


class LuminaDiMOO(BaseNetwork):
    """The network. `on_grid` returns what a sampler calls."""

    config: Config

    def build(
        self, config: Config, operations: Any, attention: Attention, tensor: dict[str, Any]
    ) -> None:
        width = config.width
        self.token = operations.Embedding(config.vocabulary, width, **tensor)
        self.blocks = nn.ModuleList(
            Block(config, operations, attention, tensor) for _ in range(config.depth)
        )
        self.final_norm = operations.RMSNorm(width, eps=config.norm_eps, **tensor)
        self.code_output = operations.Linear(width, config.num_codes, bias=False, **tensor)

    def forward(
        self,
        sequences: Sequence[Tensor],
        kept: Sequence[KeyValues] | None = None,
        part: tuple[Sequence[Tensor], list[int]] | None = None,
    ) -> tuple[Tensor, ...]:
        """Run token sequences (B, S) of any lengths. Returns last-layer features (B, S, D), after the last norm.

        Args:
            kept: keeps the keys and values of each block.
            part: where the tokens (B, S) of each sequence stand in it, and the lengths of the kept sequences; None =
                the sequences are whole.
        """
        x = self.embed_tokens(torch.cat(list(sequences), 1))
        in_block = None
        if part is None:
            lengths = [tokens_BS.shape[1] for tokens_BS in sequences]
            positions = SequencePositions.whole(lengths, self.config, x.device)
        else:
            where, lengths = part
            positions = SequencePositions.of(where, self.config)
            starts = (sum(lengths[:i]) for i in range(len(lengths)))
            shifted = [w_BS + start for w_BS, start in zip(where, starts, strict=True)]
            in_block = Part(lengths, torch.cat(shifted, 1))
        for i, block in enumerate(self.in_order(self.blocks)):
            x = block(x, positions, None, None if kept is None else kept[i], in_block)
        return self.final_norm(x).split(positions.lengths, dim=1)

    def embed_tokens(self, tokens_BS: Tensor) -> Tensor:
        """Return the network's input (B, S, D); it knows nothing of positions."""
        return self.token(tokens_BS).to(self.compute_dtype)

    def on_grid(self, rows: int, columns: int, *, is_sequential: bool = False) -> OnGrid:
        """Return this network for images of `rows` x `columns` codes.

        Args:
            is_sequential: True: a guidance branch at a time, which needs less memory and reads the weights once for
                each branch.
        """
        return OnGrid(self, rows, columns, is_sequential)

    def layers_to_logits(self) -> Sequence[nn.Module]:
        """Return the layers that gradients pass from logits to features."""
        return (self.code_output,)


class TextOutput(BaseNetwork):
    """The rows of the output matrix for text ids, which images do without."""

    config: Config

    def build(
        self, config: Config, operations: Any, attention: Attention, tensor: dict[str, Any]
    ) -> None:
        self.output = operations.Linear(config.width, config.num_text_ids, bias=False, **tensor)

    def forward(self, features_BND: Tensor) -> Tensor:
        """Return logits (B, N, num_text_ids)."""
        return self.output(features_BND)


@dataclass(frozen=True, slots=True)
class OnGrid:
    """A network that makes images of one size, with what its head asks it.

    The condition of a guidance branch is a LongTensor (B, P): all tokens in front of the target's BOA. Features are
    (B, S, D), S = P + 2 + rows * (columns + 1) + 2.
    """

    model: LuminaDiMOO
    rows: int
    columns: int
    is_sequential: bool

    @property
    def config(self) -> Config:
        """Of the network."""
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's weights."""
        return self.model.dtype

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of an image's codes."""
        return self.rows, self.columns

    @property
    def num_tokens(self) -> int:
        """Codes of one image."""
        return self.rows * self.columns

    def features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step | None = None,
    ) -> Features:
        """Run one full pass. Returns features (B, S, D) for each guidance branch.

        Args:
            codes_BL: code ids; those at masked positions are ignored.
            conditions: prompt tokens (B, P) of each branch, in lengths of their own.
            step: ignored: the network takes no timestep.
        """
        sequences = self._sequences(codes_BL, is_masked_BL, conditions)
        return tuple(f for group in self._groups(sequences) for f in self.model(group))

    def kept_features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step | None = None,
        kept_dtype: torch.dtype | None = None,
        only_first: bool = False,
    ) -> tuple[Features, Kept]:
        """Run one full pass. Returns its features, and the keys and values of each block for each run of it."""
        groups = self._groups(self._sequences(codes_BL, is_masked_BL, conditions))
        length = groups[0][0].shape[1] if only_first else None
        kept = [
            tuple(KeyValues(kept_dtype, length=length) for _ in self.model.blocks)
            for _ in (groups[:1] if only_first else groups)
        ]
        runs = (self.model(group, k) for group, k in zip_longest(groups, kept))
        return tuple(f for features in runs for f in features), kept

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
        sequences = self._sequences(codes_BL, is_masked_BL, conditions)
        features: list[Tensor] = []
        groups = zip(self._groups(sequences), self._groups(list(positions)), kept, strict=True)
        for group, where, group_kept in groups:
            tokens = [t_BS.gather(1, p_BM) for t_BS, p_BM in zip(group, where, strict=True)]
            lengths = [t_BS.shape[1] for t_BS in group]
            features += self.model(tokens, group_kept, (where, lengths))
        return tuple(features)

    def _sequences(
        self, codes_BL: Tensor, is_masked_BL: Tensor, conditions: Sequence[Conditions]
    ) -> list[Tensor]:
        """Return the whole sequence of each guidance branch."""
        target_BS = self.target_tokens(codes_BL, is_masked_BL)
        return [torch.cat([p_BP, target_BS], 1) for p_BP in cast(Sequence[Tensor], conditions)]

    def _groups(self, branches: list[Any]) -> list[list[Any]]:
        """Return the branches that go through the network together."""
        return [[branch] for branch in branches] if self.is_sequential else [branches]

    def logits(self, features_BND: Tensor, index_BN: Tensor) -> Tensor:
        """Return float32 logits (B, N, V) from the features of image positions, wherever these are."""
        return self.sequence_logits(features_BND)

    def sequence_logits(self, features_BSD: Tensor) -> Tensor:
        """Return float32 logits (B, S, V) at all positions of a sequence."""
        return self.model.code_output(features_BSD).float()

    def embed(self, codes_BN: Tensor, index_BN: Tensor | None = None) -> Tensor:
        """Return the network's input (B, N, D) for `codes_BN`, wherever they stand."""
        return self.model.embed_tokens(codes_BN + self.config.num_text_ids)

    def positions_after(self, prompt_BP: Tensor, index_BN: Tensor) -> Tensor:
        """Return the positions of the image tokens `index_BN` in a sequence with that prompt."""
        return self.image_positions(index_BN, self.sequence_length(prompt_BP))

    def sequence_length(self, condition: Conditions | None) -> int:
        """Return the positions of a branch with that prompt (B, P); None = without a prompt."""
        num_prompt_tokens = 0 if condition is None else cast(Tensor, condition).shape[1]
        return num_prompt_tokens + 2 + self.rows * (self.columns + 1) + 2

    def activation_bytes(self, num_images: int, lengths: Sequence[int]) -> float:
        """Return the memory that a run needs above the weights."""
        return transformer_bytes(
            lengths,
            num_images=num_images,
            num_tokens=self.num_tokens,
            config=self.config,
            itemsize=self.model.compute_dtype.itemsize,
            is_sequential=self.is_sequential,
        )

    def kept_bytes(
        self, num_images: int, lengths: Sequence[int], kept_dtype: torch.dtype | None = None
    ) -> float:
        """Return the memory of the keys and values that a full pass keeps."""
        config = self.config
        return key_value_bytes(
            num_images,
            lengths,
            depth=config.depth,
            kv_width=config.width // config.num_heads * config.num_kv_heads,
            itemsize=(kept_dtype or self.model.compute_dtype).itemsize,
        )

    def image_positions(self, index_BN: Tensor, length: int) -> Tensor:
        """Return the positions of image tokens in a sequence of `length` tokens; each row has one newline."""
        start = length - 2 - self.rows * (self.columns + 1)
        return start + self._position_in_rows(index_BN)

    def _position_in_rows(self, index_BN: Tensor) -> Tensor:
        return index_BN + index_BN.div(self.columns, rounding_mode="floor")  # one newline a row

    def target_tokens(self, codes_BL: Tensor, is_masked_BL: Tensor) -> Tensor:
        """Return the tokens (B, S) from BOA to EOA."""
        return between("boa", self.image_part(codes_BL, is_masked_BL), "eoa", self.config)

    def image_part(self, codes_BL: Tensor, is_masked_BL: Tensor) -> Tensor:
        """Return the tokens (B, S) from BOI to EOI."""
        tokens_BL = codes_BL + self.config.num_text_ids
        tokens_BL = tokens_BL.masked_fill(is_masked_BL, self.config.special_id("mask"))
        return image_tokens(tokens_BL.unflatten(1, (self.rows, self.columns)), self.config)


def image_tokens(tokens_BYX: Tensor, config: Config) -> Tensor:
    """Return an image in a sequence (B, S): BOI, each row of its tokens with a newline behind it, EOI."""
    rows_BYX = F.pad(tokens_BYX, (0, 1), value=config.special_id("newline"))
    return between("boi", rows_BYX.flatten(1), "eoi", config)


def between(first: str, tokens_BS: Tensor, last: str, config: Config) -> Tensor:
    """Return the tokens with a special one on either side."""
    column = (len(tokens_BS), 1)
    first_B1 = tokens_BS.new_full(column, config.special_id(first))
    return torch.cat([first_B1, tokens_BS, tokens_BS.new_full(column, config.special_id(last))], 1)


NUM_HEADS = {4096: 32}  # of the published model, by width
NUM_CODES = {134548: 8192}  # of the published model, by rows of its embedding
ROPE_THETA, NORM_EPS = 500_000.0, 1e-5  # of LLaDA
LARGEST = 1e12  # of such numbers


def read_config(tensors: Tensors, known: Mapping[str, Any]) -> Config:
    """Return sizes from our tensors; what they do not show from `known`, or else by preset.

    Of a published file `code_output.weight` has the rows of the text ids too, and `num_codes` cannot be read.
    """
    vocabulary, width = sizes(tensors, "token.weight", 2)
    check_vocabulary(vocabulary, known)
    num_rows, _ = sizes(tensors, "code_output.weight", 2)
    kv_width, _ = sizes(tensors, "blocks.0.key.weight", 2)
    mlp_width, _ = sizes(tensors, "blocks.0.feed_forward.gate.weight", 2)
    num_codes = num_rows
    if num_rows >= vocabulary:
        num_codes = given(known, "num_codes", NUM_CODES, vocabulary)
    num_text_ids = vocabulary - num_codes
    if num_text_ids < -min(SPECIAL_IDS.values()):
        raise ValueError(
            f"it has {vocabulary} token ids and {num_codes} codes, which leaves {num_text_ids} text ids, expected at "
            f"least {-min(SPECIAL_IDS.values())}: the special tokens are the last of them."
        )
    num_heads = check_heads(given(known, "num_heads", NUM_HEADS, width), width)
    return Config(
        width=width,
        depth=count(tensors, "blocks."),
        num_heads=num_heads,
        num_kv_heads=kv_heads(kv_width, width, num_heads),
        mlp_width=mlp_width,
        num_text_ids=num_text_ids,
        num_codes=num_codes,
        rope_theta=positive(known, "rope_theta", ROPE_THETA),
        norm_eps=positive(known, "norm_eps", NORM_EPS),
    )


def positive(known: Mapping[str, Any], name: str, default: float) -> float:
    """Return the config field `name`, which no tensor shows."""
    value = known.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LARGEST:
        raise ValueError(f"{name} is {shown(value)}, expected a positive number below {LARGEST:g}.")
    return float(value)


TABLE = {
    "model.transformer.wte.weight": "token.weight",
    **block_table("model.transformer.blocks.{}", "blocks.{}"),
    "model.transformer.ln_f.weight": "final_norm.weight",
    "model.transformer.ff_out.weight": "code_output.weight",
}

LAYOUT = Layout(
    name="lumina-dimoo",
    kind="model",
    title="Lumina-DiMOO transformer",
    filenames=("model.safetensors", "model.safetensors.index.json"),
    marks=("model.transformer.wte.weight", "model.transformer.ff_out.weight"),
    table=TABLE,
    config=Config,
    read_config=read_config,
    network=LuminaDiMOO,
    denies=denies,
    read_beside=read_beside,
    narrow=split_output,
    text_output=TextOutput,
    quantizable=("blocks.",),
    lookups=("token.weight",),
)
