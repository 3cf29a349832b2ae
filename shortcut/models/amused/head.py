"""The file of a shortcut head of aMUSEd. None is published: each was trained here."""

from __future__ import annotations

from ..token_head import layout_of

LAYOUT = layout_of("amused-head", "aMUSEd shortcut head")
