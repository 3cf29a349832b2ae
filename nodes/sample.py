"""The Shortcut Masked Sampler: widgets -> settings -> run -> LATENT."""

from __future__ import annotations

from functools import partial
from typing import Any

from comfy_api.latest import io

from ..shortcut.models.architecture import Conditioning
from ..shortcut.schedule import ORDERS
from .host import NodeText
from .latents import latent_of
from .load import Head
from .patches import lines_without_effect
from .run import job_of, run
from .widgets import CUSTOM, later_widgets, preset_in_words, settings_of, widgets

NAME = "Shortcut Masked Sampler"


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
                    "Set Latent Noise Mask only where the mask is. MaskGIT makes its own "
                    "size only.",
                ),
                *widgets(),
                Head.Input(
                    "head",
                    optional=True,
                    tooltip="From Load Shortcut Head, or from Accelerator, which needs no head. "
                    "Without it every step is a full pass of the model: the original method, slower.",
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
            outputs=[io.Latent.Output("latent", display_name="LATENT", tooltip="For VAE Decode.")],
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
        order: str = ORDERS[0],
        **values: Any,
    ) -> io.NodeOutput:
        values |= {"preset": preset, "cfg_image": cfg_image, "spread": spread, "order": order}
        job = job_of(
            model,
            positive,
            negative,
            latent_image,
            head=head,
            settings=partial(settings_of, values=values),
            seed=seed,
            denoise=denoise,
        )
        text = NodeText()
        text.keep(lines_without_effect(model, NAME))
        if preset != CUSTOM:
            text.keep([preset_in_words(preset, job.settings)])
        result, _ = run(job, text, NAME)
        return io.NodeOutput(latent_of(result.codes_BL, job.grid, latent_image))
