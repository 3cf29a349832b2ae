"""The translations of the nodes are complete: a node or an input without one fails here.

English is what the schemas say, so it has no file.
"""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first

from __future__ import annotations

import json
from pathlib import Path

import comfy_stubs
import pytest

comfy_stubs.install()
from shortcut_pack.nodes import NODES, folders

LOCALES = sorted((Path(__file__).resolve().parents[1] / "locales").glob("*/nodeDefs.json"))


def test_there_is_chinese():
    assert "zh" in [path.parent.name for path in LOCALES]


@pytest.mark.parametrize("path", LOCALES, ids=lambda path: path.parent.name)
def test_each_node_and_each_socket_has_a_name_and_a_tooltip(path):
    folders.register_folders()
    schemas = {schema.node_id: schema for schema in (node.define_schema() for node in NODES)}
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found.keys() == schemas.keys()
    for node_id, schema in schemas.items():
        texts = found[node_id]
        assert texts["display_name"] and texts["description"]
        assert list(texts["inputs"]) == [item.id for item in schema.inputs], node_id
        assert list(texts["outputs"]) == [str(i) for i in range(len(schema.outputs))], node_id
        for item in (*texts["inputs"].values(), *texts["outputs"].values()):
            assert item["name"] and item["tooltip"], (node_id, item)
