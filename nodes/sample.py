"""The Shortcut Masked Sampler: widgets -> settings -> run -> LATENT. And the node that was it before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from comfy_api.latest import io

from ..shortcut.models.architecture import Conditioning
from .host import NodeText
from .latents import has_mask_of, latent_of
from .load import Head
from .native import model_of
from .patches import lines_without_effect
from .run import job_of, run
from .widgets import (
    CUSTOM,
    LATER,
    PRESETS,
    custom_widgets,
    doubt_of_schedule,
    flat_preset_widget,
    later_widgets,
    preset_in_words,
    preset_widget,
    read_widgets,
    settings_of,
)

NAME = "Shortcut Masked Sampler"


class MaskedSampler(io.ComfyNode):
    """Masked image generation, with or without a shortcut head."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("ShortcutSampler", [preset_widget(), *read_widgets()])

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        latent_image: dict[str, Any],
        seed: int,
        denoise: float,
        preset: dict[str, Any] | str | None = None,
        head: Any = None,
        negative: Conditioning | None = None,
    ) -> io.NodeOutput:
        if preset is None:  # ComfyUI leaves out what is none of the options
            raise ValueError(
                f"preset must be one of {', '.join(PRESETS)} and {CUSTOM}. Choose one."
            )
        if isinstance(preset, str):  # linked from another node, which gives none of its widgets
            preset = {"preset": preset}
        # ComfyUI passes None for a widget that a saved graph does not have.
        preset = {name: value for name, value in preset.items() if value is not None}
        job = job_of(
            model,
            positive,
            negative,
            latent_image,
            head=head,
            settings=partial(settings_of, values=preset),
            seed=seed,
            denoise=denoise,
        )
        text = NodeText()
        text.keep([*preset_in_words(preset, job.settings), *lines_without_effect(model, NAME)])
        if preset["preset"] == CUSTOM:
            checkpoint, has_mask = model_of(model).checkpoint, has_mask_of(latent_image)
            if doubt := doubt_of_schedule(checkpoint, job.settings, has_mask=has_mask):
                text.warn(NAME, doubt)
        result, _ = run(job, text, NAME)
        return io.NodeOutput(latent_of(result.codes_BL, job.grid, latent_image))


class FlatMaskedSampler(io.ComfyNode):
    """The same with all widgets in a row, for workflows that were saved with it.

    ComfyUI's node replacement (to 0.33) is for nodes that are gone, and drops what goes into a DynamicCombo.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        seed, denoise = read_widgets()
        return _schema(
            "ShortcutMaskedSampler",
            [seed, *custom_widgets(), denoise],
            [flat_preset_widget(), *later_widgets()],
            is_deprecated=True,
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
        **values: Any,
    ) -> io.NodeOutput:
        given = {"preset": preset, **LATER, **values}
        return MaskedSampler.execute(
            model, positive, latent_image, seed, denoise, given, head, negative
        )


def _schema(node_id: str, widgets: list[Any], later: Sequence[Any] = (), **more: Any) -> io.Schema:
    """Return the schema of a sampler with these widgets; those that came later are last."""
    return io.Schema(
        node_id=node_id,
        display_name=NAME,
        category="shortcut",
        description="Makes images with a masked image model: all tokens start hidden, each "
        "step reveals the most certain ones. With a shortcut head most steps cost a few per "
        "cent of a full pass.",
        search_aliases=["maskgit", "migm", "ksampler", "masked image generation", "accelerate"],
        inputs=[
            io.Model.Input("model", tooltip="From Load MIGM."),
            io.Conditioning.Input(
                "positive",
                tooltip="From Text Condition, CLIP Text Encode or Class Condition, as the model "
                "takes text or classes: what the image shall show.",
            ),
            io.Latent.Input(
                "latent_image",
                tooltip="From Empty Latent Image, or from VAE Encode to change an image; with "
                "Set Latent Noise Mask only where the mask is. MaskGIT makes its own "
                "size only.",
            ),
            *widgets,
            Head.Input(
                "head",
                optional=True,
                tooltip="From Load Shortcut Head, or from Accelerator, which needs no head. "
                "Without it every step is a full pass of the model: the original method, slower.",
            ),
            io.Conditioning.Input(
                "negative",
                optional=True,
                tooltip="What to guide away from, from the same kind of node as positive; its "
                "images do not count. Not connected: no class or text; aMUSEd and Meissonic need "
                "it.",
            ),
            *later,
        ],
        outputs=[io.Latent.Output("latent", display_name="LATENT", tooltip="For VAE Decode.")],
        **more,
    )
