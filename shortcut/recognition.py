"""Which layout a file has: by its metadata, by our names, or by published keys, wrapped or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from . import models
from .files import FORMAT_KEY, METADATA_PREFIX
from .guard import SHOWN
from .models.layout import Kind, Layout, first_five, own_names, recognise
from .unwrap import unwrapped

VERSION_KEY = METADATA_PREFIX + "version"
VERSION = "1"  # raised when an older reader would misread a newer file


def by_published_keys(
    raw: Mapping[str, Any], path: Path | None
) -> tuple[Layout, dict[str, Tensor], list[str]]:
    """Return (layout, tensors under our names, unknown keys)."""
    layouts = models.layouts()
    recognised = recognise(layouts, raw, path)
    if recognised is None:
        raise ValueError(
            f"it is no {' or '.join(layout.title for layout in layouts)}. Its {len(raw)} entries: {first_five(raw)}. "
            "Choose another file."
        )
    return recognised


def bare(
    raw: Mapping[str, Any], metadata: Mapping[str, str], kind: Kind | None
) -> Mapping[str, Any]:
    """Return the tensors of a network under its own keys: of the wanted kind, else of any."""
    if FORMAT_KEY in metadata:
        return unwrapped(raw, [our_layout(metadata)])
    found = unwrapped(raw, models.layouts(kind))
    return unwrapped(raw, models.layouts()) if found is raw else found


def by_own_names(tensors: Mapping[str, Any]) -> Layout | None:
    """Return the layout whose names, as ours, a file without metadata has."""
    found = (layout for layout in models.layouts() if own_names(layout) != layout.marks)
    return next((layout for layout in found if tensors.keys() >= set(own_names(layout))), None)


def our_layout(metadata: Mapping[str, str]) -> Layout:
    """Return the layout that one of our files says it has."""
    layouts = {layout.name: layout for layout in models.layouts()}
    name, version = metadata[FORMAT_KEY], metadata.get(VERSION_KEY)
    if name not in layouts or version != VERSION:
        raise ValueError(
            f"it has format {name[:80]!r} version {(version or 'none')[:SHOWN]}, expected version {VERSION} of "
            f"{', '.join(layouts)}. If a newer version of this project wrote it, update."
        )
    return layouts[name]
