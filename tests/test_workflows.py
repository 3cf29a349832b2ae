"""The templates and their API twins say what the nodes understand."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import node_interface
import pytest
from PIL import Image
from shortcut_pack.shortcut.models import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))
INTERFACE = node_interface.frozen()
FRONTEND_ONLY = {"MarkdownNote"}
WIDGETS = {"COMBO", "STRING", "INT", "FLOAT", "BOOLEAN"}
WITH_PUBLISHED_FILES = {"style_reference", "text_to_image_lumina_dimoo"}
WITHOUT_TEMPLATE = {"ShortcutAccelerator", "ShortcutSpeedQuality"}
SITE = "https://huggingface.co"
DOWNLOADS = [download for a in ARCHITECTURES for download in a.downloads.values()]
# What `download` brings, as the loaders list it: a folder or files.
PUBLISHED = {PurePosixPath(d.folder).name for d in DOWNLOADS if d.is_tree}
PUBLISHED |= {PurePosixPath(file).name for d in DOWNLOADS if not d.is_tree for file in d.files}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def twin_of(path):
    return read(ROOT / "tests" / "workflows" / f"{path.stem}_api.json")


def ours(workflow):
    return [node for node in workflow["nodes"] if node["type"] in INTERFACE]


def widget_values(node):
    """The values of one of our nodes by input id, as the page reads them: by position.

    A workflow from before an optional widget has no value for it.
    """
    values, found = iter(node["widgets_values"]), {}
    for item in INTERFACE[node["type"]]["inputs"]:
        if item["type"] in WIDGETS:
            value = next(values, None)
            if value is None and item["optional"]:
                continue
            found[item["id"]] = value
            if item.get("control_after_generate"):
                assert next(values) in ("fixed", "increment", "decrement", "randomize")
    assert next(values, None) is None, f"{node['type']} has too many widget values"
    return found


def check_value(item, value, more_options=frozenset()):
    match item["type"]:
        case "COMBO":
            assert value in {*item["options"], *more_options}, (item["id"], value)
        case "INT" | "FLOAT":
            assert item["min"] <= value <= item["max"], (item["id"], value)
        case "BOOLEAN":
            assert isinstance(value, bool), (item["id"], value)


def test_there_are_templates_for_what_a_user_does_first():
    names = {path.stem for path in TEMPLATES}
    assert names >= {"class_to_image", "vanilla_vs_shortcut", "inpainting", "text_to_image"}
    assert names >= {"text_to_image_lumina_dimoo", "speed_against_quality", "text_inpainting"}
    assert names >= {"text_outpainting", "instruction_edit", "style_reference", "train_a_head"}


def test_every_node_is_in_a_template():
    used = {node["type"] for path in TEMPLATES for node in ours(read(path))}
    assert used | WITHOUT_TEMPLATE == set(INTERFACE)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_is_in_the_format_of_the_page_and_has_a_thumbnail(path):
    workflow = read(path)
    assert workflow["version"] == 0.4 and "nodes" in workflow and "links" in workflow
    thumbnail = path.with_suffix(".jpg")  # the page shows it beside the template
    with Image.open(thumbnail) as picture:
        assert picture.size == (480, 480)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_says_which_pack_its_nodes_are_from(path):
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for node in ours(read(path)):
        assert f'name = "{node["properties"]["cnr_id"]}"' in project
        assert node["properties"]["Node name for S&R"] == node["type"]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_widgets_fit_the_nodes_and_use_shipped_files_unless_said(path):
    more_options = PUBLISHED if path.stem in WITH_PUBLISHED_FILES else set()
    for node in ours(read(path)):
        values = widget_values(node)
        for item in INTERFACE[node["type"]]["inputs"]:
            if item["id"] in values:
                # The frozen options hold the shipped files alone.
                check_value(item, values[item["id"]], more_options)


@pytest.mark.parametrize("name", sorted(WITH_PUBLISHED_FILES))
def test_template_links_to_published_files_are_those_of_download(name):
    known = {
        (PurePosixPath(f).name, f"{SITE}/{d.repository}/resolve/main/{f}", d.folder)
        for d in DOWNLOADS
        for f in d.files
    }
    nodes = ours(read(ROOT / "workflows" / f"{name}.json"))
    links = [link for node in nodes for link in node["properties"].get("models", [])]
    assert links and {(x["name"], x["url"], x["directory"]) for x in links} <= known


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_links_join_sockets_of_one_type(path):
    workflow = read(path)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"])
    seen = set()
    for link, source, source_slot, target, target_slot, kind in workflow["links"]:
        output = nodes[source]["outputs"][source_slot]
        socket = nodes[target]["inputs"][target_slot]
        assert link in output["links"] and socket["link"] == link
        assert output["type"] == socket["type"] == kind
        seen.add(link)
    for node in workflow["nodes"]:
        assert {i["link"] for i in node["inputs"]} - {None} <= seen
        assert {link for o in node["outputs"] for link in o["links"]} <= seen


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_sockets_are_those_of_the_nodes(path):
    for node in ours(read(path)):
        interface = INTERFACE[node["type"]]
        known = {item["id"]: item["type"] for item in interface["inputs"]}
        assert all(known[socket["name"]] == socket["type"] for socket in node["inputs"])
        wired = {socket["name"] for socket in node["inputs"] if socket["link"] is not None}
        required = {
            item["id"]
            for item in interface["inputs"]
            if not item["optional"] and item["type"] not in WIDGETS
        }
        assert required <= wired
        outputs = [(item["name"], item["type"]) for item in interface["outputs"]]
        assert [(o["name"], o["type"]) for o in node["outputs"]] == outputs


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_api_twin_is_the_same_graph(path):
    workflow, twin = read(path), twin_of(path)
    nodes = {str(n["id"]): n for n in workflow["nodes"] if n["type"] not in FRONTEND_ONLY}
    assert {i: n["type"] for i, n in nodes.items()} == {i: n["class_type"] for i, n in twin.items()}
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    for number, node in nodes.items():
        inputs = twin[number]["inputs"]
        wired = {s["name"]: links[s["link"]] for s in node["inputs"] if s["link"] is not None}
        assert {name: value for name, value in inputs.items() if isinstance(value, list)} == wired
        if node["type"] in INTERFACE:
            constants = {k: v for k, v in widget_values(node).items() if k not in wired}
            assert inputs == wired | constants


# What the page covers of a window of 1600 x 1000: the side bar at the left, tabs and Run above.
WINDOW, LEFT, TOP = (1600, 1000), 70, 90
TITLE_HEIGHT = 30
SAMPLER_HEIGHT = 620  # with the preview that the page puts below the widgets
READABLE = 0.6  # below 0.57 the page draws nodes without a letter
WIDEST = 1600


def boxes(workflow):
    """Where each node lies, with its title bar and a sampler's preview: left, top, right, bottom."""
    found = {}
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        if node["type"] == "ShortcutMaskedSampler":
            height = max(height, SAMPLER_HEIGHT)
        found[node["id"]] = (x, y - TITLE_HEIGHT, x + width, y + height)
    return found


