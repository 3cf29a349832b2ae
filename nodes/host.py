"""The border to ComfyUI: types, attention, the text on a node, memory errors."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import comfy.model_management as mm
import comfy.ops
import comfy.quant_ops
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..shortcut.checkpoint import Checkpoint
from ..shortcut.compiled import Compiled, InOrder
from ..shortcut.quantized import why_not_held

model_prefetch: Any = None
with contextlib.suppress(ImportError):  # before ComfyUI 0.28 there is none
    model_prefetch = importlib.import_module("comfy.model_prefetch")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def looks_up_float8() -> bool:
    """Return whether embeddings may be float8 in this ComfyUI: from 0.28 on."""
    return comfy.ops.mixed_precision_ops().Embedding is not comfy.ops.manual_cast.Embedding


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


def check_formats(formats: Collection[str]) -> None:
    """Raise ValueError if the installed ComfyUI does not know one of the quantized formats."""
    known = set(comfy.quant_ops.QUANT_ALGOS)
    if strange := sorted(set(formats) - known):
        raise ValueError(
            f"its weights are quantized as {', '.join(strange)}, and this ComfyUI does not know the format: it knows "
            f"{', '.join(sorted(known))}. Update ComfyUI, or choose a file in bfloat16 or float8_e4m3fn."
        )


def check_held(device: torch.device, tensors: Iterable[Tensor]) -> None:
    """Raise ValueError if some tensors are float8, and the device cannot hold it."""
    if why := why_not_held(device, tensors):
        raise ValueError(
            f"its weights are float8, which {device} cannot hold ({why}). Choose another weight_dtype."
        )


class HostAttention:
    """ComfyUI's attention, with the signature of `layers.sdpa`.

    `options` are the transformer options of the run in progress, by which other nodes replace attention.
    """

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def __call__(self, q_BSD: Tensor, k_BTD: Tensor, v_BTD: Tensor, num_heads: int) -> Tensor:
        return optimized_attention(q_BSD, k_BTD, v_BTD, num_heads, transformer_options=self.options)


COMPILE = (
    "torch_compile_kwargs"  # of a MODEL: what ComfyUI's TorchCompileModel hands to torch.compile
)
ATTENTION = "optimized_attention_override"  # ComfyUI's key of another attention
MULTIGPU = "multigpu"  # ComfyUI's key of a MODEL's copies


def ahead_of_use(patcher: Any) -> InOrder:
    """Return what goes through the blocks of a pass while ComfyUI copies the weights of the next to the device.

    Only ComfyUI's dynamic loading from 0.28 on can do that, of weights that it keeps in main memory.
    """
    if model_prefetch is None or not patcher.is_dynamic():
        return iter
    device = patcher.load_device

    def in_order(blocks: torch.nn.ModuleList) -> Iterator[torch.nn.Module]:
        options = {"prefetch_dynamic_vbars": True}
        queue = model_prefetch.make_prefetch_queue(list(blocks), device, options)
        for block in blocks:
            model_prefetch.prefetch_queue_pop(queue, device, block)
            yield block
        model_prefetch.prefetch_queue_pop(queue, device, None)

    return in_order


def in_order_of(patcher: Any) -> InOrder:
    """Return what goes through the blocks of a pass of a MODEL."""
    in_order, options = ahead_of_use(patcher), patcher.model_options.get(COMPILE)
    return in_order if options is None else Compiled(in_order, options)


def copies_of(patcher: Any) -> list[Any]:
    """Return the MODEL on other devices, where ComfyUI's MultiGPU CFG Split has put it there, as it is patched now."""
    if not patcher.get_additional_models_with_key(MULTIGPU):
        return []
    patcher.match_multigpu_clones()
    return patcher.get_additional_models_with_key(MULTIGPU)


def changes_of(patcher: Any) -> tuple[Any, ...]:
    """Return what tells apart how other nodes changed the time of a pass: by weights, the compiler, attention.

    It refers to none of them: an attention may hold the model, which would then never be freed.
    """
    options = patcher.model_options
    attention = options.get("transformer_options", {}).get(ATTENTION)
    return getattr(patcher, "patches_uuid", None), COMPILE in options, id(attention)


class NodeText:
    """What the running node says of itself on the page: a line that changes, and below it those that stay.

    A node shows two lines or three before one must scroll: what is newest comes first.
    """

    def __init__(self) -> None:
        self.kept: list[str] = []

    def keep(self, lines: Iterable[str]) -> None:
        """Show lines for the rest of the run."""
        self.kept = [*lines, *self.kept]
        if self.kept:
            show_on_node("\n".join(self.kept))

    def warn(self, node: str, line: str) -> None:
        """Show a line for the rest of the run, and write it to the log behind the name of the node."""
        self.keep([line])
        logging.warning("%s: %s", node, line)

    def show(self, line: str) -> None:
        """Show a line in place of the one before."""
        show_on_node("\n".join([line, *self.kept]))


def show_on_node(text: str) -> None:
    """Show a text on the node that ComfyUI runs now; nothing outside of a server."""
    context = get_executing_context()
    if context is None:
        return
    from server import PromptServer  # it is there while a prompt runs

    PromptServer.instance.send_progress_text(text, context.node_id)


@contextlib.contextmanager
def advice_on_memory(advice: str) -> Iterator[None]:
    """Add `advice` to an out-of-memory error; ComfyUI still sees it as one."""
    try:
        yield
    except Exception as error:
        if not mm.is_oom(error):
            raise
        raise mm.OOM_EXCEPTION(f"Out of memory. {advice} ({error})") from error
