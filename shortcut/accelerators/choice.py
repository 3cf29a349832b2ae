"""Accelerators by name, as users choose them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from ..denoiser import Accelerator, Conditions, MaskedImageModel, PartialModel
from ..models.architecture import GridModel, HeadNetwork
from . import MakeAccelerator, ml_cache
from .partial import Partial
from .reuse import Reuse
from .shortcut_head import ShortcutHead
from .taylor import Taylor

HEAD, PARTIAL = "head", "partial"
WITH_HEAD = (HEAD, "partial+head", "partial+head+neighbours")
ML_CACHE = "ml-cache"
KEEPING = (PARTIAL, "partial+neighbours", *WITH_HEAD[1:], ML_CACHE)  # keys and values
FLOAT8 = "+float8"  # behind one of those: kept in half of bfloat16's memory
NAMES = (HEAD, "reuse", "taylor", *KEEPING, *(name + FLOAT8 for name in KEEPING))


def named(name: str, head: HeadNetwork | None) -> MakeAccelerator:
    """Return what makes the accelerator called `name`. Raises ValueError as `check`."""
    check(name, has_head=head is not None)
    return partial(_made, name, head if needs_head(name) else None)


def check(name: str, *, has_head: bool) -> None:
    """Raise ValueError if there is no accelerator called `name`, or it needs a head and there is none."""
    if name not in NAMES:
        known = ", ".join(NAMES[: -len(KEEPING)])
        raise ValueError(
            f"accelerator must be one of {known}, those with partial or cache in their names also with {FLOAT8} "
            f"behind, got {name!r}."
        )
    if needs_head(name) and not has_head:
        raise ValueError(
            f"the accelerator {name} needs a shortcut head. Give a head, or choose {PARTIAL}."
        )


def needs_head(name: str | None) -> bool:
    """Return whether the accelerator called `name` asks a shortcut head."""
    return name is not None and name.removesuffix(FLOAT8) in WITH_HEAD


def keeps(name: str | None) -> bool:
    """Return whether full passes keep keys and values for the accelerator called `name`."""
    return name is not None and name.removesuffix(FLOAT8) in KEEPING


def own_full_steps(name: str, num_steps: int) -> tuple[int, ...] | None:
    """Return the full passes that the accelerator called `name` has by its own rule; None = it has none."""
    is_ruled = name.removesuffix(FLOAT8) == ML_CACHE
    return ml_cache.own_full_steps(num_steps) if is_ruled else None


def run_bytes(
    name: str | None,
    model: GridModel,
    head: HeadNetwork | None,
    num_images: int,
    lengths: Sequence[int],
    *,
    is_sequential: bool = False,
) -> float:
    """Return the memory of a run above the weights: of a pass of the model or the head, and of what is kept.

    Args:
        name: of the accelerator; None = vanilla.
        lengths: sequence length of each guidance branch.
        is_sequential: True: one guidance branch at a time.
    """
    of_head = head_bytes(name, head, num_images, lengths, is_sequential=is_sequential)
    a_pass = max(model.activation_bytes(num_images, lengths), of_head)
    return a_pass + kept_bytes(name, model, num_images, lengths)


def kept_bytes(
    name: str | None, model: GridModel, num_images: int, lengths: Sequence[int]
) -> float:
    """Return the memory of what full passes keep for the accelerator called `name`.

    ML-Cache keeps it of every guidance branch, partial passes of the first.

    Args:
        lengths: sequence length of each guidance branch.
    """
    if name is None or not keeps(name) or not isinstance(model, PartialModel):
        return 0.0
    if name.removesuffix(FLOAT8) != ML_CACHE:
        lengths = lengths[:1]
    return model.kept_bytes(num_images, lengths, _kept_dtype(name))


def head_bytes(
    name: str | None,
    head: HeadNetwork | None,
    num_images: int,
    lengths: Sequence[int],
    *,
    is_sequential: bool = False,
) -> float:
    """Return the memory of a pass of the head above its weights, features of the model among it; 0 = none is asked.

    The factors are what `python -m shortcut cost` finds alive at the peak.

    Args:
        name: of the accelerator.
        lengths: as for `kept_bytes`.
        is_sequential: True: one guidance branch at a time.
    """
    if head is None or not needs_head(name):
        return 0.0
    # Those of the last full pass and of the step before, what is new in them, and the prediction.
    features = 4 * head.config.model_width * sum(lengths)
    at_once = max(lengths) if is_sequential else sum(lengths)
    values = features + head.pass_values_per_position() * at_once
    return float(num_images * values * head.dtype.itemsize)


def _kept_dtype(name: str) -> torch.dtype | None:
    return torch.float8_e4m3fn if name.endswith(FLOAT8) else None


def _made(
    name: str,
    head: HeadNetwork | None,
    model: MaskedImageModel,
    conditions: Sequence[Conditions],
) -> Accelerator:
    """Make the accelerator of a run."""
    kind, *options = name.removesuffix(FLOAT8).split("+")
    asked = None if head is None else ShortcutHead(head, model, conditions)
    if asked is not None and kind == HEAD:
        return asked
    if kind == "reuse":
        return Reuse()
    if kind == "taylor":
        return Taylor()
    kept_dtype = _kept_dtype(name)
    if kind == ML_CACHE:
        return ml_cache.MLCache(model, conditions, kept_dtype=kept_dtype)
    return Partial(
        model,
        conditions,
        where=asked,
        with_neighbours="neighbours" in options,
        kept_dtype=kept_dtype,
    )
