"""Layers that several architectures share with identical numerics, and the base class of their networks.

Every network is built from an `operations` namespace (`torch.nn`, or a host's own layers) and an `attention` function,
so that a host can bring weight offloading, quantized weights and its own attention kernels.

    B  images or sequences    S, T  query and key positions    D  width (all heads together)    K  width of a head
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..denoiser import AT_ONCE
from ..gather import write_at

# (q_BSD, k_BTD, v_BTD, num_heads) -> out_BSD, unmasked softmax attention scaled by (D / num_heads) ** -0.5.
Attention = Callable[..., Tensor]


def sdpa(q_BSD: Tensor, k_BTD: Tensor, v_BTD: Tensor, num_heads: int) -> Tensor:
    """Compute unmasked multi-head attention by torch's own fused kernel. Returns (B, S, D)."""
    if q_BSD.device.type == "cpu" and q_BSD.dtype != torch.float32:
        # CPUs have no arithmetic for softmax in half precision: float32 is faster there, up to twice.
        return sdpa(q_BSD.float(), k_BTD.float(), v_BTD.float(), num_heads).to(q_BSD.dtype)
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q_BSD, k_BTD, v_BTD))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Bare:
    """Torch's layers without initial values, for networks that get theirs from a file.

    On the meta device initial values cost the import of what computes their shapes, as long as importing torch.
    """

    class Linear(nn.Linear):
        def reset_parameters(self) -> None:
            pass

    class Embedding(nn.Embedding):
        def reset_parameters(self) -> None:
            pass

    class Conv2d(nn.Conv2d):
        def reset_parameters(self) -> None:
            pass

    class ConvTranspose2d(nn.ConvTranspose2d):
        def reset_parameters(self) -> None:
            pass

    class LayerNorm(nn.LayerNorm):
        def reset_parameters(self) -> None:
            pass

    class RMSNorm(nn.RMSNorm):
        def reset_parameters(self) -> None:
            pass

    class GroupNorm(nn.GroupNorm):
        def reset_parameters(self) -> None:
            pass


