"""What the nodes say of themselves: translations are complete, tooltips short, help pages made for a narrow panel.

English is what the schemas say, so it has no file.
"""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import comfy_stubs
import node_interface
import pytest

comfy_stubs.install()
from shortcut_pack.nodes import NODES, folders

ROOT = Path(__file__).resolve().parents[1]
LOCALES = sorted((ROOT / "locales").glob("*/nodeDefs.json"))
PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))
# Of a tooltip, which ComfyUI shows in a small box; what does not fit is for the help page.
MOST_WORDS, MOST_CHARACTERS = 30, 80
MOST_IN_A_BLOCK = 50  # words of a paragraph or an item in the help panel, 265 pixels wide: 8 lines


def test_there_is_chinese():
    assert "zh" in [path.parent.name for path in LOCALES]


@pytest.mark.parametrize("path", LOCALES, ids=lambda path: path.parent.name)
def test_each_node_and_each_socket_has_a_name_and_a_tooltip(path):
    folders.register_folders()
    interface = node_interface.current(NODES)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found.keys() == interface.keys()
    for node_id, node in interface.items():
        texts = found[node_id]
        inputs = node_interface.expanded(node["inputs"], {"preset": "custom"})
        assert texts["display_name"] and texts["description"]
        # The page looks for "preset.steps" under "preset_steps".
        assert list(texts["inputs"]) == [name.replace(".", "_") for name, _ in inputs], node_id
        assert list(texts["outputs"]) == [str(i) for i in range(len(node["outputs"]))], node_id
        for item in (*texts["inputs"].values(), *texts["outputs"].values()):
            assert item["name"] and item["tooltip"], (node_id, item)
            assert len(item["tooltip"]) <= MOST_CHARACTERS, (node_id, item)


def heads():
    """The heads of errors that help pages explain; ... stands for anything."""
    found = set()
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").partition("## Messages")[2].splitlines():
            found.update(re.findall(r"\*([^*]+)\*(?=[,: ])", line.partition("*: ")[0] + "*:"))
    return found


def said():
    """The texts in the source, as patterns: what is filled in may be anything."""
    for path in (*(ROOT / "nodes").rglob("*.py"), *(ROOT / "shortcut").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(p.value if isinstance(p, ast.Constant) else "#" for p in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.mark.parametrize("head", sorted(heads()))
def test_an_error_that_a_help_page_explains_is_one_that_is_raised(head):
    pattern = re.compile(".*?".join(re.escape(part.strip()) for part in head.split("...")))
    assert any(pattern.search(text) for text in said())


@pytest.mark.parametrize("path", LOCALES, ids=lambda path: path.parent.name)
def test_each_head_of_an_error_is_translated(path):
    found = json.loads(path.with_name("main.json").read_text(encoding="utf-8"))
    assert found["shortcutErrors"].keys() == heads()
    assert all(found["shortcutErrors"].values())


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_a_tooltip_has_at_most_30_words(node):
    folders.register_folders()
    schema = node.define_schema()
    for item in (*schema.inputs, *schema.outputs):
        assert item.tooltip and len(item.tooltip.split()) <= MOST_WORDS, (item.id, item.tooltip)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_help_page_reads_well_in_a_narrow_panel(page):
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r"^!\[.+\]\((.+)\)$", text, re.MULTILINE)
    assert pictures and all((page.parent / name).is_file() for name in pictures)
    for line in text.splitlines():
        assert not line.startswith("|"), "a table is cut off"
        assert len(line.split()) <= MOST_IN_A_BLOCK, line