def group_boxes(workflow):
    bounds = [group["bounding"] for group in workflow["groups"]]
    return [(x, y, x + width, y + height) for x, y, width, height in bounds]


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def holds(outer, inner):
    return (
        outer[0] <= inner[0]
        and outer[1] <= inner[1]
        and outer[2] >= inner[2]
        and outer[3] >= inner[3]
    )


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_opens_readable_and_whole(path):
    workflow = read(path)
    view = workflow["extra"]["ds"]
    scale, (left, top) = view["scale"], view["offset"]
    assert READABLE <= scale <= 1
    every = [*boxes(workflow).values(), *group_boxes(workflow)]
    assert max(b[2] for b in every) - min(b[0] for b in every) <= WIDEST
    shown = [((b[0] + left) * scale, (b[1] + top) * scale) for b in every]
    shown_ends = [((b[2] + left) * scale, (b[3] + top) * scale) for b in every]
    assert min(x for x, _ in shown) >= LEFT and min(y for _, y in shown) >= TOP
    assert max(x for x, _ in shown_ends) <= WINDOW[0]
    assert max(y for _, y in shown_ends) <= WINDOW[1]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_nodes_do_not_overlap(path):
    found = boxes(read(path))
    pairs = [(a, b) for a in found for b in found if a < b]
    assert not [(a, b) for a, b in pairs if overlap(found[a], found[b])]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_each_template_node_is_in_one_titled_group(path):
    workflow = read(path)
    groups = group_boxes(workflow)
    assert all(group["title"] for group in workflow["groups"])
    assert not [a for a in groups for b in groups if a is not b and overlap(a, b)]
    for box in boxes(workflow).values():
        assert sum(holds(group, box) for group in groups) == 1


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_note_shows_its_whole_text(path):
    """By a generous estimate of the page's letters: 6.5 wide in lines of 17, paragraphs 10 apart."""
    for note in [n for n in read(path)["nodes"] if n["type"] == "MarkdownNote"]:
        per_line = (note["size"][0] - 40) / 6.5
        lines = [line for line in note["widgets_values"][0].split("\n") if line]
        height = sum(17 * -(-len(line) // per_line) + 10 for line in lines)
        assert height + 30 <= note["size"][1]
