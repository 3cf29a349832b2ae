"""Quantized weights: linear layers and large embeddings stored in 8 bits or fewer, in the layout that ComfyUI reads.

Source: comfyanonymous/ComfyUI v0.28.0, QUANTIZATION.md, comfy/quant_ops.py QUANT_ALGOS and comfy/ops.py
_load_quantized_module.

A quantized layer X has X.weight in the narrow type, its scales, such as X.weight_scale, whose product with it is the
weight, and X.comfy_quant: the bytes of a JSON {"format": "float8_e4m3fn", ...} as uint8. Which formats there are is
said in STORED. This project writes and computes float8 and those of kitchen.py; the others load for ComfyUI's own
layers.

    O, I  outputs, inputs of a layer
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kitchen
from .kitchen import S_CHANNEL, S_REL, SCALE, SCALE_2, SCALES
from .models.architecture import Network
from .models.layers import Bare
from .models.layout import Tensors

logger = logging.getLogger(__name__)

INTERVAL = 30.0  # seconds between two lines of how far a conversion is
MARK = "comfy_quant"
INPUT_SCALE = "input_scale"
EXTRAS = (  # beside weight and bias
    MARK,
    *SCALES,
    "pre_quant_scale",
    INPUT_SCALE,
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
    "nvfp4": Stored(torch.uint8, packed=2, scales=(SCALE, SCALE_2)),
    "int8_tensorwise": Stored(torch.int8),
    "convrot_w4a4": Stored(torch.int8, packed=2),
    "asym_w4a8_int8": Stored(torch.int8, packed=2, scales=(S_REL, S_CHANNEL)),
    "awq_w4a16": Stored(torch.int8, packed=2, scales=(SCALE, "weight_zeros")),
}
FLOAT8 = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
COMPUTED = frozenset((*FLOAT8.values(), *kitchen.FORMATS.values()))  # by the layers below
# What weights are to be: a type, of those of FLOAT8 too, or one of `kitchen.FORMATS`, which are no types.
Target = torch.dtype | str
# Formats that this project writes, by the names that users choose.
TARGETS: dict[str, Target] = {
    "float8_e4m3fn": torch.float8_e4m3fn,
    **{name: name for name in kitchen.FORMATS},
}


def format_of(target: Target) -> str | None:
    """Return the quantized format of STORED that weights shall have; None = they shall have a type."""
    if isinstance(target, str):
        return kitchen.FORMATS[target]
    return FLOAT8.get(target)


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


def quantize(name: str, weight_OI: Tensor, format: str) -> dict[str, Tensor]:
    """Return the tensors that store the weight `name` in a quantized format; on the meta device, without values."""
    layer = name.removesuffix(".weight")
    if format in FLOAT8.values():
        dtype = STORED[format].dtype
        parts = {**_float8(weight_OI, dtype), MARK: mark_of(dtype)}
    else:
        parts, about = kitchen.quantize(weight_OI, format)
        parts[MARK] = bytes_of(json.dumps(about))
    return {f"{layer}.{part}": tensor for part, tensor in parts.items()}


def _float8(weight_OI: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a weight in a type of FLOAT8, and its scale.

    The scale is a power of two that brings the largest value into the upper half of the range. Dividing and multiplying
    by it is exact, so the only error is float8's own rounding, and bfloat16 holds every weight as it is stored.
    Differs: ComfyUI's tools take the scale that uses the range to its end. Float8 has the same precision anywhere in
    its range, so nothing is gained by it.
    """
    if weight_OI.is_meta:  # `aminmax` there imports sympy, which takes seconds
        return {"weight": weight_OI.to(dtype), SCALE: torch.empty((), device="meta")}
    low, high = weight_OI.aminmax()
    largest = torch.maximum(-low, high).float()
    share = (largest / torch.finfo(dtype).max).clamp(min=torch.finfo(torch.float32).tiny)
    scale = torch.ldexp(torch.ones_like(share), share.frexp().exponent)
    scale = torch.where(largest.isfinite(), scale, torch.nan)  # float8 has no infinity to tell of
    return {"weight": weight_OI.div(scale).to(dtype), SCALE: scale}


def mark_of(dtype: torch.dtype) -> Tensor:
    """Return the description of a float8 layer.

    The mark asks ComfyUI for what the layer below computes. Without it activations would be float8 too, which clips
    those beyond 448, and costs far more than float8 weights even where a scale prevents that (experiments/LOG.md).
    """
    mark = {"format": FLOAT8[dtype], "full_precision_matrix_mult": True}
    return bytes_of(json.dumps(mark))


