"""What aMUSEd and Meissonic share: tokens in, conditions in, the change of resolution, logits out.

Source: Patil et al. 2024 (aMUSEd, arXiv 2401.01808); diffusers models/unets/uvit_2d.py; facts in golden2/README.md.
Differs: features are those behind the last norm, of which logits are a linear function; logits are made at the
positions asked for; sides that cannot be halved are refused, where the original makes a larger image.

    B  images    L  image tokens, rows x columns    h, w  rows, columns    P  text tokens    C  width of a text encoder
    D  width of the features    N  positions asked for    V  codebook size
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..denoiser import Conditions, Features
from ..schedule import Step
from .layers import BaseNetwork, draw_bytes

DOWNSCALE = 16  # pixels per code along one side, of the VQ model that goes with these networks
# Micro-conditions: width and height of the image, what was cropped left and above, in pixels, and an aesthetic score.
NUM_MICRO = 5
AESTHETIC = 6.0  # of pictures to make, as the originals have it
EPS = 1e-6  # of all norms


@dataclass(frozen=True, slots=True)
class TextCondition:
    """The condition of one guidance branch: a text as CLIP sees it, and micro-conditions."""

    states_BPC: Tensor  # of the last layer but one, padding included
    pooled_BC: Tensor  # projected
    micro_B5: Tensor  # width or height 0 = that of the image

    def to(self, device: Any, /) -> TextCondition:
        parts = (self.states_BPC, self.pooled_BC, self.micro_B5)
        return TextCondition(*(part.to(device) for part in parts))

    def __getitem__(self, rows: Any, /) -> TextCondition:
        return TextCondition(self.states_BPC[rows], self.pooled_BC[rows], self.micro_B5[rows])

    def __len__(self) -> int:
        return len(self.pooled_BC)

    @classmethod
    def joined(cls, conditions: Sequence[TextCondition]) -> TextCondition:
        """Return the rows of several conditions, whose texts have equal lengths."""
        return cls(
            torch.cat([c.states_BPC for c in conditions]),
            torch.cat([c.pooled_BC for c in conditions]),
            torch.cat([c.micro_B5 for c in conditions]),
        )


def micro_conditions() -> Tensor:
    """Return the usual micro-conditions (1, 5) of an image to make."""
    return torch.tensor([[0.0, 0.0, 0.0, 0.0, AESTHETIC]])


def shapes_of_text(num_tokens: int, width: int, pooled_width: int) -> TextCondition:
    """Return a condition without values, on the meta device."""
    return TextCondition(
        torch.zeros(1, num_tokens, width, device="meta"),
        torch.zeros(1, pooled_width, device="meta"),
        torch.zeros(1, NUM_MICRO, device="meta"),
    )


def sinusoids(value_B: Tensor, width: int) -> Tensor:
    """Return cosines, then sines, of values at `width` / 2 frequencies from 1 down to almost 1 / 10000: (B, width).

    In float32, whose rounding shows: values reach 63,000.
    """
    half = width // 2
    exponent = -math.log(10_000) * torch.arange(half, dtype=torch.float32, device=value_B.device)
    angle = value_B.float().unsqueeze(1) * torch.exp(exponent / half)
    return torch.cat([angle.cos(), angle.sin()], 1)


class TwoLayers(nn.Module):
    """Linear, SiLU, Linear."""

    def __init__(self, num_in: int, width: int, operations: Any, *, bias: bool, **tensor: Any):
        super().__init__()
        self.linear_1 = operations.Linear(num_in, width, bias=bias, **tensor)
        self.linear_2 = operations.Linear(width, width, bias=bias, **tensor)

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x_BD)))


class MicroConditions(TwoLayers):
    """The pooled text and the micro-conditions, as one vector."""

    def __init__(
        self, pooled_width: int, micro_width: int, width: int, operations: Any, **tensor: Any
    ):
        num_in = pooled_width + NUM_MICRO * micro_width
        super().__init__(num_in, width, operations, bias=False, **tensor)
        self.micro_width = micro_width

    def of(self, condition: TextCondition, dtype: torch.dtype) -> Tensor:
        """Return (B, width of the trunk)."""
        waves = sinusoids(condition.micro_B5.flatten(), self.micro_width)
        micro_BM = waves.unflatten(0, (-1, NUM_MICRO)).flatten(1)
        return self(torch.cat([condition.pooled_BC.to(dtype), micro_BM.to(dtype)], 1))


class TokenInput(nn.Module):
    """Token ids -> embeddings behind a norm -> what the first blocks get."""

    def __init__(self, vocabulary: int, width: int, channels: int, operations: Any, **tensor: Any):
        super().__init__()
        self.embeddings = operations.Embedding(vocabulary, width, **tensor)
        self.layer_norm = operations.RMSNorm(width, eps=EPS, **tensor)
        self.conv = operations.Linear(width, channels, bias=False, **tensor)

    def normed(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """Return embeddings behind their norm, (..., width)."""
        return self.layer_norm(self.embeddings(tokens).to(dtype))

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        return self.conv(self.normed(tokens, dtype))


class CodeOutput(nn.Module):
    """What the last blocks give -> features -> logits."""

    def __init__(self, channels: int, width: int, num_codes: int, operations: Any, **tensor: Any):
        super().__init__()
        self.conv1 = operations.Linear(channels, width, bias=False, **tensor)
        self.layer_norm = operations.RMSNorm(width, eps=EPS, **tensor)
        self.conv2 = operations.Linear(width, num_codes, bias=False, **tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (..., width): `conv2` makes logits of them."""
        return self.layer_norm(self.conv1(x))


