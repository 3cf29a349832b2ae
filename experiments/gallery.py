"""Draw the README's pictures: every class of the shipped class model, prompts of the shipped text model.

Each PNG holds a template of the pack: dropped on ComfyUI's page, the picture opens it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from experiments.scenes.scene import CLASS_NAMES
from shortcut import Pipeline
from shortcut.grid import usual_grid
from shortcut.image import to_pictures
from shortcut.models.architecture import Request
from shortcut.settings import usual_settings
from shortcut.writing import written_whole

TEMPLATES = Path(__file__).resolve().parents[1] / "workflows"
SCALE, GAP, BACKGROUND = 2, 6, (255, 255, 255)
FULL_STEPS = 8  # of the class model's 32
TEXT_FULL_STEPS = 14  # of the text model's 64: the preset "quality"
SIDE_BY_SIDE = (1, 6, 17, 20)  # classes
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
    scenes = Pipeline.load("scenes", accelerator="head")
    classes = [Request(label=name) for name in CLASS_NAMES]
    every = pictures(scenes, classes, None, options.seed)
    save(every, 8, options.out / "scenes.png", "02_class_to_image")
    few = [classes[number] for number in SIDE_BY_SIDE]
    both = [p for full in (None, FULL_STEPS) for p in pictures(scenes, few, full, options.seed)]
    save(both, len(few), options.out / "side_by_side.png", "04_vanilla_against_shortcut")
    text, prompts = Pipeline.load("scenes text"), [Request(prompt=text) for text in PROMPTS]
    counts, seed = (None, TEXT_FULL_STEPS), options.text_seed
    both = [p for full in counts for p in pictures(text, prompts, full, seed)]
    save(both, len(prompts), options.out / "text.png", "01_text_to_image")
    return 0


def pictures(
    pipeline: Pipeline, requests: Sequence[Request], full_steps: int | None, seed: int
) -> list[Image.Image]:
    """Make a picture of each request. `full_steps` None = vanilla."""
    settings = replace(usual_settings(pipeline.model_file), full_steps=full_steps)
    grid = usual_grid(pipeline.model_file)
    codes_1L = [
        pipeline.sample(
            pipeline.conditioner.conditions(request, 1),
            settings,
            grid,
            seed=seed,
            image_indices=[number],
        ).codes_BL
        for number, request in enumerate(requests)
    ]
    return to_pictures(pipeline.decode(torch.cat(codes_1L).unflatten(1, grid)))


def save(images: list[Image.Image], columns: int, path: Path, template: str) -> None:
    """Write the images in rows of `columns`, enlarged, as one PNG that holds a template."""
    workflow = json.loads((TEMPLATES / f"{template}.json").read_text(encoding="utf-8"))
    chunks = PngInfo()
    chunks.add_text("workflow", json.dumps(workflow))
    side = SCALE * images[0].width
    rows = -(-len(images) // columns)
    size = (columns * (side + GAP) - GAP, rows * (side + GAP) - GAP)
    canvas = Image.new("RGB", size, BACKGROUND)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        enlarged = image.resize((side, side), Image.Resampling.LANCZOS)
        canvas.paste(enlarged, (column * (side + GAP), row * (side + GAP)))
    with written_whole(path) as partial_path:
        canvas.save(partial_path, format="PNG", optimize=True, pnginfo=chunks)
