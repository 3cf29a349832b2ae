"""Pictures on disk, each with its settings inside.

B  images    h, w  rows, columns of codes    Y, X  pixel rows, columns
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save
from torch import Tensor

from ..image import to_pictures
from ..writing import written_whole
from .graph import CHUNK as GRAPH_CHUNK
from .graph import Graph

CHUNK = "shortcut"  # the text chunk of a PNG that holds its settings as JSON
# Settings that are there to be read: what they name is in the settings by its content.
NAMES = {"model", "vq", "head", "image", "style_image", "mask"}
PNG_MARK = b"\x89PNG\r\n\x1a\n"


def paths_of(out: Path, num_images: int) -> list[Path]:
    """Return where the pictures of a batch go."""
    if num_images == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{index}{out.suffix}") for index in range(num_images)]


def write_pictures(
    paths: Sequence[Path], pixels_BCYX: Tensor, about: Mapping[str, Any], graph: Graph | None
) -> None:
    """Write PNG files, whole or not at all.

    Args:
        paths: one for each picture.
        about: what each says about itself.
        graph: what ComfyUI's page opens when it is given one of them; None = nothing.
    """
    for index, (path, picture) in enumerate(zip(paths, to_pictures(pixels_BCYX), strict=True)):
        chunks = PngInfo()
        chunks.add_text(CHUNK, json.dumps(_described(about, index)))
        if graph is not None:
            chunks.add_text(GRAPH_CHUNK, json.dumps(graph))
        with written_whole(path) as partial_path:
            picture.save(partial_path, format="PNG", pnginfo=chunks)


def are_finished(paths: Sequence[Path], about: Mapping[str, Any]) -> bool:
    """Return whether the pictures of a batch are there already, whole and made from the same.

    One of ours that was cut off is not there.

    Raises:
        ValueError: one is there that was made with other settings, or is none of ours.
    """
    num_whole = 0
    for index, path in enumerate(paths):
        if not path.exists():
            continue
        found, is_whole = _settings_in(path)
        if found is None and not is_whole and _is_cut_png(path):
            continue
        expected = json.loads(json.dumps(_described(about, index)))
        if wrong := _differing(found, expected):
            raise ValueError(
                f"{path} is there and was made with other settings ({wrong}). Delete it, or give another folder."
            )
        num_whole += is_whole
    return num_whole == len(paths)


def is_whole_png(content: bytes) -> bool:
    """Return whether a PNG has all its chunks, each with its checksum, and nothing behind the last."""
    place, kind = len(PNG_MARK), b""
    if not content.startswith(PNG_MARK):
        return False
    while kind != b"IEND" and place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        kind = content[place + 4 : place + 8]
        if zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            return False
        place = end + 4
    return kind == b"IEND" and place == len(content)


def write_tokens(path: Path, codes_Bhw: Tensor) -> None:
    """Write a safetensors file with `codes`."""
    with written_whole(path) as partial_path:
        # Not by the library's own writer, whose errors do not say what failed.
        partial_path.write_bytes(save({"codes": codes_Bhw.cpu().contiguous()}))


def _settings_in(path: Path) -> tuple[Any, bool]:
    """Return the settings in a picture (None = it has none) and whether it is whole."""
    found, is_whole = None, False
    try:
        is_whole = is_whole_png(path.read_bytes())
        with Image.open(path, formats=["PNG"]) as picture:
            found = json.loads(picture.info.get(CHUNK, "null"))
            picture.load()
    except Exception:  # a damaged file can raise anything
        is_whole = False
    return found, is_whole


def _is_cut_png(path: Path) -> bool:
    """Return whether a file is what a crash of the system may leave of ours: a PNG cut off before its settings.

    They come before the pixels: a picture that has pixels, but no settings, is somebody else's.
    """
    content = path.read_bytes()
    is_png = PNG_MARK.startswith(content[: len(PNG_MARK)]) and b"IDAT" not in content
    return is_png or not content.strip(b"\0")


def _described(about: Mapping[str, Any], index: int) -> dict[str, Any]:
    return {**about, "index": index}


def _differing(found: Any, expected: Mapping[str, Any]) -> str:
    """Return the names of settings that differ, as a message lists them; empty = none."""
    if not isinstance(found, Mapping):
        return "it has none of ours"
    names = [n for n in (*expected, *found) if n not in NAMES]
    # What is off may be missing: settings come and go with versions.
    wrong = [n for n in dict.fromkeys(names) if (found.get(n) or None) != (expected.get(n) or None)]
    return ", ".join(wrong[:5]) + (" ..." if len(wrong) > 5 else "")
