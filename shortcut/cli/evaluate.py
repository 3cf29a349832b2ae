"""The command `evaluate`: how near a shortcut head and other accelerators keep to their model, and what they save."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from .. import checkpoint as checkpoints
from .. import shipped
from ..accelerators.choice import HEAD, NAMES, head_bytes, named, needs_head, run_bytes
from ..checkpoint import Checkpoint
from ..compatibility import check_head
from ..devices import advice_on_memory
from ..flops import count_flops
from ..generate import generate
from ..guard import MAX_IMAGES, MAX_SEED, MAX_STEPS, check_whole
from ..memory import images_at_once
from ..models.architecture import HeadNetwork, ModelNetwork
from ..models.layers import Bare
from ..settings import usual_full_steps
from ..train.evaluate import HELD_OUT, divergence_of_run, evaluate, held_out_parts
from ..train.teacher import Teacher
from .train_options import add_model, add_sampling, add_where, load_teacher

logger = logging.getLogger(__name__)

CHAIN = 4  # steps of the head in a row
USUAL = ("reuse", HEAD)


def add_parser(commands: Any) -> None:
    """Add `evaluate` to the command line."""
    parser = commands.add_parser(
        "evaluate", help="how near an accelerator keeps to its model", description=__doc__
    )
    parser.add_argument("--head", type=Path, help="default: the shipped head of the shipped model")
    parser.add_argument(
        "--full-steps",
        type=int,
        nargs="+",
        metavar="N",
        help="numbers of full passes, a row for each; default: a share as of the preset balanced",
    )
    parser.add_argument(
        "--accelerator",
        choices=NAMES,
        nargs="+",
        metavar="NAME",
        help="rows beside vanilla: %(choices)s; default: reuse head",
    )
    parser.add_argument("--num", type=int, default=16, metavar="N", help="images; default: 16")
    parser.add_argument("--seed", type=int, default=0, help="other than that of the training")
    parser.add_argument(
        "--chain", type=int, help=f"steps of the head in a row that are looked at; default: {CHAIN}"
    )
    parser.add_argument("--json", action="store_true", help="the figures as one JSON line")
    add_model(parser)
    add_sampling(parser)
    add_where(parser)
    parser.set_defaults(run=run)


@dataclass(frozen=True, slots=True)
class Row:
    """What a way to sample takes for one image."""

    name: str
    num_steps: int
    num_full: int
    flops: int
    seconds: float
    nats: float  # divergence of the codes from the model's own, mean over images
    nats_error: float | None  # its standard error; None for one image


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns the exit status; errors are exceptions whose text is for the user."""
    check_options(options)
    teacher, model_file = load_teacher(options)
    settings = teacher.settings
    full_steps = options.full_steps or [
        usual_full_steps(model_file.architecture, settings.num_steps)
    ]
    for num_full in full_steps:
        replace(settings, full_steps=num_full).check()
    names, following = options.accelerator or USUAL, []
    head = load_head(options, teacher, model_file) if any(map(needs_head, names)) else None
    with advice_on_memory():
        chain = CHAIN if options.chain is None else options.chain
        chain = min(chain, settings.num_steps - 1)
        _, conditions, _ = teacher.draw((settings,), options.num, (options.seed, HELD_OUT, 0))
        lengths = [teacher.model.sequence_length(condition) for condition in conditions]
        needed = partial(bytes_of, options, teacher, head, names, lengths, chain)
        at_once = images_at_once(needed, options.num, teacher.device)
        if head is not None:
            runs = held_out_parts(teacher, settings, options.num, options.seed, at_once)
            following = evaluate(head, teacher.model, runs, chain)
        rows = list(costs(options, teacher, model_file, head, names, full_steps, at_once))
    if options.json:
        print(json.dumps({"following": following, "cost": [asdict(row) for row in rows]}))
        return 0
    if following:
        print(
            f"On {options.num} runs of {model_file.name} that the head never saw, where tokens are still masked: "
            "squared error as a share of the error of keeping the features, cosine with the model's features, "
            "divergence of the guided codes.\n"
        )
        header = ("steps in a row", "error", "cosine", "divergence", "divergence of keeping")
        print(table(header, (tuple(entry.values()) for entry in following)) + "\n")
    print(
        f"{options.num} images of {model_file.name}. nats: divergence of an image's codes from what the model itself "
        "says of the same tokens, with its standard error.\n"
    )
    header = ("", "steps", "full", "GFLOP / image", "s / image", "nats", "+-", "of vanilla's FLOPs")
    cells = ((*astuple(row), row.flops / rows[0].flops) for row in rows)
    print(table(header, ((*c[:3], c[3] / 1e9, *c[4:]) for c in cells)))
    return 0


