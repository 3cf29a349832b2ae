"""Weights in int8 and in nvfp4, by the functions of comfy-kitchen, which ComfyUI makes and computes them with too.

int8: a row has one scale. Before that, groups of inputs are rotated by a Hadamard matrix, which spreads values that
stand out ("convrot"); activations are rotated and made int8 by row as they come.
nvfp4: 4 bits, E2M1; 16 inputs share a float8 scale, and a weight has one in float32. Activations stay as they are.

Source: github.com/Comfy-Org/comfy-kitchen (Apache-2.0), comfy_kitchen/tensor int8.py and nvfp4.py.

    O, I  outputs, inputs of a layer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

INT8, NVFP4 = "int8_tensorwise", "nvfp4"  # as files name them
FLOAT8 = "float8_e4m3fn"
FORMATS = {"int8_convrot": INT8, "nvfp4": NVFP4}  # as users name them -> as files do
SCALE, SCALE_2 = "weight_scale", "weight_scale_2"
ROTATED = (256, 64, 16)  # inputs that are rotated together: the first that divides a layer's
BLOCK = 16  # inputs of nvfp4 that share a scale


def formats_of(
    weights: Mapping[str, torch.Size], lookups: Sequence[str], format: str
) -> dict[str, str]:
    """Return {weight: format} of a model that is to have a format.

    nvfp4 has blocks of 16 only, and its error in the last block, which no later block evens out, is a fifth of all in
    the shipped text model (`python -m experiments weight-layers`). So the last block, sides that are no multiples of 16
    and embeddings are float8 there, which shows in none of the model's figures (RESULTS.md).

    Args:
        weights: of linear layers, in the network's order, and their shapes.
        lookups: of large embeddings.
    """
    if format != NVFP4:
        return dict.fromkeys(weights, format)
    blocks = {name: name.split(".")[:2] for name in weights}
    last = list(blocks.values())[-1]
    inner = [name for name, block in blocks.items() if block != last]
    fit = {name for name in inner or weights if not any(side % BLOCK for side in weights[name])}
    return {name: NVFP4 if name in fit else FLOAT8 for name in (*lookups, *weights)}


def quantize(weight_OI: Tensor, format: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what is stored for a weight, by name within its layer, and its description.

    On the meta device, the shapes and types.
    """
    group = next((size for size in ROTATED if weight_OI.shape[1] % size == 0), None)
    about: dict[str, Any] = {"format": format}
    if format == NVFP4:
        about["full_precision_matrix_mult"] = True  # activations in 4 bits would double the error
    elif group is not None:
        about |= {"convrot": True, "convrot_groupsize": group}
    if weight_OI.is_meta:
        return _shapes(weight_OI.shape, format), about
    layouts = _library().tensor
    weight_OI = weight_OI.float()
    if format == NVFP4:
        values, params = layouts.TensorCoreNVFP4Layout.quantize(weight_OI)
        return {"weight": values, SCALE: params.block_scale, SCALE_2: params.scale}, about
    rotation = {"convrot": True, "convrot_groupsize": group} if group is not None else {}
    values, params = layouts.TensorWiseINT8Layout.quantize(weight_OI, per_channel=True, **rotation)
    return {"weight": values, SCALE: params.scale}, about


def check(shape: torch.Size, about: Mapping[str, Any], parts: Mapping[str, Tensor]) -> None:
    """Raise ValueError if scales are not what the functions below read.

    Args:
        shape: of the weight (O, I).
        parts: as `quantize` returns.
    """
    expected = _shapes(shape, about["format"])
    for name in expected.keys() - {"weight"}:
        given, wanted = parts[name], expected[name]
        sizes = {wanted.numel(), 1} if about["format"] == INT8 else {wanted.numel()}
        if given.numel() not in sizes or given.itemsize != wanted.itemsize:
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
    params = about.get("params")
    said = (
        {**params, **about} if isinstance(params, Mapping) else about
    )  # both are known to ComfyUI
    group = said.get("convrot_groupsize", 256)
    if not isinstance(group, int):
        raise ValueError(f"convrot_groupsize is {group!r}, expected a whole number.")
    return group if said.get("convrot", False) else None


def dequantize(parts: Mapping[str, Tensor], about: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    """Return the weight (O, I)."""
    layouts = _library().tensor
    values = parts["weight"]
    rows, columns = values.shape
    if about["format"] == NVFP4:
        params = layouts.TensorCoreNVFP4Layout.Params(
            scale=parts[SCALE_2].reshape(()),
            orig_dtype=dtype,
            orig_shape=(rows, 2 * columns),
            block_scale=_blocks(parts[SCALE], rows),
        )
        return layouts.TensorCoreNVFP4Layout.dequantize(values, params)
    group = rotation(about)
    params = layouts.TensorWiseINT8Layout.Params(
        scale=parts[SCALE].float().reshape(-1, 1),  # some files have it without the last axis
        orig_dtype=dtype,
        orig_shape=(rows, columns),
        convrot=group is not None,
        convrot_groupsize=group or 0,
    )
    return layouts.TensorWiseINT8Layout.dequantize(values, params)


def linear(
    input: Tensor, parts: Mapping[str, Tensor], about: Mapping[str, Any], bias: Tensor | None
) -> Tensor:
    """Return the output of a linear layer."""
    if about["format"] == NVFP4:
        weight_OI = dequantize(parts, about, input.dtype)
        return torch.nn.functional.linear(input, weight_OI, bias)
    group = rotation(about)
    return _library().int8_linear(
        input.contiguous(),
        parts["weight"],
        parts[SCALE],
        bias,
        input.dtype,
        convrot=group is not None,
        convrot_groupsize=group or 0,
    )


def _library() -> Any:
    """Return comfy-kitchen. Raise ValueError if it is not installed."""
    try:
        import comfy_kitchen.tensor
    except ImportError as error:
        raise ValueError(
            f"int8 and nvfp4 weights need comfy-kitchen, which cannot be imported ({error}). pip install comfy-kitchen"
        ) from error
    return comfy_kitchen


def _blocks(scale: Tensor, num_rows: int) -> Tensor:
    """Return the scales of nvfp4 as the library lays them out: tiles of 128 rows and 4 blocks."""
    scale = scale if scale.is_floating_point() else scale.view(torch.float8_e4m3fn)
    return scale.reshape(-(-num_rows // 128) * 128, -1)


def _shapes(shape: torch.Size, format: str) -> dict[str, Tensor]:
    """Return what is stored for a weight of that shape, on the meta device."""
    num_outputs, num_inputs = shape

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    if format == INT8:
        weight = empty(num_outputs, num_inputs, dtype=torch.int8)
        return {"weight": weight, SCALE: empty(num_outputs, 1)}
    num_tiles = -(-num_outputs // 128), -(-num_inputs // (4 * BLOCK))
    scale = empty(128 * num_tiles[0], 4 * num_tiles[1], dtype=torch.float8_e4m3fn)
    weight = empty(num_outputs, num_inputs // 2, dtype=torch.uint8)
    return {"weight": weight, SCALE: scale, SCALE_2: empty()}
