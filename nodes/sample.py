"""The Shortcut Masked Sampler: widgets -> settings -> pipeline -> LATENT.

B  images    L  image tokens    V  codebook size
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import comfy.model_management as mm
import torch
from comfy_api.latest import io
from torch import Tensor

from ..shortcut import weights
from ..shortcut.pipeline import Result, generate, masked_at_start
from ..shortcut.predictors.head import ShortcutPredictor
from ..shortcut.schedule import SCHEDULES, Settings
from .condition import to_class
from .host import StepReport, advice_on_memory
from .latents import codes_of, editable_of, latent_of, samples_of
from .load import Head
from .native import MaskedImageModel, model_of

MEMORY_ADVICE = (
    "Lower the batch size in Empty Latent Image, set weight_dtype of Load MIGM to bfloat16, or set "
    "cfg to 0, which halves the work."
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
                    "positive", tooltip="From Class Condition: what the image shall show."
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="From Empty Latent Image in the size of the model (96 x 96 for the "
                    "shipped one), or from VAE Encode to change an image; with Set Latent Noise "
                    "Mask only where the mask is.",
                ),
                *_widgets(),
                Head.Input(
                    "head",
                    optional=True,
                    tooltip="From Load Shortcut Head. Without it every step is a full pass of the "
                    "model: the original method, slower.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="The class to guide away from. Not connected: no class, as the "
                    "original does.",
                ),
            ],
            outputs=[io.Latent.Output("latent", display_name="latent", tooltip="For VAE Decode.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        latent_image: dict[str, Any],
        seed: int,
        steps: int,
        full_steps: int,
        cfg: float,
        cfg_ramp: bool,
        schedule: str,
        temperature: float,
        choice_temperature: float,
        denoise: float,
        head: Any = None,
        negative: Any = None,
    ) -> io.NodeOutput:
        masked_model = model_of(model)
        if head is not None:
            _check_head(head, masked_model)
        settings = Settings(
            num_steps=steps,
            full_steps=None if head is None else full_steps,
            guidance=(cfg,) if cfg > 0 else (),
            guidance_ramp=cfg_ramp,
            schedule=schedule,
            temperature=temperature,
            choice_temperature=choice_temperature,
        )
        settings.check()
        config = masked_model.checkpoint.config
        samples = samples_of(latent_image, model, config.grid)
        num_images = len(samples)
        conditions = _conditions(settings, config.num_classes, num_images, positive, negative)
        known_codes_BL, is_editable_BL = None, None
        if denoise < 1 or "noise_mask" in latent_image:
            known_codes_BL = codes_of(samples, config.num_codes)
        if "noise_mask" in latent_image:
            is_editable_BL = editable_of(latent_image["noise_mask"], num_images, config.grid)
        start = {
            "seed": seed % 2**64,  # a linked Int may be negative
            "image_indices": latent_image.get("batch_index", range(num_images)),
            "num_tokens": config.num_tokens,
            "known_codes_BL": known_codes_BL,
            "is_editable_BL": is_editable_BL,
            "denoise": denoise,
        }
        result = _run(model, head, settings, conditions, start)
        return io.NodeOutput(latent_of(result.codes_BL, config.grid, latent_image))


def _widgets() -> list[Any]:
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Decides every random choice. Image i of a batch is the same whatever the "
            "batch size.",
        ),
        io.Int.Input(
            "steps",
            default=32,
            min=1,
            max=1024,
            tooltip="In how many steps the image is revealed. More: better, slower. Typical: 8 to "
            "32 without a head, 32 with one, where most steps are cheap. Never more than there "
            "are tokens to make.",
        ),
        io.Int.Input(
            "full_steps",
            default=8,
            min=1,
            max=1024,
            tooltip="How many of the steps are full passes of the model; a connected head answers "
            "the others. They decide the time. Fewer: faster, less exact. Typical: a quarter of "
            "the steps. Equal to steps: exactly the original method. Without a head it has no "
            "effect: all steps are full.",
        ),
        io.Float.Input(
            "cfg",
            default=2.8,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Guidance on the scale of the original: cond + cfg x (cond - uncond), so "
            "KSampler's cfg is this + 1. Higher: closer to the class, less varied. 0 = off, which "
            "halves the work. Typical: 2 to 5.",
        ),
        io.Boolean.Input(
            "cfg_ramp",
            default=True,
            advanced=True,
            tooltip="On: guidance rises evenly from 0 in the first step to cfg in the last, as in "
            "the original; images vary more. Off: cfg in every step. No effect on speed.",
        ),
        io.Combo.Input(
            "schedule",
            options=list(SCHEDULES),
            default="arccos",
            advanced=True,
            tooltip="How the number of tokens per step grows. All reveal few first and most last; "
            "in the order root, linear, arccos, cosine, square ever more come early. arccos is "
            "the original's. No effect on speed.",
        ),
        io.Float.Input(
            "temperature",
            default=1.0,
            min=0.0,
            max=10.0,
            step=0.05,
            round=0.01,
            advanced=True,
            tooltip="Randomness of the codes. Lower: smoother and plainer. 0 = always the most "
            "likely code. Typical: 0.7 to 1. No effect on speed.",
        ),
        io.Float.Input(
            "choice_temperature",
            default=7.0,
            min=0.0,
            max=1000.0,
            step=0.5,
            round=0.01,
            advanced=True,
            tooltip="Randomness of where tokens are revealed, falling to 0 in the last step. Too "
            "low: flat, dull images; too high: incoherent ones. 0 = always the most certain. "
            "Typical: 4 to 12. No effect on speed.",
        ),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="Share of the tokens (under the mask, if there is one) that is hidden and "
            "made anew, picked at random by the seed. 1: all. Lower: closer to the given image. "
            "Keep 1 with Empty Latent Image.",
        ),
    ]


def _check_head(head: Any, model: MaskedImageModel) -> None:
    doubt = weights.check_head(head.model.checkpoint, model.checkpoint)
    if doubt is not None:
        logging.warning(doubt)


def _conditions(
    settings: Settings, num_classes: int, num_images: int, positive: Any, negative: Any
) -> tuple[Tensor, ...]:
    """The class of each image (B,) for each guidance branch."""
    classes = [to_class(positive, num_classes, "positive")]
    for _ in settings.guidance:
        classes.append(
            num_classes if negative is None else to_class(negative, num_classes, "negative")
        )
    return tuple(torch.full((num_images,), chosen) for chosen in classes)


def _run(
    model: Any, head: Any, settings: Settings, conditions: tuple[Tensor, ...], start: dict[str, Any]
) -> Result:
    """Loads what the run needs, runs it, logs one line."""
    masked_model, device = model_of(model), model.load_device
    network, config = masked_model.diffusion_model, masked_model.checkpoint.config
    num_sequences = len(conditions) * len(conditions[0])
    patchers = [model] if head is None else [model, head]
    mm.load_models_gpu(
        patchers,
        memory_required=model.memory_required((num_sequences, 1, config.grid, config.grid)),
    )
    colours_V3 = model.get_model_object("latent_format").colours_V3
    counts = set(masked_at_start(**start).sum(1).tolist())
    report = StepReport(
        sum(min(settings.num_steps, count) for count in counts), config.grid, colours_V3, device
    )
    with masked_model.running(model), advice_on_memory(MEMORY_ADVICE):
        result = generate(
            network,
            conditions,
            settings,
            predictor=None if head is None else partial(ShortcutPredictor, head.model),
            device=device,
            on_step=report,
            **start,
        )
    logging.info("Shortcut Masked Sampler: %s", _summary(result, report.clock.speed_up()))
    return result


def _summary(result: Result, speed_up: float) -> str:
    if result.num_steps == 0:
        return "nothing to make, the noise mask covers no token"
    took = f"{result.num_steps} steps, {result.num_full} full, {result.seconds:.2f} s"
    if result.num_full == result.num_steps:
        return f"{took} (vanilla)"
    return f"{took}, about {speed_up:.1f} times as fast as vanilla"