class BaseNetwork(nn.Module):
    """A network of given sizes. Subclasses make their layers in `build`.

    Args:
        config: the sizes.
        dtype, device: of the weights.
        compute_dtype: of the activations; None means `dtype`.
        operations: namespace of layers (Linear, LayerNorm, Embedding ...).
        attention: function with the signature of `sdpa`.

    Attributes:
        in_order: goes through the blocks of a pass; a host may fetch the weights of each ahead of its use.
    """

    in_order: Callable[[nn.ModuleList], Iterable[nn.Module]] = staticmethod(iter)

    def __init__(
        self,
        config: Any,
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
        self.build(config, operations, attention, {"dtype": dtype, "device": device})

    def build(
        self, config: Any, operations: Any, attention: Attention, tensor: dict[str, Any]
    ) -> None:
        """Make the layers; `tensor` holds the type and device of their weights."""
        raise NotImplementedError


class KeyValues:
    """Keys and values of a block for whole sequences: kept by a full pass, renewed row by row by partial ones.

    Args:
        dtype: that they are kept in; None = as they come.
        rows, length: how many sequences and positions, the first ones, are kept of a full pass; None = all.
    """

    def __init__(
        self,
        dtype: torch.dtype | None = None,
        *,
        rows: int | None = None,
        length: int | None = None,
    ):
        self.dtype, self.rows, self.length = dtype, rows, length
        self.key_BSD: Tensor | None = None
        self.value_BSD: Tensor | None = None

    def joined(
        self, key_BMD: Tensor, value_BMD: Tensor, position_BM: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Keep keys and values, and return those of the whole sequences in the type of the given ones.

        Args:
            position_BM: where the given ones stand; None = they are of the whole sequences.
        """
        if position_BM is None:
            self.key_BSD, self.value_BSD = self._first(key_BMD), self._first(value_BMD)
            return key_BMD, value_BMD  # a full pass is the same whatever it keeps
        if self.key_BSD is None or self.value_BSD is None:
            raise RuntimeError("a partial pass needs the keys and values of a full one.")
        write_at(self.key_BSD, position_BM, self._stored(key_BMD))
        write_at(self.value_BSD, position_BM, self._stored(value_BMD))
        return self.key_BSD.to(key_BMD.dtype), self.value_BSD.to(value_BMD.dtype)

    def _first(self, x_BMD: Tensor) -> Tensor:
        """Return the keys or values to keep of a full pass, which hold no memory of the others."""
        part_BMD = x_BMD[: self.rows, : self.length]
        is_part = self.dtype is None and part_BMD.shape != x_BMD.shape
        return part_BMD.clone() if is_part else self._stored(part_BMD)

    def _stored(self, x_BMD: Tensor) -> Tensor:
        """Return keys or values in the type that they are kept in; what it cannot hold becomes its largest."""
        if self.dtype is None:
            return x_BMD
        most = torch.finfo(self.dtype).max
        return x_BMD.clamp(-most, most).to(self.dtype)


class MultiHeadAttention(nn.Module):
    """Attention with its projections, with biases or without; queries, keys and values come as given (no norm inside).

    Source: the arithmetic of torch.nn.MultiheadAttention with the packed projection split in three.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        operations: Any,
        attention: Attention,
        *,
        bias: bool = True,
        **tensor: Any,
    ):
        super().__init__()
        self.num_heads, self.attention = num_heads, attention
        self.query, self.key, self.value, self.out = (
            operations.Linear(width, width, bias=bias, **tensor) for _ in range(4)
        )

    def forward(
        self,
        x_BSD: Tensor,
        context_BTD: Tensor,
        kept: KeyValues | None = None,
        position_BT: Tensor | None = None,
    ) -> Tensor:
        """Attend from `x_BSD` to `context_BTD`. Returns (B, S, D).

        Args:
            kept: keeps keys and values.
            position_BT: where the context stands in the kept sequences, all of which are attended to; None = it is
                all of them.
        """
        q, k, v = self.query(x_BSD), self.key(context_BTD), self.value(context_BTD)
        if kept is not None:
            k, v = kept.joined(k, v, position_BT)
        return self.out(self.attention(q, k, v, self.num_heads))


class FeedForward(nn.Module):
    """Linear, GELU (erf), Linear."""

    def __init__(self, width: int, hidden: int, operations: Any, **tensor: Any):
        super().__init__()
        self.up = operations.Linear(width, hidden, **tensor)
        self.down = operations.Linear(hidden, width, **tensor)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BSD)))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, width: int, hidden: int, operations: Any, **tensor: Any):
        super().__init__()
        self.gate = operations.Linear(width, hidden, bias=False, **tensor)
        self.up = operations.Linear(width, hidden, bias=False, **tensor)
        self.down = operations.Linear(hidden, width, bias=False, **tensor)

    def forward(self, x_BSD: Tensor) -> Tensor:
        gate, up = self.gate(x_BSD), self.up(x_BSD)
        if torch.is_grad_enabled():
            return self.down(F.silu(gate) * up)
        # The two hidden activations are the largest tensors of a block: no third one is made.
        return self.down(F.silu(gate, inplace=True).mul_(up))


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosines and sines of rotary position embeddings: float32 (B or 1, S, 1, K / 2)."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, position_BS: Tensor, head_width: int, theta: float) -> Rotary:
        """Make them for tokens at `position_BS` of their sequences.

        Source: Su et al. 2021, arXiv 2104.09864.
        """
        even = torch.arange(0, head_width, 2, device=position_BS.device, dtype=torch.float32)
        frequency = 1.0 / (theta ** (even / head_width))
        angle = (position_BS.float().unsqueeze(-1) * frequency).unsqueeze(2)
        return cls(angle.cos(), angle.sin())

    def __call__(self, x_BSD: Tensor) -> Tensor:
        """Rotate each head of queries or keys: its first half is paired with its second.

        In float32, cast back to the type of `x_BSD`.
        """
        half = self.cos.shape[-1]
        x_BSHK = x_BSD.unflatten(-1, (-1, 2 * half))
        first, second = x_BSHK.split(half, dim=-1)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            turned = first * self.cos - second * self.sin, second * self.cos + first * self.sin
            return torch.cat([t.to(x_BSD.dtype) for t in turned], -1).flatten(2)
        # A third less memory is read and written than with a cast and a `cat`; the values are the same.
        turned_BSHK = torch.empty_like(x_BSHK)
        low, high = turned_BSHK.split(half, dim=-1)
        torch.sub(first * self.cos, second * self.sin, out=low)
        torch.add(second * self.cos, first * self.sin, out=high)
        return turned_BSHK.flatten(2)