def check_options(options: argparse.Namespace) -> None:
    """Raise ValueError if an option is out of range, or has no effect with the others."""
    check_whole("--num", options.num, 1, MAX_IMAGES)
    check_whole("--seed", options.seed, 0, MAX_SEED)
    if options.chain is not None:
        check_whole("--chain", options.chain, 1, MAX_STEPS)
    if options.steps is not None and len(options.steps) != 1:
        raise ValueError(f"--steps of evaluate must be one number, got {len(options.steps)}.")
    if not any(map(needs_head, options.accelerator or USUAL)):
        for name in ("head", "chain"):
            if getattr(options, name) is not None:
                raise ValueError(
                    f"--{name} has no effect with --accelerator {' '.join(options.accelerator)}, which needs no head. "
                    "Leave it out, or add --accelerator head."
                )


def load_head(options: argparse.Namespace, teacher: Teacher, model_file: Checkpoint) -> HeadNetwork:
    """Load the head, checked to fit the model.

    Raises:
        FileNotFoundError, ValueError: there is none, or as `checkpoint.load`, `check_head`.
    """
    path = options.head
    if path is None:
        if options.model is not None:
            raise ValueError(
                f"there is no head to evaluate: give --head FILE, one made for {model_file.name}. To make one: python "
                f"-m shortcut train --model {options.model} --out HEAD.safetensors"
            )
        usual = shipped.NAME if options.prompts is None else shipped.TEXT_NAME
        path = shipped.CHOICES[usual]["head"]
    head_file = checkpoints.load(path, kind="head", model=model_file)
    if doubt := check_head(head_file, model_file):
        logger.warning(doubt)
    network = checkpoints.build(head_file, dtype=teacher.model.dtype, device=teacher.device)
    return cast(HeadNetwork, network)


def bytes_of(
    options: argparse.Namespace,
    teacher: Teacher,
    head: HeadNetwork | None,
    names: Sequence[str],
    lengths: Sequence[int],
    chain: int,
    num_images: int,
) -> float:
    """Return the memory above the weights that so many images take at a time.

    A quarter of what is free may hold their recorded run beside it.

    Args:
        lengths: sequence length of each guidance branch.
        chain: steps of the head in a row that are looked at.
    """
    model = teacher.model
    a_run = max(
        run_bytes(name, model, head, num_images, lengths, is_sequential=options.sequential)
        for name in (None, *names)
    )
    followed = 0.0
    if head is not None:  # what is alive at the peak of `evaluate`, counted for the shipped models
        features = (2 * chain + 1) * sum(lengths) * model.config.width
        logits = 11 * teacher.num_tokens * model.config.num_codes
        followed = head_bytes(HEAD, head, num_images, lengths) + 4 * num_images * (
            features + logits
        )
    return 4 / 3 * max(a_run, followed)


def costs(
    options: argparse.Namespace,
    teacher: Teacher,
    model_file: Checkpoint,
    head: HeadNetwork | None,
    names: Sequence[str],
    full_steps: Sequence[int],
    at_once: int,
) -> Iterable[Row]:
    """Yield vanilla, then the accelerators of these names at each number of full passes, all with the same images.

    Args:
        at_once: the most images in a pass.
    """
    ways: list[tuple[str | None, int | None]] = [(None, None)]
    ways += [(name, num_full) for num_full in full_steps for name in names]
    built = model_file.layout.network(model_file.config, device="meta", operations=Bare)
    network = cast(ModelNetwork, built)
    for name, num_full in ways:
        settings = replace(teacher.settings, full_steps=num_full)
        seed = (options.seed, HELD_OUT, 0)
        _, conditions, noise_seed = teacher.draw((settings,), options.num, seed)
        flops = count_flops(
            network,
            head,
            settings,
            [c[:1] for c in conditions],
            teacher.model.grid,
            rules=teacher.rules,
            accelerator=name,
        )
        make = None if name is None else named(name, head)
        nats_B = torch.zeros(options.num)
        with teacher.arithmetic():
            result = generate(
                teacher.model,
                conditions,
                settings,
                teacher.rules,
                seed=noise_seed,
                image_indices=range(options.num),
                num_tokens=teacher.num_tokens,
                accelerator=make,
                images_at_once=at_once,
                device=teacher.device,
            )
            for first in range(0, options.num, at_once):
                if make is None:
                    break
                part = [condition[first : first + at_once] for condition in conditions]
                nats_B[first : first + at_once] = divergence_of_run(
                    teacher, make, settings, part, noise_seed, first
                )
        yield Row(
            name or "vanilla",
            result.num_steps,
            result.num_full,
            flops.total,
            result.seconds / options.num,
            nats_B.mean().item(),
            nats_B.std().item() / options.num**0.5 if options.num > 1 else None,
        )


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table; numbers to four digits, nothing for None."""

    def line(cells: Iterable[Any]) -> str:
        shown = ("" if cell is None else cell for cell in cells)
        texts = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in shown)
        return f"| {' | '.join(texts)} |"

    return "\n".join([line(header), line("---" for _ in header), *(line(row) for row in rows)])
