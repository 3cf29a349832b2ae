"""Measure the peak memory of loading, building and converting Lumina-DiMOO: python -m experiments load-memory

It writes random weights of the real widths with fewer layers to a temporary folder and runs each step in a process of
its own. Anonymous memory (RssAnon) is what a process cannot give back; file pages (RssFile) are parts of the mapped
files, which the system drops when it needs room.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.tables.report import table
from shortcut import checkpoint as checkpoints
from shortcut.checkpoint import Checkpoint
from shortcut.files import write_safetensors
from shortcut.models.key_table import published_key
from shortcut.models.layers import Bare
from shortcut.models.lumina_dimoo import ARCHITECTURE

REAL = ARCHITECTURE.sizes["lumina-dimoo"].model
LAYOUT = ARCHITECTURE.model
FLOAT8 = torch.float8_e4m3fn
GB = 1e9
INTERVAL = 0.005  # seconds between looks at the memory
COLUMNS = (
    "step",
    "new weights",
    "peak anonymous",
    "beyond them",
    "mapped files",
    "seconds",
    "32 layers: anonymous",
)


def memory() -> dict[str, int]:
    """Return the bytes of this process by kind. Raises OSError where the system is not Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        name: int(rest.split()[0]) * 1024
        for name, rest in (line.split(":", 1) for line in lines)
        if name in ("RssAnon", "RssFile")
    }


def measured(work: Callable[..., None], *args: Any) -> tuple[int, int, float]:
    """Return (peak of new anonymous memory, peak of file pages, seconds) of `work`."""
    seen, done = [memory()], threading.Event()

    def watch() -> None:
        while not done.wait(INTERVAL):
            seen.append(memory())

    thread, begun = threading.Thread(target=watch, daemon=True), time.perf_counter()
    thread.start()
    work(*args)
    seconds = time.perf_counter() - begun
    done.set()
    thread.join()
    anonymous = max(found["RssAnon"] for found in seen) - seen[0]["RssAnon"]
    return anonymous, max(found["RssFile"] for found in seen), seconds


def alone(work: Callable[..., None], *args: Any) -> tuple[int, int, float]:
    """Call `measured` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measured, work, *args).result()


def empty(config: Any) -> Checkpoint:
    """Return a checkpoint in bfloat16 without values."""
    network = LAYOUT.network(config, dtype=torch.bfloat16, device="meta", operations=Bare)
    return Checkpoint(LAYOUT, config, network.state_dict(), "")


def nbytes(config: Any, dtype: torch.dtype) -> int:
    """Return the bytes of the weights of a network in `dtype`."""
    return sum(tensor.nbytes for tensor in empty(config).shapes(dtype).values())


def write_folder(folder: Path, config: Any) -> int:
    """Write random weights as the published folder has them. Returns the bytes of the largest shard."""
    ours = empty(config).tensors
    shapes = {published_key(LAYOUT.table, name): tensor for name, tensor in ours.items()}
    # The published output matrix has rows for text ids too.
    output = torch.empty(config.vocabulary, config.width, dtype=torch.bfloat16, device="meta")
    shapes["model.transformer.ff_out.weight"] = output
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(2**24, generator=generator) * 0.02).to(torch.bfloat16)

    def tensors(names: list[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            shape = shapes[name].shape
            repeats = -(-shape.numel() // values.numel())
            yield name, values.repeat(repeats)[: shape.numel()].view(shape)

    groups: dict[str, list[str]] = {"wte": [], "blocks": [], "ff_out": []}
    for name in shapes:
        group = next((g for g in ("wte", "blocks") if f".{g}." in name), "ff_out")
        groups[group].append(name)
    weight_map = {}
    for number, names in enumerate(groups.values(), 1):
        shard = f"model-{number:05}-of-{len(groups):05}.safetensors"
        layout = {name: shapes[name] for name in names}
        write_safetensors(folder / shard, layout, tensors(names), {"format": "pt"})
        weight_map |= dict.fromkeys(names, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    stated = {
        "model_type": "llada",
        "d_model": config.width,
        "n_layers": config.depth,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "mlp_hidden_size": config.mlp_width,
        "embedding_size": config.vocabulary,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
    }
    (folder / "config.json").write_text(json.dumps(stated))
    return max(path.stat().st_size for path in folder.glob("*.safetensors"))


def build(path: Path, dtype: torch.dtype | None) -> None:
    """Load and build."""
    checkpoints.build(checkpoints.load(path), dtype=dtype)


def convert(path: Path, out: Path, dtype: torch.dtype | None) -> None:
    """Load and write in another layout."""
    checkpoints.save(out, checkpoints.load(path), dtype=dtype)


def add_parser(steps: Any) -> None:
    """Add `load-memory` to the command line."""
    about = (
        "measure the memory of loading Lumina-DiMOO on a synthetic checkpoint: a table (a minute)"
    )
    parser = steps.add_parser("load-memory", help=about, description=about)
    parser.add_argument("--layers", type=int, default=3, help="of 0.44 GB each, beside 2.2 GB")
    parser.add_argument("--dir", type=Path, help="where to write; default: the temporary folder")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the table. Returns 1 if anonymous memory was more than the weights and one shard, else 0."""
    config = replace(REAL, depth=options.layers)
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        shard = write_folder(folder, config)
        one, small = folder / "one" / "one.safetensors", folder / "small" / "small.safetensors"
        # Step, type of weights that it must hold in memory (None: they stay mapped), work.
        steps = (
            ("build, as stored", None, build, (folder, None)),
            ("build, float16", torch.float16, build, (folder, torch.float16)),
            ("convert to one file", None, convert, (folder, one, None)),
            ("build of it, as stored", None, build, (one, None)),
            ("convert to float8", None, convert, (one, small, FLOAT8)),
            ("build of it, as stored", None, build, (small, None)),
        )
        lines, is_bounded = [], True
        for title, dtype, work, args in steps:
            anonymous, files, seconds = alone(work, *args)
            new = nbytes(config, dtype) if dtype is not None else 0
            beyond = anonymous - new
            real = beyond + (nbytes(REAL, dtype) if dtype is not None else 0)
            figures = (f"{size / GB:.2f}" for size in (new, anonymous, beyond, files))
            lines.append((title, *figures, f"{seconds:.1f}", f"{real / GB:.2f}"))
            is_bounded &= beyond <= shard
    print(table(COLUMNS, lines))
    print(
        f"\nIn GB. {options.layers} of 32 layers, the largest of 3 shards {shard / GB:.2f} GB. All 32 layers: "
        f"{nbytes(REAL, torch.bfloat16) / GB:.2f} GB in bfloat16, {nbytes(REAL, FLOAT8) / GB:.2f} GB in float8."
    )
    if not is_bounded:
        print("Anonymous memory was more than the weights and one shard.", file=sys.stderr)
    return 0 if is_bounded else 1