class Downsample(nn.Module):
    """Norm, then both sides halved."""

    def __init__(self, width: int, operations: Any, **tensor: Any):
        super().__init__()
        self.norm = operations.RMSNorm(width, eps=EPS, **tensor)
        self.conv = operations.Conv2d(width, width, 2, stride=2, bias=False, **tensor)

    def forward(self, x_BhwD: Tensor) -> Tensor:
        return self.conv(self.norm(x_BhwD).movedim(-1, 1)).movedim(1, -1)


class Upsample(Downsample):
    """Norm, then both sides doubled."""

    def __init__(self, width: int, operations: Any, **tensor: Any):
        super().__init__(width, operations, **tensor)
        self.conv = operations.ConvTranspose2d(width, width, 2, stride=2, bias=False, **tensor)


class UVit(BaseNetwork):
    """A network between `TokenInput` and `CodeOutput`. Subclasses make both, as `embed` and `output`, and `run`."""

    embed: TokenInput
    output: CodeOutput

    def run(self, tokens_Bhw: Tensor, condition: TextCondition, steps_left: int) -> Tensor:
        """Return what `output` gets: (B, h, w, channels).

        Args:
            tokens_Bhw: code ids and the mask's id.
            condition: with the sizes of the images.
            steps_left: of the schedule after this one.
        """
        raise NotImplementedError

    def forward(self, tokens_Bhw: Tensor, condition: TextCondition, steps_left: int) -> Tensor:
        """Run token ids. Returns features (B, L, D)."""
        return self.output(self.run(tokens_Bhw, condition, steps_left)).flatten(1, 2)

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
        tokens_Bhw = codes_BL.masked_fill(is_masked_BL, self.config.mask_id).unflatten(1, self.grid)
        sized = [self._sized(condition) for condition in cast(Sequence[TextCondition], conditions)]
        lengths = {condition.states_BPC.shape[1] for condition in sized}
        if self.is_sequential or len(lengths) > 1:
            return tuple(self.model(tokens_Bhw, condition, step.steps_left) for condition in sized)
        repeated_Bhw = tokens_Bhw.repeat(len(sized), 1, 1)
        joined = TextCondition.joined(sized)
        return self.model(repeated_Bhw, joined, step.steps_left).chunk(len(sized))

    def _sized(self, condition: TextCondition) -> TextCondition:
        """Return the condition with the size of the image where it states none."""
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
        return self.model.output.conv2(features_BND).float()

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
