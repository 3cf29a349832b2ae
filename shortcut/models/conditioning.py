"""Checks of ComfyUI's CONDITIONING that every conditioner makes. It is data: nothing here imports ComfyUI.

A condition here holds for the whole image, in every step, as strongly as its guidance says. What other nodes write
beside a condition asks for something else, and is refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from .architecture import Conditioning

# Nodes of ComfyUI that write an entry, as its menus name them.
WRITERS = {
    "area": "Conditioning (Set Area)",
    "strength": "Conditioning (Set Area Strength)",
    "mask": "Conditioning (Set Mask)",
    "mask_strength": "Conditioning (Set Mask)",
    "set_area_to_bounds": "Conditioning (Set Mask)",
    "start_percent": "ConditioningSetTimestepRange",
    "end_percent": "ConditioningSetTimestepRange",
    "clip_start_percent": "Set CLIP Hooks",
    "clip_end_percent": "Set CLIP Hooks",
    "hooks": "Cond Set Props",
    "default": "Cond Set Default Combine",
    "control": "Apply ControlNet",
    "control_apply_to_uncond": "Apply ControlNet",
    "cross_attn_controlnet": "CLIP Text Encode (Controlnet)",
    "pooled_output_controlnet": "CLIP Text Encode (Controlnet)",
    "gligen": "Apply GLIGEN Text Box",
    "guidance": "FluxGuidance",
    "unclip_conditioning": "unCLIPConditioning",
    "clip_vision_output": "a node of image prompts",
    "reference_latents": "ReferenceLatent",
    "reference_latents_method": "a node of reference images",
    "concat_latent_image": "InpaintModelConditioning",
    "concat_mask": "InpaintModelConditioning",
}
# Values by which an entry changes nothing, as an entry of None or False never does.
NEUTRAL = {"strength": 1, "mask_strength": 1, "start_percent": 0, "end_percent": 1}
# Entries that text encoders and conditioners write with every row. Whoever does not read them refuses the row.
ENCODED = frozenset({"pooled_output", "attention_mask"})
OURS = "shortcut_"  # begins the entries of conditioners here


def batch_of(
    conditioning: Conditioning, name: str, reads: Collection[str] = ()
) -> tuple[Tensor, dict[str, Any]]:
    """Return the batch of conditions that a CONDITIONING holds, one or one for each image, and its entries.

    Args:
        name: of the input, for messages.
        reads: entries that the conditioner reads.

    Raises:
        ValueError: it combines several or none, or an entry asks for what no conditioner can honour.
    """
    if len(conditioning) != 1:
        raise ValueError(
            f"{name} combines {len(conditioning)} conditions, expected one. Wire one directly."
        )
    rows, entries = conditioning[0]
    if asked := list(_not_honoured(entries, reads)):
        raise ValueError(
            f"{name} carries {', '.join(asked)}, which this model cannot follow: a condition holds for the whole "
            f"image, in every step. Take that node out, and wire the condition directly."
        )
    return rows, entries


def in_turn(num_rows: int, name: str, num_images: int) -> Tensor:
    """Return which condition of a batch each image takes: (images,), the first again after the last.

    Raises:
        ValueError: there are more conditions than images.
    """
    if not 1 <= num_rows <= num_images:
        raise ValueError(
            f"{name} holds {num_rows} conditions, one for each image, but latent_image holds {num_images}. Set "
            f"batch_size {num_rows} in Empty Latent Image, or wire one condition: a node that takes images out of a "
            "batch takes no conditions out."
        )
    return torch.arange(num_images) % num_rows


def _not_honoured(entries: dict[str, Any], reads: Collection[str]) -> Iterator[str]:
    for entry, value in entries.items():
        is_plain = isinstance(value, (bool, int, float))
        if value is None or (is_plain and value == NEUTRAL.get(entry, False)):
            continue
        if entry not in ENCODED and not entry.startswith(OURS) and entry not in reads:
            yield f"{entry} of {WRITERS.get(entry, 'another node')}"
