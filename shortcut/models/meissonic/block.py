"""The blocks of Meissonic: of image and text as two streams, and as one sequence.

Source: viiika/Meissonic src/transformer.py, which has them from Flux; facts in tests/golden/UVIT.md section 6.

    B  images    L  image positions of the trunk    P  text tokens    S  text and image    D  width
    H, K  heads and their width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Attention, KeyValues
from ..uvit_parts import EPS

ROPE_THETA = 10_000.0
BlockConfig = Any  # sizes of blocks: width, num_heads, head_width


@dataclass(frozen=True, slots=True)
class Turn:
    """Cosines and sines of the rotary positions of the image, the last L of a sequence: float32 (..., L, 1, K / 2)."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def on_grid(
        cls, rows: int, columns: int, axes: tuple[int, ...], device: torch.device | str
    ) -> Turn:
        """Make them for a grid in raster order, in float64 first as the original does; Apple's devices have none."""
        place = "cpu" if torch.device(device).type == "mps" else device
        index_L = torch.arange(rows * columns, device=place)
        row_L = index_L.div(columns, rounding_mode="floor")
        places = (torch.zeros_like(index_L), row_L, index_L - row_L * columns)
        angles = []
        for place_L, size in zip(places, axes, strict=True):
            even = torch.arange(0, size, 2, dtype=torch.float64, device=place)
            angles.append(place_L.double().unsqueeze(1) * ROPE_THETA ** (-even / size))
        angle_L1K = torch.cat(angles, 1).unsqueeze(1)
        return cls(angle_L1K.cos().float().to(device), angle_L1K.sin().float().to(device))

    def at(self, position_BM: Tensor) -> Turn:
        """Return those of some positions of the grid."""
        return Turn(self.cos[position_BM], self.sin[position_BM])

    def __call__(self, x_BSHK: Tensor) -> Tensor:
        """Rotate queries or keys: each value with the one behind it. Text in front stays as it is."""
        length = x_BSHK.shape[1] - self.cos.shape[-3]
        first, second = x_BSHK[:, length:].unflatten(-1, (-1, 2)).unbind(-1)
        pairs = (first * self.cos - second * self.sin, second * self.cos + first * self.sin)
        turned = torch.stack(pairs, -1).flatten(-2).to(x_BSHK.dtype)
        return torch.cat([x_BSHK[:, :length], turned], 1)


class QueryKeyValue(nn.Module):
    """Queries, keys and values of one stream; the former two behind a norm for each head."""

    def __init__(self, config: BlockConfig, operations: Any, tensor: dict[str, Any]):
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.query, self.key, self.value = (
            operations.Linear(width, width, **tensor) for _ in range(3)
        )
        self.query_norm, self.key_norm = (
            operations.RMSNorm(config.head_width, eps=EPS, **tensor) for _ in range(2)
        )

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys (B, S, H, K), and values (B, S, D)."""
        q_BSHK, k_BSHK = (
            part(x_BSD).unflatten(-1, (self.num_heads, -1)) for part in (self.query, self.key)
        )
        return self.query_norm(q_BSHK), self.key_norm(k_BSHK), self.value(x_BSD)


class Stream(nn.Module):
    """What one stream of a joint block has of its own: modulation, projections, a perceptron."""

    def __init__(self, config: BlockConfig, operations: Any, tensor: dict[str, Any]):
        super().__init__()
        width = config.width
        self.modulation = operations.Linear(width, 6 * width, **tensor)
        self.attn = QueryKeyValue(config, operations, tensor)
        self.out = operations.Linear(width, width, **tensor)
        self.up = operations.Linear(width, 4 * width, **tensor)
        self.down = operations.Linear(4 * width, width, **tensor)

    def after_attention(self, x_BSD: Tensor, out_BSD: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        """Return the stream behind attention and perceptron; `parts` are gate, shift, scale and gate."""
        gate, shift, scale, second_gate = parts
        x_BSD = x_BSD + gate * self.out(out_BSD)
        h = F.gelu(self.up(_normed(x_BSD, shift, scale)), approximate="tanh")
        return _finite(x_BSD + second_gate * self.down(h))


class JointBlock(nn.Module):
    """Image and text attend to both, then a perceptron for each."""

    def __init__(
        self, config: BlockConfig, operations: Any, attention: Attention, tensor: dict[str, Any]
    ):
        super().__init__()
        self.num_heads, self.attention = config.num_heads, attention
        self.image, self.text = (Stream(config, operations, tensor) for _ in range(2))

    def forward(
        self,
        text_BPD: Tensor,
        image_BLD: Tensor,
        vector_BD: Tensor,
        turn: Turn,
        kept: KeyValues | None = None,
        position_BS: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return both streams.

        Args:
            position_BS: where both stand in the kept sequences, all of which are attended to; None = they are these.
        """
        both = ((self.text, text_BPD), (self.image, image_BLD))
        # A partial pass has no text, and not every product of quantized weights takes no rows.
        streams = [(stream, x_BSD) for stream, x_BSD in both if x_BSD.shape[1]]
        parts = [_parts(stream.modulation, vector_BD, 6) for stream, _ in streams]
        found = [
            stream.attn(_normed(x_BSD, *part[:2]))
            for (stream, x_BSD), part in zip(streams, parts, strict=True)
        ]
        q_BSHK, k_BSHK, v_BSD = (torch.cat(pair, 1) for pair in zip(*found, strict=True))
        out_BSD = _attend(self, q_BSHK, k_BSHK, v_BSD, turn, kept, position_BS)
        outs = out_BSD.split([x_BSD.shape[1] for _, x_BSD in streams], dim=1)
        *text, image_BLD = (
            stream.after_attention(x_BSD, out_BSD, part[2:])
            for (stream, x_BSD), out_BSD, part in zip(streams, outs, parts, strict=True)
        )
        return (text[0] if text else text_BPD), image_BLD


