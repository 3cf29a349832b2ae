"""Weights in int8 and in 4 bits, by the functions of comfy-kitchen, which ComfyUI makes and computes them with too.

int8: a row has one scale. Before that, groups of inputs are rotated by a Hadamard matrix, which spreads values that
stand out ("convrot"); activations are rotated and made int8 by row as they come.
nvfp4: 4 bits, E2M1; 16 inputs share a float8 scale, and a weight has one in float32. Activations stay as they are.
asym_w4a8: rotated as int8 is, then 4 bits: each names one of 16 values in a codebook of the weight; 16 inputs share a
float8 scale, and a row has one in float32. Products are those of int8. Only comfy-kitchen from 0.2.31 knows it.

Source: github.com/Comfy-Org/comfy-kitchen (Apache-2.0), comfy_kitchen/tensor int8.py, nvfp4.py and w4a8_int8.py.

    O, I  outputs, inputs of a layer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

INT8, NVFP4, ASYM = "int8_tensorwise", "nvfp4", "asym_w4a8_int8"  # as files name them
FLOAT8 = "float8_e4m3fn"
FORMATS = {  # as users name them -> as files do
    "int8_convrot": INT8,
    "nvfp4": NVFP4,
    "asym_w4a8": ASYM,
}
FOUR_BITS = frozenset((NVFP4, ASYM))
LAYOUTS = {  # as comfy-kitchen names them
    INT8: "TensorWiseINT8Layout",
    NVFP4: "TensorCoreNVFP4Layout",
    ASYM: "AsymW4A8Int8Layout",
}
SCALE, SCALE_2 = "weight_scale", "weight_scale_2"
S_REL, S_CHANNEL, CODEBOOK = "weight_s_rel", "weight_s_channel", "weight_codebook"  # of ASYM
SCALES = (SCALE, SCALE_2, S_REL, S_CHANNEL, CODEBOOK)
ROTATED = (256, 64, 16)  # inputs that are rotated together: the first that divides a layer's
BLOCK = 16  # inputs that share a scale in 4 bits


def formats_of(
    weights: Mapping[str, torch.Size], lookups: Sequence[str], format: str
) -> dict[str, str]:
    """Return {weight: format} of a model that is to have a format.

    4 bits have blocks of 16 only, and their error in the last block, which no later block evens out, is a fifth of all
    in the shipped text model (`python -m experiments weight-layers`). So the last block, sides that are no multiples of
    16 and embeddings are float8 there, which shows in none of the model's figures (experiments/RESULTS.md).

    Args:
        weights: of linear layers, in the network's order, and their shapes.
        lookups: of large embeddings.
    """
    if format not in FOUR_BITS:
        return dict.fromkeys(weights, format)
    blocks = {name: name.split(".")[:2] for name in weights}
    last = list(blocks.values())[-1]
    inner = [name for name, block in blocks.items() if block != last]
    fit = {name for name in inner or weights if not any(side % BLOCK for side in weights[name])}
    return {name: format if name in fit else FLOAT8 for name in (*lookups, *weights)}


def quantize(weight_OI: Tensor, format: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what is stored for a weight, by name within its layer, and its description.

    On the meta device, the shapes and types.
    """
    group = next((size for size in ROTATED if weight_OI.shape[1] % size == 0), None)
    about: dict[str, Any] = {"format": format}
    if format == NVFP4:
        about["full_precision_matrix_mult"] = True  # activations in 4 bits would double the error
    elif format == ASYM:
        about |= {"group_size": BLOCK, "convrot_groupsize": group}
    elif group is not None:
        about |= {"convrot": True, "convrot_groupsize": group}
    if weight_OI.is_meta:
        return _shapes(weight_OI.shape, about), about
    layout = getattr(_library(format).tensor, LAYOUTS[format])
    weight_OI = weight_OI.float()
    if format == NVFP4:
        values, params = layout.quantize(weight_OI)
        return {"weight": values, SCALE: params.block_scale, SCALE_2: params.scale}, about
    if format == ASYM:
        values, params = layout.quantize(weight_OI, group_size=BLOCK, convrot_groupsize=group)
        scales = {S_REL: params.scale, S_CHANNEL: params.s_channel, CODEBOOK: params.codebook}
        return {"weight": values, **scales}, about
    rotation = {"convrot": True, "convrot_groupsize": group} if group is not None else {}
    values, params = layout.quantize(weight_OI, per_channel=True, **rotation)
    return {"weight": values, SCALE: params.scale}, about


def check(shape: torch.Size, about: Mapping[str, Any], parts: Mapping[str, Tensor]) -> None:
    """Raise ValueError if scales are not what the functions below read.

    Args:
        shape: of the weight (O, I).
        parts: as `quantize` returns; a codebook may be missing.
    """
    if about["format"] == ASYM:
        size = _group_size(about)
        if size < 4 or (BLOCK % size and size % BLOCK) or shape[1] % size:
            raise ValueError(
                f"it says that {size} inputs share a scale, expected 4 or more that divide {BLOCK} or are a multiple "
                f"of it, and divide {shape[1]}."
            )
    expected = _shapes(shape, about)
    for name in (expected.keys() & parts.keys()) - {"weight"}:
        given, wanted = parts[name], expected[name]
        sizes = {wanted.numel(), 1} if about["format"] == INT8 else {wanted.numel()}
        fits = given.shape == wanted.shape if about["format"] == ASYM else given.numel() in sizes
        is_float8 = given.itemsize == wanted.itemsize == 1  # which some files hold as bytes
        if not fits or not (given.dtype == wanted.dtype or is_float8):
            raise ValueError(
                f"{name!r} is {given.dtype} {tuple(given.shape)}, expected {wanted.dtype} {tuple(wanted.shape)}."
            )
    group = rotation(about)
    if group is not None and (group not in (4, *ROTATED) or shape[1] % group):
        raise ValueError(
            f"it says that {group} inputs are rotated together, expected one of {', '.join(map(str, ROTATED))} that "
            f"divides {shape[1]}."
        )


