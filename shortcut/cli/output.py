"""Pictures on disk, each with its settings inside.

B  images    h, w  rows, columns of codes    Y, X  pixel rows, columns
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from torch import Tensor

from ..files import written_whole
from ..image import to_pictures
from .graph import CHUNK as GRAPH_CHUNK
from .graph import Graph

CHUNK = "shortcut"  # the text chunk of a PNG that holds its settings as JSON


def paths_of(out: Path, num_images: int) -> list[Path]:
    """Return where the pictures of a batch go."""
    if num_images == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{index}{out.suffix}") for index in range(num_images)]


def write_pictures(
    out: Path, pixels_BCYX: Tensor, about: Mapping[str, Any], graph: Graph | None
) -> None:
    """Write PNG files, whole or not at all.

    Args:
        about: what each says about itself.
        graph: what ComfyUI's page opens when it is given one of them; None = nothing.
    """
    for index, (path, picture) in enumerate(
        zip(paths_of(out, len(pixels_BCYX)), to_pictures(pixels_BCYX), strict=True)
    ):
        chunks = PngInfo()
        chunks.add_text(CHUNK, _described(about, index))
        if graph is not None:
            chunks.add_text(GRAPH_CHUNK, json.dumps(graph))
        with written_whole(path) as partial_path:
            picture.save(partial_path, format="PNG", pnginfo=chunks)


def are_finished(out: Path, num_images: int, about: Mapping[str, Any]) -> bool:
    """Return whether the pictures of a batch are there already.

    Raises:
        ValueError: one is there that was made with other settings, or is none of ours.
    """
    there = [(index, path) for index, path in enumerate(paths_of(out, num_images)) if path.exists()]
    for index, path in there:
        try:
            with Image.open(path) as picture:
                found = json.loads(picture.info.get(CHUNK, "null"))
        except (OSError, ValueError):
            found = None
        if found != json.loads(_described(about, index)):
            raise ValueError(
                f"{path} is there and was made with other settings. Delete it, or give another folder."
            )
    return len(there) == num_images


def write_tokens(path: Path, codes_Bhw: Tensor) -> None:
    """Write a safetensors file with `codes`."""
    with written_whole(path) as partial_path:
        save_file({"codes": codes_Bhw.cpu().contiguous()}, partial_path)


def _described(about: Mapping[str, Any], index: int) -> str:
    return json.dumps({**about, "image": index})
