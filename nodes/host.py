"""The border to ComfyUI: types, attention, progress with preview, patches without effect, memory errors."""

from __future__ import annotations

import contextlib
import logging
import statistics
import time
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_management as mm
import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch import Tensor

from ..shortcut.checkpoint import Checkpoint
from ..shortcut.grid import Grid
from ..shortcut.image import preview
from ..shortcut.sampler import Trace

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PREVIEW_SIZE = 512  # pixels of the longer side
PREVIEW_INTERVAL = 0.1  # seconds; a preview waits for the device

# Of a MODEL: transformer options that hold patches, calls that ComfyUI's own samplers make, the objects that are read,
# and options that come with a patch and change nothing by themselves.
PATCHES = ("patches", "patches_replace", "wrappers", "callbacks")
UNHEARD = ("on_prepare_state", "on_apply_hooks", "on_register_all_hook_patches")
HEEDED = ("diffusion_model.", "latent_format")
COMPANIONS = ("disable_cfg1_optimization", "torch_compile_kwargs")
# Patches that ComfyUI's own modules make, by the nodes that ask for them.
LABELS = {
    "context_handler": "Context Windows",
    "ContextWindows_prepare_sampling": "Context Windows",
    "ContextWindows_sampler_sample": "Context Windows",
    "diffusion_model": "torch.compile",
    "manual_cast_dtype": "ModelComputeDtype",
    "model_sampling": "ModelSampling",
    "multigpu_clones": "MultiGPU CFG Split",
    "rope_options": "ScaleROPE",
}
SAID: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()  # model -> names that the log has


def dtypes(
    choice: str, device: torch.device, checkpoint: Checkpoint
) -> tuple[torch.dtype, torch.dtype | None]:
    """Return the type of the weights, and the type to cast them to on use (None = as they are).

    With quantized weights the first is the type of all other weights, and the second is never None.
    """
    supported = list(DTYPES.values())
    is_quantized = bool(checkpoint.quantized)
    stored = None if is_quantized else checkpoint.dtype
    dtype = DTYPES.get(choice) or mm.unet_dtype(
        device, checkpoint.num_parameters, supported, stored
    )
    if not is_quantized:
        return dtype, mm.unet_manual_cast(dtype, device, supported)
    return dtype, DTYPES.get(choice) or mm.unet_manual_cast(None, device, supported)


class HostAttention:
    """ComfyUI's attention, with the signature of `layers.sdpa`.

    `options` are the transformer options of the run in progress, by which other nodes replace attention.
    """

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def __call__(self, q_BSD: Tensor, k_BTD: Tensor, v_BTD: Tensor, num_heads: int) -> Tensor:
        return optimized_attention(q_BSD, k_BTD, v_BTD, num_heads, transformer_options=self.options)


class StepClock:
    """Times the steps of a run without making the host wait for the device."""

    def __init__(self, device: torch.device):
        self.is_cuda = device.type == "cuda"
        self.marks = [self._mark()]
        self.was_full: list[bool] = []

    def tick(self, was_full: bool) -> None:
        """Note the end of a step."""
        self.marks.append(self._mark())
        self.was_full.append(was_full)

    def speed_up(self) -> float:
        """Estimate how many times as long the run would have taken with full passes alone."""
        if not self.was_full:
            return 1.0
        if self.is_cuda:
            self.marks[-1].synchronize()
        seconds = [self._between(a, b) for a, b in pairwise(self.marks)]
        full = [s for s, was_full in zip(seconds, self.was_full, strict=True) if was_full]
        short = [s for s, was_full in zip(seconds, self.was_full, strict=True) if not was_full]
        if not short:
            return 1.0
        # Medians: the first step also pays for loading weights and choosing kernels.
        full_pass, shortcut = statistics.median(full), statistics.median(short)
        return full_pass * len(seconds) / (full_pass * len(full) + shortcut * len(short))

    def _mark(self) -> Any:
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, a: Any, b: Any) -> float:
        return a.elapsed_time(b) / 1000 if self.is_cuda else b - a


class Preview:
    """Shows the first image of a run as far as it is revealed, now and then, as ComfyUI's progress bar takes it."""

    def __init__(self, grid: Grid, colours_V3: Tensor):
        self.grid, self.colours_V3 = grid, colours_V3
        self.shown_at = -PREVIEW_INTERVAL

    def of(self, trace: Trace, *, is_last: bool = False) -> tuple[str, Image.Image, int] | None:
        """Return a preview; None if one was shown a moment ago, and this is not the last."""
        now = time.perf_counter()
        if now - self.shown_at < PREVIEW_INTERVAL and not is_last:
            return None
        self.shown_at = now
        codes_hw, is_masked_hw = (
            t[0].unflatten(0, self.grid) for t in (trace.codes_BL, trace.is_masked_BL)
        )
        picture = preview(codes_hw, is_masked_hw, self.colours_V3)
        scale = max(1, PREVIEW_SIZE // max(picture.size))
        # Enlarged here because ComfyUI would blur the codes into each other.
        size = (picture.width * scale, picture.height * scale)
        return ("JPEG", picture.resize(size, Image.Resampling.NEAREST), PREVIEW_SIZE)


class StepReport:
    """The hook of a run: interruption, progress bar, preview of the first image, timing."""

    def __init__(self, num_steps: int, grid: Grid, colours_V3: Tensor, device: torch.device):
        self.num_steps = num_steps
        self.bar = comfy.utils.ProgressBar(num_steps)
        self.preview = Preview(grid, colours_V3)
        self.clock = StepClock(device)
        self.num_done = 0

    def __call__(self, trace: Trace) -> None:
        mm.throw_exception_if_processing_interrupted()
        self.clock.tick(trace.denoised.was_full)
        self.num_done += 1
        shown = self.preview.of(trace, is_last=self.num_done == self.num_steps)
        self.bar.update_absolute(self.num_done, self.num_steps, shown)


def say_without_effect(patcher: Any, node: str) -> None:
    """Say which patches of a MODEL have no effect: on the running node, and once for each model in the log."""
    lines = {
        name: f"{name} has no effect on a masked image model" for name in without_effect(patcher)
    }
    if not lines:
        return
    show_on_node("\n".join(lines.values()))
    said = SAID.setdefault(patcher.model, set())
    for name in [name for name in lines if name not in said]:
        logging.warning("%s: %s", node, lines[name])
    said.update(lines)


def show_on_node(text: str) -> None:
    """Show a text on the node that ComfyUI runs now; nothing outside of a server."""
    context = get_executing_context()
    if context is None:
        return
    from server import PromptServer  # it is there while a prompt runs

    PromptServer.instance.send_progress_text(text, context.node_id)


def without_effect(patcher: Any) -> list[str]:
    """Return the names of what other nodes put on a MODEL, and a masked image model never asks for.

    It asks for changed weights, for anything inside of its network, for the callbacks of a run, and for an override of
    attention, which may read options of its own.
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


@contextlib.contextmanager
def advice_on_memory(advice: str) -> Iterator[None]:
    """Add `advice` to an out-of-memory error; ComfyUI still sees it as one."""
    try:
        yield
    except Exception as error:
        if not mm.is_oom(error):
            raise
        raise mm.OOM_EXCEPTION(f"Out of memory. {advice} ({error})") from error
