"""From the options of a picture to a run that is ready to start.

B  images    L  image tokens    h, w  rows, columns of codes
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import weights
from ..flops import count_operations
from ..generate import (
    Result,
    generate,
    masked_at_start,
    needed_branches,
)
from ..grid import Grid
from ..init_image import start_of
from ..models.layout import Format
from ..models.lumina_dimoo import prompts
from ..models.maskgit.classes import class_branches, class_id
from ..pipeline import Tools, advice_on_memory
from ..sampler import Trace
from ..schedule import Settings, plan
from .graph import Graph, graph_of
from .options import check_conditioning

logger = logging.getLogger(__name__)

USUAL_PRESET = "balanced"  # whose share of full steps a run with a head has


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run that is ready to start. `what` are arguments of `pipeline.generate`."""

    grid: Grid
    conditions: tuple[Tensor, ...]
    settings: Settings
    what: dict[str, Any]
    about: dict[str, Any]  # what the pictures say about themselves, as JSON
    graph: Graph | None  # the run as ComfyUI's nodes; None = they cannot express it

    @property
    def num_images(self) -> int:
        return len(self.what["image_indices"])

    @property
    def num_to_make(self) -> int:
        """Tokens to make in each image: as many in all."""
        return int(masked_at_start(**self.what)[0].sum())

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        return len(plan(self.settings, self.num_to_make, self.what["num_tokens"]))

    def run(self, tools: Tools, on_step: Callable[[Trace], None] | None = None) -> Result:
        """Makes the codes."""
        model = tools.model.on_grid(*self.grid, is_sequential=tools.is_sequential)
        with advice_on_memory():
            return generate(
                model,
                self.conditions,
                self.settings,
                predictor=tools.predictor,
                device=tools.device,
                on_step=on_step,
                **self.what,
            )

    def operations(self, tools: Tools) -> int:
        """Floating point operations of the run."""
        return count_operations(
            tools.model,
            tools.head,
            self.settings,
            self.conditions,
            self.grid,
            num_to_make=self.num_to_make,
        ).total


def job_of(tools: Tools, options: argparse.Namespace) -> Job:
    """The run that the options ask for.

    Raises:
        ValueError: an option is out of range, or does not go with the model or another option.
        OSError: a picture cannot be read.
    """
    format, num_images = tools.model_file.format, options.batch_size
    if num_images < 1:
        raise ValueError(f"batch size must be at least 1, got {num_images}.")
    if options.seed < 0:
        raise ValueError(f"seed must be at least 0, got {options.seed}.")
    check_conditioning(options, format)
    settings = settings_of(tools, options)
    start = start_of(tools, options)
    asked, branches = CONDITIONS[format.conditioning or ""](tools, options, start.sources)
    conditions, guidance = needed_branches(branches, settings.guidance)
    settings = replace(settings, guidance=guidance)
    (rows, columns), downscale = start.grid, tools.downscale
    changed = ("image", "style_image", "mask", "outpaint", "denoise")
    width, height = columns * downscale, rows * downscale
    graph = None
    if options.image is None:
        graph = graph_of(
            tools,
            settings,
            asked,
            seed=options.seed,
            width=width,
            height=height,
            num_images=num_images,
            is_vq_chosen=options.vq is not None,
        )
    about = {
        "model": tools.model_file.name,
        "model_fingerprint": tools.model_file.fingerprint,
        "head": tools.head_file and tools.head_file.name,
        "head_fingerprint": tools.head_file and tools.head_file.fingerprint,
        "dtype": str(tools.model.dtype).removeprefix("torch."),
        **asked,
        **{name: str(given) for name in changed if (given := getattr(options, name)) is not None},
        "width": width,
        "height": height,
        "seed": options.seed,
        **asdict(settings),
    }
    what = {
        "seed": options.seed,
        "image_indices": range(num_images),
        "num_tokens": rows * columns,
        "known_codes_BL": _for_each_image(start.known_codes_1hw, num_images),
        "is_editable_BL": _for_each_image(start.is_editable_1hw, num_images),
        "denoise": 1.0 if options.denoise is None else options.denoise,
    }
    job = Job(
        grid=start.grid,
        conditions=conditions,
        settings=settings,
        what=what,
        about=about,
        graph=graph,
    )
    if options.steps is not None and job.num_steps < options.steps:
        logger.warning(
            "--steps %d is more than the tokens to make: it takes %d, one for each.",
            options.steps,
            job.num_steps,
        )
    return job