def rotation(about: Mapping[str, Any]) -> int | None:
    """Return how many inputs are rotated together; None = none are. Raises ValueError if that is no number."""
    group = _whole(about, "convrot_groupsize", 256)
    return group if about["format"] == ASYM or _said(about).get("convrot", False) else None


def dequantize(parts: Mapping[str, Tensor], about: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    """Return the weight (O, I)."""
    format, values = about["format"], parts["weight"]
    library = _library(format)
    if format == ASYM:
        return library.dequantize_w4a8_int8_weight(**_asym(parts, about), output_dtype=dtype)
    layout = getattr(library.tensor, LAYOUTS[format])
    rows, columns = values.shape
    if format == NVFP4:
        params = layout.Params(
            scale=parts[SCALE_2].reshape(()),
            orig_dtype=dtype,
            orig_shape=(rows, 2 * columns),
            block_scale=_blocks(parts[SCALE], rows),
        )
        return layout.dequantize(values, params)
    group = rotation(about)
    params = layout.Params(
        scale=parts[SCALE].float().reshape(-1, 1),  # some files have it without the last axis
        orig_dtype=dtype,
        orig_shape=(rows, columns),
        convrot=group is not None,
        convrot_groupsize=group or 0,
    )
    return layout.dequantize(values, params)


def linear(
    input: Tensor, parts: Mapping[str, Tensor], about: Mapping[str, Any], bias: Tensor | None
) -> Tensor:
    """Return the output of a linear layer."""
    format = about["format"]
    if format == NVFP4:
        weight_OI = dequantize(parts, about, input.dtype)
        return torch.nn.functional.linear(input, weight_OI, bias)
    library, input = _library(format), input.contiguous()
    if format == ASYM:
        stored = _asym(parts, about)
        return library.w4a8_int8_linear(input, **stored, bias=bias, out_dtype=input.dtype)
    group = rotation(about)
    return library.int8_linear(
        input,
        parts["weight"],
        parts[SCALE],
        bias,
        input.dtype,
        convrot=group is not None,
        convrot_groupsize=group or 0,
    )


def _library(format: str) -> Any:
    """Return comfy-kitchen. Raise ValueError if it is not installed, or too old for the format."""
    try:
        import comfy_kitchen.tensor
    except ImportError as error:
        raise ValueError(
            f"weights in int8 and in 4 bits need comfy-kitchen, which cannot be imported ({error}). "
            "pip install comfy-kitchen"
        ) from error
    if not hasattr(comfy_kitchen.tensor, LAYOUTS[format]):
        raise ValueError(
            f"comfy-kitchen is {version('comfy-kitchen')}, which does not know {format} weights, expected one that has "
            f"{LAYOUTS[format]} (0.2.31 or newer). pip install -U comfy-kitchen"
        )
    return comfy_kitchen


def _said(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the description with what it says under "params", which ComfyUI reads as well."""
    params = about.get("params")
    return {**params, **about} if isinstance(params, Mapping) else about


def _whole(about: Mapping[str, Any], name: str, default: int) -> int:
    """Return a number of the description. Raise ValueError if it is no whole number."""
    number = _said(about).get(name, default)
    if not isinstance(number, int):
        raise ValueError(f"{name} is {number!r}, expected a whole number.")
    return number


def _group_size(about: Mapping[str, Any]) -> int:
    """Return how many inputs of ASYM share a scale. Raise ValueError if that is no number."""
    return _whole(about, "group_size", BLOCK)


def _asym(parts: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is stored for a weight in ASYM, as the library's functions name it."""
    return {
        "qdata": parts["weight"],
        "s_rel": _float8(parts[S_REL]),
        "s_channel": parts[S_CHANNEL],
        "codebook": parts.get(CODEBOOK),  # without one the 16 values are evenly spaced
        "group_size": _group_size(about),
        "convrot_groupsize": rotation(about),
    }


def _float8(scale: Tensor) -> Tensor:
    """Return scales in float8, which some files hold as bytes."""
    return scale if scale.is_floating_point() else scale.view(torch.float8_e4m3fn)


def _blocks(scale: Tensor, num_rows: int) -> Tensor:
    """Return the scales of nvfp4 as the library lays them out: tiles of 128 rows and 4 blocks."""
    return _float8(scale).reshape(-(-num_rows // 128) * 128, -1)


def _shapes(shape: torch.Size, about: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what is stored for a weight of that shape, on the meta device."""
    num_outputs, num_inputs = shape
    format = about["format"]

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    if format == INT8:
        weight = empty(num_outputs, num_inputs, dtype=torch.int8)
        return {"weight": weight, SCALE: empty(num_outputs, 1)}
    if format == ASYM:
        num_groups = num_inputs // _group_size(about)
        return {
            "weight": empty(num_outputs, num_inputs // 2, dtype=torch.int8),
            S_REL: empty(num_outputs, num_groups, dtype=torch.float8_e4m3fn),
            S_CHANNEL: empty(num_outputs),
            CODEBOOK: empty(16),
        }
    num_tiles = -(-num_outputs // 128), -(-num_inputs // (4 * BLOCK))
    scale = empty(128 * num_tiles[0], 4 * num_tiles[1], dtype=torch.float8_e4m3fn)
    weight = empty(num_outputs, num_inputs // 2, dtype=torch.uint8)
    return {"weight": weight, SCALE: scale, SCALE_2: empty()}
