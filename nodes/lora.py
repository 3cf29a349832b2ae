"""LoRA files for masked image models, by ComfyUI's own LoRA nodes.

ComfyUI matches the keys of a file with names that it makes of a model's weights, and has no place for a model to add
its own. `install` puts two functions around its own, which act on our models alone: one adds the names of the published
network and PEFT's prefix, the other says once how many keys match nothing, where ComfyUI has a line for each.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

import comfy.lora

from ..shortcut.models.key_table import published_key
from ..shortcut.models.layout import Layout
from .native import MaskedImageModel

PLACE = "diffusion_model."  # where the network is in a MODEL
PEFT = "base_model.model."


class Keys(dict[str, Any]):
    """Names of a LoRA file's layers -> weights of a masked image model."""


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
    layer = weight.removesuffix(".weight")
    layers = [layer]
    try:
        published = published_key(layout.table, weight)
    except ValueError:
        published = ""
    if published.endswith(".weight"):  # one of several packed together has no name of its own
        layers.append(published.removesuffix(".weight"))
    for name in dict.fromkeys(layers):
        for inside in (name, PLACE + name):
            yield from (inside, PEFT + inside)
        yield f"lora_unet_{name.replace('.', '_')}"


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
        return keys

    return model_lora_keys_unet


def _counted(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_lora(lora: Any, to_load: Any, log_missing: bool = True) -> Any:
        if not isinstance(to_load, Keys):
            return original(lora, to_load, log_missing)
        if log_missing and (strange := unmatched(lora, to_load)):
            logging.warning(
                "LoRA: %d of %d keys match nothing in this masked image model and are ignored, such as %s",
                len(strange),
                len(lora),
                strange[0],
            )
        return original(lora, to_load, log_missing=False)

    return load_lora
