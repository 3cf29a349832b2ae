"""MIGM-Shortcut for ComfyUI. The nodes are in nodes/; shortcut/ does the work and knows no ComfyUI."""

from __future__ import annotations

import logging
from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """The extension with all nodes.

    Imports happen here, so that tests can import this package without ComfyUI.
    """
    try:
        from .nodes import ShortcutExtension
    except Exception:
        # ComfyUI logs what an entry point raises in one line, without its traceback.
        logging.exception("The nodes of %s cannot be loaded.", __file__)
        raise
    return ShortcutExtension()
