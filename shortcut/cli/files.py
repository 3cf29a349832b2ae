"""The commands `info` and `convert`: what a file is, and a checkpoint as one of our files."""

from __future__ import annotations

import argparse
import json
import logging
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from .. import checkpoint as checkpoints
from .. import published, quantized
from ..checkpoint import Checkpoint
from ..companions import placed
from ..compatibility import check_head
from ..containers import INDEX_SUFFIX
from ..files import parts
from ..guard import message_of
from ..models.layout import Tensors
from ..quantized import TARGETS, Target
from ..writing import check_writable

logger = logging.getLogger(__name__)

MAX_LINE = 2**15  # characters; the names of a thousand classes take half
DTYPES: dict[str, Target] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    **TARGETS,
}


def add_parser(commands: Any) -> None:
    """Add `info` and `convert` to the command line."""
    info = commands.add_parser("info", description="Says what a file is.")
    info.add_argument("file", type=Path, help="a published file, one of ours, or a folder with one")
    info.set_defaults(run=run_info)
    convert = commands.add_parser("convert", description="Writes a checkpoint as one of our files.")
    convert.add_argument("file", metavar="IN", type=Path, help="as for info")
    convert.add_argument(
        "out",
        metavar="OUT.safetensors",
        type=Path,
        help="OUT.pth: the tensors alone as their authors publish them, for programs that read no safetensors",
    )
    convert.add_argument(
        "--dtype",
        choices=list(DTYPES),
        help="of the weights; default: as they are. float8_e4m3fn, int8_convrot, nvfp4 and asym_w4a8 (4 bits; "
        "ComfyUI from 0.33): of the large weights of a model, as ComfyUI reads and computes them",
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


def run_info(options: argparse.Namespace) -> int:
    """Print what a file is. Return the exit status."""
    print(describe(_load(options)))
    return 0


def run_convert(options: argparse.Namespace) -> int:
    """Write a checkpoint as one of our files, or in the published layout. Return the exit status."""
    out = options.out
    check_writable(out)
    model = None if options.model is None else checkpoints.load(options.model, kind="model")
    checkpoint = _load(options, model)
    assert checkpoint.path is not None
    if out.exists() and any(out.samefile(part) for part in parts(checkpoint.path)):
        raise ValueError(f"{out} is the input itself. Give another name.")
    metadata = checkpoint.metadata
    if options.title is not None:
        metadata = replace(metadata, title=options.title)
    if model is not None:
        check_head(checkpoint, model)
        metadata = replace(metadata, model_fingerprint=model.fingerprint)
    changed = replace(checkpoint, metadata=metadata)
    dtype = DTYPES[options.dtype] if options.dtype is not None else None
    if out.suffix.lower() in published.SUFFIXES:
        print(describe(_published(out, changed, dtype)))
        return 0
    copy_companions = None
    if checkpoint.layout.kind == "model":
        copy_companions = checkpoint.architecture.copy_companions
    # Lumina-DiMOO in 4 bits takes ten minutes and more of a processor.
    quantized.logger.setLevel(logging.INFO)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with placed(checkpoint) as path, TemporaryDirectory() as scratch:
        assert path is not None
        if copy_companions is not None:  # a model without them is of no use: that ends here
            copy_companions(path, Path(scratch) / out.name)
        checkpoints.save(out, changed, dtype=dtype, device=device)
        if copy_companions is not None:  # now, as `out` may have had others beside it
            copy_companions(path, out)
    print(describe(checkpoints.load(out)))
    return 0


def _published(out: Path, checkpoint: Checkpoint, dtype: Target | None) -> Checkpoint:
    """Write a checkpoint in the published layout, and return it as it is read again."""
    published.save(out, checkpoint, dtype=dtype)
    lost = [name for name, value in asdict(checkpoint.metadata).items() if value]
    if lost := [name.replace("_", " ") for name in lost if name != "config"]:
        logger.warning("%s has tensors alone. It does not hold: %s.", out, ", ".join(lost))
    return checkpoints.load(out, **json.loads(json.dumps(asdict(checkpoint.config))))


def describe(checkpoint: Checkpoint) -> str:
    """Return lines that say what a checkpoint is."""
    metadata, layout = checkpoint.metadata, checkpoint.layout
    layers: defaultdict[str, list[str]] = defaultdict(list)  # format -> those in it
    for name, format in checkpoint.quantized.items():
        layers[format].append(name.removesuffix(".weight"))
    by_number = sorted(layers, key=lambda format: -len(layers[format]))
    most, *others = *by_number, str(checkpoint.dtype).removeprefix("torch.")
    types = f"mostly {most}" + (f", else {' and '.join(others)}" if others else "")
    origin = "our file" if metadata.config else "published layout"
    lines = {
        "file": checkpoint.path and _sized(checkpoint.path),
        "format": f"{layout.title} ({layout.name}), {origin}",
        "weights": f"{checkpoint.num_parameters:,} parameters, {types}, {_megabytes(checkpoint.tensors)} MB in memory",
        "sizes": ", ".join(f"{name} {value}" for name, value in asdict(checkpoint.config).items()),
        "fingerprint": checkpoint.fingerprint,
    }
    if checkpoint.text:
        lines["for text"] = f"{_megabytes(checkpoint.text)} MB more in the file"
    if layout.quantizable and not layers:
        whole = checkpoint.with_text()
        lines |= {
            f"as {name}": f"{_megabytes(whole.shapes(to))} MB" for name, to in TARGETS.items()
        }
    lines |= {format: ", ".join(sorted(layers[format])) for format in by_number[1:]}
    if layers and (kept := checkpoint.quantizable.keys() - checkpoint.quantized):
        lines["unquantized"] = ", ".join(sorted(kept))
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
    said = {name: message_of(value, MAX_LINE) for name, value in lines.items() if value}
    return "\n".join(f"{name:12} {value}" for name, value in said.items())


def _sized(path: Path) -> str:
    """Return a file, and its size unless it only names others: in memory it may be larger."""
    is_index = path.name.endswith(INDEX_SUFFIX)
    return str(path) if is_index else f"{path}, {path.stat().st_size / 1e6:,.1f} MB"


def _megabytes(tensors: Tensors) -> str:
    return f"{sum(tensor.nbytes for tensor in tensors.values()) / 1e6:,.1f}"


def _load(options: argparse.Namespace, model: Checkpoint | None = None) -> Checkpoint:
    stated = {"num_heads": options.num_heads, "num_codes": options.num_codes}
    return checkpoints.load(
        options.file, None, model=model, **{k: v for k, v in stated.items() if v is not None}
    )
