"""Draw the README's pictures: every class of the shipped class model, prompts of the shipped text model.

B  images    L  image tokens
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from shortcut import shipped, weights
from shortcut.accelerators.shortcut_head import ShortcutPredictor
from shortcut.files import written_whole
from shortcut.generate import generate
from shortcut.grid import Grid, usual_grid
from shortcut.image import to_pictures
from shortcut.models.lumina_dimoo.prompts import conditions, load_tokenizer
from shortcut.models.maskgit.classes import class_branches

SCALE, GAP, BACKGROUND = 2, 6, (255, 255, 255)
FULL_STEPS = 8  # of the class model's 32
TEXT_FULL_STEPS = 14  # of the text model's 64: the preset "quality"
PROMPTS = (
    "three snowy pine trees at night under a crescent moon",
    "a desert at noon with four cacti under two clouds",
    "palm trees at the coast at sunset, under the sun",
    "a forest at dawn with three pine trees under a cloud",
)


def add_parser(steps: Any) -> None:
    """Add `gallery` to the command line."""
    parser = steps.add_parser("gallery", help="draw the README's pictures")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder")
    parser.add_argument("--seed", type=int, default=11, help="of the classes")
    parser.add_argument("--text-seed", type=int, default=7)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write `scenes.png`, `text.png` and, with and without a head, `side_by_side.png`. Returns 0."""
    save(
        sheet(class_pictures(range(16), FULL_STEPS, options.seed), columns=8),
        options.out / "scenes.png",
    )
    few = [1, 6, 8, 15]
    rows = [p for full in (None, FULL_STEPS) for p in class_pictures(few, full, options.seed)]
    save(sheet(rows, columns=len(few)), options.out / "side_by_side.png")
    rows = [
        p
        for full in (None, TEXT_FULL_STEPS)
        for p in text_pictures(PROMPTS, full, options.text_seed)
    ]
    save(sheet(rows, columns=len(PROMPTS)), options.out / "text.png")
    return 0


@torch.no_grad()
def class_pictures(classes: Sequence[int], full_steps: int | None, seed: int) -> list[Image.Image]:
    """Return one picture for each class. `full_steps` None = vanilla."""
    model_file = weights.load(shipped.MODEL, kind="model")
    model, head = network(model_file), network(weights.load(shipped.HEAD, kind="head"))
    settings, config = weights.settings(model_file), model_file.config
    result = generate(
        model,
        class_branches(torch.tensor(classes), config.num_classes, len(settings.guidance)),
        replace(settings, full_steps=full_steps),
        seed=seed,
        image_indices=range(len(classes)),
        num_tokens=config.num_tokens,
        predictor=partial(ShortcutPredictor, head),
    )
    return decoded(result.codes_BL, (config.grid, config.grid))


@torch.no_grad()
def text_pictures(prompts: Sequence[str], full_steps: int | None, seed: int) -> list[Image.Image]:
    """Return one picture for each prompt. `full_steps` None = vanilla."""
    model_file = weights.load(shipped.TEXT_MODEL, kind="model")
    model, head = network(model_file), network(weights.load(shipped.TEXT_HEAD, kind="head"))
    tokenizer = load_tokenizer(shipped.TEXT_FOLDER, model_file.config)
    grid = usual_grid(model_file)
    codes_1L = [
        generate(
            model.on_grid(*grid),
            conditions(tokenizer, model_file.config, "text_to_image", prompt),
            replace(weights.settings(model_file), full_steps=full_steps),
            seed=seed,
            image_indices=[place],
            num_tokens=grid[0] * grid[1],
            predictor=partial(ShortcutPredictor, head),
        ).codes_BL
        for place, prompt in enumerate(prompts)
    ]
    return decoded(torch.cat(codes_1L), grid)


def network(file: weights.Checkpoint) -> Any:
    """Build the network of a file in float32."""
    return weights.build(file, dtype=torch.float32)


def decoded(codes_BL: Tensor, grid: Grid) -> list[Image.Image]:
    """Decode codes by the shipped VQ model."""
    vq = network(weights.load(shipped.VQ, kind="vq"))
    return to_pictures(vq.decode(codes_BL.unflatten(1, grid)))


def sheet(images: list[Image.Image], columns: int) -> Image.Image:
    """Return the images in rows of `columns`, enlarged."""
    side = SCALE * images[0].width
    rows = -(-len(images) // columns)
    size = (columns * (side + GAP) - GAP, rows * (side + GAP) - GAP)
    canvas = Image.new("RGB", size, BACKGROUND)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        enlarged = image.resize((side, side), Image.Resampling.LANCZOS)
        canvas.paste(enlarged, (column * (side + GAP), row * (side + GAP)))
    return canvas


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG."""
    with written_whole(path) as partial_path:
        image.save(partial_path, format="PNG", optimize=True)
