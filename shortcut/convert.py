"""The commands `info` (what a file is) and `convert` (published layout <-> our single file)."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from . import weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
        "--dtype", choices=list(DTYPES), help="of the weights; default: as they are"
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
    checkpoint = _load(options)
    if (
        options.out.exists()
        and checkpoint.path is not None
        and options.out.samefile(checkpoint.path)
    ):
        raise ValueError(f"{options.out} is the input itself. Give another name.")
    if options.dtype is not None:
        checkpoint = weights.cast(checkpoint, DTYPES[options.dtype])
    metadata = checkpoint.metadata
    if options.title is not None:
        metadata = replace(metadata, title=options.title)
    if options.model is not None:
        model = weights.load(options.model, kind="model")
        weights.check_head(checkpoint, model)
        metadata = replace(metadata, model_fingerprint=model.fingerprint)
    weights.save(options.out, replace(checkpoint, metadata=metadata))
    print(describe(weights.load(options.out, None, **_known(checkpoint))))
    return 0


def describe(checkpoint: weights.Checkpoint) -> str:
    """Lines that say what a checkpoint is."""
    metadata = checkpoint.metadata
    megabytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values()) / 1e6
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    layout = "our file" if metadata.config else "published layout"
    lines = {
        "file": checkpoint.path,
        "format": f"{checkpoint.format.title} ({checkpoint.format.name}), {layout}",
        "weights": f"{checkpoint.num_parameters:,} parameters, mostly {dtype}, {megabytes:,.1f} MB",
        "sizes": ", ".join(f"{name} {value}" for name, value in asdict(checkpoint.config).items()),
        "fingerprint": checkpoint.fingerprint,
    }
    if checkpoint.format.kind == "head":
        lines["for model"] = metadata.model_fingerprint or "not said; only the width can be checked"
    lines |= {
        "title": metadata.title,
        "classes": ", ".join(metadata.class_names),
        "defaults": metadata.defaults and json.dumps(metadata.defaults),
        "trained": metadata.trained and json.dumps(metadata.trained),
    }
    return "\n".join(f"{name:12} {value}" for name, value in lines.items() if value)


def _load(options: argparse.Namespace) -> weights.Checkpoint:
    stated = {"num_heads": options.num_heads, "num_codes": options.num_codes}
    return weights.load(options.file, None, **{k: v for k, v in stated.items() if v is not None})


def _known(checkpoint: weights.Checkpoint) -> dict[str, int]:
    """What the published layout of a checkpoint does not say."""
    config = asdict(checkpoint.config)
    names = {"model": ("num_heads", "num_codes"), "head": ("num_heads",), "vq": ()}
    return {name: config[name] for name in names[checkpoint.format.kind]}
