"""Workflows saved by earlier commits still open, with the same meaning.

old_workflows.json: our nodes of templates as they were, by commit. `means` is what their widgets stood for then.
The page finds widgets by position, sockets by name and the ends of links by position.
"""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first
# ruff: noqa: F811 - fixtures are imported and then named as arguments

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import comfy_stubs
import node_interface
import pytest
import torch

comfy_stubs.install()
from shortcut_pack.nodes import NODES, folders
from shortcut_pack.nodes.sample import FlatMaskedSampler, MaskedSampler
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


@pytest.fixture(scope="module")
def interface():
    folders.register_folders()
    return node_interface.current(NODES)


@pytest.mark.parametrize("node", SAVED)
def test_widgets_and_sockets_are_where_they_were(node, interface):
    now = interface[node["type"]]
    assert widget_values(node) == node["means"]
    inputs = dict(node_interface.expanded(now["inputs"], node["means"]))
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
    FlatMaskedSampler.execute(**sockets, **means)
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
    assert settings.order == "confidence"


def test_the_sampler_that_took_over_does_the_same(model, head):
    sockets = {"model": model, "positive": cond(model), "latent_image": empty(), "head": head}
    read = {"seed": 3, "denoise": 1.0}
    decided = {"steps": 5, "full_steps": 2, "cfg": 1.5, "cfg_ramp": True, "schedule": "cosine"}
    decided |= {"temperature": 0.9, "choice_temperature": 3.0}
    for preset, values in (("custom", decided), ("fast", {})):
        old = FlatMaskedSampler.execute(**sockets, **read, **decided, preset=preset)
        given = {"preset": preset, **values}
        new = MaskedSampler.execute(**sockets, **read, preset=given)
        assert torch.equal(new.result[0]["samples"], old.result[0]["samples"])


def test_custom_without_a_value_is_as_usual_for_the_model(model, head, asked):
    """A prompt of the API may leave values out, and a subgraph that shows the preset has none."""
    sockets = {"model": model, "positive": cond(model), "latent_image": empty(), "head": head}
    for values in ({}, {"cfg": 1.5, "steps": 8}):
        given = {"preset": "custom", **values}
        MaskedSampler.execute(**sockets, seed=3, denoise=1.0, preset=given)
    usual, changed = (call.settings for call in asked)
    assert (usual.num_steps, usual.full_steps, usual.schedule) == (64, 11, "lumina")
    assert changed == replace(usual, num_steps=8, full_steps=1, guidance=(1.5,))


def test_a_preset_that_there_is_not_is_refused_with_those_that_there_are(model):
    """ComfyUI hands over no DynamicCombo at all if the prompt has none of its options."""
    sockets = {"model": model, "positive": cond(model), "latent_image": empty()}
    with pytest.raises(ValueError, match=r"one of quality, .* and custom\. Choose one\."):
        MaskedSampler.execute(**sockets, seed=3, denoise=1.0)
