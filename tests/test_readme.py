"""The front page keeps its promises: its commands, its example, its links and its messages are real."""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
HELP = sorted((ROOT / "web" / "docs").glob("*.md"))
MAX_LINES = 200
MAX_ROWS = 8


class Parsed(Exception):
    """Ends a command once its options are accepted."""


def blocks(text: str, language: str = "") -> list[str]:
    """Return the fenced blocks of one language."""
    fence = "```" + language
    return [
        block.removeprefix(fence + "\n").removesuffix("```")
        for block in re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)
        if block.startswith(fence + "\n")
    ]


def commands(page: Path) -> list[str]:
    """Return the `python -m shortcut` commands of a page, continued lines joined."""
    text = "\n".join(blocks(page.read_text(encoding="utf-8"))).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith("python -m shortcut ")]


def test_the_front_page_is_short():
    assert len(README.splitlines()) <= MAX_LINES
    tables = re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE)
    assert tables and max(len(table.splitlines()) - 2 for table in tables) <= MAX_ROWS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_address_is_filled_in_everywhere(page):
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (address,) = re.findall(r'^Repository = "(https://\S+)"$', project, re.MULTILINE)
    for name in re.findall(r"/main/(docs/\w+\.png)", project):
        assert (ROOT / name).exists()
    assert set(re.findall(r"github(?:usercontent)?\.com/(\w+)/", project)) == {
        address.split("/")[3]
    }
    text = page.read_text(encoding="utf-8")
    assert "<this " + "repository>" not in text
    clones = re.findall(r"^git clone (\S+)", text, re.MULTILINE)
    assert all(clone == address for clone in clones)
    assert clones or page.name != "README.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [link for link in links if link and "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_pages_that_the_code_names_are_there():
    """Sources of facts among them."""
    sources = [path for folder in ("shortcut", "nodes") for path in (ROOT / folder).rglob("*.py")]
    named = {}
    for path in sources:
        for name in re.findall(
            r"[a-z]\w*/[\w/]*\w\.md\b|\bRESULTS\.md", path.read_text(encoding="utf-8")
        ):
            named.setdefault(name, path)
    assert "tests/golden/README.md" in named
    for name, path in named.items():
        assert any((folder / name).is_file() for folder in (ROOT, path.parent)), (name, path)


def test_pictures_come_with_the_pack():
    left_out = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert not any(fnmatch(picture, rule + "*") for rule in left_out), picture


@pytest.mark.parametrize("name", ["scenes", "side_by_side", "text"])
def test_pictures_of_the_model_open_as_a_template_when_dropped_on_the_page(name):
    with Image.open(ROOT / "docs" / f"{name}.png") as picture:
        found = json.loads(picture.text["workflow"])["id"]
    templates = [json.loads(path.read_text("utf-8")) for path in ROOT.glob("workflows/*.json")]
    assert found in [template["id"] for template in templates]


@pytest.mark.parametrize("page", HELP, ids=lambda page: page.stem)
def test_help_pages_are_lists_with_a_picture(page):
    """The panel is 265 pixels wide: tables do not fit."""
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"^\|", text, re.MULTILINE)
    pictures = re.findall(r"^!\[[^]]+\]\((\w+\.png)\)$", text, re.MULTILINE)
    assert pictures and all((page.parent / picture).exists() for picture in pictures)


def test_the_two_commands_are_there_once():
    lines = [line for line in README.splitlines() if line.startswith("python run.py ")]
    assert lines == ["python run.py picture", "python run.py test"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_options_that_exist(page, monkeypatch):
    from shortcut_pack.shortcut.__main__ import main

    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser, arguments=None, namespace=None):
        parse(parser, arguments, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    for command in commands(page):
        with pytest.raises(Parsed):
            main(shlex.split(command)[3:])


def test_the_example_runs(tmp_path):
    (example,) = blocks(README, "python")
    assert len(example.splitlines()) <= 10
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == 2
    assert pictures[0].read_bytes() != pictures[1].read_bytes()


def test_messages_are_those_of_the_code():
    section = README.partition("## Troubleshooting")[2].partition("\n## ")[0]
    messages = re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)
    assert len(messages) == 8
    texts = source_texts()
    for message in messages:
        parts = [part.strip() for part in message.replace("'cuda'", "...").split("...")]
        assert any(all(part in text for part in parts) for text in texts), message


def source_texts() -> list[str]:
    """Return all string literals of the pack; values in f-strings become `...`."""
    files = [
        ROOT / "__init__.py",
        *(ROOT / "nodes").rglob("*.py"),
        *(ROOT / "shortcut").rglob("*.py"),
    ]
    texts = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "..." for p in node.values]
                texts.append("".join(map(str, parts)))
    return texts


def test_requirements_are_stated_alike():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (stated,) = re.findall(r"^dependencies = (\[.*\])$", project, re.MULTILINE)
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert requirements == ast.literal_eval(stated)
    assert not any(line.startswith("torch") for line in requirements), "ComfyUI has its own"
