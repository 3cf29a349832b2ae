"""The templates and their API twins say what the nodes understand."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import node_interface
import pytest
from PIL import Image
from shortcut_pack.shortcut.models import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "workflows").glob("*.json"))
APPS = [path for path in FILES if path.name.endswith(".app.json")]
TEMPLATES = [path for path in FILES if path not in APPS]
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
INTERFACE = node_interface.frozen()
FRONTEND_ONLY = {"MarkdownNote"}
WIDGETS = {"COMBO", "STRING", "INT", "FLOAT", "BOOLEAN", node_interface.DYNAMIC_COMBO}
REPLACED = {"ShortcutMaskedSampler"}  # by ShortcutSampler; for workflows of before
LARGE = "_needs_"  # in the names of templates with files that are not shipped, before how large they are
SITE = "https://huggingface.co"
DOWNLOADS = [download for a in ARCHITECTURES for download in a.downloads.values()]
# What `download` brings, as the loaders list it: a folder or files.
PUBLISHED = {PurePosixPath(d.folder).name for d in DOWNLOADS if d.is_tree}
PUBLISHED |= {PurePosixPath(file).name for d in DOWNLOADS if not d.is_tree for file in d.files}
INPUTS, OUTPUTS = -10, -20  # the ids of a subgraph's own ends

of_each_template = pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
of_each_file = pytest.mark.parametrize(
    "path", [*TEMPLATES, *BLUEPRINTS], ids=lambda path: path.stem
)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def twin_of(path):
    return read(ROOT / "tests" / "workflows" / f"{path.stem}_api.json")


def subgraphs(workflow):
    return {graph["id"]: graph for graph in workflow.get("definitions", {}).get("subgraphs", [])}


def graphs(workflow):
    return [workflow, *subgraphs(workflow).values()]


def ours(workflow):
    return [n for graph in graphs(workflow) for n in graph["nodes"] if n["type"] in INTERFACE]


def links_of(graph):
    """Return each link of a workflow or a subgraph: id, source, its slot, target, its slot, type."""
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    rows = graph.get("links", [])
    return [[row[name] for name in names] if isinstance(row, dict) else row for row in rows]


def widget_values(node):
    """The values of one of our nodes by input id, as the page reads them: by position.

    A workflow from before an optional widget has no value for it.
    """
    values, found = iter(node["widgets_values"]), {}
    for name, item in node_interface.expanded(INTERFACE[node["type"]]["inputs"], found):
        if item["type"] in WIDGETS:
            value = next(values, None)
            if value is None and item["optional"]:
                continue
            found[name] = value
            if item.get("control_after_generate"):
                assert next(values) in ("fixed", "increment", "decrement", "randomize")
    assert next(values, None) is None, f"{node['type']} has too many widget values"
    return found


def inputs_of(node):
    """The inputs of one of our nodes, by the names that it holds them under."""
    inputs = INTERFACE[node["type"]]["inputs"]
    return dict(node_interface.expanded(inputs, widget_values(node)))


def check_value(item, value, more_options=frozenset()):
    match item["type"]:
        case "COMBO" | node_interface.DYNAMIC_COMBO:
            assert value in {*item["options"], *more_options}, (item["id"], value)
        case "INT" | "FLOAT":
            assert item["min"] <= value <= item["max"], (item["id"], value)
        case "BOOLEAN":
            assert isinstance(value, bool), (item["id"], value)


def test_there_are_templates_for_what_a_user_does_first():
    names = {path.stem.partition("_")[2] for path in TEMPLATES}
    assert names >= {"class_to_image", "vanilla_against_shortcut", "text_to_image"}
    assert names >= {"speed_against_quality", "text_inpainting", "class_inpainting"}
    assert names >= {"text_outpainting", "edit_by_instruction", "train_a_head"}
    assert {name.partition(LARGE)[0] for name in names if LARGE in name} == {
        "lumina_dimoo_text_to_image",
        "lumina_dimoo_style_reference",
        "lumina_dimoo_describe_image",
        "mmada_parallel_reasoned_edit",
        "amused_text_to_image",
        "meissonic_text_to_image",
    }


def test_templates_are_listed_in_the_order_of_use():
    numbers = [path.stem.partition("_")[0] for path in TEMPLATES]
    assert numbers == [f"{number:02}" for number in range(1, len(TEMPLATES) + 1)]
    is_large = [LARGE in path.stem for path in TEMPLATES]
    assert is_large == sorted(is_large), "those with files to fetch come last"


def test_every_node_is_in_a_template():
    used = {node["type"] for path in TEMPLATES for node in ours(read(path))}
    assert used == INTERFACE.keys() - REPLACED


@of_each_template
def test_template_is_in_the_format_of_the_page_and_has_a_thumbnail(path):
    workflow = read(path)
    assert workflow["version"] == 0.4 and "nodes" in workflow and "links" in workflow
    thumbnail = path.with_suffix(".jpg")  # the page shows it beside the template
    with Image.open(thumbnail) as picture:
        assert picture.size == (480, 480)


@of_each_file
def test_template_says_which_pack_its_nodes_are_from(path):
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for node in ours(read(path)):
        assert f'name = "{node["properties"]["cnr_id"]}"' in project
        assert node["properties"]["Node name for S&R"] == node["type"]


@of_each_file
def test_template_widgets_fit_the_nodes_and_use_shipped_files_unless_said(path):
    more_options = PUBLISHED if LARGE in path.stem else set()
    for node in ours(read(path)):
        values = widget_values(node)
        for name, item in inputs_of(node).items():
            if name in values:
                # The frozen options hold the shipped files alone.
                check_value(item, values[name], more_options)


@pytest.mark.parametrize("path", [path for path in TEMPLATES if LARGE in path.stem])
def test_template_links_to_published_files_are_those_of_download(path):
    known = {
        (PurePosixPath(f).name, f"{SITE}/{d.repository}/resolve/main/{f}", d.folder)
        for d in DOWNLOADS
        for f in d.files
    }
    links = [x for node in ours(read(path)) for x in node["properties"].get("models", [])]
    has_head = any(node["type"] == "ShortcutLoadHead" for node in ours(read(path)))
    assert bool(links) == has_head  # a model is a folder, which the page cannot fetch
    assert {(x["name"], x["url"], x["directory"]) for x in links} <= known


@of_each_file
def test_template_links_join_sockets_of_one_type(path):
    for graph in graphs(read(path)):
        outer = {
            INPUTS: {"outputs": [i | {"links": i["linkIds"]} for i in graph.get("inputs", [])]},
            OUTPUTS: {"inputs": [o | {"link": o["linkIds"][0]} for o in graph.get("outputs", [])]},
        }
        nodes = {node["id"]: node for node in graph["nodes"]}
        assert len(nodes) == len(graph["nodes"])
        nodes |= outer
        seen = set()
        for link, source, source_slot, target, target_slot, kind in links_of(graph):
            output = nodes[source]["outputs"][source_slot]
            socket = nodes[target]["inputs"][target_slot]
            assert link in output["links"] and socket["link"] == link
            assert output["type"] == kind and socket["type"] in (kind, "*")
            seen.add(link)
        for node in nodes.values():
            assert {i["link"] for i in node.get("inputs", [])} - {None} <= seen
            assert {link for o in node.get("outputs", []) for link in o["links"]} <= seen


@of_each_file
def test_template_sockets_are_those_of_the_nodes(path):
    for node in ours(read(path)):
        known = inputs_of(node)
        assert all(known[socket["name"]]["type"] == socket["type"] for socket in node["inputs"])
        wired = {socket["name"] for socket in node["inputs"] if socket["link"] is not None}
        required = {
            name
            for name, item in known.items()
            if not item["optional"] and item["type"] not in WIDGETS
        }
        assert required <= wired
        outputs = [(item["name"], item["type"]) for item in INTERFACE[node["type"]]["outputs"]]
        found = [(output["name"], output["type"]) for output in node["outputs"]]
        assert found == outputs[: len(found)], "an output that came later is missing in older files"


@of_each_file
def test_subgraphs_have_the_sockets_and_show_the_widgets_that_their_nodes_have(path):
    workflow = read(path)
    known = subgraphs(workflow)
    ids = [node["id"] for graph in graphs(workflow) for node in graph["nodes"]]
    assert len(set(ids)) == len(ids)  # App Mode names a widget by its node alone
    used = [node for node in workflow["nodes"] if node["type"] in known]
    assert sorted(node["type"] for node in used) == sorted(known)
    for node in used:
        graph = known[node["type"]]
        for end in ("inputs", "outputs"):
            pairs = [[(x["name"], x["type"]) for x in place[end]] for place in (node, graph)]
            assert pairs[0] == pairs[1]
        inner = {str(n["id"]): {i["name"] for i in n["inputs"]} for n in graph["nodes"]}
        shown = node["properties"]["proxyWidgets"]
        assert all(name in inner[i] | {"control_after_generate"} for i, name in shown)
        widgets = [i["name"] for i in node["inputs"] if "widget" in i]
        assert len(shown) >= len(widgets)


def flattened(workflow):
    """Return the nodes of a workflow by the ids of the API, and by node and input where each comes from."""
    known, nodes, sources = subgraphs(workflow), {}, {}

    def walk(graph, prefix, given):
        """Return where the outputs of a graph come from; `given` are its inputs."""
        ends = {(INPUTS, slot): source for slot, source in enumerate(given)}
        links = links_of(graph)
        inner = {node["id"]: node for node in graph["nodes"]}

        def source_of(link):
            _, node, slot, *_ = next(row for row in links if row[0] == link)
            if (node, slot) in ends:
                return ends[node, slot]
            if inner[node]["type"] not in known:
                return [f"{prefix}{node}", slot]
            sockets = inner[node]["inputs"]
            given = [None if s["link"] is None else source_of(s["link"]) for s in sockets]
            return walk(known[inner[node]["type"]], f"{prefix}{node}:", given)[slot]

        for node in graph["nodes"]:
            if node["type"] in FRONTEND_ONLY:
                continue
            wired = {s["name"]: source_of(s["link"]) for s in node["inputs"] if s["link"]}
            if node["type"] in known:
                given = [wired.get(s["name"]) for s in node["inputs"]]
                walk(known[node["type"]], f"{prefix}{node['id']}:", given)
                continue
            nodes[f"{prefix}{node['id']}"] = node
            sources[f"{prefix}{node['id']}"] = {k: v for k, v in wired.items() if v}
        return [source_of(output["linkIds"][0]) for output in graph.get("outputs", [])]

    walk(workflow, "", [])
    return nodes, sources


@of_each_template
def test_the_api_twin_is_the_same_graph(path):
    twin = twin_of(path)
    nodes, sources = flattened(read(path))
    assert {i: n["type"] for i, n in nodes.items()} == {i: n["class_type"] for i, n in twin.items()}
    for number, node in nodes.items():
        inputs, wired = twin[number]["inputs"], sources[number]
        assert {name: value for name, value in inputs.items() if isinstance(value, list)} == wired
        if node["type"] in INTERFACE:
            constants = {k: v for k, v in widget_values(node).items() if k not in wired}
            assert inputs == wired | constants


@pytest.mark.parametrize("path", APPS, ids=lambda path: path.stem)
def test_an_app_is_a_template_that_opens_as_one(path):
    """The template itself opens as a graph: an app hides the nodes, and one click shows it."""
    (template,) = path.parent.glob(f"*_{path.name.removesuffix('.app.json')}.json")
    app, workflow = read(path), read(template)
    assert app["extra"].pop("linearMode") and not workflow["extra"].pop("linearMode")
    assert app == workflow
    nodes = {str(n["id"]): n for graph in graphs(workflow) for n in graph["nodes"]}
    shown = workflow["extra"]["linearData"]
    assert shown["inputs"] and shown["outputs"]
    for number, name in shown["inputs"]:
        assert name in {i["name"] for i in nodes[number]["inputs"] if "widget" in i}
    assert {nodes[number]["type"] for number in shown["outputs"]} == {"SaveImage"}


PICTURES = [
    path for path in sorted((ROOT / "docs").glob("*.png")) if b"workflow" in path.read_bytes()
]


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_picture_that_opens_as_a_template_fits_the_nodes(path):
    with Image.open(path) as picture:
        workflow = json.loads(picture.text["workflow"])
    for node in ours(workflow):
        assert node["type"] not in REPLACED
        values = widget_values(node)
        for name, item in inputs_of(node).items():
            if name in values:
                check_value(item, values[name])


def test_text_and_class_to_image_are_apps_with_thumbnails():
    assert [path.name.split(".")[0] for path in APPS] == ["class_to_image", "text_to_image"]
    assert all(path.with_suffix(".jpg").is_file() for path in APPS)


def test_the_blueprint_is_one_node_that_makes_an_image():
    (path,) = BLUEPRINTS
    workflow = read(path)
    (node,) = workflow["nodes"]
    (graph,) = subgraphs(workflow).values()
    assert graph["name"] == path.stem == "MIGM text to image" and graph["description"]
    assert [output["type"] for output in node["outputs"]] == ["IMAGE"]
