"""The Shortcut Masked Sampler: widgets -> settings -> pipeline -> LATENT.

B  images    L  image tokens    V  codebook size
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.model_management as mm
from comfy_api.latest import io
from torch import Tensor

from ..shortcut.accelerators.shortcut_head import ShortcutHead
from ..shortcut.generate import Result, generate, masked_at_start, needed_branches
from ..shortcut.models.architecture import Branches, Conditioning, Grid
from ..shortcut.pipeline import check_head
from ..shortcut.schedule import Settings, plan
from .host import StepClock, StepReport, advice_on_memory, say_without_effect
from .latents import codes_of, editable_of, indices_of, latent_of, samples_of
from .load import Head
from .native import fitted_head, head_of, model_of
from .widgets import CUSTOM, later_widgets, settings_of, widgets

MEMORY_ADVICE = (
    "Lower the batch size or the size in Empty Latent Image, scale source images down, set "
    "weight_dtype of Load MIGM to bfloat16 or float8_e4m3fn, or set cfg to 0, which halves the "
    "work."
)


class MaskedSampler(io.ComfyNode):
    """Masked image generation, with or without a shortcut head."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShortcutMaskedSampler",
            display_name="Shortcut Masked Sampler",
            category="shortcut",
            description="Makes images with a masked image model: all tokens start hidden, each "
            "step reveals the most certain ones. With a shortcut head most steps cost a few per "
            "cent of a full pass.",
            search_aliases=["maskgit", "migm", "ksampler", "masked image generation", "accelerate"],
            inputs=[
                io.Model.Input("model", tooltip="From Load MIGM."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="From Text Condition or Class Condition, as the model takes text or "
                    "classes: what the image shall show.",
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="From Empty Latent Image, or from VAE Encode to change an image; with "
                    "Set Latent Noise Mask only where the mask is. Lumina-DiMOO makes any size in "
                    "multiples of 16 pixels, best near 1024 x 1024; MaskGIT only its own.",
                ),
                *widgets(),
                Head.Input(
                    "head",
                    optional=True,
                    tooltip="From Load Shortcut Head. Without it every step is a full pass of the "
                    "model: the original method, slower.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What to guide away from, from the same kind of node as positive. Of "
                    "Text Condition only the text counts. Not connected: no class or text, as the "
                    "original does.",
                ),
                *later_widgets(),
            ],
            outputs=[io.Latent.Output("latent", display_name="latent", tooltip="For VAE Decode.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        latent_image: dict[str, Any],
        seed: int,
        denoise: float,
        head: Any = None,
        negative: Conditioning | None = None,
        preset: str = CUSTOM,
        cfg_image: float = 4.0,
        spread: int = 0,
        **values: Any,
    ) -> io.NodeOutput:
        masked_model = model_of(model)
        checkpoint = masked_model.checkpoint
        say_without_effect(model, "Shortcut Masked Sampler")
        if head is not None:
            head = fitted_head(head, checkpoint)
            if doubt := check_head(head_of(head)[1], checkpoint):
                logging.warning(doubt)
        only_grid = checkpoint.architecture.fixed_grid(checkpoint.config)
        samples = samples_of(latent_image, model, only_grid)
        num_images, grid = len(samples), (samples.shape[2], samples.shape[3])
        branches = masked_model.conditioner.from_conditioning(positive, negative, num_images)
        values |= {"preset": preset, "cfg_image": cfg_image, "spread": spread}
        has_mask = "noise_mask" in latent_image
        settings = settings_of(checkpoint, len(branches) - 1, head is not None, values, has_mask)
        conditions, guidance = needed_branches(branches, settings.guidance)
        known_codes_BL: Tensor | None = codes_of(samples, checkpoint.config.num_codes)
        is_editable_BL = None
        if denoise == 1 and "noise_mask" not in latent_image:
            known_codes_BL = None  # all are made anew
        if "noise_mask" in latent_image:
            is_editable_BL = editable_of(latent_image["noise_mask"], num_images, grid)
        start = {
            "seed": seed % 2**64,  # a linked Int may be negative
            "image_indices": indices_of(latent_image, num_images),
            "num_tokens": grid[0] * grid[1],
            "known_codes_BL": known_codes_BL,
            "is_editable_BL": is_editable_BL,
            "denoise": denoise,
        }
        result = _run(model, head, replace(settings, guidance=guidance), conditions, grid, start)
        return io.NodeOutput(latent_of(result.codes_BL, grid, latent_image))


def _run(
    model: Any,
    head: Any,
    settings: Settings,
    conditions: Branches,
    grid: Grid,
    start: dict[str, Any],
) -> Result:
    """Load what the run needs, run it, log one line."""
    masked_model, device = model_of(model), model.load_device
    rules = masked_model.checkpoint.architecture.rules
    needed = masked_model.run_bytes(grid, len(conditions[0]), conditions)
    mm.load_models_gpu([model] if head is None else [model, head], memory_required=needed)
    is_sequential = len(conditions) > 1 and model.get_free_memory(device) < needed
    if is_sequential:
        logging.info("Shortcut Masked Sampler: memory is short, one guidance branch at a time")
    counts = set(masked_at_start(**start).sum(1).tolist())
    num_tokens, denoise = start["num_tokens"], start["denoise"]
    num_steps = sum(len(plan(settings, count, num_tokens, rules, denoise)) for count in counts)
    colours_V3 = model.get_model_object("latent_format").colours_V3
    report = StepReport(num_steps, grid, colours_V3, device)
    with masked_model.running(model), advice_on_memory(MEMORY_ADVICE):
        result = generate(
            masked_model.network.on_grid(*grid, is_sequential=is_sequential),
            conditions,
            settings,
            rules,
            accelerator=None if head is None else partial(ShortcutHead, head_of(head)[0]),
            device=device,
            on_step=report,
            **start,
        )
    logging.info("Shortcut Masked Sampler: %s", _summary(result, report.clock))
    return result


def _summary(result: Result, clock: StepClock) -> str:
    if result.num_steps == 0:
        return "nothing to make, the noise mask covers no token"
    took = f"{result.num_steps} steps, {result.num_full} full, {result.seconds:.2f} s"
    if result.num_full == result.num_steps:
        return f"{took} (vanilla)"
    return f"{took}, about {clock.speed_up():.1f} times as fast as vanilla"
