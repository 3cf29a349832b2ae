"""The README's pictures: every class of the shipped model, vanilla above and with the shortcut head below.

B  images    h, w  rows, columns of codes
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .. import shipped, weights
from ..classes import class_branches
from ..files import written_whole
from ..image import to_pictures
from ..pipeline import generate
from ..predictors.head import ShortcutPredictor
from ..schedule import Settings

SCALE, GAP, BACKGROUND = 2, 6, (255, 255, 255)


def add_parser(steps: Any) -> None:
    """Adds `gallery` to the demo's command line."""
    parser = steps.add_parser("gallery", help="draw the README's pictures")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder")
    parser.add_argument("--seed", type=int, default=11)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Writes `scenes.png`, sixteen classes, and `side_by_side.png`, four of them both ways. Returns 0."""
    vanilla = weights.settings(weights.load(shipped.MODEL, kind="model"))
    fast = replace(vanilla, full_steps=8)
    scenes = pictures(list(range(16)), fast, options.seed)
    save(sheet(scenes, columns=8), options.out / "scenes.png")
    few = [1, 6, 8, 15]
    rows = [picture for s in (vanilla, fast) for picture in pictures(few, s, options.seed)]
    save(sheet(rows, columns=len(few)), options.out / "side_by_side.png")
    return 0


@torch.no_grad()
def pictures(classes: list[int], settings: Settings, seed: int) -> list[Image.Image]:
    """One picture for each class, by the shipped model and head."""
    model = weights.build(weights.load(shipped.MODEL, kind="model"), dtype=torch.float32)
    head = weights.build(weights.load(shipped.HEAD, kind="head"), dtype=torch.float32)
    vq = weights.build(weights.load(shipped.VQ, kind="vq"), dtype=torch.float32)
    config: Any = model.config
    result = generate(
        model,
        class_branches(torch.tensor(classes), config.num_classes, len(settings.guidance)),
        settings,
        seed=seed,
        image_indices=range(len(classes)),
        num_tokens=config.num_tokens,
        predictor=partial(ShortcutPredictor, head),
    )
    decode: Any = vq.decode
    return to_pictures(decode(result.codes_BL.unflatten(1, (config.grid, -1))))


def sheet(images: list[Image.Image], columns: int) -> Image.Image:
    """The images in rows of `columns`, enlarged."""
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
    """Writes a PNG."""
    with written_whole(path) as partial_path:
        image.save(partial_path, format="PNG", optimize=True)
