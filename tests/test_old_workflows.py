"""Workflows saved by earlier commits still open, with the same meaning.

old_workflows.json: our nodes of templates as they were, by commit. `means` is what their widgets stood for then.
The page finds widgets by position, sockets by name and the ends of links by position.
"""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first
# ruff: noqa: F811 - fixtures are imported and then named as arguments

from __future__ import annotations

import json
import re
from pathlib import Path

import comfy_stubs
import node_interface
import pytest

comfy_stubs.install()
from shortcut_pack.nodes import NODES, folders
from shortcut_pack.nodes.sample import MaskedSampler
from test_workflows import PUBLISHED, check_value, widget_values
from text_nodes import asked, class_model, cond, conditioner, empty, head, model  # noqa: F401

FILE = Path(__file__).with_name("old_workflows.json")
SAVED = [
    pytest.param(node, id=f"{saved['commit']}-{saved['file']}-{node['type']}")
    for saved in json.loads(FILE.read_text(encoding="utf-8"))
    for node in saved["nodes"]
]
SAMPLERS = [
    pytest.param(*p.values, id=p.id)
    for p in SAVED
    if p.values[0]["type"] == "ShortcutMaskedSampler"
]
SCRIPT = Path(__file__).parents[1] / "web" / "preset.js"


@pytest.fixture(scope="module")
def interface():
    folders.register_folders()
    return node_interface.current(NODES)


@pytest.mark.parametrize("node", SAVED)
def test_widgets_and_sockets_are_where_they_were(node, interface):
    now = interface[node["type"]]
    assert widget_values(node) == node["means"]
    inputs = {item["id"]: item for item in now["inputs"]}
    for name, kind in node["inputs"]:
        assert inputs[name]["type"] == kind
    assert [item["type"] for item in now["outputs"]][: len(node["outputs"])] == node["outputs"]
    for name, value in node["means"].items():
        check_value(inputs[name], value, PUBLISHED)
    new = [item for name, item in inputs.items() if name not in node["means"]]
    assert all(item["optional"] for item in new if "default" in item)


@pytest.mark.parametrize("node", SAMPLERS)
def test_a_sampler_runs_as_it_did(node, model, head, asked):
    means = node["means"]
    sockets = {"model": model, "positive": cond(model), "latent_image": empty(), "head": head}
    MaskedSampler.execute(**sockets, **means)
    (call,) = asked
    settings = call.settings
    if means.get("preset", "custom") == "quality":
        assert (settings.num_steps, settings.full_steps) == (64, 14)
        return
    found = (settings.num_steps, settings.full_steps, settings.guidance_ramp, settings.schedule)
    assert found == tuple(means[k] for k in ("steps", "full_steps", "cfg_ramp", "schedule"))
    assert settings.guidance == (means["cfg"],)
    assert settings.temperature == means["temperature"]
    assert settings.choice_temperature == means["choice_temperature"]
    assert (settings.spread, settings.order) == (means.get("spread", 0), "confidence")


def test_the_page_greys_out_what_a_preset_decides(interface):
    """The script leaves alone exactly what a preset does not read."""
    text = SCRIPT.read_text(encoding="utf-8")
    constants = dict(re.findall(r'^const (\w+) = "(\w+)";$', text, re.MULTILINE))
    sampler = interface[constants["NODE"]]
    options = {item["id"]: item for item in sampler["inputs"]}
    assert options[constants["PRESET"]]["default"] == constants["CUSTOM"]
    (listed,) = re.findall(r"^const READ = \[PRESET, (.+)\];", text, re.MULTILINE)
    read = set(re.findall(r'"(\w+)"', listed)) - {"control_after_generate"}
    assert read == {"seed", "denoise"} and read < options.keys()
