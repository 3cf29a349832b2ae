"""The commands `info` (what a file is) and `convert` (published layout <-> our single file)."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .. import weights
from ..checkpoint import Checkpoint
from ..files import parts
from ..models.layout import Tensors
from ..models.lumina_dimoo.tokenizer import copy_tokenizer, own_folder, tokenizer_folder

FLOAT8 = torch.float8_e4m3fn
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3fn": FLOAT8,
}


def add_parsers(subparsers: Any) -> None:
    """Adds `info` and `convert` to the command line."""
    info = subparsers.add_parser(
        "info", help="say what a file is", description="Says what a file is."
    )
    info.add_argument("file", type=Path, help="a published file, one of ours, or a folder with one")
    info.set_defaults(run=run_info)
    convert = subparsers.add_parser(
        "convert",
        help="published layout <-> our single file",
        description="Writes a checkpoint as one of our files, or in the published layout.",
    )
    convert.add_argument("file", metavar="IN", type=Path, help="as for info")
    convert.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help=".safetensors = our file; .pth, .pt, .ckpt = published layout",
    )
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


def run_info(options: argparse.Namespace) -> int:
    """Prints what a file is. Returns the exit status."""
    print(describe(_load(options)))
    return 0


def run_convert(options: argparse.Namespace) -> int:
    """Writes a checkpoint in another layout. Returns the exit status."""
    checkpoint, out = _load(options), options.out
    if (
        checkpoint.path is not None
        and out.exists()
        and any(out.samefile(p) for p in parts(checkpoint.path))
    ):
        raise ValueError(f"{out} is the input itself. Give another name.")
    tokenizer = None
    if checkpoint.format.conditioning == "text" and checkpoint.path is not None:
        tokenizer = tokenizer_folder(checkpoint.path)
    metadata = checkpoint.metadata
    if options.title is not None:
        metadata = replace(metadata, title=options.title)
    if options.model is not None:
        model = weights.load(options.model, kind="model")
        weights.check_head(checkpoint, model)
        metadata = replace(metadata, model_fingerprint=model.fingerprint)
    dtype = DTYPES[options.dtype] if options.dtype is not None else None
    weights.save(out, replace(checkpoint, metadata=metadata), dtype=dtype)
    if tokenizer is not None:
        copy_tokenizer(tokenizer, out)
    print(describe(weights.load(out, None, **_known(checkpoint))))
    return 0


def describe(checkpoint: Checkpoint) -> str:
    """Lines that say what a checkpoint is."""
    metadata = checkpoint.metadata
    quantized = ", ".join(sorted(set(checkpoint.quantized.values())))
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    types = f"mostly {quantized}, else {dtype}" if quantized else f"mostly {dtype}"
    layout = "our file" if metadata.config else "published layout"
    lines = {
        "file": checkpoint.path,
        "format": f"{checkpoint.format.title} ({checkpoint.format.name}), {layout}",
        "weights": f"{checkpoint.num_parameters:,} parameters, {types}, {_megabytes(checkpoint.tensors)} MB",
        "sizes": ", ".join(f"{name} {value}" for name, value in asdict(checkpoint.config).items()),
        "fingerprint": checkpoint.fingerprint,
    }
    if checkpoint.format.kind == "model" and not quantized:
        lines["as float8"] = f"{_megabytes(checkpoint.layout(FLOAT8))} MB"
    if checkpoint.format.conditioning == "text" and checkpoint.path is not None:
        lines["tokenizer"] = _tokenizer(checkpoint.path)
    if checkpoint.format.kind == "head":
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


def _tokenizer(checkpoint: Path) -> Path | str:
    try:
        return tokenizer_folder(checkpoint)
    except FileNotFoundError:
        return f"missing; it belongs into {own_folder(checkpoint)}"


def _load(options: argparse.Namespace) -> Checkpoint:
    stated = {"num_heads": options.num_heads, "num_codes": options.num_codes}
    return weights.load(options.file, None, **{k: v for k, v in stated.items() if v is not None})


def _known(checkpoint: Checkpoint) -> dict[str, Any]:
    """The sizes of a checkpoint, of which its published layout says only some."""
    return json.loads(json.dumps(asdict(checkpoint.config)))
