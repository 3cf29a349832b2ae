"""LoRA files for masked image models, by ComfyUI's own LoRA nodes.

ComfyUI matches the keys of a file with names that it makes of a model's weights, and has no place for a model to add
its own. `install` puts two functions around its own, which act on our models alone: one adds the names of the published
network and PEFT's prefix, the other takes apart what is packed there, and says once how many keys match nothing, where
ComfyUI has a line for each.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import comfy.lora

from ..shortcut.models.key_table import Row, origin
from ..shortcut.models.layout import Layout
from .native import MaskedImageModel

PLACE = "diffusion_model."  # where the network is in a MODEL
PEFT = "base_model.model."
PACKED = ".in_proj_weight"  # of query, key and value in one, as in torch's MultiheadAttention
# Of a layer in a LoRA file: the matrix with a row for each output, and what packed weights have in common.
ROWS = ("lora_B.weight", "lora_B.default.weight", "lora_up.weight")
COMMON = ("lora_A.weight", "lora_A.default.weight", "lora_down.weight", "alpha")


class Keys(dict[str, Any]):
    """Names of a LoRA file's layers -> weights of a masked image model.

    Attributes:
        packed: names of layers that are several of the model's -> these, by their place.
    """

    def __init__(self, names: Mapping[str, Any]):
        super().__init__(names)
        self.packed: dict[str, dict[int, str]] = {}


def install() -> None:
    """Put our functions around ComfyUI's, once."""
    for name, around in {"model_lora_keys_unet": _with_names, "load_lora": _counted}.items():
        found = getattr(comfy.lora, name)
        if not hasattr(found, "around_by_shortcut"):
            made: Any = functools.wraps(found)(around(found))
            made.around_by_shortcut = True
            setattr(comfy.lora, name, made)


def names_of(layout: Layout, weight: str) -> Iterable[str]:
    """Yield what a LoRA file may call the layer of our `weight`."""
    layers = [weight.removesuffix(".weight")]
    published, _, _ = _origin(layout, weight)
    if published.endswith(".weight"):  # one of several packed together has no name of its own
        layers.append(published.removesuffix(".weight"))
    return _spelled(layers)


def packed_names_of(layout: Layout, weight: str) -> Iterable[tuple[str, int]]:
    """Yield what a LoRA file may call the layer that our `weight` is packed in, and its place there."""
    published, row, place = _origin(layout, weight)
    if isinstance(row, tuple) and published.endswith(PACKED):
        layer = published.removesuffix(PACKED)
        yield from ((name, place) for name in _spelled([layer, f"{layer}.in_proj"]))


def _origin(layout: Layout, weight: str) -> tuple[str, Row, int]:
    """Return as `key_table.origin`; an empty key for a weight that is not published."""
    try:
        return origin(layout.table, weight)
    except ValueError:
        return "", None, 0


def _spelled(layers: Iterable[str]) -> Iterable[str]:
    """Yield the spellings of names of layers."""
    for name in dict.fromkeys(layers):
        for inside in (name, PLACE + name):
            yield from (inside, PEFT + inside)
        yield f"lora_unet_{name.replace('.', '_')}"


def unpacked(lora: Mapping[str, Any], packed: Mapping[str, Mapping[int, str]]) -> dict[str, Any]:
    """Return a LoRA file whose packed layers are several."""
    found = dict(lora)
    for name, parts in packed.items():
        for end in (*ROWS, *COMMON):
            value = found.get(f"{name}.{end}")
            if value is None or (end in ROWS and len(value) % len(parts)):
                continue
            del found[f"{name}.{end}"]
            values = value.chunk(len(parts)) if end in ROWS else [value] * len(parts)
            found |= {f"{parts[place]}.{end}": part for place, part in enumerate(values)}
    return found


def unmatched(keys: Iterable[str], known: Keys) -> list[str]:
    """Return the keys of a LoRA file that begin with no known name."""

    def is_known(key: str) -> bool:
        parts = key.split(".")
        return any(".".join(parts[:end]) in known for end in range(1, len(parts) + 1))

    return [key for key in keys if not is_known(key)]


def _with_names(original: Callable[..., Any]) -> Callable[..., Any]:
    def model_lora_keys_unet(model: Any, key_map: dict[str, Any] | None = None) -> Any:
        found = original(model, {} if key_map is None else key_map)
        if not isinstance(model, MaskedImageModel):
            return found
        keys = Keys(found)
        for weight, _ in model.diffusion_model.named_parameters():
            if weight.endswith(".weight"):
                for name in names_of(model.checkpoint.layout, weight):
                    keys.setdefault(name, PLACE + weight)
                for name, place in packed_names_of(model.checkpoint.layout, weight):
                    keys.packed.setdefault(name, {})[place] = weight.removesuffix(".weight")
        return keys

    return model_lora_keys_unet


def _counted(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_lora(lora: Any, to_load: Any, log_missing: bool = True) -> Any:
        if not isinstance(to_load, Keys):
            return original(lora, to_load, log_missing)
        lora = unpacked(lora, to_load.packed)
        if log_missing and (strange := unmatched(lora, to_load)):
            logging.warning(
                "LoRA: %d of %d keys match nothing in this masked image model and are ignored, such as %s",
                len(strange),
                len(lora),
                strange[0],
            )
        return original(lora, to_load, log_missing=False)

    return load_lora
