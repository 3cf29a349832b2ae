"""The command `generate`: options -> model, head, settings -> pipeline -> PNG files."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from . import shipped, weights
from .classes import class_branches, class_id
from .files import written_whole
from .image import to_pictures
from .operations import count_operations
from .pipeline import Result, generate
from .predictors.head import ShortcutPredictor
from .sampler import Trace
from .schedule import SCHEDULES, Settings

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_parser(commands: Any) -> None:
    """Adds `generate` to the command line."""
    parser = commands.add_parser("generate", help="make images", description=__doc__)
    files = parser.add_argument_group("files: published ones, folders with one, or ours")
    files.add_argument(
        "--model", type=Path, help="MaskGIT; default: the shipped model with its VQGAN and head"
    )
    files.add_argument("--vq", type=Path, help="VQGAN; default: the one beside the model")
    files.add_argument(
        "--head", help="shortcut head, or none; default: none with --model, else the shipped one"
    )
    files.add_argument(
        "--out", type=Path, required=True, help="PNG; several images get -0, -1, ... before .png"
    )
    files.add_argument(
        "--save-tokens", type=Path, help="safetensors with `codes` (images, rows, columns)"
    )
    what = parser.add_argument_group("what to make")
    what.add_argument(
        "--class", dest="class_", metavar="N", default="0", help="class number or name"
    )
    what.add_argument("--seed", type=int, default=0)
    what.add_argument("--batch-size", type=int, default=1, help="number of images")
    how = parser.add_argument_group("speed against quality")
    how.add_argument("--steps", type=int, help="sampling steps")
    how.add_argument(
        "--full-steps", help="full passes: how many, or which (0,4,9); default: all without a head"
    )
    how.add_argument(
        "--cfg",
        type=float,
        help="cond + cfg * (cond - uncond) in the last step, rising from 0; 0 = off",
    )
    how.add_argument("--temperature", type=float, help="of the codes; 0 = the most likely code")
    how.add_argument("--choice-temperature", type=float, help="noise on the confidence; 0 = none")
    how.add_argument("--schedule", choices=list(SCHEDULES), help="how the number of tokens grows")
    where = parser.add_argument_group("where")
    where.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    where.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of model and head")
    where.add_argument(
        "--json", action="store_true", help="one JSON line last: seconds, steps, operations, seeds"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Makes the images. Returns 0; errors are exceptions whose text is for the user."""
    if options.batch_size < 1:
        raise ValueError(f"batch size must be at least 1, got {options.batch_size}.")
    if options.seed < 0:
        raise ValueError(f"seed must be at least 0, got {options.seed}.")
    device = checked_device(options.device)
    model_file = weights.load(options.model or shipped.MODEL, kind="model")
    vq_file = weights.load(
        options.vq or (shipped.VQ if options.model is None else options.model.parent), kind="vq"
    )
    head_file = load_head(options, model_file)
    settings = settings_of(options, weights.settings(model_file), head_file is not None)
    build = partial(weights.build, dtype=DTYPES[options.dtype], device=device)
    model, head = build(model_file), head_file and build(head_file)
    config = model_file.config
    grid = model_file.format.only_grid(config)
    num_classes = config.num_classes
    chosen = class_id(options.class_, model_file.metadata.class_names, num_classes)
    class_B = torch.full((options.batch_size,), chosen)
    conditions = class_branches(class_B, num_classes, len(settings.guidance))
    with tqdm(total=settings.num_steps, unit="step", disable=None, file=sys.stderr) as bar:
        result = generate(
            model.on_grid(*grid),
            conditions,
            settings,
            seed=options.seed,
            image_indices=range(options.batch_size),
            num_tokens=grid[0] * grid[1],
            predictor=head and partial(ShortcutPredictor, head),
            device=device,
            on_step=lambda trace: progress(bar, trace),
        )
    codes_Bhw = result.codes_BL.unflatten(1, grid)
    vq = weights.build(vq_file, device=device, dtype=torch.float32)
    write(options, settings, codes_Bhw, decode(vq, codes_Bhw))
    if options.json:
        operations = count_operations(model, head, settings, conditions, grid)
        print(json.dumps(report(options, result, operations.total)))
    return 0


def checked_device(name: str) -> torch.device:
    """The device called `name`.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {name!r} cannot be used here ({error}). Use --device cpu."
        ) from error
    return device


def load_head(
    options: argparse.Namespace, model_file: weights.Checkpoint
) -> weights.Checkpoint | None:
    """The head's file, checked against the model; None = vanilla."""
    path = options.head or ("none" if options.model else shipped.HEAD)
    if path == "none":
        if options.full_steps is not None:
            raise ValueError(
                "--full-steps needs a shortcut head: without one every step is full. Add --head FILE."
            )
        return None
    head_file = weights.load(Path(path), kind="head")
    unverified = weights.check_head(head_file, model_file)
    if unverified:
        logger.warning(unverified)
    return head_file


def settings_of(options: argparse.Namespace, defaults: Settings, has_head: bool) -> Settings:
    """The model's defaults with the options that were given in their place."""
    given: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("schedule", "temperature", "choice_temperature")
        if getattr(options, name) is not None
    }
    if options.steps is not None:
        given["num_steps"] = options.steps
    if options.cfg is not None:
        given["guidance"] = (options.cfg,) if options.cfg else ()
    given["full_steps"] = full_steps_of(options.full_steps) if has_head else None
    settings = replace(defaults, **given)
    settings.check()
    return settings


def full_steps_of(text: str | None) -> int | tuple[int, ...] | None:
    """How many steps are full ("8"), or which ("0,4,9"); None = all."""
    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"--full-steps must be a number or a list such as 0,4,9, got {text!r}."
        ) from None
    return numbers if "," in text else numbers[0]


def progress(bar: Any, trace: Trace) -> None:
    """Moves the bar by one step."""
    bar.set_postfix_str("full pass" if trace.denoised.was_full else "shortcut", refresh=False)
    bar.update()


@torch.no_grad()
def decode(vq: Any, codes_Bhw: Tensor) -> Tensor:
    """Pixels (B, 3, Y, X), one image at a time so that memory does not grow with the batch."""
    return torch.cat([vq.decode(codes_1hw) for codes_1hw in codes_Bhw.split(1)])


def write(
    options: argparse.Namespace, settings: Settings, codes_Bhw: Tensor, pixels_BCYX: Tensor
) -> None:
    """Writes the pictures, each with its settings inside, and the tokens if asked for."""
    for index, picture in enumerate(to_pictures(pixels_BCYX)):
        path = (
            options.out
            if len(codes_Bhw) == 1
            else options.out.with_stem(f"{options.out.stem}-{index}")
        )
        about = PngInfo()
        described = {
            "class": options.class_,
            "seed": options.seed,
            "image": index,
            **asdict(settings),
        }
        about.add_text("shortcut", json.dumps(described))
        with written_whole(path) as partial_path:
            picture.save(partial_path, format="PNG", pnginfo=about)
    if options.save_tokens is not None:
        with written_whole(options.save_tokens) as partial_path:
            save_file({"codes": codes_Bhw.cpu().contiguous()}, partial_path)


def report(options: argparse.Namespace, result: Result, operations: float) -> dict[str, Any]:
    """What the JSON line says."""
    return {
        "seconds": round(result.seconds, 4),
        "steps": result.num_steps,
        "full_steps": result.num_full,
        "operations": operations,
        "seed": options.seed,
        "seeds": [[options.seed, index] for index in range(options.batch_size)],
    }