def bytes_of(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def dequantize(weight_OI: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a float8 weight in `dtype`."""
    return weight_OI.to(dtype).mul_(scale)


def described(mark: Tensor) -> dict[str, Any]:
    """Return what the mark of a layer says."""
    return json.loads(bytes(mark.tolist()))


def dequantized(name: str, tensors: Tensors, dtype: torch.dtype) -> Tensor:
    """Return the weight `name` in `dtype`, whatever it is quantized in."""
    layer, weight = name.removesuffix(".weight"), tensors[name]
    if weight.dtype in FLOAT8:
        return dequantize(weight, tensors[f"{layer}.{SCALE}"].reshape(()), dtype)
    parts = {
        part: tensors[f"{layer}.{part}"]
        for part in ("weight", *SCALES)
        if f"{layer}.{part}" in tensors
    }
    return kitchen.dequantize(parts, described(tensors[f"{layer}.{MARK}"]), dtype)


def _told(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors, and log every INTERVAL how much of them is done and the time left."""
    total, done = sum(tensor.numel() for tensor in tensors.values()), 0
    start = said = monotonic()
    for name, tensor in tensors.items():
        yield name, tensor
        done += tensor.numel()
        if (now := monotonic()) - said >= INTERVAL:
            said, left = now, (now - start) * (total - done) / done
            logger.info("%.0f %% of the weights converted, %.0f s left", 100 * done / total, left)


def recast(
    tensors: Tensors,
    formats: Mapping[str, str],
    target: Target,
    chosen: Mapping[str, str],
    device: torch.device | str,
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a checkpoint whose weights are as `target` says, one after the other.

    Args:
        formats: {weight: format} of the quantized ones.
        chosen: {weight: format} of those to quantize if `target` is a quantized format; the others stay as they are.
        device: quantizes them.

    Raises:
        ValueError: weights are quantized already, or in a format that this project cannot compute.
    """
    format = format_of(target)
    if formats and format is not None:
        raise ValueError(
            f"its weights are quantized already, in {_listed(formats)}. Convert the file that it was made from, or "
            "this one without a type: it stays as it is."
        )
    if formats:
        check_computed(formats)
    around = extras(formats)
    for name, tensor in _told(tensors):
        if name in around:
            continue
        if name in chosen:
            for made, part in quantize(name, tensor.to(device), chosen[name]).items():
                yield made, part if part.is_meta else part.to(tensor.device)
        elif isinstance(target, str) or format is not None:
            yield name, tensor
        elif name in formats and tensor.is_meta:
            width = tensor.shape[1] * STORED[formats[name]].packed
            yield name, tensor.new_empty(len(tensor), width, dtype=target)
        elif name in formats:
            yield name, dequantized(name, tensors, target)
        else:
            yield name, tensor.to(target)


def check_computed(formats: Mapping[str, str]) -> None:
    """Raise ValueError if a format is not one of COMPUTED."""
    if strange := set(formats.values()) - COMPUTED:
        raise ValueError(
            f"its weights are quantized as {', '.join(sorted(strange))}, which only ComfyUI computes. Load it there, "
            f"or choose a file in bfloat16 or one of {', '.join(sorted(COMPUTED))}."
        )


def check_layers(network: Network, formats: Mapping[str, str]) -> None:
    """Raise ValueError if a quantized weight is not one of a linear layer of `Operations`, or a float8 embedding."""
    for name, format in formats.items():
        layer = network.get_submodule(name.removesuffix(".weight"))
        is_lookup = isinstance(layer, Operations.Embedding) and format in FLOAT8.values()
        if not is_lookup and not isinstance(layer, Operations.Linear):
            raise ValueError(
                f"tensor {name!r} is quantized and not of a linear layer, which only ComfyUI computes. Load it there, "
                "or convert it to bfloat16."
            )


def why_not_held(device: torch.device | str, tensors: Iterable[Tensor]) -> str | None:
    """Return why a device cannot hold and convert tensors of these types; None = it can.

    Only float8 is in doubt, which weights and scales may have. Apple's devices had none until late in 2026.
    """
    if not any(tensor.dtype in FLOAT8 for tensor in tensors):
        return None
    sample = torch.ones(1, device=device)
    try:
        sample.to(torch.float8_e4m3fn).to(sample.dtype)
    except (RuntimeError, TypeError) as error:  # torch has both for a type that a device lacks
        return str(error)
    return None


class Holder(torch.nn.Module):
    """A layer that may hold a quantized weight and its scales."""

    weight: Tensor
    weight_scale: Tensor | None

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        for name in SCALES:
            self.register_buffer(name, None)
        self.about: dict[str, Any] = {}  # the description of a weight that kitchen.py computes
        # The public name of this came with torch 2.5.
        self._register_load_state_dict_pre_hook(_make_room, with_module=True)


def _make_room(layer: Holder, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
    """Make the places of a quantized weight that is loaded next, and of its scales."""
    if (mark := state_dict.pop(prefix + MARK, None)) is None:
        return
    weight, scales = state_dict[prefix + "weight"], [SCALE]
    if weight.dtype in FLOAT8:
        state_dict[prefix + SCALE] = state_dict[prefix + SCALE].reshape(())
    else:
        layer.about = described(mark)
        scales = [name for name in SCALES if prefix + name in state_dict]
    layer.weight = torch.nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
    for name in scales:
        layer.register_buffer(name, torch.empty_like(state_dict[prefix + name], device="meta"))
    for name in set(EXTRAS) - {*scales}:  # such as scales of activations
        state_dict.pop(prefix + name, None)


class Operations(Bare):
    """Torch's layers, with linear ones and embeddings that may hold a quantized weight."""

    class Embedding(Holder, Bare.Embedding):
        """Looks rows up; those of a weight in float8 are brought to float32."""

        def forward(self, input: Tensor) -> Tensor:
            if self.weight_scale is None:
                return super().forward(input)
            rows = F.embedding(input, self.weight.view(torch.uint8)).view(self.weight.dtype)
            return dequantize(rows, self.weight_scale, torch.float32)

    class Linear(Holder, Bare.Linear):
        """A weight in float8 or nvfp4 is brought to the type of the input at each call: at most one layer's weight
        exists in that type at a time. Those of the other formats are multiplied in int8.
        """

        def forward(self, input: Tensor) -> Tensor:
            if self.about:
                parts = {name: getattr(self, name) for name in ("weight", *SCALES)}
                return kitchen.linear(input, parts, self.about, self.bias)
            if self.weight_scale is None:
                return super().forward(input)
            weight_OI = dequantize(self.weight, self.weight_scale, input.dtype)
            return F.linear(input, weight_OI, self.bias)


def _listed(formats: Mapping[str, str]) -> str:
    return ", ".join(sorted(set(formats.values())))
