"""Quantized weights in files: recognised in every way that files say it, brought to one form, and checked.

The one form is ComfyUI's today: see `quantized`. `marked` brings the other ways into it:
    header metadata "_quantization_metadata": {"layers": {"X": {"format": ...}, ...}} in place of the marks,
    X.scale_weight, X.scale_input    for X.weight_scale, X.input_scale, with one tensor "scaled_fp8" for the file,
    float8 weights without a scale   a plain cast: the scale is 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import kitchen
from .guard import parse_json, shown
from .models.architecture import Network
from .models.key_table import Table, content, dense, rename_keys
from .models.layout import Layout, Tensors
from .quantized import (
    EXTRAS,
    FLOAT8,
    INPUT_SCALE,
    MARK,
    SCALE,
    STORED,
    bytes_of,
    check_computed,
    dequantized,
    described,
    extras,
    mark_of,
)

MAX_MARK = 4096  # bytes of a mark
HEADER = "_quantization_metadata"  # entry of the header's metadata
WHOLE_FILE = "scaled_fp8"  # tensor of older files: their type, and by its size whether to compute in full precision
OLDER = {"scale_weight": SCALE, "scale_input": INPUT_SCALE}  # names in such files


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
        added = {key: bytes_of(text) for key, text in texts.items() if key not in raw}
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
        modern[f"{layer}.{MARK}"] = bytes_of(json.dumps(about))
    return modern


def _is_one(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and value.item() == 1


def split(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """Return (entries as a network has them, what is stored for the quantized ones, {weight: format}).

    The second holds the weights as they lie in the file, scales and marks. In the first a weight that is not float8 is
    a tensor of its true shape on the meta device; entries that are not quantized are as they were.

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
        if format in kitchen.FORMATS.values():
            _check_kitchen(name, weights[name].shape, stored)
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
    layout: Layout,
    tensors: Tensors,
    stored: Tensors,
    formats: Mapping[str, str],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return (tensors with all that is stored, {weight: format}) of a network.

    No tensor of the first is float8 that is not also in the second, so that float8 is never taken for a type to compute
    in: weights of linear layers that were simply cast to it get a scale of 1, others become bfloat16, which holds every
    value of float8; so do those with a scale but for linear layers and the layout's `lookups`.

    Args:
        network: it is not filled, and asked for the types of its layers only.
        tensors: as `split` gives the weights, checked against the network.
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
            if not is_linear and name not in layout.lookups:
                _make_plain(name, all_tensors, all_formats)
        elif tensor.dtype in FLOAT8 and is_linear and name.startswith(layout.quantizable):
            all_formats[name] = FLOAT8[tensor.dtype]
            all_tensors[f"{layer}.{SCALE}"] = torch.ones(())
            all_tensors[f"{layer}.{MARK}"] = mark_of(tensor.dtype)
        elif tensor.dtype in FLOAT8:
            all_tensors[name] = tensor.to(torch.bfloat16)
    return all_tensors, all_formats


def with_plain_lookups(
    layout: Layout, tensors: Tensors, formats: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return (tensors, {weight: format}) without quantized embeddings, for hosts that cannot look them up."""
    all_tensors, all_formats = dict(tensors), dict(formats)
    for name in formats.keys() & {*layout.lookups}:
        _make_plain(name, all_tensors, all_formats)
    return all_tensors, all_formats


def _make_plain(name: str, tensors: dict[str, Tensor], formats: dict[str, str]) -> None:
    """Bring the quantized weight `name` to bfloat16, and take away what is stored beside it."""
    check_computed({name: formats.pop(name)})
    tensors[name] = dequantized(name, tensors, torch.bfloat16)
    for extra in extras([name]):
        tensors.pop(extra, None)


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
    if format in FLOAT8.values():
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
    if format not in FLOAT8.values():
        return
    scale = stored[f"{layer}.{SCALE}"]
    if not scale.is_floating_point() or scale.numel() != 1 or not scale.float() > 0:
        raise ValueError(
            f"tensor '{layer}.{SCALE}' is {scale.dtype} {tuple(scale.shape)}, expected one positive float32 value."
        )
    stored[f"{layer}.{SCALE}"] = scale.float()


def _check_kitchen(name: str, shape: torch.Size, stored: Mapping[str, Tensor]) -> None:
    """Raise ValueError if the scales of a weight are not what comfy-kitchen's functions read."""
    layer = name.removesuffix(".weight")
    parts = {extra: stored.get(f"{layer}.{extra}") for extra in EXTRAS}
    given = {extra: tensor for extra, tensor in parts.items() if tensor is not None}
    try:
        kitchen.check(shape, described(given[MARK]), given)
    except ValueError as error:
        raise ValueError(f"the layer {layer!r} cannot be used: {error}") from error
