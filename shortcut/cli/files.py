"""The commands `info`, `convert` and `download`: what a file is, as one of our files, where published files come from.

Only `download` uses the network.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from .. import checkpoint as checkpoints
from .. import models
from ..checkpoint import Checkpoint
from ..companions import placed
from ..files import parts
from ..models.architecture import Download
from ..models.layout import Tensors

FLOAT8 = torch.float8_e4m3fn
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3fn": FLOAT8,
}
SITE = "https://huggingface.co"


def add_parser(commands: Any) -> None:
    """Add `info`, `convert` and `download` to the command line."""
    info = commands.add_parser("info", description="Says what a file is.")
    info.add_argument("file", type=Path, help="a published file, one of ours, or a folder with one")
    info.set_defaults(run=run_info)
    convert = commands.add_parser("convert", description="Writes a checkpoint as one of our files.")
    convert.add_argument("file", metavar="IN", type=Path, help="as for info")
    convert.add_argument("out", metavar="OUT.safetensors", type=Path)
    convert.add_argument(
        "--dtype",
        choices=list(DTYPES),
        help="of the weights; default: as they are. float8_e4m3fn: of the large weights of a model, "
        "with a scale each, as ComfyUI reads them",
    )
    convert.add_argument(
        "--model", type=Path, help="for a head: the model it was trained for, to be checked on use"
    )
    convert.add_argument("--title", help="a name to show to users")
    convert.set_defaults(run=run_convert)
    for parser in (info, convert):
        parser.add_argument(
            "--num-heads", type=int, help="attention heads, where no file or preset says so"
        )
        parser.add_argument(
            "--num-codes", type=int, help="size of the codebook, where no file or preset says so"
        )
    _add_download(commands)


def _add_download(commands: Any) -> None:
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


def run_info(options: argparse.Namespace) -> int:
    """Print what a file is. Return the exit status."""
    print(describe(_load(options)))
    return 0


def run_convert(options: argparse.Namespace) -> int:
    """Write a checkpoint as one of our files. Return the exit status."""
    model = None if options.model is None else checkpoints.load(options.model, kind="model")
    checkpoint, out = _load(options, model), options.out
    assert checkpoint.path is not None
    if out.exists() and any(out.samefile(part) for part in parts(checkpoint.path)):
        raise ValueError(f"{out} is the input itself. Give another name.")
    metadata = checkpoint.metadata
    if options.title is not None:
        metadata = replace(metadata, title=options.title)
    if model is not None:
        from ..pipeline import check_head  # `info` does without

        check_head(checkpoint, model)
        metadata = replace(metadata, model_fingerprint=model.fingerprint)
    if checkpoint.layout.kind == "model" and checkpoint.architecture.copy_companions is not None:
        # First, because a model is of no use without them.
        with placed(checkpoint) as path:
            assert path is not None
            checkpoint.architecture.copy_companions(path, out)
    dtype = DTYPES[options.dtype] if options.dtype is not None else None
    checkpoints.save(out, replace(checkpoint, metadata=metadata), dtype=dtype)
    print(describe(checkpoints.load(out)))
    return 0


def describe(checkpoint: Checkpoint) -> str:
    """Return lines that say what a checkpoint is."""
    metadata, layout = checkpoint.metadata, checkpoint.layout
    quantized = ", ".join(sorted(set(checkpoint.quantized.values())))
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    types = f"mostly {quantized}, else {dtype}" if quantized else f"mostly {dtype}"
    origin = "our file" if metadata.config else "published layout"
    lines = {
        "file": checkpoint.path,
        "format": f"{layout.title} ({layout.name}), {origin}",
        "weights": f"{checkpoint.num_parameters:,} parameters, {types}, {_megabytes(checkpoint.tensors)} MB",
        "sizes": ", ".join(f"{name} {value}" for name, value in asdict(checkpoint.config).items()),
        "fingerprint": checkpoint.fingerprint,
    }
    if layout.quantizable and not quantized:
        lines["as float8"] = f"{_megabytes(checkpoint.shapes(FLOAT8))} MB"
    if checkpoint.companions:
        lines["in the file"] = ", ".join(Path(name).name for name in checkpoint.companions)
    elif layout.kind == "model" and checkpoint.path is not None:
        lines |= checkpoint.architecture.companions(checkpoint.path)
    if layout.kind == "head":
        lines["for model"] = metadata.model_fingerprint or "not said; only the width can be checked"
    lines |= {
        "title": metadata.title,
        "classes": ", ".join(metadata.class_names),
        "defaults": metadata.defaults and json.dumps(metadata.defaults),
        "trained": metadata.trained and json.dumps(metadata.trained),
    }
    return "\n".join(f"{name:12} {value}" for name, value in lines.items() if value)


def _megabytes(tensors: Tensors) -> str:
    return f"{sum(tensor.nbytes for tensor in tensors.values()) / 1e6:,.1f}"


def _load(options: argparse.Namespace, model: Checkpoint | None = None) -> Checkpoint:
    stated = {"num_heads": options.num_heads, "num_codes": options.num_codes}
    return checkpoints.load(
        options.file, None, model=model, **{k: v for k, v in stated.items() if v is not None}
    )


def downloads() -> Mapping[str, Download]:
    """Return what can be fetched, of all architectures, by name."""
    return {name: d for a in models.ARCHITECTURES for name, d in a.downloads.items()}


def run_download(options: argparse.Namespace) -> int:
    """Say what will be fetched, ask, fetch. Return the exit status: 0 done, 1 declined."""
    source, hub = downloads()[options.what], _hub()
    commit, sizes = listing(hub, source)
    folder = options.models_dir / source.folder
    print(f"from {SITE}/{source.repository}:")
    missing: dict[str, int] = {}
    for name, size in sizes.items():
        place = folder / _place(source, name)
        there = place.stat().st_size if place.is_file() else None
        if there != size:
            missing[name] = size
        state = "" if there is None else "  (is there)"
        if there not in (None, size):
            state = f"  (replaces another of {_amount(there)})"
        print(f"{_amount(size):>10}  {place}{state}")
    if not missing:
        print("all of it is there already.")
        return 0
    _check_room(folder, sum(missing.values()))
    if not options.yes and not _agrees(f"fetch {_amount(sum(missing.values()))}?"):
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
    for name in missing:
        _put(folder, name, _place(source, name))
    print(f"done: {folder}")
    return 0


def listing(hub: Any, source: Download) -> tuple[str, dict[str, int]]:
    """Return the commit of the repository as it is now, and the size of each file to fetch from it.

    Raises:
        ConnectionError: the repository cannot be asked.
        ValueError: it does not have the files.
    """
    where = f"{SITE}/{source.repository}"
    with _said_of(f"{where} could not be reached"):
        info = hub.HfApi().model_info(source.repository, files_metadata=True)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    wanted: dict[str, int] = {}
    for pattern in source.files:
        found = sorted(fnmatch.filter(sizes, pattern))
        if not found:
            raise ValueError(
                f"{where} has no {pattern}; it has {', '.join(sorted(sizes)[:8]) or 'no files'}. Its authors may have "
                "moved it: look there, and put it by hand where docs/models.md says."
            )
        wanted |= {name: sizes[name] for name in found}
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
