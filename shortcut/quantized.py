"""Quantized weights: linear layers stored in 8 bits or fewer, in the layout that ComfyUI reads.

Source: comfyanonymous/ComfyUI v0.28.0, QUANTIZATION.md, comfy/quant_ops.py QUANT_ALGOS and comfy/ops.py
_load_quantized_module.

A quantized layer X has X.weight in the narrow type, X.weight_scale, whose product with it is the weight, and
X.comfy_quant: the bytes of a JSON {"format": "float8_e4m3fn", ...} as uint8. Which formats there are is said in
STORED; this project writes and computes float8, the others load for ComfyUI's own layers.

Files of others say the same in other ways, which `marked` brings into this form:
    header metadata "_quantization_metadata": {"layers": {"X": {"format": ...}, ...}} in place of the marks,
    X.scale_weight, X.scale_input    for X.weight_scale, X.input_scale, with one tensor "scaled_fp8" for the file,
    float8 weights without a scale   a plain cast: the scale is 1.

    O, I  outputs, inputs of a layer
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .guard import parse_json, shown
from .models.architecture import Network
from .models.layers import Bare
from .models.layout import Table, Tensors, content, dense, rename_keys

MARK, SCALE = "comfy_quant", "weight_scale"
MAX_MARK = 4096  # bytes of a mark
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
HEADER = "_quantization_metadata"  # entry of the header's metadata
WHOLE_FILE = "scaled_fp8"  # tensor of older files: their type, and by its size whether to compute in full precision
OLDER = {"scale_weight": SCALE, "scale_input": INPUT_SCALE}  # names in such files


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


def marked(raw: Mapping[str, Any], metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """Return the tensors of a file with a mark for each layer that is said to be quantized, however the file says so.

    A plain cast says nothing: see `settled`.

    Raises:
        ValueError: the metadata do not hold what they should.
    """
    added: dict[str, Any] = {}
    if HEADER in metadata:
        try:
            layers = json.loads(metadata[HEADER])["layers"]
            texts = {f"{layer}.{MARK}": json.dumps(about) for layer, about in layers.items()}
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"its metadata {HEADER} do not describe quantized layers ({type(error).__name__}: {error}). Download "
                "the file again."
            ) from error
        added = {key: _bytes(text) for key, text in texts.items() if key not in raw}
    return {**raw, **added} if added else raw


def _modern(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the tensors of a network with today's names of scales, and a mark for each float8 weight with a scale."""
    float8 = {
        str(key).removesuffix(".weight"): value.dtype
        for key, value in raw.items()
        if isinstance(value, Tensor) and value.dtype in FLOAT8 and str(key).endswith(".weight")
    }
    if not float8:
        return raw
    whole = raw.get(WHOLE_FILE)
    is_full = isinstance(whole, Tensor) and whole.numel() == 2  # so ComfyUI reads it
    modern: dict[str, Any] = {}
    for key, value in raw.items():
        layer, _, name = str(key).rpartition(".")
        if key == WHOLE_FILE or (name == "scale_input" and _is_one(value)):
            continue
        modern[f"{layer}.{OLDER[name]}" if layer in float8 and name in OLDER else key] = value
    for layer, dtype in float8.items():
        scale = modern.get(f"{layer}.{SCALE}")
        is_one = isinstance(scale, Tensor) and scale.is_floating_point() and scale.numel() == 1
        if not is_one or f"{layer}.{MARK}" in modern:
            continue
        is_for_inputs = f"{layer}.{INPUT_SCALE}" in modern
        about = {
            "format": FLOAT8[dtype],
            "full_precision_matrix_mult": is_full or not is_for_inputs,
        }
        modern[f"{layer}.{MARK}"] = _bytes(json.dumps(about))
    return modern


