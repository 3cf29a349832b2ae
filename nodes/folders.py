"""The files that users choose from: the shipped ones and those in ComfyUI's model folders, read as ComfyUI reads."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import comfy.utils
import folder_paths

from ..shortcut import checkpoint as checkpoints
from ..shortcut import models, shipped
from ..shortcut.checkpoint import Checkpoint
from ..shortcut.containers import INDEX_SUFFIX
from ..shortcut.files import OUR_SUFFIX, SHARD_PATTERN, find, parts, read_metadata
from ..shortcut.guard import guarded
from ..shortcut.models.layout import Kind

logger = logging.getLogger(__name__)

MODELS, HEADS = "migm", "migm_heads"  # in ComfyUI's models folder, as the folders of `Download`
EXTENSIONS = (".safetensors", ".pth", ".ckpt", ".pt")
WHOLE = "model_index.json"  # lies in a folder whose subfolders are one model
TRAININGS = "shortcut_training"  # in the output folder, which outlives a restart as temp does not


def register_folders() -> None:
    """Make models/migm and models/migm_heads known to ComfyUI, beside any that extra_model_paths.yaml has."""
    for category in (MODELS, HEADS):
        folder = os.path.join(folder_paths.models_dir, category)
        folder_paths.add_model_folder_path(category, folder)
        folder_paths.folder_names_and_paths[category][1].update(EXTENSIONS)
        # ComfyUI notices new files only in folders that were there when it first looked.
        with contextlib.suppress(OSError):
            os.makedirs(folder, exist_ok=True)


def choices(category: str) -> list[str]:
    """Return the shipped files and all files of the category; a model in several files is one choice.

    What lies in hidden folders is left out: a download in progress.
    """
    names = [
        _shown(category, name)
        for name in folder_paths.get_filename_list(category)
        if not any(part.startswith(".") for part in PurePath(name).parts)
    ]
    return [*shipped.CHOICES, *dict.fromkeys(names)]


def _shown(category: str, name: str) -> str:
    """Return the choice that stands for a file: for a part of a model its folder, or the index beside it."""
    path = PurePath(name)
    outer = path.parent.parent
    if outer.name and folder_paths.get_full_path(category, str(outer / WHOLE)):
        return str(outer)
    if not path.match(SHARD_PATTERN):
        return name
    if len(path.parts) > 1:
        return str(path.parent)
    return re.sub(r"(-\d+)?-of-\d+(\.safetensors)$", rf"\2{INDEX_SUFFIX}", name)


def path_of(category: str, name: str, kind: Kind) -> Path:
    """Return the file or folder that a choice stands for.

    Raises:
        FileNotFoundError: there is none; the message is a line with what to do.
    """
    if name in shipped.CHOICES:
        return shipped.CHOICES[name][kind]
    # A workflow keeps the separators of the system that it was saved on.
    for spelling in dict.fromkeys((name, PureWindowsPath(name).as_posix())):
        inside = os.path.relpath(
            os.path.join("/", spelling), "/"
        )  # no ".." leads out of the category
        for folder in folder_paths.get_folder_paths(category):
            if os.path.isdir(os.path.join(folder, inside)):
                return Path(folder, inside)
        with contextlib.suppress(FileNotFoundError):
            return Path(folder_paths.get_full_path_or_raise(category, spelling))
    raise FileNotFoundError(f"models/{category} holds no {name}. {_advice(category, name)}")


def _advice(category: str, name: str) -> str:
    downloads = [item for a in models.ARCHITECTURES for item in a.downloads.items()]
    for what, source in downloads:
        is_file = source.folder == category and name in {PurePath(f).name for f in source.files}
        if is_file or source.folder == f"{category}/{name}":
            return (
                "In the folder of this pack run, then press R: python -m shortcut download "
                f'{what} --models-dir "{folder_paths.models_dir}"'
            )
    return "Choose a file that is there, or put it there and press R."


def checked_name(name: str) -> str:
    """Return a name for a file to write, perhaps in folders, with / between them.

    Raises:
        ValueError: there is none, or it leads out of the folder it is meant for, or into a hidden one.
    """
    path = PureWindowsPath(name.strip())  # which takes both / and \
    if not path.parts or path.anchor or any(part.startswith(".") for part in path.parts):
        raise ValueError(
            f"{name!r} is no name for a file. Give one such as my_head or heads/my_head, without '.' in front."
        )
    return path.as_posix()


def training_file(name: str) -> Path:
    """Return where the training of that name is kept. Raise ValueError as `checked_name`."""
    return Path(folder_paths.get_output_directory(), TRAININGS, f"{checked_name(name)}.ckpt")


def new_head_file(prefix: str) -> Path:
    """Return a file in models/migm_heads that is not there yet, numbered as ComfyUI numbers what it saves.

    Raises:
        ValueError: as `checked_name`.
    """
    folder, name, number, *_ = folder_paths.get_save_image_path(
        checked_name(prefix), os.path.join(folder_paths.models_dir, HEADS)
    )
    return Path(folder, f"{name}_{number:05}_.safetensors")


def stamp(category: str, name: str | None, kind: Kind, *, is_beside: bool = False) -> str:
    """Return a text that changes when the file of a choice, or one in its folder, is replaced, brought or removed.

    Args:
        name: None = it comes from another node, whose changes ComfyUI sees itself.
        is_beside: True: the choice is of a model, and what counts is the file of `kind` that lies beside it.
    """
    if name is None:
        return "linked"
    try:
        path = path_of(category, name, kind)
        if is_beside and path.is_file() and name not in shipped.CHOICES:
            path = find(path.parent, models.layouts(kind))
        files = sorted(_visible(path)) if path.is_dir() else parts(path)
    except (FileNotFoundError, ValueError):  # `execute` says what is wrong
        return "missing"
    return " ".join(filter(None, map(_stamp_of, files)))


def _visible(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder, without those in hidden ones."""
    for file in folder.rglob("*"):
        if not any(part.startswith(".") for part in file.relative_to(folder).parts):
            yield file


def _stamp_of(file: Path) -> str:
    """Return what changes when a file does; nothing for a folder, or a link to nothing."""
    with contextlib.suppress(OSError):
        status = file.stat()
        if not stat.S_ISDIR(status.st_mode):
            return f"{file} {status.st_size} {status.st_mtime_ns}"
    return ""


def load(path: Path, kind: Kind) -> Checkpoint:
    """Load the checkpoint in a file, or the only one in a folder.

    Raises:
        FileNotFoundError, ValueError: as `checkpoint.load`.
    """
    checkpoint = checkpoints.load(path, kind)
    file = checkpoint.path
    assert file is not None
    shards = [part for part in parts(file) if part.suffix.lower() == OUR_SUFFIX]
    if not shards:
        return checkpoint
    # ComfyUI's own reader marks tensors with their place in the file: dynamic VRAM loads from there.
    raw: dict[str, Any] = {}
    try:
        for shard in shards:
            with guarded(shard, "is not read by ComfyUI", "Download or copy it again."):
                raw |= comfy.utils.load_torch_file(str(shard))
    except (OSError, ValueError) as error:  # such as of a file system that cannot map files
        logger.warning("%s It is kept in memory as a whole.", error)
        return checkpoint
    return checkpoints.from_tensors(raw, read_metadata(file), file, kind)
