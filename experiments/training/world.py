"""Train the models of the world's pictures: python -m experiments world --work DIR

Stages follow each other; each leaves its files in DIR and is left out when they are there. A stage that is ended goes
on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.judges import world_reader
from experiments.scenes import tokenizer as words
from experiments.training import world_base, world_vq
from experiments.training.files import code_colours, ship
from experiments.training.pictures import WORLD
from experiments.world.scene import CLASS_NAMES
from shortcut import checkpoint as checkpoints
from shortcut.__main__ import main as shortcut
from shortcut.models import lumina_dimoo, maskgit
from shortcut.models.lumina_dimoo.prompts import load_tokenizer

logger = logging.getLogger(__name__)

TITLE = "Drawn landscapes, 128 x 128"
DEFAULTS = {"num_steps": 32, "guidance": [2.0], "choice_temperature": 30.0}
TEXT_DEFAULTS = {
    "guidance": [3.0],
    "source_guidance": [2.5, 1.5],
    "temperature": 0.9,
    "choice_temperature": 4.0,
}
VQ, MODEL, TEXT_MODEL = "world-vqgan", "world-maskgit", "world-lumina"
HEAD_OPTIONS = ("--iterations", "1500", "--autocast", "bfloat16", "--replay-memory", "3")
NUM_COLOURED, NUM_CAPTIONS = 1_000, 20_000


def add_parser(steps: Any) -> None:
    """Add `world` to the command line."""
    about = "train VQ, models, heads and judge of the 128 x 128 pictures, and resume (12 hours of 2 cores)"
    parser = steps.add_parser("world", help=about, description=about)
    parser.add_argument("--work", type=Path, default=Path("output/world"), help="all files")
    parser.add_argument("--stage", choices=list(STAGES), nargs="+", default=list(STAGES))
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the stages that have not finished. Returns 0."""
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.stage:
        finished = options.work / f"{name}.finished"
        if not finished.exists():
            logger.info("stage %s", name)
            STAGES[name](options.work)
            finished.touch()
    return 0


def file_of(work: Path, name: str) -> Path:
    """Return a file of weights; the text model's is in a folder with its tokenizer."""
    folder = work / TEXT_MODEL if name.startswith(TEXT_MODEL) else work
    return folder / f"{name}.safetensors"


def load_vq(work: Path) -> Any:
    """Load the VQ model in float32."""
    return checkpoints.build(checkpoints.load(file_of(work, VQ), kind="vq"), dtype=torch.float32)


def train_vq(work: Path) -> None:
    """Train the VQGAN and write its file."""
    network = world_vq.train(work)
    pixels = world_reader.pictures([WORLD.compose(seed) for seed in range(NUM_COLOURED)])
    shown = code_colours(network, pixels)
    ship(network, file_of(work, VQ), maskgit.ARCHITECTURE.vqs[0], title=TITLE, code_colours=shown)


def make_codes(work: Path) -> None:
    """Draw the training pictures and write their codes, which do not wait for the decoder."""
    world_base.encode(world_vq.measured().codes, work)


def make_judge(work: Path) -> None:
    """Train the judge."""
    vq = load_vq(work)

    @torch.no_grad()
    def through(pixels_BCYX: Tensor) -> Tensor:
        return vq.decode(vq.encode(pixels_BCYX))

    world_reader.make(work, work / world_reader.PATH.name, through)


def train_classes(work: Path) -> None:
    """Train the class model and write its file."""
    network = world_base.train_classes(work)
    about = {"title": TITLE, "class_names": tuple(CLASS_NAMES), "defaults": DEFAULTS}
    ship(network, file_of(work, MODEL), maskgit.ARCHITECTURE.model, **about)


def train_text(work: Path) -> None:
    """Make the tokenizer, train the text model and write its file."""
    folder = work / TEXT_MODEL
    captions = world_base.texts(world_base.a_caption, NUM_CAPTIONS)
    learned = [*captions, *world_base.texts(world_base.an_instruction, NUM_CAPTIONS)]
    words.save(folder, words.build([*learned, *words.SYSTEM_PROMPTS, *words.INSTRUCTIONS]), learned)
    (work / "captions.txt").write_text("\n".join(captions))
    network = world_base.train_text(work, load_tokenizer(folder, world_base.TEXT_CONFIG))
    about = {"title": TITLE, "grid": world_base.GRID, "defaults": TEXT_DEFAULTS}
    ship(network, file_of(work, TEXT_MODEL), lumina_dimoo.ARCHITECTURE.model, **about)


def train_class_head(work: Path) -> None:
    """Train the head of the class model as a user does."""
    _train_head(work, MODEL, "--steps", "32,32,16,24")


def train_text_head(work: Path) -> None:
    """Train the head of the text model as a user does, on captions."""
    _train_head(work, TEXT_MODEL, "--steps", "32,32,16,24", "--prompts", str(work / "captions.txt"))


def _train_head(work: Path, model: str, *options: str) -> None:
    files = "--model", str(file_of(work, model)), "--out", str(file_of(work, f"{model}-head"))
    if status := shortcut(["train", *files, *HEAD_OPTIONS, *options]):
        raise RuntimeError(f"the training of the head of {model} ended with status {status}.")


STAGES: dict[str, Callable[[Path], None]] = {
    "vq": train_vq,
    "codes": make_codes,
    "judge": make_judge,
    "class-model": train_classes,
    "class-head": train_class_head,
    "text-model": train_text,
    "text-head": train_text_head,
}