def settings_of(tools: Tools, options: argparse.Namespace) -> Settings:
    """The model's settings with the options that were given in their place.

    Raises:
        ValueError: one is out of range, or does not go with another.
    """
    has_sources = options.task is not None and prompts.TASKS[options.task].num_sources > 0
    usual = weights.settings(tools.model_file, has_sources=has_sources)
    given: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("schedule", "temperature", "choice_temperature", "spread")
        if getattr(options, name) is not None
    }
    if options.steps is not None:
        given["num_steps"] = options.steps
    if options.full_steps is not None:
        given["full_steps"] = full_steps_of(options.full_steps)
    if options.preset is not None:
        if options.steps is not None or options.full_steps is not None:
            raise ValueError("--preset sets --steps and --full-steps. Leave them out, or --preset.")
        preset = tools.model_file.format.presets[options.preset]
        given |= {"num_steps": preset.num_steps, "full_steps": preset.num_full}
    if tools.head is not None and "full_steps" not in given:
        num_steps = given.get("num_steps", usual.num_steps)
        given["full_steps"] = usual_full_steps(tools.model_file.format, num_steps)
    if tools.head is None and "full_steps" in given:
        used = "--full-steps" if options.preset is None else "--preset"
        raise ValueError(
            f"{used} needs a shortcut head: without one every step is full. Add --head FILE."
        )
    given["guidance"] = _guidance(options, usual.guidance, has_sources)
    settings = replace(usual, **given)
    settings.check()
    return settings


def usual_full_steps(format: Format, num_steps: int) -> int:
    """As large a share of full steps as the usual preset has."""
    preset = format.presets[USUAL_PRESET]
    return max(1, round(num_steps * preset.num_full / preset.num_steps))


def full_steps_of(text: str) -> int | tuple[int, ...]:
    """How many steps are full ("8"), or which ("0,4,9")."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"--full-steps must be a number or a list such as 0,4,9, got {text!r}."
        ) from None
    return numbers if "," in text else numbers[0]


def _guidance(
    options: argparse.Namespace, usual: tuple[float, ...], has_sources: bool
) -> tuple[float, ...]:
    """A weight for each branch to guide away from: one, or with source images two."""
    if has_sources:
        given = (options.cfg, options.cfg_image)
    elif options.cfg_image is None:
        usual, given = usual or (0.0,), (options.cfg,)
    else:
        raise ValueError(
            "--cfg-image is for a --task that starts from a picture, such as edit. Leave it out."
        )
    return tuple(u if g is None else g for u, g in zip(usual, given, strict=True))


# What is asked for, in words, and the conditions: the wanted one first, then what to guide away from.
Asked = tuple[dict[str, Any], tuple[Tensor, ...]]


def _classes(tools: Tools, options: argparse.Namespace, sources: tuple[Tensor, ...]) -> Asked:
    """The class of each image (B,), and no class."""
    config, names = tools.model_file.config, tools.model_file.metadata.class_names
    text = "0" if options.class_ is None else options.class_
    class_B = torch.full((options.batch_size,), class_id(text, names, config.num_classes))
    return {"class": text}, class_branches(class_B, config.num_classes, num_guided=1)


def _texts(tools: Tools, options: argparse.Namespace, sources: tuple[Tensor, ...]) -> Asked:
    """The prompt tokens (B, P), with a negative prompt, and without source images if there are any."""
    task = options.task or "text_to_image"
    if options.prompt is None and prompts.TEXT in prompts.TASKS[task].user:
        raise ValueError(f"the task {task!r} needs --prompt TEXT; '' stands for anything.")
    asked = {"task": task, "prompt": options.prompt or "", "negative": options.negative or ""}
    branches = prompts.conditions(
        tools.tokenizer,
        tools.model_file.config,
        task,
        asked["prompt"],
        negative=asked["negative"],
        sources=sources,
        num_images=options.batch_size,
    )
    return asked, branches


CONDITIONS: Mapping[str, Callable[..., Asked]] = {
    "class": _classes,
    "text": _texts,
}  # by conditioning


def _for_each_image(tensor_1hw: Tensor | None, num_images: int) -> Tensor | None:
    return None if tensor_1hw is None else tensor_1hw.flatten(1).expand(num_images, -1)
