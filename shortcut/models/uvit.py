"""What aMUSEd and Meissonic share: a network with a trunk at full or half resolution, for images of one size.

Source: Patil et al. 2024 (aMUSEd, arXiv 2401.01808); diffusers models/unets/uvit_2d.py; facts in tests/golden/UVIT.md.
Differs: features are those behind the last norm, of which logits are a linear function; logits are made at the
positions asked for; sides that cannot be halved are refused, where the original makes a larger image.

    B  images    L  image tokens, rows x columns    h, w  rows, columns    P  text tokens    C  channels of the ends
    D  width of the trunk, or of the features    N  positions asked for    M  positions run    V  codebook size
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..denoiser import Conditions, Features, Kept, positions
from ..gather import tokens_at, write_at
from ..schedule import Step
from .layers import BaseNetwork, KeyValues, draw_bytes
from .uvit_parts import (
    DOWNSCALE,
    NUM_MICRO,
    CodeOutput,
    Downsample,
    TextCondition,
    TokenInput,
    Upsample,
)


@dataclass(slots=True)
class TrunkKept:
    """What a full pass keeps of the trunk: keys and values of its blocks, and what it gave."""

    blocks: Sequence[KeyValues]
    rows: int | None = None  # how many sequences, the first ones; None = all
    out_BLC: Tensor | None = None


class UVit(BaseNetwork):
    """A network with a trunk of transformer blocks at full or half resolution. Subclasses make all but `forward`.

    A partial pass runs some positions of the trunk alone, and all else at every position: the ends take a few per
    cent of a pass, and the convolutions of a stage, where there is one, look at what stands around.
    """

    embed: TokenInput
    downsample: Downsample | None
    down: nn.Module | None  # (x_BhwC, text_BPD, vector_BD) -> x_BhwC
    to_trunk_norm: nn.Module
    to_trunk: nn.Module
    from_trunk_norm: nn.Module
    from_trunk: nn.Module
    up: nn.Module | None
    upsample: Upsample | None
    output: CodeOutput

    def condition_parts(self, condition: TextCondition, steps_left: int) -> tuple[Tensor, Tensor]:
        """Return the text (B, P, D), and a vector (B, D) of all else.

        Args:
            steps_left: of the schedule after this one.
        """
        raise NotImplementedError

    def trunk(
        self,
        x_BMD: Tensor,
        text_BPD: Tensor,
        vector_BD: Tensor,
        grid: tuple[int, int],
        kept: Sequence[KeyValues] | None,
        position_BM: Tensor | None,
    ) -> Tensor:
        """Run the blocks. Returns (B, M, D).

        Args:
            grid: rows and columns of the trunk.
            kept: of each block; None = nothing is kept.
            position_BM: where the inputs stand in the grid; None = they are all of it.
        """
        raise NotImplementedError

    def num_blocks(self) -> int:
        """Return how many blocks of the trunk keep keys and values."""
        raise NotImplementedError

    def forward(
        self,
        tokens_Bhw: Tensor,
        condition: TextCondition,
        steps_left: int,
        kept: TrunkKept | None = None,
        index_BM: Tensor | None = None,
        perturb: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Run token ids. Returns features (B, L, D), or (B, M, D) of a partial pass.

        Args:
            tokens_Bhw: code ids and the mask's id.
            condition: with the sizes of the images.
            kept: of the last full pass; it is renewed.
            index_BM: the image tokens to run alone; None = a full pass.
            perturb: changes what `embed` gives.
        """
        text_BPD, vector_BD = self.condition_parts(condition, steps_left)
        x = self.embed(tokens_Bhw, self.compute_dtype)
        if perturb is not None:
            x = perturb(x.flatten(1, 2)).view_as(x)
        if self.downsample is not None:
            x = self.downsample(x)
        if self.down is not None:
            x = self.down(x, text_BPD, vector_BD)
        grid = x.shape[1], x.shape[2]
        position_BM = None
        if index_BM is not None:
            columns, length = tokens_Bhw.shape[2], grid[0] * grid[1]
            position_BM = self._trunk_positions(index_BM, columns, length)
        x = self.to_trunk(self.to_trunk_norm(tokens_at(x.flatten(1, 2), position_BM)))
        blocks = None if kept is None else kept.blocks
        x = self.trunk(x, text_BPD, vector_BD, grid, blocks, position_BM)
        x = self.from_trunk(self.from_trunk_norm(x))
        if kept is not None and position_BM is None:
            kept.out_BLC = x if kept.rows is None else x[: kept.rows].clone()
        elif kept is not None:
            assert kept.out_BLC is not None and position_BM is not None
            x = write_at(kept.out_BLC, position_BM, x)
        x = x.unflatten(1, grid)
        if self.up is not None:
            x = self.up(x, text_BPD, vector_BD)
        if self.upsample is not None:
            x = self.upsample(x)
        return self.output(tokens_at(x.flatten(1, 2), index_BM))

    def _trunk_positions(self, index_BM: Tensor, columns: int, length: int) -> Tensor:
        """Return the distinct positions of the trunk, of `length`, that hold the image tokens `index_BM`.

        A halved trunk holds four tokens in each. How many that makes differs from image to image: their number is the
        most that there can be, which needs no copy to the host, and other positions fill it up.
        """
        if self.downsample is None:
            return index_BM
        row_BM, column_BM = index_BM // columns, index_BM % columns
        cell_BM = row_BM // 2 * (columns // 2) + column_BM // 2
        is_wanted_BL = torch.zeros(len(cell_BM), length, dtype=torch.bool, device=cell_BM.device)
        return positions(is_wanted_BL.scatter(1, cell_BM, True), min(cell_BM.shape[1], length))

    def trunk_length(self, num_tokens: int) -> int:
        """Return the image positions of the trunk."""
        return num_tokens // 4 if self.config.downsamples else num_tokens

    def on_grid(self, rows: int, columns: int, *, is_sequential: bool = False) -> OnGrid:
        """Return this network for images of `rows` x `columns` codes.

        Args:
            is_sequential: True: a guidance branch at a time, which needs less memory.

        Raises:
            ValueError: it halves the sides, and they cannot be halved.
        """
        if self.config.downsamples and (rows % 2 or columns % 2):
            width, height = columns * DOWNSCALE, rows * DOWNSCALE
            raise ValueError(
                f"this model makes images whose sides are multiples of {2 * DOWNSCALE} pixels, got {width} x {height}. "
                f"The nearest are {width + columns % 2 * DOWNSCALE} x {height + rows % 2 * DOWNSCALE}."
            )
        return OnGrid(self, rows, columns, is_sequential)

    def layers_to_logits(self) -> Sequence[nn.Module]:
        """Return the layers that gradients pass from logits to features."""
        return (self.output.conv2,)

    def pass_values(self, num_tokens: int) -> float:
        """Return how many values are alive at the peak of a pass, for one image of one branch."""
        raise NotImplementedError

    def kept_values(self, num_tokens: int) -> tuple[float, float]:
        """Return how many values a pass keeps, for one image of one branch: keys and values, and the trunk's output."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class OnGrid:
    """A network that makes images of one size. Features are (B, L, D): of the image tokens alone."""

    model: UVit
    rows: int
    columns: int
    is_sequential: bool

    @property
    def config(self) -> Any:
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

    def features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step,
    ) -> Features:
        """Run one full pass. Returns features (B, L, D) for each guidance branch.

        Args:
            codes_BL: code ids; those at masked positions are ignored.
            conditions: a `TextCondition` for each branch, with texts of their own lengths.
        """
        return self._run(codes_BL, is_masked_BL, conditions, step)

    def perturbed_features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step,
        perturb: Callable[[Tensor], Tensor],
    ) -> Features:
        """Run one full pass of changed embeddings. Returns features (B, L, D) for each guidance branch."""
        return self._run(codes_BL, is_masked_BL, conditions, step, perturb=perturb)

    def kept_features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step,
        kept_dtype: torch.dtype | None = None,
        only_first: bool = False,
    ) -> tuple[Features, Kept]:
        """Run one full pass. Returns its features, and what the trunk keeps in each run of it."""
        numbers, rows = range(self.model.num_blocks()), len(codes_BL) if only_first else None
        kept = [
            TrunkKept([KeyValues(kept_dtype, rows=rows) for _ in numbers], rows)
            for _ in self._groups(conditions[:1] if only_first else conditions)
        ]
        return self._run(codes_BL, is_masked_BL, conditions, step, kept), kept

    def partial_features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step,
        positions: Sequence[Tensor],
        kept: Kept,
    ) -> Features:
        """Run the tokens at `positions` (B, M) of each branch alone. Returns their features (B, M, D)."""
        return self._run(codes_BL, is_masked_BL, conditions, step, kept, positions)

    def _run(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step,
        kept: Sequence[TrunkKept] = (),
        positions: Sequence[Tensor] | None = None,
        perturb: Callable[[Tensor], Tensor] | None = None,
    ) -> Features:
        """Run the branches in groups, in each of which they go through the network together."""
        tokens_Bhw = codes_BL.masked_fill(is_masked_BL, self.config.mask_id).unflatten(1, self.grid)
        features: list[Tensor] = []
        for group, group_kept in zip_longest(self._groups(conditions), kept):
            condition = TextCondition.joined([self._sized(conditions[i]) for i in group])
            where = None if positions is None else torch.cat([positions[i] for i in group])
            features += self.model(
                tokens_Bhw.repeat(len(group), 1, 1),
                condition,
                step.steps_left,
                group_kept,
                where,
                perturb,
            ).chunk(len(group))
        return tuple(features)

    def _groups(self, conditions: Sequence[Conditions]) -> list[list[int]]:
        """Return which branches go through the network together: all, or each alone where texts differ in length."""
        numbers = range(len(conditions))
        lengths = {c.states_BPC.shape[1] for c in cast(Sequence[TextCondition], conditions)}
        if self.is_sequential or len(lengths) > 1:
            return [[number] for number in numbers]
        return [list(numbers)]

    def _sized(self, given: Conditions) -> TextCondition:
        """Return the condition with the size of the image where it states none."""
        condition = cast(TextCondition, given)
        micro_B5 = condition.micro_B5
        pixels = (self.columns * DOWNSCALE, self.rows * DOWNSCALE)
        own_B5 = torch.stack(
            [micro_B5[:, i].masked_fill(micro_B5[:, i] == 0, side) for i, side in enumerate(pixels)]
            + [micro_B5[:, i] for i in range(len(pixels), NUM_MICRO)],
            1,
        )
        return replace(condition, micro_B5=own_B5)

    def image_positions(self, index_BN: Tensor, length: int) -> Tensor:
        """Return the positions of image tokens in a sequence: there are no others."""
        return index_BN

    def logits(self, features_BND: Tensor, index_BN: Tensor) -> Tensor:
        """Return float32 logits (B, N, V) from features, wherever these are."""
        return self.sequence_logits(features_BND)

    def sequence_logits(self, features_BSD: Tensor) -> Tensor:
        """Return float32 logits (B, S, V) at all positions of a sequence."""
        return self.model.output.conv2(features_BSD).float()

    def embed(self, codes_BN: Tensor, index_BN: Tensor) -> Tensor:
        """Return the network's input (B, N, D) for `codes_BN`, wherever they stand."""
        return self.model.embed.normed(codes_BN, self.model.compute_dtype)

    def sequence_length(self, condition: Conditions | None) -> int:
        """Return the positions of any branch: the text is not among them."""
        return self.rows * self.columns

    def activation_bytes(self, num_images: int, lengths: Sequence[int]) -> float:
        """Return the memory that a run needs above the weights."""
        num_tokens, itemsize = self.rows * self.columns, self.model.compute_dtype.itemsize
        at_once = 1 if self.is_sequential else len(lengths)
        a_pass = at_once * self.model.pass_values(num_tokens) * itemsize
        features = sum(lengths) * self.config.width * itemsize
        draw = draw_bytes(num_images, num_tokens, self.config.num_codes)
        return max(num_images * (features + a_pass), num_images * 2 * features + draw)

    def kept_bytes(
        self, num_images: int, lengths: Sequence[int], kept_dtype: torch.dtype | None = None
    ) -> float:
        """Return the memory of what a full pass keeps of the trunk."""
        own = self.model.compute_dtype
        keys, out = self.model.kept_values(self.rows * self.columns)
        each = keys * (kept_dtype or own).itemsize + out * own.itemsize
        return num_images * len(lengths) * each
