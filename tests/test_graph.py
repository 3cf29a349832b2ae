"""The graph in a PNG of the command line: the nodes take it, and make the same codes of it.

They run on stand-ins for ComfyUI, and on the real one if COMFY_DIR names its folder (see comfy_stubs.py).
"""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first
# ruff: noqa: F811 - fixtures are imported and then named as arguments

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import builders
import comfy_stubs
import node_interface
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

comfy_stubs.install()
from shortcut_pack.nodes import NODES
from shortcut_pack.shortcut import shipped
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.cli import graph
from test_workflows import WIDGETS, check_value
from text_nodes import files, put  # noqa: F401

INTERFACE = node_interface.frozen()
# Of ComfyUI's own nodes: the types of their outputs.
CORE = {"EmptyLatentImage": ["LATENT"], "VAEDecode": ["IMAGE"], "SaveImage": []}
PROMPT = ("--prompt", "a red house", "--width", "16", "--height", "24")


@pytest.fixture
def text(files):
    """The command line with a tiny text model in ComfyUI's folders: arguments -> (codes, graph or None)."""
    pytest.importorskip("transformers")
    model = put(files)
    fits = {"model_fingerprint": builders.text_model().fingerprint}
    builders.write(files / "migm_heads" / "mine" / "head.safetensors", builders.text_head(**fits))

    def call(*arguments, model=model):
        return generate(files, "--model", str(model), "--steps", "5", *arguments)

    return call


def generate(folder, *arguments):
    tokens, out = folder / "tokens.safetensors", folder / "out.png"
    places = ["--out", str(out), "--save-tokens", str(tokens)]
    assert main(["generate", *places, *arguments]) == 0
    codes = load_file(tokens)["codes"]
    if len(codes) > 1:
        out = out.with_name("out-1.png")
    with Image.open(out) as picture:
        found = picture.info.get("prompt")
    return codes, None if found is None else json.loads(found)


def check(nodes):
    """Asserts that ComfyUI would take the graph."""
    outputs = CORE | {name: [o["type"] for o in INTERFACE[name]["outputs"]] for name in INTERFACE}
    for node in nodes.values():
        inputs: dict[str, Any] = node["inputs"]
        links = {name: value for name, value in inputs.items() if isinstance(value, list)}
        types = {name: outputs[nodes[i]["class_type"]][at] for name, (i, at) in links.items()}
        if node["class_type"] in CORE:
            continue
        of_node = INTERFACE[node["class_type"]]["inputs"]
        known = dict(node_interface.expanded(of_node, inputs))
        assert inputs.keys() <= known.keys()
        assert {name for name, item in known.items() if not item["optional"]} <= inputs.keys()
        assert types == {name: known[name]["type"] for name in links}
        for name in inputs.keys() - links.keys():
            assert known[name]["type"] in WIDGETS
            if not name.endswith("_name"):  # what the folders hold
                check_value(known[name], inputs[name])


def nested(inputs):
    """Return inputs as ComfyUI hands them over: a DynamicCombo's choice in a dict with what it brings."""
    found = {name: value for name, value in inputs.items() if "." not in name}
    if "preset" in found:
        decided = {name.removeprefix("preset."): inputs[name] for name in inputs.keys() - found}
        found["preset"] = {"preset": found["preset"], **decided}
    return found


def codes_of(nodes, downscale):
    """What the sampler of a graph makes, and checks that the graph saves its pictures."""
    ours = {node.define_schema().node_id: node for node in NODES}
    results: dict[str, Any] = {}

    def run(name, inputs):
        match name:
            case "EmptyLatentImage":
                sides = inputs["height"] // downscale, inputs["width"] // downscale
                return [{"samples": torch.zeros(inputs["batch_size"], 1, *sides)}]
            case "VAEDecode":
                return [inputs["vae"].decode(inputs["samples"]["samples"])]
            case "SaveImage":
                return [inputs["images"]]
        return ours[name].execute(**nested(inputs)).result

    def result(index):
        if index not in results:
            inputs = {
                name: result(value[0])[value[1]] if isinstance(value, list) else value
                for name, value in nodes[index]["inputs"].items()
            }
            results[index] = run(nodes[index]["class_type"], inputs)
        return results[index]

    (last,) = (i for i, node in nodes.items() if node["class_type"] == "SaveImage")
    (sampler,) = (i for i, n in nodes.items() if n["class_type"] == "ShortcutSampler")
    codes_B1hw = result(sampler)[0]["samples"]
    assert result(last)[0].shape[1:3] == tuple(side * downscale for side in codes_B1hw.shape[2:])
    return codes_B1hw[:, 0].long()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--seed", "5", "--batch-size", "2", "--negative", "snow", "--cfg", "1.5"),
        ("--cfg", "0", "--temperature", "0.5", "--choice-temperature", "3", "--schedule", "arccos"),
        ("--accelerator", "partial+neighbours+float8", "--full-steps", "2"),
    ],
)
@pytest.mark.parametrize("has_head", [False, True])
def test_the_graph_makes_the_codes_of_the_run(text, files, arguments, has_head):
    head = ("--head", str(files / "migm_heads" / "mine" / "head.safetensors"))
    codes, nodes = text(*PROMPT, *arguments, *(head if has_head else ()))
    check(nodes)
    assert nodes["1"]["inputs"]["model_name"] == "tiny.safetensors"
    assert torch.equal(codes_of(nodes, 2), codes)
    changed = json.loads(json.dumps(nodes))
    changed["6"]["inputs"]["seed"] += 1
    assert not torch.equal(codes_of(changed, 2), codes)


