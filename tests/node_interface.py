"""What of a node must never change, because saved workflows hold it: read from the schemas, or from the frozen file.

python -m pytest tests/test_nodes.py      compares both
node_interface.json                       is written by hand or from `current()`, and only ever grows
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")
WIDGET_KEYS = ("default", "min", "max", "step", "options", "control_after_generate", "advanced")
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"  # each choice brings inputs of its own


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
    return _described(item.id, item.get_io_type(), bool(item.optional), item.as_dict())


def _described(id: str, io_type: str, is_optional: bool, given: dict[str, Any]) -> dict[str, Any]:
    found = {"id": id, "type": io_type, "optional": is_optional}
    found |= {key: given[key] for key in WIDGET_KEYS if given.get(key) is not None}
    if io_type == DYNAMIC_COMBO:
        found["options"] = {
            option["key"]: [
                _described(name, its_type, group == "optional", its_options)
                for group, inputs in option["inputs"].items()
                for name, (its_type, its_options) in inputs.items()
            ]
            for option in given["options"]
        }
    return found


def expanded(
    inputs: Iterable[dict[str, Any]], values: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Inputs with those that the chosen options bring, by the names that graphs hold them under.

    `values` is asked for a choice after that input was yielded.
    """
    for item in inputs:
        name = prefix + item["id"]
        yield name, item
        if item["type"] == DYNAMIC_COMBO:
            yield from expanded(item["options"][values[name]], values, f"{name}.")
