"""How many floating point operations a run takes, counted without running it.

The networks are rebuilt on torch's meta device and every step of the plan goes through the same
`Denoiser` as in a run, so the real weights are neither touched nor needed. Counted are matrix
products, convolutions and attention, two operations for each multiply-add. All else, such as norms,
softmax and the choice of tokens, is counted apart: one operation for each element written.

Source: torch.utils.flop_counter. It does not see the CPU's fused attention; on the meta device
attention falls apart into matrix products, which it counts.

    B  images    L  image tokens    N  tokens still masked    K  tokens revealed by the step before
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from .accelerators.shortcut_head import ShortcutPredictor
from .denoiser import Denoiser, Features, Revealed
from .generate import PredictorOf
from .models.layout import Bare
from .noise import Noise
from .sampler import confidence, draw_codes
from .schedule import Settings, plan


@dataclass(frozen=True, slots=True)
class Operations:
    """Floating point operations of a run, by part."""

    full: int  # all full passes of the model, every guidance branch
    head: int  # all passes of the shortcut head, every guidance branch
    logits: int  # features to logits in all steps
    rest: int  # elements written by all that is no multiply-add

    @property
    def total(self) -> int:
        """Multiply-adds of the whole run, two operations each."""
        return self.full + self.head + self.logits


@torch.no_grad()
def count_operations(
    network: Any,
    head: Any | None,
    settings: Settings,
    conditions: Sequence[Tensor],
    grid: tuple[int, int],
    *,
    num_to_make: int | None = None,
    predictor: PredictorOf | None = None,
) -> Operations:
    """Operations of a run.

    Args:
        network: a model; only its type and `config` are looked at.
        head: its shortcut head, likewise, or None.
        conditions: of the run, one for each guidance branch; only their shapes matter. Rows = images.
        grid: rows and columns of the images' codes.
        num_to_make: tokens to make in each image; None = all.
        predictor: answers the other steps where there is no head; None = all are full passes.

    Raises:
        ValueError: a setting is out of range, or the model does not make images of that size.
    """
    model, head = _on_meta(network).on_grid(*grid), head and _on_meta(head)
    conditions = [condition.to("meta") for condition in conditions]
    num_images, num_tokens = len(conditions[0]), grid[0] * grid[1]
    steps = plan(settings, num_tokens if num_to_make is None else num_to_make, num_tokens)
    codes_BL, revealed = _ids(num_images, num_tokens), None
    with _Elements() as written_by_full, FlopCounterMode(display=False) as counter:
        features = model.features(codes_BL, codes_BL.bool(), conditions)
    per_full, passes = counter.get_total_flops(), _FullPasses(model, features)
    if head is not None:
        predictor = partial(ShortcutPredictor, head)
    denoiser = Denoiser(passes, conditions, predictor and predictor(model, conditions))
    noise = Noise(*torch.zeros(2, len(steps), num_images, num_tokens, device="meta").unbind())
    with _Elements() as written, FlopCounterMode(display=False) as counter:
        for step in steps:
            index_BN = _ids(num_images, step.num_masked)
            denoised = denoiser(step, codes_BL, codes_BL.bool(), index_BN, revealed)
            drawn_BN = draw_codes(denoised.logits_BNV, step, index_BN, noise)
            confidence(denoised.logits_BNV, drawn_BN, step, index_BN, noise)
            ids_BK = _ids(num_images, step.num_revealed)
            revealed = Revealed(ids_BK, ids_BK)
    in_head = sum(counter.get_flop_counts().get(type(head).__name__, {}).values())
    return Operations(
        full=passes.count * per_full,
        head=in_head,
        logits=counter.get_total_flops() - in_head,
        rest=passes.count * written_by_full.count + written.count,
    )


class _FullPasses:
    """A model that counts its full passes instead of making them: they are all alike."""

    def __init__(self, model: Any, features: Features):
        self.logits, self.image_places, self.grid = model.logits, model.image_places, model.grid
        self.known, self.count = features, 0

    def features(
        self, codes_BL: Tensor, is_masked_BL: Tensor, conditions: Sequence[Any]
    ) -> Features:
        self.count += 1
        return self.known


class _Elements(TorchDispatchMode):
    """Adds up the elements that operations write, but for multiply-adds and views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        aliases = [returned.alias_info for returned in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if func.overloadpacket not in flop_registry and not is_view:
            self.count += sum(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor))
        return out


def _on_meta(network: Any) -> Any:
    """A network of the same type and configuration that has shapes but no values."""
    return type(network)(network.config, device="meta", operations=Bare)


def _ids(num_images: int, count: int) -> Tensor:
    return torch.zeros(num_images, count, dtype=torch.long, device="meta")
