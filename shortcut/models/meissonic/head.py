"""The file of a shortcut head of Meissonic. None is published: each was trained here."""

from __future__ import annotations

from ..token_head import layout_of

LAYOUT = layout_of("meissonic-head", "Meissonic shortcut head")