NUM_FREQUENCIES = 128
MAX_PERIOD = 10_000.0
RATIO_SCALE = 1000.0  # the ratio in [0, 1] takes the place of a diffusion timestep


class MaskRatioModulation(nn.Module):
    """Modulates features by the mask ratio: x * (1 + scale) + shift."""

    def __init__(self, width: int, operations: Any, **tensor: Any):
        super().__init__()
        middle = round(math.sqrt(2 * NUM_FREQUENCIES * width))
        self.time_in = operations.Linear(2 * NUM_FREQUENCIES, middle, **tensor)
        self.time_out = operations.Linear(middle, width, **tensor)
        self.modulation = operations.Linear(width, 2 * width, **tensor)

    def forward(self, x_BSD: Tensor, mask_ratio_B: Tensor) -> Tensor:
        """Modulate `x_BSD` by `mask_ratio_B` in [0, 1]. Returns (B, S, D)."""
        waves = self.time_in(fourier(mask_ratio_B).to(x_BSD.dtype))
        scale, shift = self.modulation(self.time_out(F.silu(waves))).unsqueeze(1).chunk(2, dim=-1)
        return x_BSD * (1 + scale) + shift


def fourier(mask_ratio_B: Tensor) -> Tensor:
    """Return cosines, then sines, of the scaled ratio at 128 frequencies: float32 (B, 256)."""
    exponent = torch.arange(NUM_FREQUENCIES, device=mask_ratio_B.device, dtype=torch.float32)
    frequency = torch.exp(-math.log(MAX_PERIOD) / NUM_FREQUENCIES * exponent)
    angle = mask_ratio_B.float().unsqueeze(1) * RATIO_SCALE * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def key_value_bytes(
    num_images: int, lengths: Sequence[int], *, depth: int, kv_width: int, itemsize: int
) -> float:
    """Return the bytes of the keys and values of all blocks."""
    return 2.0 * num_images * sum(lengths) * depth * kv_width * itemsize


def transformer_bytes(
    lengths: Sequence[int],
    *,
    num_images: int,
    num_tokens: int,
    config: Any,
    itemsize: int,
    is_sequential: bool,
) -> float:
    """Return the bytes that a run of a transformer takes above its weights: features, and a block or a draw of codes.

    The factors are what `python -m shortcut cost` finds alive at the peaks.

    Args:
        lengths: sequence length of each guidance branch.
        num_tokens: image tokens of one image.
        config: with `width`, `mlp_width` and `num_codes`.
        itemsize: bytes of an activation.
    """
    at_once = max(lengths) if is_sequential else sum(lengths)
    block = at_once * (4 * config.width + 2 * config.mlp_width) * itemsize
    features = sum(lengths) * config.width * itemsize
    # A full pass lets go of the last one's features; a draw of a predicted step holds both.
    draw = draw_bytes(num_images, num_tokens, config.num_codes)
    return max(num_images * (features + block), num_images * 2 * features + draw)


def draw_bytes(num_images: int, num_tokens: int, num_codes: int) -> float:
    """Return the bytes of a draw of codes: the logits of AT_ONCE positions, and three more tensors of that size."""
    return 4.0 * num_images * min(num_tokens, max(1, AT_ONCE // num_images)) * num_codes * 4
