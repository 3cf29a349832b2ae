"""A run as a graph of this pack's nodes: what its PNGs hold so that ComfyUI's page opens it.

The form is that of ComfyUI's API, {id: {"class_type": ..., "inputs": {name: value or [id, output]}}}. Save Image writes
it into the chunk `prompt` of a PNG, and the page makes nodes of it when the PNG is dropped there. Queued, the graph
makes the codes of the run again, of all images of its batch.

There is none where it would be another run: one that starts from pictures, which are not in ComfyUI's input folder;
full steps that are listed; values that a widget cannot hold; a text that the page
would rewrite, or CLIP Text Encode read otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from .. import shipped
from ..accelerators.choice import FLOAT8, HEAD
from ..checkpoint import Checkpoint
from ..containers import INDEX_SUFFIX
from ..grid import Grid
from ..models.architecture import ONE_STEP, Request
from ..pipeline import Pipeline
from ..schedule import Settings

Node = dict[str, Any]
Graph = dict[str, Node]
MODELS, HEADS = "migm", "migm_heads"  # folders of ComfyUI's models folder that the loaders list
CHUNK = "prompt"  # the text chunk of a PNG that ComfyUI reads graphs from
# Least and most of the widgets. The page's numbers are exact up to 2^53.
RANGES = {
    "seed": (0, 2**53 - 1),
    "steps": (1, 1024),
    "full_steps": (1, 1024),
    "cfg": (0, 100),
    "temperature": (0, 10),
    "choice_temperature": (0, 1000),
    "width": (16, 16384),
    "height": (16, 16384),
    "batch_size": (1, 4096),
}
DIGITS = 2  # behind the point, of the widgets
STEP = 8  # of width and height
# Source: processDynamicPrompt of ComfyUI's frontend: {a|b} is a choice, // and /* begin comments, \ escapes.
REWRITTEN = re.compile(r"[{}\\]|//|/\*")
# Source: token_weights and SDTokenizer of ComfyUI's sd1_clip.py: weights in brackets, files by name.
READ_BY_CLIP = re.compile(r"[()]|embedding:")


def graph_of(
    pipeline: Pipeline,
    settings: Settings,
    request: Request,
    *,
    seed: int,
    grid: Grid,
    num_images: int,
    is_vq_chosen: bool,
) -> Graph | None:
    """Return the graph of a run that starts from nothing; None if the nodes cannot express it.

    Args:
        settings: of the run, with no guidance or one weight.
        is_vq_chosen: False: the VQ model is the one beside the model, or the shipped one of a shipped model.
    """
    full_steps = settings.num_steps if settings.full_steps is None else settings.full_steps
    if not isinstance(full_steps, int) or len(settings.guidance) > 1:
        return None
    if settings.is_one_step and (settings.guidance or settings.temperature != 1):
        return None  # the preset sets them
    height, width = (side * pipeline.downscale for side in grid)
    size = {"width": width, "height": height, "batch_size": num_images}
    custom = {
        "steps": settings.num_steps,
        "full_steps": full_steps,
        "cfg": sum(settings.guidance),  # one weight, or none for 0
        "temperature": settings.temperature,
        "choice_temperature": settings.choice_temperature,
    }
    nodes = [_node(name, **inputs) for name, inputs in pipeline.conditioner.graph_nodes(request)]
    if not all(map(_fits, {"seed": seed, **size, **custom}.items())) or any(
        map(_reads_otherwise, nodes)
    ):
        return None
    dtype = str(pipeline.model.dtype).removeprefix("torch.")
    graph = {
        "1": _node(
            "ShortcutLoadMIGM",
            model_name=_choice(pipeline.model_file, MODELS),
            vq_name=_choice(pipeline.vq_file, MODELS) if is_vq_chosen else "auto",
            weight_dtype=dtype,
        ),
        "3": nodes[0],
    }
    sampler = {
        "model": ["1", 0],
        "positive": ["3", 0],
        "latent_image": ["5", 0],
        "preset": ONE_STEP if settings.is_one_step else "custom",
        "seed": seed,
        "denoise": 1.0,
    }
    if not settings.is_one_step:
        custom |= {
            "cfg_ramp": settings.guidance_ramp,
            "schedule": settings.schedule,
            "order": settings.order,
        }
        sampler |= {f"preset.{name}": value for name, value in custom.items()}
    if pipeline.head_file is not None and pipeline.used_head is not None:
        graph["2"] = _node(
            "ShortcutLoadHead",
            head_name=_choice(pipeline.head_file, HEADS),
            weight_dtype=dtype,
        )
        sampler["head"] = ["2", 0]
    name = pipeline.accelerator_name
    if name not in (None, HEAD):
        graph["9"] = _node(
            "ShortcutAccelerator",
            accelerator=name.removesuffix(FLOAT8),
            keys_and_values="float8_e4m3fn" if name.endswith(FLOAT8) else "as computed",
            **({"head": sampler["head"]} if "head" in sampler else {}),
        )
        sampler["head"] = ["9", 0]
    if len(nodes) > 1:
        graph["4"] = nodes[1]
        sampler["negative"] = ["4", 0]
    return graph | {
        "5": _node("EmptyLatentImage", **size),
        "6": _node("ShortcutSampler", **sampler),
        "7": _node("VAEDecode", samples=["6", 0], vae=["1", 1]),
        "8": _node("SaveImage", images=["7", 0], filename_prefix="shortcut"),
    }


def _node(name: str, **inputs: Any) -> Node:
    return {"class_type": name, "inputs": inputs}


def _choice(checkpoint: Checkpoint, folder: str) -> str:
    """Return what the nodes list for a file: the path in ComfyUI's `folder` if it is in one, else its name."""
    path = checkpoint.path
    assert path is not None
    for name, files in shipped.CHOICES.items():
        file = files[checkpoint.layout.kind]
        if path.resolve() in (file, *file.glob("*.safetensors")):
            return name
    has_parts = path.name.endswith(INDEX_SUFFIX) or checkpoint.folder != path.parent
    if has_parts and checkpoint.folder.name != folder:
        path = checkpoint.folder
    return _inside(path.absolute(), folder)


def _inside(path: PurePath, folder: str) -> str:
    """Return the path inside of `folder`, with / on every system; the name alone if it is not in it."""
    outer = [parent for parent in path.parents if parent.name == folder]
    return path.relative_to(outer[0]).as_posix() if outer else path.name


def _reads_otherwise(node: Mapping[str, Any]) -> bool:
    """Return whether the page or the node would read a text otherwise than it stands there."""
    signs = [REWRITTEN, *([READ_BY_CLIP] if node["class_type"] == "CLIPTextEncode" else [])]
    texts = [value for value in node["inputs"].values() if isinstance(value, str)]
    return any(sign.search(text) for sign in signs for text in texts)


def _fits(widget: tuple[str, float]) -> bool:
    """Return whether the widget of that name can hold the value."""
    name, value = widget
    least, most = RANGES[name]
    is_on_step = name not in ("width", "height") or value % STEP == 0
    return least <= value <= most and round(value, DIGITS) == value and is_on_step
