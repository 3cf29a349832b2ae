"""Options that `train` and `evaluate` share, and the teacher that they name."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from .. import checkpoint as checkpoints
from .. import shipped
from ..checkpoint import Checkpoint
from ..devices import checked_device
from ..grid import Grid
from ..guard import naming
from ..models.architecture import ModelNetwork, Request
from ..pipeline import conditioner_of, default_dtype
from ..schedule import Settings
from ..settings import usual_settings
from ..train.teacher import Teacher, teacher_of
from .options import DTYPES, add_device, add_draws
from .texts import read_lines


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which model teaches and what it shows."""
    model = parser.add_argument_group("the model and what it shows")
    model.add_argument(
        "--model",
        type=Path,
        help="a published file or folder, or one of ours; default: the shipped class model",
    )
    model.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='of a text model: one prompt a line, or .jsonl with {"prompt": ...} in each line',
    )
    model.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="of a class model: numbers or names; default: all",
    )
    model.add_argument(
        "--grid",
        type=grid,
        metavar="ROWSxCOLUMNS",
        help="size of the images in codes, such as 64x64 (1024 x 1024 pixels of Lumina-DiMOO); default: as the model "
        "was trained",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how the teacher samples."""
    sampling = parser.add_argument_group("how it samples; default: as its file says")
    sampling.add_argument(
        "--steps",
        type=numbers,
        metavar="N[,N...]",
        help="steps, all full passes; of several numbers, which `train` takes, each run has one at random",
    )
    sampling.add_argument("--cfg", type=float, help="guidance; 0 = off: one branch alone")
    add_draws(sampling)


def add_where(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where and in which types to compute."""
    where = parser.add_argument_group("where")
    add_device(where)
    where.add_argument(
        "--autocast",
        choices=DTYPES[1:],
        help="of the products of matrices; default: as the weights",
    )


def load_teacher(options: argparse.Namespace) -> tuple[Teacher, Checkpoint]:
    """Load the teacher that the options name. Returns it with its file's description, without tensors.

    Raises:
        FileNotFoundError, ValueError: as `checkpoint.load`, `teacher_of`; no such device, class or prompts; a setting
            out of range.
    """
    device = checked_device(options.device)
    requests = [Request(label=label) for label in options.classes or ()]
    prompts = {} if options.prompts is None else read_prompts(options.prompts)
    requests += [Request(prompt=prompt) for prompt in prompts.values()]
    usual = shipped.NAME if options.prompts is None else shipped.TEXT_NAME
    model_file = checkpoints.load(options.model or shipped.CHOICES[usual]["model"], kind="model")
    dtype = getattr(torch, options.dtype) if options.dtype else default_dtype(model_file)
    model_file = shipped.widened(model_file, dtype)
    settings, conditioner = settings_of(options, model_file), conditioner_of(model_file)
    try:
        teacher = teacher_of(
            model_file,
            cast(ModelNetwork, checkpoints.build(model_file, dtype=dtype, device=device)),
            conditioner,
            requests,
            settings=settings,
            grid=options.grid,
            autocast=options.autocast and getattr(torch, options.autocast),
            device=device,
            is_sequential=options.sequential,
        )
    except ValueError:
        for number, prompt in prompts.items():
            with naming(f"{options.prompts}, line {number}"):
                model_file.architecture.check(Request(prompt=prompt))
                conditioner.draw([Request(prompt=prompt)])
        raise
    return teacher, model_file.without_tensors()


def settings_of(options: argparse.Namespace, model_file: Checkpoint) -> Settings:
    """Return the model's settings with the options that were given in their place; of several --steps the first.

    Raises:
        ValueError: one is out of range.
    """
    given = {
        name: getattr(options, name)
        for name in ("temperature", "choice_temperature", "schedule")
        if getattr(options, name) is not None
    }
    settings = replace(usual_settings(model_file), full_steps=None, **given)
    if options.cfg is not None:
        settings = replace(settings, guidance=(options.cfg,) if options.cfg != 0 else ())
    if options.steps is not None:
        settings = runs_of(options, settings)[0]
    settings.check()
    return settings


def runs_of(options: argparse.Namespace, settings: Settings) -> tuple[Settings, ...]:
    """Return `settings` with each number of --steps; without the option unchanged."""
    runs = tuple(replace(settings, num_steps=n) for n in options.steps or (settings.num_steps,))
    for run in runs:
        run.check()
    return runs


def read_prompts(path: Path) -> dict[int, str]:
    """Return {number of a line: its prompt} of a file; blank lines do not count.

    Raises:
        OSError, ValueError: it cannot be read, or a line of .jsonl has no prompt.
    """
    lines = {number: line for number, line in enumerate(read_lines(path), 1) if line.strip()}
    if path.suffix.lower() == ".jsonl":
        lines = {
            number: _prompt_in(line, f"{path}, line {number}") for number, line in lines.items()
        }
    if not lines:
        raise ValueError(f"{path} has no prompts. Write one in each line.")
    return lines


def numbers(text: str) -> tuple[int, ...]:
    """Read "32" or "32,16,24"."""
    return tuple(int(part) for part in text.split(","))


def grid(text: str) -> Grid:
    """Read "64x48": 64 rows and 48 columns."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"expected rows x columns, such as 64x64, got {text!r}")
    rows, columns = text.split("x")
    return int(rows), int(columns)


def _prompt_in(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, Mapping) or not isinstance(value.get("prompt"), str):
        raise ValueError(f'{where}: {line[:80]!r} is not JSON with a "prompt".')
    return value["prompt"]
