"""From options to a run that is ready to start.

B  images    L  image tokens    h, w  rows, columns of codes
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import models, shipped
from ..accelerators.choice import HEAD
from ..files import FORMAT_KEY, find, read_metadata
from ..flops import count_flops
from ..generate import Result, masked_at_start, needed_branches
from ..grid import Grid
from ..guard import MAX_IMAGES, MAX_SEED, check_whole
from ..init_image import Pictures, Start, start_of
from ..models.architecture import Architecture, Branches, Request
from ..pipeline import Pipeline, chosen_settings
from ..sampler import Trace
from ..schedule import Settings, plan
from ..settings import NO_SPREAD
from . import contents
from .graph import Graph, graph_of
from .options import check_taken, fields_given

logger = logging.getLogger(__name__)

PICTURES = ("image", "style_image", "mask")  # options that name files


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run that is ready to start. `start` holds the other arguments of `Pipeline.sample`."""

    pipeline: Pipeline  # with the accelerator of the run
    conditions: Branches
    settings: Settings
    grid: Grid
    start: dict[str, Any]
    num_to_make: int  # tokens, in each image
    num_steps: int
    about: dict[str, Any]  # what the pictures say about themselves, as JSON
    graph: Graph | None  # the run as ComfyUI's nodes; None = they cannot express it

    @property
    def num_images(self) -> int:
        """The number of pictures."""
        return len(self.start["image_indices"])

    def run(self, on_step: Callable[[Trace], None] | None = None) -> Result:
        """Make the codes."""
        return self.pipeline.sample(
            self.conditions, self.settings, self.grid, on_step=on_step, **self.start
        )

    def flops(self) -> int:
        """Count the floating point operations of the run."""
        pipeline = self.pipeline
        return count_flops(
            pipeline.model,
            pipeline.used_head,
            self.settings,
            self.conditions,
            self.grid,
            rules=pipeline.architecture.rules,
            num_to_make=self.num_to_make,
            denoise=self.start["denoise"],
            accelerator=pipeline.accelerator_name,
        ).total


def load_pipeline(options: argparse.Namespace) -> Pipeline:
    """Load the files that the options name: without --model the shipped ones that take what is asked for.

    Raises:
        FileNotFoundError, ValueError: as `Pipeline.load`.
    """
    return Pipeline.load(
        options.model or shipped_for(fields_given(options)),
        options.vq,
        options.head,
        device=options.device,
        dtype=None if options.dtype is None else getattr(torch, options.dtype),
        is_sequential=options.sequential,
        more_devices=options.more_devices or (),
        cuda_graph=options.cuda_graph,
        compiled=options.compile,
        accelerator=options.accelerator,
    )


def shipped_for(given: frozenset[str]) -> str:
    """Return the name of the shipped model that takes most of the given fields of `Request`; the first if in doubt."""
    return max(shipped.CHOICES, key=lambda name: len(given & _shipped_architecture(name).takes))


def _shipped_architecture(name: str) -> Architecture:
    """Return the architecture of a shipped model, by its metadata alone."""
    layouts = models.layouts("model")
    found = read_metadata(find(Path(shipped.CHOICES[name]["model"]), layouts))[FORMAT_KEY]
    return models.architecture_of(next(layout for layout in layouts if layout.name == found))


def job_of(pipeline: Pipeline, options: argparse.Namespace) -> Job:
    """Return the run that the options ask for.

    Raises:
        ValueError: an option is out of range, or does not go with the model or another option.
        OSError: a picture cannot be read.
    """
    pipeline = pipeline.for_run(options.accelerator, options.preset, options.full_steps)
    num_images = options.batch_size
    check_numbers(options)
    check_taken(options, pipeline.architecture)
    if options.task in models.text_tasks():
        raise ValueError(
            f"the task {options.task!r} has a text for an answer, which --prompts has no place for. Run it alone."
        )
    hashes = hashes_of(options)
    begin, request = request_of(pipeline, options)
    branches = pipeline.conditions(request, num_images)
    has_mask = begin.is_editable_1hw is not None and not bool(begin.is_editable_1hw.all())
    settings = settings_of(pipeline, options, num_guided=len(branches) - 1, has_mask=has_mask)
    conditions, guidance = needed_branches(branches, settings.guidance)
    settings = replace(settings, guidance=guidance)
    start = {
        "seed": options.seed,
        "image_indices": range(num_images),
        "known_codes_BL": _for_each_image(begin.known_codes_1hw, num_images),
        "is_editable_BL": _for_each_image(begin.is_editable_1hw, num_images),
        "denoise": 1.0 if options.denoise is None else options.denoise,
    }
    num_tokens = begin.grid[0] * begin.grid[1]
    num_to_make = int(masked_at_start(num_tokens=num_tokens, **start)[0].sum())
    rules = pipeline.architecture.rules
    steps = plan(settings, num_to_make, num_tokens, rules, start["denoise"])
    if options.steps is not None and num_to_make < options.steps:
        logger.warning(
            "--steps %d is more than the tokens to make: it takes %d.", options.steps, len(steps)
        )
    graph = None
    if options.image is None:
        graph = graph_of(
            pipeline,
            settings,
            request,
            seed=options.seed,
            grid=begin.grid,
            num_images=num_images,
            is_vq_chosen=options.vq is not None,
        )
    return Job(
        pipeline=pipeline,
        conditions=conditions,
        settings=settings,
        grid=begin.grid,
        start=start,
        num_to_make=num_to_make,
        num_steps=len(steps),
        about={
            **about_of(pipeline, options, request, begin.grid),
            **asdict(settings),
            **asdict(pipeline.architecture.rules),
            "conditions": contents.of_conditions(conditions),
            **hashes,
        },
        graph=graph,
    )


