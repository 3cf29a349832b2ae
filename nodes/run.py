"""One run of the sampler in ComfyUI: inputs of a node -> a checked job -> codes, with progress on the node.

B  images    L  image tokens
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management as mm
from torch import Tensor

from ..shortcut.accelerators.choice import head_bytes, kept_bytes
from ..shortcut.checkpoint import Checkpoint
from ..shortcut.compatibility import check_head
from ..shortcut.generate import Result, generate, groups, masked_at_start, needed_branches
from ..shortcut.grid import doubt_of_size, in_pixels
from ..shortcut.memory import images_that_fit
from ..shortcut.models.architecture import Branches, Conditioning, Grid
from ..shortcut.schedule import Settings, plan
from ..shortcut.split import Copy
from .accelerate import Accelerated
from .host import NodeText, advice_on_memory, changes_of, copies_of
from .latents import (
    codes_of,
    editable_of,
    has_mask_of,
    indices_of,
    of_size,
    samples_of,
)
from .native import fitted_head, head_of, model_of
from .progress import StepReport
from .timing import SEEN, Seen, Speed, Work, speed_of

MEMORY_ADVICE = (
    "Lower the batch size or the size in Empty Latent Image, scale source images down, set "
    "weight_dtype of Load MIGM to bfloat16 or float8_e4m3fn, or set cfg to 0, which halves the "
    "work."
)
# (model, branches to guide away from, is there an accelerator, is there a mask) -> settings
SettingsOf = Callable[[Checkpoint, int, bool, bool], Settings]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a run needs, checked to fit."""

    model: Any  # MODEL
    accelerated: Accelerated
    settings: Settings
    conditions: Branches  # those that matter
    grid: Grid
    start: dict[str, Any]  # what `generate` takes to begin with
    doubt: str | None  # of the size, to be said before the run

    @property
    def num_to_make(self) -> tuple[int, ...]:
        """The tokens to make of each image."""
        return tuple(masked_at_start(**self.start).sum(1).tolist())

    def bytes_of(self, num_images: int) -> float:
        """Return what a run of so many of its images takes above the weights."""
        model = model_of(self.model)
        on_grid = model.network.on_grid(*self.grid)
        name, size = self.accelerated.name, (num_images, self.lengths)
        head = None if self.accelerated.head is None else head_of(self.accelerated.head)[0]
        of_model = model.run_bytes(self.grid, num_images, self.conditions)
        return max(of_model, head_bytes(name, head, *size)) + kept_bytes(name, on_grid, *size)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The positions of each guidance branch."""
        on_grid = model_of(self.model).network.on_grid(*self.grid)
        return tuple(on_grid.sequence_length(condition) for condition in self.conditions)

    @property
    def images_at_once(self) -> int:
        """The images that run together: as many as fit beside the weights, for weights that move cost more."""
        head = self.accelerated.head
        loaded = [self.model] if head is None else [self.model, head]
        room = mm.get_total_memory(self.model.load_device) - sum(m.model_size() for m in loaded)
        return images_that_fit(self.bytes_of, len(self.start["image_indices"]), room)

    @property
    def num_steps(self) -> int:
        """The steps of all groups of images."""
        model = model_of(self.model)
        found = groups(
            model.network.on_grid(*self.grid),
            self.conditions,
            masked_at_start(**self.start),
            self.images_at_once,
        )
        more = model.checkpoint.architecture.rules, self.start["denoise"]
        num_tokens = self.start["num_tokens"]
        return sum(len(plan(self.settings, count, num_tokens, *more)) for count, _ in found)


def job_of(
    model: Any,
    positive: Conditioning,
    negative: Conditioning | None,
    latent: dict[str, Any],
    *,
    head: Any,
    settings: SettingsOf,
    seed: int,
    denoise: float = 1.0,
) -> Job:
    """Return the run that the inputs of a node ask for.

    Raises:
        ValueError: they do not fit each other, or a setting is out of range.
    """
    masked_model = model_of(model)
    checkpoint = masked_model.checkpoint
    accelerated = Accelerated.of(head)
    if accelerated.head is not None:
        accelerated = replace(accelerated, head=fitted_head(accelerated.head, checkpoint))
        if doubt := check_head(head_of(accelerated.head)[1], checkpoint):
            logging.warning(doubt)
        if accelerated.head.load_device != model.load_device:
            raise ValueError(
                f"MODEL runs on {model.load_device} and the head on {accelerated.head.load_device}, expected one "
                "device. Take Select Model Device out, or start ComfyUI with --cuda-device."
            )
    has_mask, samples = has_mask_of(latent), samples_of(latent, model)
    downscale = model.get_model_object("latent_format").spacial_downscale_ratio
    asked: Grid = (samples.shape[2], samples.shape[3])
    is_empty = not samples.any()
    grid = checkpoint.architecture.fixed_grid(checkpoint.config) or asked
    is_all_new = denoise == 1 and not has_mask
    samples = of_size(samples, grid, downscale, is_all_new=is_all_new)
    num_images = len(samples)
    branches = masked_model.conditioner.from_conditioning(positive, negative, num_images)
    chosen = settings(checkpoint, len(branches) - 1, accelerated.name is not None, has_mask)
    conditions, guidance = needed_branches(branches, chosen.guidance)
    known_codes_BL: Tensor | None = codes_of(samples, checkpoint.config.num_codes)
    is_editable_BL = None
    if is_all_new:
        known_codes_BL = None
    if has_mask:
        is_editable_BL = editable_of(latent["noise_mask"], num_images, grid)
    start = {
        "seed": seed % 2**64,  # a linked Int may be negative
        "image_indices": indices_of(latent, num_images),
        "num_tokens": grid[0] * grid[1],
        "known_codes_BL": known_codes_BL,
        "is_editable_BL": is_editable_BL,
        "denoise": denoise,
    }
    doubts = [doubt_of_size(checkpoint, grid, downscale)]
    if grid != asked:
        doubts.append(
            f"{checkpoint.name} makes {in_pixels(grid, downscale)} pixels only, and makes that: latent_image is empty "
            f"and for {in_pixels(asked, downscale)}"
        )
    if chosen.is_one_step and accelerated.name is not None:
        doubts.append("a one-step student makes one full pass: what is wired to head has no effect")
    if is_empty and not is_all_new:
        doubts.append(
            "latent_image is empty, so what is not made anew is code 0 everywhere: wire VAE Encode, or set denoise to "
            "1 and take the mask out"
        )
    return Job(
        model=model,
        accelerated=accelerated,
        settings=replace(chosen, guidance=guidance),
        conditions=conditions,
        grid=grid,
        start=start,
        doubt="; ".join(filter(None, doubts)) or None,
    )


def run(job: Job, text: NodeText, node: str, **progress: Any) -> tuple[Result, Speed | None]:
    """Load what the run needs, run it, and say what it took: on the node and in the log.

    Args:
        node: its name, for the log.
        progress: prefix, before and total, as for `StepReport`.

    Raises:
        FloatingPointError, OOM_EXCEPTION: as `generate`; out of memory comes with advice.
    """
    masked_model, device = model_of(job.model), job.model.load_device
    rules, conditions = masked_model.checkpoint.architecture.rules, job.conditions
    num_images, at_once = len(job.start["image_indices"]), job.images_at_once
    needed = job.bytes_of(at_once)
    head = job.accelerated.head
    if job.doubt is not None:
        text.warn(node, job.doubt)
    if at_once < num_images:
        line = f"memory holds {at_once} of {num_images} images at a time: they are made in parts"
        text.keep([line])
        logging.info("%s: %s", node, line)
    copies = copies_of(job.model)
    if copies and len(conditions) == 1:
        text.keep(["one device does all: without cfg there is one guidance branch"])
    loaded = [job.model, *copies] if head is None else [job.model, head, *copies]
    mm.load_models_gpu(loaded, memory_required=needed)
    is_sequential = len(conditions) > 1 and job.model.get_free_memory(device) < needed
    if is_sequential:
        logging.info("%s: memory is short, one guidance branch at a time", node)
    colours_V3 = job.model.get_model_object("latent_format").colours_V3
    report = StepReport(job.num_steps, job.grid, colours_V3, device, text, **progress)
    with contextlib.ExitStack() as stack:
        for patcher in (job.model, *copies):
            stack.enter_context(model_of(patcher).running(patcher))
        stack.enter_context(advice_on_memory(MEMORY_ADVICE))
        result = generate(
            masked_model.network.on_grid(*job.grid, is_sequential=is_sequential),
            conditions,
            job.settings,
            rules,
            accelerator=job.accelerated.make,
            images_at_once=at_once,
            device=device,
            copies=[
                Copy(model_of(copy).network.on_grid(*job.grid), copy.load_device) for copy in copies
            ],
            on_step=report,
            **job.start,
        )
    work = Work(
        of_a_pass=(
            job.grid,
            at_once,
            job.lengths,
            is_sequential,
            len(copies),
            *changes_of(job.model),
        ),
        num_steps=job.settings.num_steps,
        num_to_make=job.num_to_make,
    )
    speed = speed_of(report.clock, work, SEEN.setdefault(masked_model, Seen()))
    summary = in_words(result, speed)
    text.show(summary)
    logging.info("%s: %s", node, summary)
    return result, speed


def in_words(result: Result, speed: Speed | None) -> str:
    """Return what a run took, in a line."""
    if result.num_steps == 0:
        return "nothing to make, the noise mask covers no token"
    took = f"{result.num_steps} steps, {result.num_full} full, {result.seconds:.1f} s"
    if result.num_full == result.num_steps:
        return f"{took} (vanilla)"
    return took if speed is None else f"{took}, {speed}"
