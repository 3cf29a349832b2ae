"""Train the class model and the text model of the world's pictures, on codes that are made once.

Networks, losses and batches are those of `base` and `text_base`; one stage each, which names the kinds of things from
the beginning.

    B  pictures    L  tokens of one
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.scenes.dataset import to_network
from experiments.scenes.tokenizer import NUM_TEXT_IDS
from experiments.training import base, text_base, world_vq
from experiments.training.muon import muon
from experiments.training.pictures import WORLD
from experiments.world.drawing import draw
from experiments.world.scene import CLASSES, Scene
from shortcut.models.lumina_dimoo.transformer import Config as TextConfig
from shortcut.models.lumina_dimoo.transformer import LuminaDiMOO
from shortcut.models.maskgit.transformer import Config, MaskGIT
from shortcut.writing import written_whole

GRID = (16, 16)
CONFIG = Config(
    grid=GRID[0],
    width=256,
    depth=7,
    num_heads=4,
    mlp_width=1024,
    num_codes=world_vq.CONFIG.num_codes,
    num_classes=len(CLASSES),
)
TEXT_CONFIG = TextConfig(
    width=256,
    depth=7,
    num_heads=4,
    num_kv_heads=4,
    mlp_width=688,
    num_text_ids=NUM_TEXT_IDS,
    num_codes=world_vq.CONFIG.num_codes,
    rope_theta=10_000.0,
    norm_eps=1e-5,
)
NUM_PICTURES, NUM_EDITS, CHUNK = 40_000, 16_000, 1_000
RECIPE = replace(base.RECIPE, iterations=6000, lr=3e-3, warmup=100, ema=0.998, checkpoint_every=100)
OPTIMIZER = partial(muon, others_rate=0.5)
STAGE = base.Stage(name="class-base", recipe=RECIPE, batch_size=16, kinds_weight=1.0)
TEXT_PICTURES, TEXT_EDITS = 13, 3  # of a batch


def encode(codes_of: Callable[[Tensor], Tensor], directory: Path) -> None:
    """Write the codes of the training pictures and of the altered ones, in files that a later run goes on from.

    Args:
        codes_of: from pixels (B, 3, Y, X) to codes (B, h, w).
    """
    for name, num, compose in (
        ("pictures", NUM_PICTURES, WORLD.compose),
        ("edits", NUM_EDITS, WORLD.altered),
    ):
        folder = directory / name
        folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, num, CHUNK):
            path = folder / f"{start:06}.npy"
            if not path.exists():
                scenes = [compose(seed) for seed in range(start, start + CHUNK)]
                with written_whole(path) as partial, partial.open("wb") as file:
                    np.save(file, _codes(codes_of, scenes).numpy())


def _codes(
    codes_of: Callable[[Tensor], Tensor], scenes: list[Scene], batch_size: int = 50
) -> Tensor:
    """Return codes (B, L) int16 of the pictures of scenes."""
    parts = []
    for start in range(0, len(scenes), batch_size):
        pixels = np.stack([np.asarray(draw(scene)) for scene in scenes[start : start + batch_size]])
        parts.append(codes_of(to_network(torch.from_numpy(pixels))).flatten(1).to(torch.int16))
    return torch.cat(parts)


def load_codes(directory: Path, name: str) -> Tensor:
    """Return codes (B, L) that `encode` wrote.

    Raises:
        FileNotFoundError: it did not.
    """
    paths = sorted((directory / name).glob("*.npy"))
    if not paths:
        raise FileNotFoundError(f"{directory / name} has no codes. Run the stage codes first.")
    return torch.from_numpy(np.concatenate([np.load(path) for path in paths]))


def train_classes(directory: Path) -> MaskGIT:
    """Train the class model, with checkpoints in `directory`. Returns the averaged network."""
    codes = load_codes(directory, "pictures")
    classes = torch.tensor([WORLD.compose(seed).class_id for seed in range(len(codes))])
    return base.learn(codes, classes, CONFIG, (STAGE,), directory, WORLD, OPTIMIZER)


def train_text(directory: Path, tokenizer: Any) -> LuminaDiMOO:
    """Train the text model, with checkpoints in `directory`. Returns the averaged network."""
    data = text_base.TrainingData(
        codes=load_codes(directory, "pictures"),
        altered=load_codes(directory, "edits"),
        tokenizer=tokenizer,
        config=TEXT_CONFIG,
        grid=GRID,
        num_pictures=TEXT_PICTURES,
        num_edits=TEXT_EDITS,
        pictures=WORLD,
    )
    checkpoint = directory / "text-base.ckpt"
    how = {"kinds_weight": STAGE.kinds_weight, "make_optimizer": OPTIMIZER}
    return text_base.learn(data, RECIPE, checkpoint, **how).network


def texts(say: Callable[[int], str], num: int = 20_000) -> list[str]:
    """Return what `say` says of the first pictures."""
    return [say(seed) for seed in range(num)]


def a_caption(seed: int) -> str:
    """Return a caption of the picture of a seed."""
    return WORLD.caption(WORLD.compose(seed), seed)


def an_instruction(seed: int) -> str:
    """Return an instruction from the picture of a seed to its altered one, or back."""
    pair = [WORLD.facts(scene) for scene in (WORLD.compose(seed), WORLD.altered(seed))]
    before, after = pair if seed % 2 else pair[::-1]
    return WORLD.instruction(before, after, seed).words.text
