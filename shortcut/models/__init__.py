"""The list of architectures: one line each."""

from __future__ import annotations

from collections.abc import Sequence

from . import amused, lumina_dimoo, maskgit, meissonic
from .architecture import Architecture
from .layout import Kind, Layout

ARCHITECTURES: list[Architecture] = [
    maskgit.ARCHITECTURE,
    lumina_dimoo.ARCHITECTURE,
    lumina_dimoo.MMADA_PARALLEL_A,
    amused.ARCHITECTURE,
    meissonic.ARCHITECTURE,
]


def layouts(kind: Kind | None = None) -> list[Layout]:
    """Return the layouts of all files of a kind; None = of all kinds."""
    found: dict[str, Layout] = {}
    for architecture in ARCHITECTURES:
        for layout in (architecture.model, *architecture.vqs, architecture.head):
            if layout is not None and kind in (None, layout.kind):
                found[layout.name] = layout
    return list(found.values())


def architecture_of(layout: Layout) -> Architecture:
    """Return the architecture that a model or a head of this layout belongs to."""
    return next(a for a in ARCHITECTURES if layout in (a.model, a.head))


def tasks() -> Sequence[str]:
    """Return the tasks that some architecture makes an image alone for."""
    return list(dict.fromkeys(task for a in ARCHITECTURES for task in a.tasks))


def text_tasks() -> Sequence[str]:
    """Return the tasks whose answer has a text, for some architecture."""
    rules = (a.text for a in ARCHITECTURES if a.text is not None)
    return list(dict.fromkeys(task for text in rules for task in text.tasks))
