"""Remake the shipped models and measure them: python -m experiments COMMAND

`all` runs every step that the shipped files, their tables and the README's pictures need, in order.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiments import gallery
from experiments.judges import attributes, reader
from experiments.judges.file import JUDGE, TEXT_JUDGE
from experiments.robustness import fuzz, previews, soak
from experiments.scenes import dataset
from experiments.scenes import tokenizer as scene_tokenizer
from experiments.scenes.edits import altered
from experiments.scenes.scene import CLASS_NAMES, compose_varied
from experiments.tables import (
    ablation,
    frontier,
    load_memory,
    real_sizes,
    text_quality,
    weight_layers,
    weight_types,
    world_quality,
)
from experiments.training import base, heads, text_base, vq, world
from experiments.training.files import code_colours, ship
from shortcut import checkpoint as checkpoints
from shortcut import shipped
from shortcut.models import lumina_dimoo, maskgit
from shortcut.models.lumina_dimoo.prompts import load_tokenizer
from shortcut.train.cpu import keep_memory

NUM_TRAIN, NUM_FRESH, NUM_COLOURED = 40_000, 6_000, 2_000
NUM_EDITS = 20_000  # altered pictures that edits are learned from
FIRST_FRESH_SEED = 10_000_000  # no training picture has such a seed
TITLE = "Procedural landscapes, 96 x 96"
TEXT_TITLE = "Procedural landscapes by text, 96 x 96"
DEFAULTS = {
    "num_steps": 32,
    "guidance": [2.8],
    "choice_temperature": heads.CHOICE_TEMPERATURE,
    "spread": 1,
}
TEXT_DEFAULTS = {
    "guidance": [3.0],
    "source_guidance": [2.5, 1.5],
    "temperature": 0.9,
    "choice_temperature": 4.0,
}
# What `all` runs, in order; {dir} and {device} are its own options.
ALL = (
    "data --dir {dir}",
    "vq --dir {dir}",
    "base --dir {dir}",
    "head --dir {dir} --device {device}",
    "judge --dir {dir}",
    "frontier --chart docs/frontier.png --work {dir}/frontier",
    "text-data --dir {dir}",
    "tokenizer --dir {dir}",
    "text-base --dir {dir}",
    "text-head --dir {dir}",
    "text-judge --dir {dir}",
    "text-quality --per-task 20 --work {dir}/text-quality",
    "text-quality --task edit --per-task 12 --work {dir}/text-quality",
    "gallery",
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in STEPS:
        step = steps.add_parser(name, help=text)
        folder = Path("output/experiments")
        step.add_argument("--dir", type=Path, default=folder, help="pictures and checkpoints")
        if run in (make_head, make_all):
            step.add_argument("--device", default="cpu", help="that the class head is trained on")
        if run is make_all:
            step.add_argument("--dry-run", action="store_true", help="only print the commands")
        step.set_defaults(run=run)
    for table in (
        frontier,
        text_quality,
        ablation,
        weight_types,
        weight_layers,
        real_sizes,
        load_memory,
        gallery,
        fuzz,
        previews,
        soak,
        world,
        world_quality,
    ):
        table.add_parser(steps)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    keep_memory()
    options = parser.parse_args(arguments)
    return options.run(options)


def make_all(options: argparse.Namespace) -> int:
    """Run all steps in order; those that finished before are left out. Returns 0."""
    finished = options.dir / "finished.txt"
    done = finished.read_text().splitlines() if finished.exists() else []
    commands = [text.format(dir=options.dir, device=options.device) for text in ALL]
    for command in commands:
        print(f"{'finished' if command in done else 'to do':8}  python -m experiments {command}")
    print(f"Steps are marked in {finished}; delete a line to run that step again.", flush=True)
    for command in commands:
        if not options.dry_run and command not in done:
            logging.info("python -m experiments %s", command)
            main(command.split())
            options.dir.mkdir(parents=True, exist_ok=True)
            with finished.open("a") as file:
                file.write(f"{command}\n")
    return 0


def make_data(options: argparse.Namespace) -> int:
    """Render the training pictures and the fresh ones that quality is measured against."""
    dataset.make(options.dir / "train", NUM_TRAIN, 0)
    dataset.make(options.dir / "val", NUM_FRESH, FIRST_FRESH_SEED)
    return 0


def make_vq(options: argparse.Namespace) -> int:
    """Train the VQGAN and write the shipped file."""
    network = vq.train(options.dir)
    pixels, _ = dataset.load(options.dir / "train")
    shown = code_colours(network, dataset.to_network(pixels[:NUM_COLOURED]))
    ship(network, shipped.VQ, maskgit.ARCHITECTURE.vqs[0], title=TITLE, code_colours=shown)
    return 0


def shipped_vq() -> Any:
    """Load the shipped VQGAN in float32."""
    return checkpoints.build(checkpoints.load(shipped.VQ, kind="vq"), dtype=torch.float32)


def make_base(options: argparse.Namespace) -> int:
    """Train the class model on the codes of the shipped VQGAN and write the shipped file."""
    network = base.train(options.dir, shipped_vq())
    about = {"title": TITLE, "class_names": tuple(CLASS_NAMES), "defaults": DEFAULTS}
    ship(network, shipped.MODEL, maskgit.ARCHITECTURE.model, **about)
    return 0


def make_head(options: argparse.Namespace) -> int:
    """Train the shortcut head of the shipped class model and write the shipped file."""
    model_file = checkpoints.load(shipped.MODEL, kind="model")
    checkpoints.save(shipped.HEAD, heads.train(options.dir, model_file, options.device))
    return 0


def make_judge(options: argparse.Namespace) -> int:
    """Train the classifier behind the quality table and write its file."""
    attributes.make(options.dir, JUDGE)
    return 0


def make_text_data(options: argparse.Namespace) -> int:
    """Render the training pictures of the text model and its judge, and the altered ones for edits."""
    dataset.make(options.dir / reader.TRAIN_FOLDER, NUM_TRAIN, 0, compose=compose_varied)
    dataset.make(options.dir / text_base.EDITS_FOLDER, NUM_EDITS, 0, compose=altered)
    return 0


def make_tokenizer(options: argparse.Namespace) -> int:
    """Write the shipped tokenizer of the text model."""
    scene_tokenizer.make(shipped.TEXT_FOLDER)
    return 0


def make_text_base(options: argparse.Namespace) -> int:
    """Train the text model on the codes of the shipped VQGAN and write the shipped file."""
    tokenizer = load_tokenizer(shipped.TEXT_FOLDER, text_base.CONFIG)
    network = text_base.train(options.dir, shipped_vq(), tokenizer)
    about = {"title": TEXT_TITLE, "grid": text_base.GRID, "defaults": TEXT_DEFAULTS}
    ship(network, shipped.TEXT_MODEL, lumina_dimoo.ARCHITECTURE.model, **about)
    return 0


def make_text_head(options: argparse.Namespace) -> int:
    """Train the shortcut head of the shipped text model and write the shipped file."""
    model_file = checkpoints.load(shipped.TEXT_MODEL, kind="model")
    checkpoints.save(shipped.TEXT_HEAD, heads.train_text(options.dir, model_file))
    return 0


def make_text_judge(options: argparse.Namespace) -> int:
    """Train the network that reads the text model's pictures and write its file."""
    reader.make(options.dir, TEXT_JUDGE, shipped_vq())
    return 0


Step = tuple[str, Callable[[argparse.Namespace], int], str]
STEPS: tuple[Step, ...] = (
    ("all", make_all, "run all steps in order and resume (about 10 hours of 2 cores)"),
    ("data", make_data, "render the training pictures (1 minute)"),
    ("vq", make_vq, "train the VQGAN (25 minutes on 2 cores)"),
    ("base", make_base, "train the class model, a MaskGIT (2.5 hours)"),
    ("head", make_head, "train its shortcut head (2 minutes of a GPU, hours of a CPU)"),
    ("judge", make_judge, "train the classifier behind the quality table (4 minutes)"),
    ("text-data", make_text_data, "render the pictures of the text model (2 minutes)"),
    ("tokenizer", make_tokenizer, "make the tokenizer of the text model (seconds)"),
    ("text-base", make_text_base, "train the text model, a Lumina-DiMOO (3.5 hours)"),
    ("text-head", make_text_head, "train its shortcut head (16 minutes)"),
    ("text-judge", make_text_judge, "train what reads the text model's pictures (6 minutes)"),
)

if __name__ == "__main__":
    sys.exit(main())
