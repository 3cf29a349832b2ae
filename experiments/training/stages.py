"""Train the shipped models: python -m experiments models --work DIR

Stages follow each other; each leaves its files in DIR, named as those of `shipped/`, and is left out when it has
finished before. A stage that is ended goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.judge import reader
from experiments.judge import training as judge
from experiments.scenes import tokenizer as words
from experiments.scenes.captions import caption
from experiments.scenes.drawing import pixels_of
from experiments.scenes.edits import altered, instruction
from experiments.scenes.facts import facts_of
from experiments.scenes.scene import CLASS_NAMES, compose
from experiments.training import class_model, codes, text_model, vq
from experiments.training.files import code_colours, ship
from shortcut import checkpoint as checkpoints
from shortcut import shipped
from shortcut.__main__ import main as shortcut
from shortcut.models import lumina_dimoo, maskgit
from shortcut.models.lumina_dimoo.prompts import load_tokenizer

logger = logging.getLogger(__name__)

TITLE = "Drawn landscapes, 128 x 128"
DEFAULTS = {"num_steps": 32, "guidance": [2.0], "choice_temperature": 8.0, "full_power": 1.4}
TEXT_DEFAULTS = {
    "guidance": [3.0],
    "source_guidance": [2.5, 1.5],
    "temperature": 1.0,
    "choice_temperature": 8.0,
}
HEAD_OPTIONS = (
    *("--iterations", "1500", "--steps", "32,32,16,24"),
    *("--autocast", "bfloat16", "--replay-memory", "3"),
)
NUM_COLOURED, NUM_CAPTIONS = 1_000, 20_000


def add_parser(steps: Any) -> None:
    """Add `models` to the command line."""
    about = "train VQ, models, heads and judge, and resume (12 hours of 2 cores)"
    parser = steps.add_parser("models", help=about, description=about)
    parser.add_argument("--work", type=Path, default=Path("output/models"), help="all files")
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


def file_of(work: Path, path: Path) -> Path:
    """Return where the file is written that is `path` in `shipped/`."""
    return work / path.relative_to(shipped.FOLDER)


def train_vq(work: Path) -> None:
    """Train the VQGAN and write its file."""
    network = vq.train(work)
    shown = code_colours(network, pixels_of(compose(seed) for seed in range(NUM_COLOURED)))
    layout = maskgit.ARCHITECTURE.vqs[0]
    ship(network, file_of(work, shipped.VQ), layout, title=TITLE, code_colours=shown)


def make_codes(work: Path) -> None:
    """Draw the training pictures and write their codes, which do not wait for the decoder."""
    codes.encode(vq.measured().codes, work)


def train_judge(work: Path) -> None:
    """Train the judge and write its file."""
    file = checkpoints.load(file_of(work, shipped.VQ), kind="vq")
    network: Any = checkpoints.build(file, dtype=torch.float32)

    @torch.no_grad()
    def through(pixels_BCYX: Tensor) -> Tensor:
        return network.decode(network.encode(pixels_BCYX))

    judge.make(work, work / reader.PATH.name, through)


def train_class_model(work: Path) -> None:
    """Train the class model and write its file."""
    network = class_model.train(work)
    about = {"title": TITLE, "class_names": tuple(CLASS_NAMES), "defaults": DEFAULTS}
    ship(network, file_of(work, shipped.MODEL), maskgit.ARCHITECTURE.model, **about)


def train_text_model(work: Path) -> None:
    """Make the tokenizer, train the text model and write its file."""
    folder = file_of(work, shipped.TEXT_FOLDER)
    captions = make_tokenizer(folder, NUM_CAPTIONS)
    (work / "captions.txt").write_text("\n".join(captions))
    network = text_model.train(work, load_tokenizer(folder, text_model.CONFIG))
    about = {"title": TITLE, "grid": codes.GRID, "defaults": TEXT_DEFAULTS}
    ship(network, file_of(work, shipped.TEXT_MODEL), lumina_dimoo.ARCHITECTURE.model, **about)


def make_tokenizer(folder: Path, num_captions: int) -> list[str]:
    """Write a tokenizer of the words of so many captions and instructions. Returns the captions."""
    captions = [caption(compose(seed), seed) for seed in range(num_captions)]
    learned = [*captions, *(an_instruction(seed) for seed in range(num_captions))]
    words.save(folder, words.build([*learned, *words.SYSTEM_PROMPTS, *words.INSTRUCTIONS]), learned)
    return captions


def an_instruction(seed: int) -> str:
    """Return an instruction from the picture of a seed to its altered one, or back."""
    pair = [facts_of(scene) for scene in (compose(seed), altered(seed))]
    before, after = pair if seed % 2 else pair[::-1]
    return instruction(before, after, seed).words.text


def train_class_head(work: Path) -> None:
    """Train the head of the class model as a user does."""
    _train_head(file_of(work, shipped.MODEL), file_of(work, shipped.HEAD))


def train_text_head(work: Path) -> None:
    """Train the head of the text model as a user does, on captions."""
    prompts = "--prompts", str(work / "captions.txt")
    _train_head(file_of(work, shipped.TEXT_MODEL), file_of(work, shipped.TEXT_HEAD), *prompts)


def _train_head(model: Path, head: Path, *options: str) -> None:
    command = ["train", "--model", str(model), "--out", str(head), *HEAD_OPTIONS, *options]
    if status := shortcut(command):
        raise RuntimeError(f"the training of {head} ended with status {status}.")


STAGES: dict[str, Callable[[Path], None]] = {
    "vq": train_vq,
    "codes": make_codes,
    "judge": train_judge,
    "class-model": train_class_model,
    "class-head": train_class_head,
    "text-model": train_text_model,
    "text-head": train_text_head,
}
