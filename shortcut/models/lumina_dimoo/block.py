"""The block that Lumina-DiMOO and its shortcut head are made of, from LLaDA.

Source: Nie et al. 2025 (arXiv 2502.09992); Alpha-VLLM/Lumina-DiMOO model/modeling_llada.py LLaDALlamaBlock; facts in
tests/golden/README.md section 3.
Differs: sequences of any lengths lie side by side on one axis, without padding and without a mask; only attention
tells them apart. In bfloat16 a norm rounds once, after its weight, where the original rounds before it too.

    B  images    S  sequences side by side    D  width    N  tokens of a context
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import Attention, KeyValues, Rotary, SwiGLU

# Sizes of blocks, as the network and its shortcut head have them: width, num_heads, num_kv_heads, mlp_width,
# rope_theta, norm_eps.
BlockConfig = Any


@dataclass(frozen=True, slots=True)
class SequencePositions:
    """Positions of tokens in their own sequences, which lie side by side on one axis."""

    lengths: list[int]  # tokens of each; 0 is allowed
    rotary: Rotary

    @classmethod
    def of(cls, positions: Sequence[Tensor], config: BlockConfig) -> SequencePositions:
        """Make them of one tensor (B, S) for each sequence, or (1, S) for all images of it."""
        rotary = Rotary.at(
            torch.cat(list(positions), 1), config.width // config.num_heads, config.rope_theta
        )
        return cls([position_BS.shape[1] for position_BS in positions], rotary)

    @classmethod
    def whole(
        cls, lengths: Sequence[int], config: BlockConfig, device: torch.device | str
    ) -> SequencePositions:
        """Make them of whole sequences of the given lengths."""
        return cls.of([torch.arange(n, device=device).unsqueeze(0) for n in lengths], config)


@dataclass(frozen=True, slots=True)
class Part:
    """The tokens that a partial pass runs, among those of whole sequences whose keys and values are kept."""

    lengths: list[int]  # of the whole sequences
    index_BS: Tensor  # on the axis on which they lie side by side


class Block(nn.Module):
    """Pre-norm attention and SwiGLU, each around a residual connection.

    Each sequence attends to itself, or to the sequence of the same number in a context.
    """

    def __init__(
        self, config: BlockConfig, operations: Any, attention: Attention, tensor: dict[str, Any]
    ):
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.attention = attention
        width = config.width
        kv_width = width // config.num_heads * config.num_kv_heads
        self.attention_norm = operations.RMSNorm(width, eps=config.norm_eps, **tensor)
        self.query = operations.Linear(width, width, bias=False, **tensor)
        self.key = operations.Linear(width, kv_width, bias=False, **tensor)
        self.value = operations.Linear(width, kv_width, bias=False, **tensor)
        self.out = operations.Linear(width, width, bias=False, **tensor)
        self.feed_forward_norm = operations.RMSNorm(width, eps=config.norm_eps, **tensor)
        self.feed_forward = SwiGLU(width, config.mlp_width, operations, **tensor)

    def forward(
        self,
        x_BSD: Tensor,
        positions: SequencePositions,
        context: tuple[Tensor, SequencePositions] | None = None,
        kept: KeyValues | None = None,
        part: Part | None = None,
    ) -> Tensor:
        """Return (B, S, D).

        Args:
            context: other tokens (B, N, D) to attend to, and their positions; they go through the same norm.
            kept: keeps keys and values.
            part: which of the kept tokens `x_BSD` are; they attend to all kept ones. None = all of them.
        """
        x_BSD = x_BSD + self.out(self._attended(x_BSD, positions, context, kept, part))
        return x_BSD + self.feed_forward(self.feed_forward_norm(x_BSD))

    def _attended(
        self,
        x_BSD: Tensor,
        positions: SequencePositions,
        context: tuple[Tensor, SequencePositions] | None,
        kept: KeyValues | None,
        part: Part | None,
    ) -> Tensor:
        """Return the output of attention before its last projection. Nothing else of it outlives the call."""
        h = self.attention_norm(x_BSD)
        q = positions.rotary(self.query(h)).split(positions.lengths, dim=1)
        if context is not None:
            h, positions = self.attention_norm(context[0]), context[1]
        k, v = positions.rotary(self.key(h)), self.value(h)
        del h
        if kept is not None:
            k, v = kept.joined(k, v, part and part.index_BS)
        lengths = positions.lengths if part is None else part.lengths
        k, v = (self._for_each_head(x).split(lengths, dim=1) for x in (k, v))
        # Without anything to attend to the answer is zero, where a kernel may say NaN.
        return torch.cat(
            [
                self.attention(*qkv, self.num_heads)
                if qkv[1].shape[1]
                else torch.zeros_like(qkv[0])
                for qkv in zip(q, k, v, strict=True)
            ],
            dim=1,
        )

    def _for_each_head(self, kv_BSD: Tensor) -> Tensor:
        """Return keys or values, repeated where several heads share them."""
        if self.num_kv_heads == self.num_heads:
            return kv_BSD
        kv_BSHK = kv_BSD.unflatten(-1, (self.num_kv_heads, -1))
        return kv_BSHK.repeat_interleave(self.num_heads // self.num_kv_heads, dim=2).flatten(2)


def kv_heads(kv_width: int, width: int, num_heads: int) -> int:
    """Return how many heads keys and values have, which must divide `num_heads`."""
    num_kv_heads, rest = divmod(kv_width, width // num_heads)
    if rest or num_kv_heads == 0 or num_heads % num_kv_heads:
        raise ValueError(
            f"its keys are {kv_width} wide, expected a divisor of the width {width} in whole heads of "
            f"{width // num_heads}."
        )
    return num_kv_heads


def block_table(theirs: str, ours: str) -> dict[str, str]:
    """Return rows of the key table for a block."""
    names = {
        "attn_norm": "attention_norm",
        "q_proj": "query",
        "k_proj": "key",
        "v_proj": "value",
        "attn_out": "out",
        "ff_norm": "feed_forward_norm",
        "ff_proj": "feed_forward.gate",
        "up_proj": "feed_forward.up",
        "ff_out": "feed_forward.down",
    }
    return {f"{theirs}.{t}.weight": f"{ours}.{o}.weight" for t, o in names.items()}
