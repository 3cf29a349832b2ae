"""Quantized weights: linear layers stored in 8 bits or fewer, in the layout that ComfyUI reads.

Source: comfyanonymous/ComfyUI v0.28.0, QUANTIZATION.md, comfy/quant_ops.py QUANT_ALGOS and comfy/ops.py
_load_quantized_module.

A quantized layer X has X.weight in the narrow type, X.weight_scale, whose product with it is the weight, and
X.comfy_quant: the bytes of a JSON {"format": "float8_e4m3fn", ...} as uint8. Which formats there are is said in
STORED; this project writes and computes float8, the others load for ComfyUI's own layers.

    O, I  outputs, inputs of a layer
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .models.architecture import Network
from .models.layers import Bare
from .models.layout import Tensors

MARK, SCALE = "comfy_quant", "weight_scale"
INPUT_SCALE = "input_scale"
EXTRAS = (  # beside weight and bias
    MARK,
    SCALE,
    "weight_scale_2",
    "pre_quant_scale",
    INPUT_SCALE,
    "weight_s_rel",
    "weight_s_channel",
    "weight_codebook",
    "weight_zeros",
)


@dataclass(frozen=True, slots=True)
class Stored:
    """How a quantized format stores a weight."""

    dtype: torch.dtype
    packed: int = 1  # values in one element
    scales: tuple[str, ...] = (SCALE,)


STORED = {
    "float8_e4m3fn": Stored(torch.float8_e4m3fn),
    "float8_e5m2": Stored(torch.float8_e5m2),
    "mxfp8": Stored(torch.float8_e4m3fn),
    "nvfp4": Stored(torch.uint8, packed=2, scales=(SCALE, "weight_scale_2")),
    "int8_tensorwise": Stored(torch.int8),
    "convrot_w4a4": Stored(torch.int8, packed=2),
    "asym_w4a8_int8": Stored(torch.int8, packed=2, scales=("weight_s_rel", "weight_s_channel")),
    "awq_w4a16": Stored(torch.int8, packed=2, scales=(SCALE, "weight_zeros")),
}
FLOAT8 = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
COMPUTED = frozenset(FLOAT8.values())  # by the layers below


def members(weights: Collection[str]) -> set[str]:
    """Return names of all that may be stored for the quantized `weights`."""
    layers = [name.removesuffix(".weight") for name in weights]
    return {*weights, *(f"{layer}.{extra}" for layer in layers for extra in EXTRAS)}


def extras(weights: Collection[str]) -> set[str]:
    """Return names of what may be stored beside the quantized `weights`."""
    return members(weights) - set(weights)


def num_values(tensor: Tensor, format: str | None) -> int:
    """Return values of a weight that is quantized as `format`; None = it is not."""
    return tensor.numel() * (STORED[format].packed if format is not None else 1)


def quantize(name: str, weight_OI: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors that store the weight `name` in a type of FLOAT8; on the meta device, their shapes and types.

    The scale is a power of two that brings the largest value into the upper half of the range. Dividing and multiplying
    by it is exact, so the only error is float8's own rounding, and bfloat16 holds every weight as it is stored.
    Differs: ComfyUI's tools take the scale that uses the range to its end. Float8 has the same precision anywhere in
    its range, so nothing is gained by it.
    """
    layer = name.removesuffix(".weight")
    if weight_OI.is_meta:  # `aminmax` there imports sympy, which takes seconds
        scale = torch.empty((), device="meta")
        return {
            name: weight_OI.to(dtype),
            f"{layer}.{SCALE}": scale,
            f"{layer}.{MARK}": mark_of(dtype),
        }
    low, high = weight_OI.aminmax()
    largest = torch.maximum(-low, high).float()
    share = (largest / torch.finfo(dtype).max).clamp(min=torch.finfo(torch.float32).tiny)
    scale = torch.ldexp(torch.ones_like(share), share.frexp().exponent)
    scale = torch.where(largest.isfinite(), scale, torch.nan)  # float8 has no infinity to tell of
    return {
        name: weight_OI.div(scale).to(dtype),
        f"{layer}.{SCALE}": scale,
        f"{layer}.{MARK}": mark_of(dtype),
    }


