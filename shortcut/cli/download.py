"""The command `download`: published files, fetched from huggingface.co and checked. No other uses the network."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .. import models
from ..models.architecture import Download
from ..writing import check_name, check_writable

SITE = "https://huggingface.co"


def add_parser(commands: Any) -> None:
    """Add `download` to the command line."""
    sources = downloads()
    folders = sorted({source.folder.split("/")[0] for source in sources.values()})
    download = commands.add_parser(
        "download",
        description="Fetches published files from huggingface.co into the folders where ComfyUI's loaders look. What "
        "was interrupted is resumed by the same command.",
    )
    download.add_argument("what", choices=list(sources))
    download.add_argument(
        "--models-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"ComfyUI's models folder; files go to its {' and '.join(folders)}",
    )
    download.add_argument("--yes", action="store_true", help="do not ask")
    download.set_defaults(run=run_download)


def downloads() -> Mapping[str, Download]:
    """Return what can be fetched, of all architectures, by name."""
    return {name: d for a in models.ARCHITECTURES for name, d in a.downloads.items()}


def run_download(options: argparse.Namespace) -> int:
    """Say what will be fetched, ask, fetch. Return the exit status: 0 done, 1 declined."""
    source, hub = downloads()[options.what], _hub()
    commit, listed = listing(hub, source)
    folder = options.models_dir / source.folder
    print(f"from {SITE}/{source.repository}, revision {commit}:")
    missing: dict[str, Listed] = {}
    for name, file in listed.items():
        place, state = folder / _place(source, name), ""
        if place.is_file():
            state = "  (is there)"
            if what := _difference(place, file):
                state = f"  (replaces another of {_amount(place.stat().st_size)}: {what})"
        if not place.is_file() or state.startswith("  (replaces"):
            missing[name] = file
            check_writable(place)
        print(f"{_amount(file.size):>10}  {place}{state}")
    if not missing:
        print("all of it is there already.")
        return 0
    needed = sum(file.size for file in missing.values())
    _check_room(folder, needed)
    if not options.yes and not _agrees(f"fetch {_amount(needed)}?"):
        print("nothing was fetched.")
        return 1
    try:
        with _said_of(f"{SITE}/{source.repository} could not be fetched"):
            # It resumes, and checks what it fetches.
            hub.snapshot_download(
                source.repository, revision=commit, allow_patterns=list(missing), local_dir=folder
            )
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here.", file=sys.stderr)
        return 130
    if damaged := _removed_damaged(folder, missing):
        raise ValueError(
            f"not as {SITE}/{source.repository} lists it, and removed: {'; '.join(damaged)}. Run the same command "
            "again: it fetches that anew."
        )
    for name in missing:
        _put(folder, name, _place(source, name))
    print(f"done: {folder}")
    return 0


@dataclass(frozen=True, slots=True)
class Listed:
    """What the hub says about a file. None = it does not say."""

    size: int
    sha256: str | None = None  # of large files
    blob_id: str | None = None  # of the others: the hash by which git knows them


def _listed(sibling: Any) -> Listed:
    lfs = getattr(sibling, "lfs", None)
    sha256 = lfs.get("sha256") if isinstance(lfs, Mapping) else getattr(lfs, "sha256", None)
    blob_id = None if lfs else getattr(sibling, "blob_id", None)
    return Listed(sibling.size or 0, sha256, blob_id)


def _difference(path: Path, listed: Listed) -> str:
    """Return in what a file is not as the hub lists it; empty = in nothing."""
    if (size := path.stat().st_size) != listed.size:
        return f"{_amount(size)}, not {_amount(listed.size)}"
    checks = [("SHA-256", listed.sha256, hashlib.sha256())]
    checks += [("git hash", listed.blob_id, hashlib.sha1(f"blob {size}\0".encode()))]
    for name, expected, digest in checks:
        if expected is None:
            continue
        with path.open("rb") as file:
            while piece := file.read(2**22):
                digest.update(piece)
        if digest.hexdigest() != expected.lower():
            return f"its {name} is {digest.hexdigest()}, not {expected}"
    return ""


def _removed_damaged(folder: Path, fetched: Mapping[str, Listed]) -> list[str]:
    """Remove the files that are not as the hub lists them. Return what they are and what is wrong."""
    damaged = []
    for name, listed in fetched.items():
        path = folder / name
        if wrong := _difference(path, listed) if path.is_file() else "it is not there":
            path.unlink(missing_ok=True)
            damaged.append(f"{path} ({wrong})")
    return damaged


def listing(hub: Any, source: Download) -> tuple[str, dict[str, Listed]]:
    """Return the commit of the repository as it is now, and each file to fetch from it.

    Raises:
        ConnectionError: the repository cannot be asked.
        ValueError: it does not have the files.
    """
    where = f"{SITE}/{source.repository}"
    with _said_of(f"{where} could not be reached"):
        info = hub.HfApi().model_info(source.repository, files_metadata=True)
    if not info.sha:
        raise ValueError(
            f"{where} does not say which revision it lists. Run the same command later."
        )
    files = {sibling.rfilename: _listed(sibling) for sibling in info.siblings or ()}
    wanted: dict[str, Listed] = {}
    for pattern in source.files:
        found = sorted(fnmatch.filter(files, pattern))
        if not found:
            raise ValueError(
                f"{where} has no {pattern}; it has {', '.join(sorted(files)[:8]) or 'no files'}. Its authors may have "
                "moved it: look there, and put it by hand where docs/models.md says."
            )
        for name in found:
            for part in name.split("/"):
                check_name(part)
            wanted[name] = files[name]
    return info.sha, wanted


def _place(source: Download, name: str) -> str:
    """Return where a file of the repository belongs, below the folder of the download."""
    return name if source.is_tree else PurePosixPath(name).name


def _put(folder: Path, name: str, place: str) -> None:
    """Move a file that was fetched to its place, and remove the folders that it leaves empty."""
    if name == place:
        return
    os.replace(folder / name, folder / place)
    with contextlib.suppress(OSError):
        for parent in PurePosixPath(name).parents[:-1]:
            (folder / parent).rmdir()


def _check_room(folder: Path, needed: int) -> None:
    """Raise ValueError if that many bytes do not fit on the disk of `folder`, which need not exist."""
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.is_dir())
    # What an interrupted run has fetched counts.
    needed -= sum(file.stat().st_size for file in folder.glob(".cache/**/*.incomplete"))
    if needed > (free := shutil.disk_usage(existing).free):
        raise ValueError(
            f"{_amount(needed)} are needed, but only {_amount(free)} are free in {existing}. Make room, or choose "
            "another --models-dir and name it in ComfyUI's extra_model_paths.yaml."
        )


@contextlib.contextmanager
def _said_of(problem: str) -> Iterator[None]:
    """Turn the library's errors, which have no common class, into one that says what to do."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        raise ConnectionError(
            f"{problem} ({type(error).__name__}: {lines[0]}). Check the network, and whether the page opens in a "
            "browser; then run the same command again: it goes on where it stopped."
        ) from error


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError(
            "downloads need huggingface_hub, which is not installed. Run: pip install huggingface_hub"
        ) from error
    return huggingface_hub


def _agrees(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        raise ValueError("there is nobody to answer the question. Add --yes.") from None


def _amount(size: int) -> str:
    """Return bytes for people."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"
