"""The table of cards of the command `cost`: which weights and which accelerator fit a card's memory.

Counted, not measured: weights and what is kept by their sizes, runs and decoding as in the other tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from ..checkpoint import Checkpoint
from ..models.architecture import ModelNetwork
from ..models.layout import Layout
from ..quantized import TARGETS

CARDS = (6, 8, 10, 12, 16, 24)  # GiB
RESERVE = 2**30  # bytes of a card that the system, CUDA and a desktop take
EXACT = "bfloat16"
FORMATS = (EXACT, "int8_convrot", "nvfp4")  # the most exact first; the others are as large as these
GB = 1e9


@dataclass(frozen=True, slots=True)
class Need:
    """What an accelerator takes besides the model's weights, in bytes."""

    accelerator: str
    fixed: float  # its own weights and what it keeps
    run: float  # the peak of a run with the guidance branches at once
    run_in_turn: float  # and with one at a time


def cards_table(
    layout: Layout, model: ModelNetwork, needs: Iterable[Need], decoding: float
) -> Iterator[str]:
    """Yield a Markdown table: for each card and accelerator the most exact weights that fit.

    Args:
        layout, model: on the meta device, in bfloat16.
        decoding: bytes of the VQ model and of what it takes, once the model has left the card.
    """
    needs, weights = list(needs), format_bytes(layout, model)
    layer = layer_bytes(layout, model)
    most = weights[EXACT] + max(need.fixed + need.run for need in needs)
    if max(most, decoding) <= CARDS[0] * 2**30 - RESERVE:
        yield f"{EXACT} weights and any accelerator fit a card of {CARDS[0]} GB: {most / GB:.1f} GB while sampling."
        return
    yield "| card, GB | accelerator | weights | branches | sampling, GB | decoding, GB | in main memory, GB |"
    yield f"|--:|---|---|---|{3 * '--:|'}"
    for card in CARDS:
        usable = card * 2**30 - RESERVE
        for need in needs:
            ways = [
                (
                    format,
                    how,
                    weights[format] + need.fixed + run + (0 if format == EXACT else layer),
                )
                for format in weights
                for how, run in (("at once", need.run), ("in turn", need.run_in_turn))
            ]
            format, how, total = next((way for way in ways if way[2] <= usable), ways[-1])
            figures = min(total, usable) / GB, decoding / GB, max(0.0, total - usable) / GB
            yield (
                f"| {card} | {need.accelerator} | {format} | {how} | "
                f"{' | '.join(f'{figure:.1f}' for figure in figures)} |"
            )
    yield (
        f"\n{RESERVE / GB:.1f} GB of a card are left free. Decoding: after the model has left the card, as in ComfyUI; "
        "the command line holds the VQ model beside it, and decodes on the CPU where there is no room. What has no "
        "room lies in main memory, and ComfyUI brings it as it is needed."
    )


def format_bytes(layout: Layout, model: ModelNetwork) -> dict[str, int]:
    """Return the bytes of the weights in each of FORMATS that the model can have."""
    checkpoint = Checkpoint(layout, model.config, model.state_dict(), "")
    targets = {EXACT: torch.bfloat16, **TARGETS}
    formats = FORMATS if layout.quantizable_weights(model.config) else (EXACT,)
    shapes = {name: checkpoint.shapes(targets[name]) for name in formats}
    return {name: sum(t.nbytes for t in tensors.values()) for name, tensors in shapes.items()}


def layer_bytes(layout: Layout, model: ModelNetwork) -> int:
    """Return the bytes of the largest layer that is quantized, in bfloat16: it exists so while it computes."""
    weights = layout.quantizable_weights(model.config).values()
    return 2 * max((shape.numel() for shape in weights), default=0)