def check_numbers(options: argparse.Namespace) -> None:
    """Raise ValueError if the number of images or the seed is out of range."""
    check_whole("batch size", options.batch_size, 1, MAX_IMAGES)
    check_whole("seed", options.seed, 0, MAX_SEED)


def request_of(pipeline: Pipeline, options: argparse.Namespace) -> tuple[Start, Request]:
    """Return where a run starts from, and what it is asked for. Raises ValueError, OSError as `start_of`."""
    pictures = Pictures(**{item.name: getattr(options, item.name) for item in fields(Pictures)})
    begin = start_of(pipeline, pictures, options.task)
    request = Request(
        label=options.class_,
        prompt=options.prompt,
        negative=options.negative,
        task=options.task,
        sources=begin.sources,
    )
    return begin, request


def settings_of(
    pipeline: Pipeline, options: argparse.Namespace, *, num_guided: int, has_mask: bool = False
) -> Settings:
    """Return the model's settings with the options that were given in their place.

    Raises:
        ValueError: one is out of range, or does not go with another.
    """
    full_steps = None if options.full_steps is None else full_steps_of(options.full_steps)
    if options.spread:
        logger.warning("%s.", NO_SPREAD)
    as_typed = ("preset", "steps", "cfg", "cfg_image", "order")
    as_typed += ("temperature", "choice_temperature", "schedule")
    return chosen_settings(
        pipeline.model_file,
        num_guided=num_guided,
        accelerator=pipeline.accelerator_name,
        full_steps=full_steps,
        has_mask=has_mask,
        **{name: getattr(options, name) for name in as_typed},
    )


def full_steps_of(text: str) -> int | tuple[int, ...]:
    """Return how many steps are full ("8"), or which ("0,4,9"; of one alone "0,")."""
    try:
        numbers = tuple(int(part) for part in text.removesuffix(",").split(","))
    except ValueError:
        raise ValueError(
            f"--full-steps must be a number or a list such as 0,4,9, got {text!r}."
        ) from None
    return numbers if "," in text else numbers[0]


def hashes_of(options: argparse.Namespace) -> dict[str, str]:
    """Return what tells the pictures that a run starts from apart. Raise OSError if one cannot be read.

    They are hashed before they are opened: one that is replaced meanwhile makes the result count as another's.
    """
    return {
        f"{name}_sha256": contents.of_file(path)
        for name in PICTURES
        if (path := getattr(options, name)) is not None and path.is_file()
    }


def about_of(
    pipeline: Pipeline, options: argparse.Namespace, request: Request, grid: Grid
) -> dict[str, Any]:
    """Return what pictures say about themselves, without the sampler's settings."""
    model, vq, head = pipeline.model_file, pipeline.vq_file, pipeline.head_file
    other: dict[str, Any] = {}
    if pipeline.accelerator_name not in (None, HEAD):
        other = {"accelerator": pipeline.accelerator_name}
    if pipeline.used_head is None:
        head = None
    pictures = {name: path for name in PICTURES if (path := getattr(options, name)) is not None}
    changed = ("outpaint", "denoise")
    return {
        "model": model.name,
        "model_fingerprint": model.fingerprint,
        "vq": vq.name,
        "vq_fingerprint": vq.fingerprint,
        "head": head and head.name,
        "head_fingerprint": head and head.fingerprint,
        **other,
        "weights": contents.of_networks(pipeline),
        "dtype": str(pipeline.model.dtype).removeprefix("torch."),
        **pipeline.conditioner.described(request),
        **{name: contents.name_of(path) for name, path in pictures.items()},
        **{name: str(given) for name in changed if (given := getattr(options, name)) is not None},
        "width": grid[1] * pipeline.downscale,
        "height": grid[0] * pipeline.downscale,
        "seed": options.seed,
    }


def _for_each_image(tensor_1hw: Tensor | None, num_images: int) -> Tensor | None:
    return None if tensor_1hw is None else tensor_1hw.flatten(1).expand(num_images, -1)
