"""Accelerators by name, as users choose them."""

from __future__ import annotations

from functools import partial

from ..models.architecture import HeadNetwork
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