def mark_of(dtype: torch.dtype) -> Tensor:
    """Return the description of a float8 layer.

    Without calibrated input scales ComfyUI would cast activations to float8 unscaled, which clips those beyond 448: the
    mark asks it for what the layer below computes.
    """
    mark = {"format": FLOAT8[dtype], "full_precision_matrix_mult": True}
    return bytes_of(json.dumps(mark))


def bytes_of(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def dequantize(weight_OI: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight in `dtype`."""
    return weight_OI.to(dtype).mul_(scale)


def recast(
    tensors: Tensors,
    formats: Mapping[str, str],
    dtype: torch.dtype,
    linear_weights: Collection[str],
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a checkpoint whose weights are in `dtype`, one after the other.

    Args:
        formats: {weight: format} of the quantized ones.
        linear_weights: those to quantize if `dtype` is one of FLOAT8; the others stay as they are.

    Raises:
        ValueError: weights are quantized already, or in a format that this project cannot compute.
    """
    if formats and dtype in FLOAT8:
        raise ValueError(
            f"its weights are quantized already, in {_listed(formats)}. Convert the file that it was made from, or "
            "this one without a type: it stays as it is."
        )
    if formats:
        check_computed(formats)
    around = extras(formats)
    for name, tensor in tensors.items():
        if name in formats:
            scale = tensors[f"{name.removesuffix('.weight')}.{SCALE}"]
            yield name, dequantize(tensor, scale.reshape(()), dtype)
        elif name in around:
            continue
        elif dtype in FLOAT8:
            yield from (
                quantize(name, tensor, dtype) if name in linear_weights else {name: tensor}
            ).items()
        else:
            yield name, tensor.to(dtype)


def check_computed(formats: Mapping[str, str]) -> None:
    """Raise ValueError if a format is not one of COMPUTED."""
    if strange := set(formats.values()) - COMPUTED:
        raise ValueError(
            f"its weights are quantized as {', '.join(sorted(strange))}, which only ComfyUI computes. Load it there, "
            "or choose a file in float8_e4m3fn or bfloat16."
        )


def check_layers(network: Network, formats: Collection[str]) -> None:
    """Raise ValueError if a quantized weight is not one of a linear layer of `Operations`."""
    for name in formats:
        if not isinstance(network.get_submodule(name.removesuffix(".weight")), Operations.Linear):
            raise ValueError(
                f"tensor {name!r} is quantized and not of a linear layer, which only ComfyUI computes. Load it there, "
                "or convert it to bfloat16."
            )


def check_device(device: torch.device | str) -> None:
    """Raise ValueError if `device` cannot hold and convert float8."""
    sample = torch.ones(1, device=device)
    try:
        sample.to(torch.float8_e4m3fn).to(sample.dtype)
    except (RuntimeError, TypeError) as error:  # torch has both for a type that a device lacks
        raise ValueError(
            f"its weights are float8, which the device {device} cannot hold ({error}). Choose another type for them; "
            "if the file itself is float8, convert it: python -m shortcut convert IN OUT.safetensors --dtype float16"
        ) from error


class Operations(Bare):
    """Torch's layers, with linear ones that may hold a float8 weight and its scale."""

    class Linear(Bare.Linear):
        """A quantized weight is multiplied by its scale in the type of the input, at each call: at most one layer's
        weight exists in that type at a time.
        """

        weight_scale: Tensor | None

        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **options)
            self.register_buffer("weight_scale", None)

        def forward(self, input: Tensor) -> Tensor:
            if self.weight_scale is None:
                return super().forward(input)
            weight_OI = dequantize(self.weight, self.weight_scale, input.dtype)
            return F.linear(input, weight_OI, self.bias)

        def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
            self, state_dict: dict[str, Any], prefix: str, *others: Any
        ) -> None:
            if state_dict.pop(prefix + MARK, None) is not None:
                scale = state_dict[prefix + SCALE] = state_dict[prefix + SCALE].reshape(())
                self.weight_scale = torch.empty_like(scale, device="meta")
                for name in set(EXTRAS) - {SCALE}:  # scales of activations, which are not quantized
                    state_dict.pop(prefix + name, None)
            super()._load_from_state_dict(state_dict, prefix, *others)


def _listed(formats: Mapping[str, str]) -> str:
    return ", ".join(sorted(set(formats.values())))