class SingleBlock(nn.Module):
    """Attention and a perceptron side by side, over text and image as one sequence."""

    def __init__(
        self, config: BlockConfig, operations: Any, attention: Attention, tensor: dict[str, Any]
    ):
        super().__init__()
        width = config.width
        self.num_heads, self.attention = config.num_heads, attention
        self.modulation = operations.Linear(width, 3 * width, **tensor)
        self.attn = QueryKeyValue(config, operations, tensor)
        self.up = operations.Linear(width, 4 * width, **tensor)
        self.out = operations.Linear(5 * width, width, **tensor)

    def forward(
        self,
        x_BSD: Tensor,
        vector_BD: Tensor,
        turn: Turn,
        kept: KeyValues | None = None,
        position_BS: Tensor | None = None,
    ) -> Tensor:
        shift, scale, gate = _parts(self.modulation, vector_BD, 3)
        h = _normed(x_BSD, shift, scale)
        q_BSHK, k_BSHK, v_BSD = self.attn(h)
        out_BSD = _attend(self, q_BSHK, k_BSHK, v_BSD, turn, kept, position_BS)
        h = F.gelu(self.up(h), approximate="tanh")
        return _finite(x_BSD + gate * self.out(torch.cat([out_BSD, h], -1)))


def _attend(
    block: JointBlock | SingleBlock,
    q_BSHK: Tensor,
    k_BSHK: Tensor,
    v_BSD: Tensor,
    turn: Turn,
    kept: KeyValues | None,
    position_BS: Tensor | None,
) -> Tensor:
    q_BSD, k_BSD = turn(q_BSHK).flatten(2), turn(k_BSHK).flatten(2)
    if kept is not None:
        k_BSD, v_BSD = kept.joined(k_BSD, v_BSD, position_BS)
    return block.attention(q_BSD, k_BSD, v_BSD, block.num_heads)


def _parts(modulation: nn.Module, vector_BD: Tensor, number: int) -> tuple[Tensor, ...]:
    """Return the parts (B, 1, D) of a modulation."""
    return modulation(vector_BD).unsqueeze(1).chunk(number, dim=-1)


def _normed(x_BSD: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return `x_BSD` behind a norm without weights, scaled and shifted."""
    return F.layer_norm(x_BSD, x_BSD.shape[-1:], eps=EPS) * (1 + scale) + shift


def _finite(x_BSD: Tensor) -> Tensor:
    """Return float16 values clipped to the largest of them, and others as they are."""
    if x_BSD.dtype != torch.float16:
        return x_BSD
    largest = torch.finfo(torch.float16).max
    return x_BSD.clamp(-largest, largest)