def _is_one(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and value.item() == 1


def split(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """Return (entries as a network has them, what is stored for the quantized ones, {weight: format}).

    The second holds the weights as they lie in the file, scales and marks. In the first a weight that this project
    cannot compute is a tensor of its true shape on the meta device; entries that are not quantized are as they were.

    Raises:
        ValueError: a tensor is not what its format asks for, or has a format that nobody knows.
    """
    raw = _modern(raw)
    weights: dict[str, Any] = {}
    stored: dict[str, Tensor] = {}
    formats = {
        f"{layer}.weight": _format_of(key, value)
        for key, value in raw.items()
        if (layer := _layer(str(key), MARK)) is not None
    }
    around = extras(formats)
    for key, value in raw.items():
        if key in formats:
            stored[key], weights[key] = _weight(key, value, formats[key])
        elif key in around:
            stored[key] = dense(key, value)
        else:
            weights[key] = value
    for name, format in formats.items():
        _check_scales(name, format, stored)
    return weights, stored, formats


def renamed(
    table: Table, stored: Tensors, formats: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return `stored` and `formats` of a published file under our names.

    Raises:
        ValueError: a quantized weight is stored together with others.
    """
    ours: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for key, format in formats.items():
        match list(rename_keys(table, [key])):
            case []:
                continue
            case [name] if name.endswith(".weight"):
                names[name] = format
            case _:
                raise ValueError(
                    f"tensor {key!r} is quantized as {format}, and it is no weight of a single layer. Choose a file "
                    "that leaves it in bfloat16."
                )
        theirs, layer = key.removesuffix(".weight"), name.removesuffix(".weight")
        for part in ("weight", *EXTRAS):
            if (tensor := stored.get(f"{theirs}.{part}")) is not None:
                ours[f"{layer}.{part}"] = tensor
    return ours, names


def settled(
    network: Network,
    tensors: Tensors,
    stored: Tensors,
    formats: Mapping[str, str],
    quantizable: tuple[str, ...],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return (tensors with all that is stored, {weight: format}) of a network.

    No tensor of the first is float8 that is not also in the second, so that float8 is never taken for a type to compute
    in: weights of linear layers that were simply cast to it get a scale of 1, others become bfloat16, which holds every
    value of float8.

    Args:
        network: it is not filled, and asked for the types of its layers only.
        tensors: as `split` gives the weights, checked against the network.
        quantizable: prefixes of the linear layers that stay float8 where they have no scale.
    """
    all_tensors, all_formats = {**tensors, **stored}, dict(formats)
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        is_linear = name.endswith(".weight") and isinstance(network.get_submodule(layer), nn.Linear)
        if name in formats:
            if tensor.is_meta and len(tensor) != len(stored[name]):
                raise ValueError(
                    f"tensor {name!r} is quantized as {formats[name]}, and only some of its rows are needed. Choose a "
                    "file that leaves it in bfloat16."
                )
            if tensor.is_meta:
                continue
            all_tensors[name] = tensor
            if not is_linear:
                scale = all_tensors[f"{layer}.{SCALE}"]
                all_tensors[name] = dequantize(tensor, scale.reshape(()), torch.bfloat16)
                del all_formats[name]
                for extra in extras([name]):
                    all_tensors.pop(extra, None)
        elif tensor.dtype in FLOAT8 and is_linear and name.startswith(quantizable):
            all_formats[name] = FLOAT8[tensor.dtype]
            all_tensors[f"{layer}.{SCALE}"] = torch.ones(())
            all_tensors[f"{layer}.{MARK}"] = _mark(tensor.dtype)
        elif tensor.dtype in FLOAT8:
            all_tensors[name] = tensor.to(torch.bfloat16)
    return all_tensors, all_formats


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
            f"{layer}.{MARK}": _mark(dtype),
        }
    low, high = weight_OI.aminmax()
    largest = torch.maximum(-low, high).float()
    share = (largest / torch.finfo(dtype).max).clamp(min=torch.finfo(torch.float32).tiny)
    scale = torch.ldexp(torch.ones_like(share), share.frexp().exponent)
    scale = torch.where(largest.isfinite(), scale, torch.nan)  # float8 has no infinity to tell of
    return {
        name: weight_OI.div(scale).to(dtype),
        f"{layer}.{SCALE}": scale,
        f"{layer}.{MARK}": _mark(dtype),
    }


def _mark(dtype: torch.dtype) -> Tensor:
    """Return the description of a float8 layer.

    Without calibrated input scales ComfyUI would cast activations to float8 unscaled, which clips those beyond 448: the
    mark asks it for what the layer below computes.
    """
    mark = {"format": FLOAT8[dtype], "full_precision_matrix_mult": True}
    return _bytes(json.dumps(mark))


def _bytes(text: str) -> Tensor:
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


def _layer(key: str, extra: str) -> str | None:
    """Return the layer that `key` is the `extra` of."""
    layer, _, name = key.rpartition(".")
    return layer if name == extra else None


def _format_of(key: str, value: Any) -> str:
    """Return the format that a mark names."""
    try:
        format = parse_json(content(key, value)[:MAX_MARK])["format"]
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"tensor {key!r} does not hold the description of a quantized layer "
            f"({type(error).__name__}: {error}). Download the file again."
        ) from error
    if not isinstance(format, str) or format not in STORED:
        raise ValueError(
            f"tensor {key!r} says that its layer is quantized as {shown(format)}, expected one of {', '.join(STORED)}."
        )
    return format


def _weight(key: str, value: Any, format: str) -> tuple[Tensor, Tensor]:
    """Return (as stored, as a network has it) of a quantized weight."""
    tensor, stored = dense(key, value), STORED[format]
    if tensor.dtype != stored.dtype or tensor.ndim != 2:
        raise ValueError(
            f"tensor {key!r} is {tensor.dtype} with {tensor.ndim} axes, expected {stored.dtype} with 2: its layer is "
            f"quantized as {format}."
        )
    if format in COMPUTED:
        return tensor, tensor
    return tensor, torch.empty(len(tensor), tensor.shape[1] * stored.packed, device="meta")


def _check_scales(name: str, format: str, stored: dict[str, Tensor]) -> None:
    """Check the scales of a quantized weight; that of float8 becomes float32."""
    layer = name.removesuffix(".weight")
    for scale in STORED[format].scales:
        if f"{layer}.{scale}" not in stored:
            raise ValueError(
                f"tensor '{layer}.{scale}' is missing: the layer is quantized as {format}. Download the file again."
            )
    if name not in stored:
        raise ValueError(f"tensor {name!r} is missing, but it is said to be quantized as {format}.")
    if format not in COMPUTED:
        return
    scale = stored[f"{layer}.{SCALE}"]
    if not scale.is_floating_point() or scale.numel() != 1 or not scale.float() > 0:
        raise ValueError(
            f"tensor '{layer}.{SCALE}' is {scale.dtype} {tuple(scale.shape)}, expected one positive float32 value."
        )
    stored[f"{layer}.{SCALE}"] = scale.float()


def _listed(formats: Mapping[str, str]) -> str:
    return ", ".join(sorted(set(formats.values())))
