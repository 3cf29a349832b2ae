"""What other nodes put on a MODEL, and a masked image model never asks for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from .host import COMPILE

# Of a MODEL: transformer options that hold patches, calls that ComfyUI's own samplers make, the objects that are read,
# and options that come with a patch and change nothing by themselves.
PATCHES = ("patches", "patches_replace", "wrappers", "callbacks")
UNHEARD = ("on_prepare_state", "on_apply_hooks", "on_register_all_hook_patches")
HEEDED = ("diffusion_model.", "latent_format")
COMPANIONS = ("disable_cfg1_optimization", "multigpu_options", COMPILE)
# Patches that ComfyUI's own modules make, by the nodes that ask for them.
LABELS = {
    "context_handler": "Context Windows",
    "ContextWindows_prepare_sampling": "Context Windows",
    "ContextWindows_sampler_sample": "Context Windows",
    "diffusion_model": "torch.compile",
    "manual_cast_dtype": "ModelComputeDtype",
    "model_sampling": "ModelSampling",
    "rope_options": "ScaleROPE",
}
SAID: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()  # model -> names that the log has


def lines_without_effect(patcher: Any, node: str) -> list[str]:
    """Return a line for each patch of a MODEL that has no effect. The log has it once for each model."""
    lines = {
        name: f"{name} has no effect on a masked image model" for name in without_effect(patcher)
    }
    said = SAID.setdefault(patcher.model, set())
    for name in [name for name in lines if name not in said]:
        logging.warning("%s: %s", node, lines[name])
    said.update(lines)
    return list(lines.values())


def without_effect(patcher: Any) -> list[str]:
    """Return the names of what other nodes put on a MODEL, and a masked image model never asks for.

    It asks for changed weights, for anything inside of its network, for the callbacks of a run, and for an override of
    attention, which may read options of its own. Blocks are compiled by the options of torch.compile.
    """
    options = {**patcher.model_options}
    inner = {**options.pop("transformer_options", {})}
    if inner.pop("optimized_attention_override", None) is not None:
        inner = {key: value for key, value in inner.items() if key in PATCHES}
    callbacks, objects = getattr(patcher, "callbacks", {}), getattr(patcher, "object_patches", {})
    groups = [
        options,
        inner,
        {kind: found for kind, found in callbacks.items() if kind in UNHEARD},
        getattr(patcher, "wrappers", {}),
        {key: value for key, value in objects.items() if not key.startswith(HEEDED)},
    ]
    # One node may leave several patches, under spellings that differ in case.
    names: dict[str, str] = {}
    for group in groups:
        for key, value in group.items():
            if key not in COMPANIONS:
                for name in _names(value, key, key):
                    names.setdefault(name.casefold(), name)
    if COMPILE in options:
        names.pop("torch.compile", None)  # its wrapper is of no use, and its options are heeded
    return list(names.values())


def _names(value: Any, group: str, key: str) -> Iterator[str]:
    """Yield who made the patches in `value`.

    Args:
        group: the option that they are in.
        key: the innermost name that they have in it.
    """
    if isinstance(value, Mapping):
        for inner, item in value.items():
            yield from _names(item, group, inner if isinstance(inner, str) else key)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _names(item, group, key)
    elif isinstance(value, (bool, int, float, str)):
        yield LABELS.get(group, group)
    elif value is not None:
        yield _maker(value) or LABELS.get(key, key)


def _maker(patch: Any) -> str | None:
    """Return the node that a patch names, or that it was made inside of; None if it is not to be seen."""
    if isinstance(name := getattr(patch, "name", None), str):
        return name
    while isinstance(patch, partial):
        patch = patch.func
    if not hasattr(patch, "__qualname__"):
        patch = type(patch)
    outer, *others = patch.__qualname__.split(".")
    is_of_host = patch.__module__.partition(".")[0] in ("comfy", "comfy_api", "torch", "builtins")
    return outer if others and not is_of_host else None
