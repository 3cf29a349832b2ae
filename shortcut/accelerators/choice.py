"""Accelerators by name, as users choose them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..denoiser import PartialModel
from ..models.architecture import GridModel, HeadNetwork
from . import MakeAccelerator
from .partial import Partial
from .reuse import Reuse
from .shortcut_head import ShortcutHead

HEAD = "head"
TRAINING_FREE: dict[str, MakeAccelerator] = {
    "reuse": lambda model, conditions: Reuse(),
    "partial": Partial,
    "partial+neighbours": partial(Partial, with_neighbours=True),
}
NAMES = (HEAD, *TRAINING_FREE)
KEEPING = ("partial", "partial+neighbours")


def kept_bytes(
    name: str | None, model: GridModel, num_images: int, lengths: Sequence[int]
) -> float:
    """Return the memory of what full passes keep for the accelerator called `name`.

    Args:
        lengths: sequence length of each guidance branch.
    """
    if name not in KEEPING or not isinstance(model, PartialModel):
        return 0.0
    return model.kept_bytes(num_images, lengths)


def named(name: str, head: HeadNetwork | None) -> MakeAccelerator:
    """Return what makes the accelerator called `name`.

    Raises:
        ValueError: there is none of that name, or it needs a head and there is none.
    """
    if name in TRAINING_FREE:
        return TRAINING_FREE[name]
    if name != HEAD:
        raise ValueError(f"accelerator must be one of {', '.join(NAMES)}, got {name!r}.")
    if head is None:
        raise ValueError(
            f"the accelerator {HEAD} needs a shortcut head. Give a head, or choose partial."
        )
    return partial(ShortcutHead, head)
