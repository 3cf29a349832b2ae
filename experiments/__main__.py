"""Remakes the shipped files and their tables: python -m experiments data | vq | base | head | judge | quality.

Of the text model, which needs vq first: text-data | tokenizer | text-judge | text-base | text-head | text-quality.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shortcut import colours, shipped, weights
from shortcut.models.layout import Format
from shortcut.models.lumina_dimoo import head as lumina_head
from shortcut.models.lumina_dimoo import transformer as lumina
from shortcut.models.lumina_dimoo.prompts import load_tokenizer
from shortcut.models.maskgit import transformer as maskgit
from shortcut.models.maskgit import vqgan as maskgit_vqgan
from shortcut.train.cpu import keep_memory

from . import (
    ablation,
    classifier,
    data,
    gallery,
    quality,
    real_sizes,
    scene_tokenizer,
    text_judge,
    text_quality,
    train_base,
    train_head,
    train_text,
    train_text_head,
    train_vq,
    weight_types,
)
from .scene_edits import altered
from .scenes import CLASS_NAMES, compose_varied

NUM_TRAIN, NUM_FRESH, NUM_COLOURED = 40_000, 6_000, 2_000
NUM_EDITS = 20_000  # of the training pictures of the text model that there is an altered one of
FIRST_FRESH_SEED = 10_000_000  # no training picture has such a seed
TITLE = "Procedural landscapes, 96 x 96"
TEXT_TITLE = "Procedural landscapes by text, 96 x 96"
DEFAULTS = {
    "num_steps": 32,
    "guidance": [2.8],
    "choice_temperature": train_head.CHOICE_TEMPERATURE,
    "spread": 1,
}
TEXT_DEFAULTS = {
    "guidance": [3.0],
    "source_guidance": [2.5, 1.5],
    "temperature": 0.9,
    "choice_temperature": 4.0,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one step of the recipe. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="STEP")
    for name, run, text in (
        ("data", make_data, "render the training pictures (1 minute)"),
        ("vq", make_vq, "train the VQGAN (25 minutes on 2 cores)"),
        ("base", make_base, "train the class-conditional MaskGIT (35 minutes)"),
        ("head", make_head, "train its shortcut head (2 minutes of a GPU, hours of a CPU)"),
        ("judge", make_judge, "train the classifier behind the quality table (2 minutes)"),
        ("text-data", make_text_data, "render the pictures of the text model (2 minutes)"),
        ("tokenizer", make_tokenizer, "make the tokenizer of the text model (seconds)"),
        ("text-judge", make_text_judge, "train what reads the text model's pictures (4 minutes)"),
        ("text-base", make_text_base, "train the text model (2 hours on 2 cores)"),
        ("text-head", make_text_head, "train its shortcut head (15 minutes)"),
    ):
        step = steps.add_parser(name, help=text)
        step.add_argument(
            "--dir",
            type=Path,
            default=Path("output/demo"),
            help="folder of pictures and checkpoints",
        )
        if run is make_head:
            step.add_argument("--device", default="cpu")
        step.set_defaults(run=run)
    quality.add_parser(steps)
    ablation.add_parser(steps)
    text_quality.add_parser(steps)
    weight_types.add_parser(steps)
    real_sizes.add_parser(steps)
    gallery.add_parser(steps)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    keep_memory()
    options = parser.parse_args(arguments)
    return options.run(options)


def make_data(options: argparse.Namespace) -> int:
    """Renders the pictures of the training set and the fresh ones that quality is measured against."""
    data.make(options.dir / "train", NUM_TRAIN, 0)
    data.make(options.dir / "val", NUM_FRESH, FIRST_FRESH_SEED)
    return 0


def make_vq(options: argparse.Namespace) -> int:
    """Trains the VQGAN and writes the shipped file."""
    network = train_vq.train(options.dir)
    pixels, _ = data.load(options.dir / "train")
    shown = code_colours(network, data.to_network(pixels[:NUM_COLOURED]))
    ship(network, shipped.VQ, maskgit_vqgan.FORMAT, title=TITLE, code_colours=shown)
    return 0


@torch.no_grad()
def code_colours(network: maskgit_vqgan.VQGAN, pixels_BCYX: Tensor) -> str:
    """The mean colour of each code in pictures, as files state it."""
    codes_Bhw = torch.cat([network.encode(part) for part in pixels_BCYX.split(50)])
    return colours.to_text(colours.measured(codes_Bhw, pixels_BCYX, network.config.num_codes))


def make_base(options: argparse.Namespace) -> int:
    """Trains the MaskGIT on the codes of the shipped VQGAN and writes the shipped file."""
    vqgan: Any = weights.build(weights.load(shipped.VQ, kind="vq"), dtype=torch.float32)
    network = train_base.train(options.dir, vqgan)
    about = {"title": TITLE, "class_names": tuple(CLASS_NAMES), "defaults": DEFAULTS}
    ship(network, shipped.MODEL, maskgit.FORMAT, **about)
    return 0


def make_head(options: argparse.Namespace) -> int:
    """Trains the shortcut head of the shipped MaskGIT and writes the shipped file."""
    model_file = weights.load(shipped.MODEL, kind="model")
    weights.save(shipped.HEAD, train_head.train(options.dir, model_file, options.device))
    return 0


def make_judge(options: argparse.Namespace) -> int:
    """Trains the classifier that the quality table asks and writes the shipped file."""
    classifier.make(options.dir, shipped.JUDGE)
    return 0


def make_text_data(options: argparse.Namespace) -> int:
    """Renders the training pictures of the text model and its judge, and the altered ones of edits.

    Captions and instructions need no file.
    """
    data.make(options.dir / text_judge.TRAIN_FOLDER, NUM_TRAIN, 0, compose=compose_varied)
    data.make(options.dir / train_text.EDITS_FOLDER, NUM_EDITS, 0, compose=altered)
    return 0


def make_tokenizer(options: argparse.Namespace) -> int:
    """Writes the shipped tokenizer of the text model."""
    scene_tokenizer.make(shipped.TEXT_FOLDER)
    return 0


def make_text_judge(options: argparse.Namespace) -> int:
    """Trains the network that reads pictures for the table of the text model and writes the shipped file."""
    vqgan: Any = weights.build(weights.load(shipped.VQ, kind="vq"), dtype=torch.float32)
    text_judge.make(options.dir, shipped.TEXT_JUDGE, vqgan)
    return 0


def make_text_base(options: argparse.Namespace) -> int:
    """Trains the text model on the codes of the shipped VQGAN and writes the shipped file."""
    vqgan: Any = weights.build(weights.load(shipped.VQ, kind="vq"), dtype=torch.float32)
    tokenizer = load_tokenizer(shipped.TEXT_FOLDER, train_text.CONFIG)
    network = train_text.train(options.dir, vqgan, tokenizer)
    about = {"title": TEXT_TITLE, "grid": train_text.GRID, "defaults": TEXT_DEFAULTS}
    ship(network, shipped.TEXT_MODEL, lumina.FORMAT, **about)
    return 0


def make_text_head(options: argparse.Namespace) -> int:
    """Trains the shortcut head of the shipped text model and writes the shipped file."""
    model_file = weights.load(shipped.TEXT_MODEL, kind="model")
    tokenizer = load_tokenizer(shipped.TEXT_FOLDER, model_file.config)
    head, figures = train_text_head.train(options.dir, model_file, tokenizer)
    about = {"title": TEXT_TITLE, "model_fingerprint": model_file.fingerprint, "trained": figures}
    ship(head, shipped.TEXT_HEAD, lumina_head.FORMAT, **about)
    return 0


def ship(network: nn.Module, path: Path, format: Format, **metadata: Any) -> None:
    """Writes `network` in half precision to `path`."""
    weights.save(path, weights.pack(network, format, dtype=torch.float16, **metadata))


if __name__ == "__main__":
    sys.exit(main())
