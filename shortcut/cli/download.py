"""The command `download`: published weights from huggingface.co to where the loaders look.

Nothing else in this package uses the network. What was begun is resumed: a file takes its place when it is whole.

Source of the names: README.md "Published weights".
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

SITE = "https://huggingface.co"
MODELS, HEADS = "migm", "migm_heads"  # folders in ComfyUI's models folder
STAGING = ".download"  # beside the files' places, so that they only have to be renamed


@dataclass(frozen=True, slots=True)
class Source:
    """Files of a repository and the folder of the models folder that they belong in."""

    repository: str
    files: tuple[str, ...]  # paths in the repository, or patterns, each of which must find some
    folder: str
    is_tree: bool = False  # True: paths are kept below `folder`. False: only names


_VALEO = "llvictorll/Maskgit-pytorch"
_HEADS = "Kaiwen-Zhu/MIGM-Shortcut"
_VQGAN = tuple(f"pretrained_maskgit/VQGAN/{name}" for name in ("last.ckpt", "model.yaml"))
SOURCES: Mapping[str, Source] = {
    "lumina-dimoo": Source(
        "Alpha-VLLM/Lumina-DiMOO",
        (
            "config.json",
            "model*.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vqvae/config.json",
            "vqvae/*.safetensors",
        ),
        f"{MODELS}/Lumina-DiMOO",
        is_tree=True,
    ),
    "dimoo-head": Source(_HEADS, ("DiMOO-Shortcut/dimoo-shortcut.pth",), HEADS),
    **{
        f"maskgit-{side}": Source(
            _VALEO, (f"pretrained_maskgit/MaskGIT/MaskGIT_ImageNet_{side}.pth", *_VQGAN), MODELS
        )
        for side in (512, 256)
    },
    "maskgit-head": Source(_HEADS, ("MaskGIT-Shortcut/maskgit-shortcut.pth",), HEADS),
}


@dataclass(frozen=True, slots=True)
class File:
    """One file of a repository."""

    name: str  # path in the repository
    size: int  # bytes
    place: Path  # where it belongs

    @property
    def is_there(self) -> bool:
        return self.place.is_file() and self.place.stat().st_size == self.size


def add_parser(subparsers: Any) -> None:
    """Adds `download` to the command line."""
    about = "fetch published weights from huggingface.co"
    parser = subparsers.add_parser(
        "download",
        help=about,
        description=f"{about.capitalize()}, into the folders where ComfyUI's loaders look. What was interrupted is "
        "resumed by the same command.",
    )
    parser.add_argument("what", choices=list(SOURCES))
    parser.add_argument(
        "--models-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"ComfyUI's models folder; files go to its {MODELS} and {HEADS}",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Says what will be fetched, asks, fetches. Returns the exit status: 0 done, 1 declined."""
    source = SOURCES[options.what]
    hub = _hub()
    commit, files = listing(hub, source, options.models_dir)
    missing = [file for file in files if not file.is_there]
    _show(source, files)
    if not missing:
        print("all of it is there already.")
        return 0
    folder = options.models_dir / source.folder
    check_room(folder, missing)
    if not options.yes and not _agrees(f"fetch {_amount(_total(missing))}?"):
        print("nothing was fetched.")
        return 1
    try:
        for number, file in enumerate(missing, 1):
            print(f"{number} of {len(missing)}: {file.place}")
            fetch(hub, source, commit, file, folder / STAGING)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here.", file=sys.stderr)
        return 130
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    print(f"done: {folder}")
    return 0


def listing(hub: Any, source: Source, models_dir: Path) -> tuple[str, list[File]]:
    """The commit of the repository as it is now, and the files to fetch from it.

    Raises:
        ConnectionError: the repository cannot be asked.
        ValueError: it does not have the files.
    """
    where = f"{SITE}/{source.repository}"
    try:
        info = hub.HfApi().model_info(source.repository, files_metadata=True)
    except (
        Exception
    ) as error:  # the library's errors have no common class, nor have those of its HTTP clients
        raise ConnectionError(
            f"{where} could not be reached ({_said(error)}). Check the network, and whether the page opens in a "
            "browser; then run the same command again."
        ) from error
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    names: list[str] = []
    for pattern in source.files:
        found = sorted(name for name in sizes if _matches(name, pattern) and name not in names)
        if not found and not any(_matches(name, pattern) for name in names):
            raise ValueError(
                f"{where} has no {pattern}; it has {', '.join(sorted(sizes)[:8]) or 'no files'}. Its authors may have "
                "moved it: look there, and put it by hand where README.md says."
            )
        names += found
    folder = models_dir / source.folder
    places = {
        name: folder / (name if source.is_tree else PurePosixPath(name).name) for name in names
    }
    return info.sha, [File(name, sizes[name], places[name]) for name in names]


def check_room(folder: Path, files: list[File]) -> None:
    """Raises ValueError if `files` do not fit on the disk of `folder`, which need not exist."""
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.is_dir())
    begun = sum(f.stat().st_size for f in (folder / STAGING).rglob("*") if f.is_file())
    needed, free = max(0, _total(files) - begun), shutil.disk_usage(existing).free
    if needed > free:
        raise ValueError(
            f"{_amount(needed)} are needed, but only {_amount(free)} are free in {existing}. Make room, or choose "
            "another --models-dir and name it in ComfyUI's extra_model_paths.yaml."
        )


def fetch(hub: Any, source: Source, commit: str, file: File, staging: Path) -> None:
    """Fetches one file of a commit, or the rest of it, and puts it in its place.

    Args:
        staging: folder for what is not whole yet.

    Raises:
        ConnectionError: it could not be fetched, or not as a whole.
    """
    try:
        whole = Path(
            hub.hf_hub_download(source.repository, file.name, revision=commit, local_dir=staging)
        )
    except Exception as error:  # as in `listing`
        raise ConnectionError(
            f"{file.name} of {SITE}/{source.repository} could not be fetched ({_said(error)}). Run the same command "
            "again: it goes on where it stopped."
        ) from error
    size = whole.stat().st_size
    if file.size and size != file.size:
        whole.unlink()
        raise ConnectionError(
            f"{file.name} of {SITE}/{source.repository} came with {size} bytes, expected {file.size}. Run the same "
            "command again."
        )
    file.place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(whole, file.place)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError(
            "downloads need huggingface_hub, which is not installed. Run: pip install huggingface_hub"
        ) from error
    return huggingface_hub


def _show(source: Source, files: list[File]) -> None:
    print(f"from {SITE}/{source.repository}:")
    for file in files:
        state = ""
        if file.is_there:
            state = "  (is there)"
        elif file.place.exists():
            state = f"  (replaces another of {_amount(file.place.stat().st_size)})"
        print(f"{_amount(file.size):>10}  {file.place}{state}")


def _agrees(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        raise ValueError("there is nobody to answer the question. Add --yes.") from None


def _matches(name: str, pattern: str) -> bool:
    """As in a shell: `*` does not reach into folders."""
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _total(files: list[File]) -> int:
    return sum(file.size for file in files)


def _amount(size: int) -> str:
    """Bytes for people."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