def test_the_graph_of_an_accelerator_that_asks_a_head_has_both(text, files):
    head = ("--head", str(files / "migm_heads" / "mine" / "head.safetensors"))
    codes, nodes = text(*PROMPT, *head, "--accelerator", "partial+head", "--full-steps", "2")
    check(nodes)
    assert nodes["9"]["inputs"] == {
        "accelerator": "partial+head",
        "keys_and_values": "as computed",
        "head": ["2", 0],
    }
    assert torch.equal(codes_of(nodes, 2), codes)


def test_shipped_models_go_by_the_names_that_the_nodes_list(files, monkeypatch):
    pytest.importorskip("transformers")
    text = builders.write_text(files / "text")
    of_classes = {
        "model": builders.model(replace(builders.MODEL_CONFIG, grid=8)),
        "vq": builders.vq(),
        "head": builders.head(),
    }
    for kind, checkpoint in of_classes.items():
        path = builders.write(files / f"{kind}.safetensors", checkpoint)
        monkeypatch.setitem(shipped.CHOICES[shipped.NAME], kind, path)
        monkeypatch.setitem(shipped.CHOICES[shipped.TEXT_NAME], kind, text)
    runs = {shipped.NAME: ("--class", "2"), shipped.TEXT_NAME: PROMPT}
    for name, what in runs.items():
        codes, nodes = generate(files, *what, "--steps", "4", "--full-steps", "2")
        check(nodes)
        assert nodes["1"]["inputs"]["model_name"] == nodes["2"]["inputs"]["head_name"] == name
        assert torch.equal(codes_of(nodes, 2), codes)


def test_the_shipped_files_themselves(tmp_path):
    _, nodes = generate(tmp_path, "--class", "night snow", "--steps", "2")
    check(nodes)
    assert nodes["9"]["inputs"]["accelerator"] == "partial"
    options = ("--class", "night snow", "--steps", "2", "--accelerator", "head")
    _, nodes = generate(tmp_path, *options)
    check(nodes)
    assert nodes["1"]["inputs"]["model_name"] == nodes["2"]["inputs"]["head_name"] == shipped.NAME
    assert nodes["3"]["inputs"]["class_name"] == "night snow"
    assert nodes["1"]["inputs"]["vq_name"] == "auto"


def test_files_are_named_as_the_loaders_list_them(text, files, tmp_path_factory):
    head = ("--head", str(files / "migm_heads" / "mine" / "head.safetensors"))
    chosen = ("--vq", str(files / "migm" / "vq" / "vq.safetensors"))
    _, nodes = text(*PROMPT, *head, *chosen)
    assert nodes["1"]["inputs"]["vq_name"] == "vq/vq.safetensors"
    assert nodes["2"]["inputs"]["head_name"] == "mine/head.safetensors"
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    builders.write_text(elsewhere)
    _, nodes = text(*PROMPT, model=elsewhere / "model.safetensors")
    assert nodes["1"]["inputs"]["model_name"] == "model.safetensors"
    assert nodes["1"]["inputs"]["vq_name"] == "auto"


@pytest.mark.parametrize(
    "path", [PureWindowsPath("C:/models/migm/a/b.pth"), PurePosixPath("/migm/a/b.pth")]
)
def test_paths_in_graphs_have_the_same_separators_on_every_system(path):
    assert graph._inside(path, "migm") == "a/b.pth"
    assert graph._inside(path, "elsewhere") == "b.pth"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--seed", str(2**53)),
        ("--width", "12"),  # no step of the widget
        ("--width", "8"),
        ("--cfg", "1.125"),
        ("--choice-temperature", "1001"),
        ("--choice-temperature", "inf"),
        ("--prompt", "a {red|blue} house"),
        ("--negative", "snow // rain"),
    ],
)
def test_what_the_nodes_cannot_express_has_no_graph(text, arguments):
    assert text(*PROMPT)[1] is not None
    assert text(*PROMPT, *arguments)[1] is None


@pytest.mark.parametrize("prompt", ["a (fox) on a mat", "a (fox:1.4)", "embedding:fox a cat"])
def test_what_clip_text_encode_reads_otherwise_has_no_graph(prompt):
    node = {"class_type": "CLIPTextEncode", "inputs": {"text": prompt, "clip": ["1", 2]}}
    assert graph._reads_otherwise(node)
    assert not graph._reads_otherwise(node | {"class_type": "ShortcutTextCondition"})
    assert not graph._reads_otherwise(node | {"inputs": {"text": "a fox: on a mat"}})


def test_runs_with_pictures_or_listed_full_steps_have_no_graph(text, files):
    Image.new("RGB", (16, 16)).save(files / "a.png")
    head = ("--head", str(files / "migm_heads" / "mine" / "head.safetensors"))
    assert text(*PROMPT, *head, "--full-steps", "0,2")[1] is None
    for how in (("--denoise", "0.5"), ("--task", "edit")):
        assert text("--prompt", "a", "--image", str(files / "a.png"), *how)[1] is None


def test_the_ranges_are_those_of_the_widgets():
    sampler = INTERFACE["ShortcutSampler"]["inputs"]
    inputs = {
        item["id"]: item for _, item in node_interface.expanded(sampler, {"preset": "custom"})
    }
    for name in graph.RANGES.keys() & inputs.keys() - {"seed"}:
        assert graph.RANGES[name] == (inputs[name]["min"], inputs[name]["max"]), name
    assert graph.RANGES["seed"][1] <= inputs["seed"]["max"]
