"""Each template opens readable and whole, and its nodes have room, as tall as the page may draw them."""

from __future__ import annotations

import math
import re

from test_workflows import of_each_template, read, subgraphs

# What the page covers of a window of 1600 x 1000: the side bar at the left, tabs and Run above.
WINDOW, LEFT, TOP = (1600, 1000), 70, 90
TITLE_HEIGHT = 30
COLLAPSED_HEIGHT = 38
GROUP_TITLE_HEIGHT = 34
# How tall the page draws nodes, with their title bars: the tallest measured in LiteGraph and in
# Nodes 2.0, frontends of ComfyUI 0.28.0 and 0.33.0, with the picture, chart or text that a run puts
# on them. A node may be taller, by its size in the file.
TALLEST = {
    "VAEDecode": 102,
    "VAEEncode": 102,
    "SetLatentNoiseMask": 102,
    "ImageScaleBy": 142,
    "ImagePadForOutpaint": 258,
    "EmptyLatentImage": 174,
    "PrimitiveInt": 116,
    "SaveImage": 346,
    "PreviewImage": 310,
    "PreviewAny": 182,
    "ShortcutLoadMIGM": 306,
    "ShortcutTextCondition": 302,
    "ShortcutClassCondition": 138,
    "ShortcutAccelerator": 162,
    "ShortcutTrainHead": 666,
    "ShortcutSaveHead": 138,
    "ShortcutSpeedQuality": 662,
    "ShortcutDescribeImage": 654,
    "ShortcutReasonedEdit": 682,
}
# By whether its preset is custom, which shows more widgets.
SAMPLER_HEIGHT = {True: 730, False: 606}
LONG_TEXTS = {"text", "negative"}  # widgets of several lines
READABLE = 0.8  # below 0.57 the page draws nodes without a letter
# From the template browser the page shows the whole, within this part of the window.
SHOWN = 0.75
WIDEST = 1510


def tallest(node, known):
    """How tall the page may draw a node, with its title bar; `known` are the workflow's subgraphs."""
    if node["flags"].get("collapsed"):
        return COLLAPSED_HEIGHT
    least = TALLEST.get(node["type"], 0)
    if node["type"] == "ShortcutSampler":
        least = SAMPLER_HEIGHT[node["widgets_values"][0] == "custom"]
    if node["type"] in known:  # rows of sockets, of widgets, and the button that enters it
        widgets = [i["name"] for i in node["inputs"] if "widget" in i]
        rows = max(len(node["inputs"]) - len(widgets), len(node["outputs"]))
        least = 90 + 24 * rows + 32 * len(widgets) + 32 * len(LONG_TEXTS.intersection(widgets))
    return max(least, TITLE_HEIGHT + node["size"][1])


def boxes(workflow):
    """Where each node lies, as tall as the page may draw it: left, top, right, bottom."""
    found, known = {}, subgraphs(workflow)
    for node in workflow["nodes"]:
        x, y = node["pos"]
        top = y - TITLE_HEIGHT
        found[node["id"]] = (x, top, x + node["size"][0], top + tallest(node, known))
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


@of_each_template
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
    height = max(b[3] for b in every) - min(b[1] for b in every)
    assert SHOWN * WINDOW[1] / height >= READABLE - 0.02


@of_each_template
def test_template_nodes_do_not_overlap(path):
    found = boxes(read(path))
    pairs = [(a, b) for a in found for b in found if a < b]
    assert not [(a, b) for a, b in pairs if overlap(found[a], found[b])]


@of_each_template
def test_each_template_node_is_in_one_titled_group(path):
    workflow = read(path)
    groups = group_boxes(workflow)
    below_title = [(a, b + GROUP_TITLE_HEIGHT, c, d) for a, b, c, d in groups]
    assert all(group["title"] for group in workflow["groups"])
    assert not [a for a in groups for b in groups if a is not b and overlap(a, b)]
    for box in boxes(workflow).values():
        assert sum(holds(inside, box) for inside in below_title) == 1


@of_each_template
def test_template_note_shows_its_whole_text(path):
    """By an estimate of the letters of Nodes 2.0, 0 to 55 above all notes measured in 0.28.0.

    Letters are 6.6 wide in lines of 20, paragraphs 17 apart, 40 for the margins, 25 for those of a
    block of code.
    """
    for note in [n for n in read(path)["nodes"] if n["type"] == "MarkdownNote"]:
        per_line = (note["size"][0] - 30) / 6.6
        text = re.sub(r"[*#`]|\]\([^)]*\)", "", note["widgets_values"][0])
        lines = [line for line in text.split("\n") if line.strip()]
        height = sum(20 * math.ceil(len(line) / per_line) + 17 for line in lines)
        blocks = note["widgets_values"][0].count("```") // 2
        assert height + 25 * blocks + 40 <= note["size"][1]
