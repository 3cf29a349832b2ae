"""What of a node must never change, because saved workflows hold it: read from the schemas, or from the frozen file.

python -m pytest tests/test_nodes.py      compares both
node_interface.json                       is written by hand or from `current()`, and only ever grows
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")
WIDGET_KEYS = ("default", "min", "max", "step", "options", "control_after_generate", "advanced")


def frozen() -> dict[str, Any]:
    """The interface that users' workflows rely on."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def current(nodes: list[Any]) -> dict[str, Any]:
    """The interface of node classes as they are."""
    return {schema.node_id: _describe(schema) for schema in (n.define_schema() for n in nodes)}


def _describe(schema: Any) -> dict[str, Any]:
    return {
        "display_name": schema.display_name,
        "category": schema.category,
        "inputs": [_input(item) for item in schema.inputs],
        "outputs": [
            {"id": item.id, "type": item.get_io_type(), "name": item.display_name}
            for item in schema.outputs
        ],
    }


def _input(item: Any) -> dict[str, Any]:
    options = item.as_dict()
    found = {"id": item.id, "type": item.get_io_type(), "optional": bool(item.optional)}
    return found | {key: options[key] for key in WIDGET_KEYS if options.get(key) is not None}
