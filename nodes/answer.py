"""The nodes whose answer has a text: Describe Image, and Reasoned Edit.

B  images    L  image tokens
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast
from weakref import WeakKeyDictionary

import comfy.model_management as mm
from comfy_api.latest import io
from torch import Tensor

from ..shortcut.answers import text_part
from ..shortcut.denoiser import Conditions
from ..shortcut.generate import needed_branches
from ..shortcut.models.architecture import Conditioning, Grid, Request
from ..shortcut.models.text_rules import (
    REASONED_EDIT,
    UNDERSTAND,
    AnswerModel,
    TextConditioner,
    TextRules,
)
from ..shortcut.text import answer, in_parallel
from ..shortcut.text_schedule import MAX_TEXT, ParallelSettings, TextSettings, text_plan
from .condition import checked_vae, encoded
from .host import NodeText, advice_on_memory
from .latents import has_mask_of, indices_of, latent_of, samples_of
from .native import MARGIN, MaskedImageModel, build_head, model_of
from .patches import lines_without_effect
from .progress import PassReport, Preview
from .widgets import seed_widget, temperature_widget, weight_widget

DESCRIBE, EDIT = "Describe Image (MIGM)", "Reasoned Edit (MIGM)"
ASKED, REASONED = TextSettings(), ParallelSettings()  # the defaults
SEED = "Decides every random choice. Without effect where all temperatures are 0."
MEMORY_ADVICE = (
    "Scale the image down, take fewer images at once, or set weight_dtype of Load MIGM to "
    "bfloat16 or float8_e4m3fn."
)
OUTPUTS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # model -> patcher of what makes text


def _count(name: str, default: int, tooltip: str, advanced: bool | None = None) -> Any:
    return io.Int.Input(
        name, default=default, min=1, max=MAX_TEXT, tooltip=tooltip, advanced=advanced
    )


class DescribeImage(io.ComfyNode):
    """An answer to a question about an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShortcutDescribeImage",
            display_name=DESCRIBE,
            category="shortcut",
            description="Answers a question about an image in words, with Lumina-DiMOO or "
            "MMaDA-Parallel-A: a caption, what is in it, what a text in it says.",
            search_aliases=["caption", "vqa", "image understanding", "interrogate", "lumina"],
            inputs=[
                io.Model.Input("model", tooltip="From Load MIGM: a model that makes text too."),
                io.Vae.Input("vae", tooltip="From Load MIGM."),
                io.Image.Input(
                    "image",
                    tooltip="The image that the question is about. It makes every pass longer: "
                    "512 x 512 to 1024 x 1024 pixels are usual.",
                ),
                io.String.Input(
                    "question",
                    multiline=True,
                    dynamic_prompts=True,
                    default="Describe this image in detail.",
                    tooltip="What to answer. At most 1024 tokens with the system prompt.",
                ),
                seed_widget(SEED),
                _count(
                    "max_tokens",
                    ASKED.max_tokens,
                    tooltip="Most tokens of the answer, about 4 for 3 words. An answer may end "
                    "earlier.",
                ),
                _count(
                    "steps",
                    ASKED.num_steps,
                    tooltip="Passes of the model. Equal to max_tokens: one token a pass, the most "
                    "careful. Half: twice as fast.",
                ),
                _count(
                    "block_length",
                    ASKED.block_length,
                    advanced=True,
                    tooltip="Tokens that are made together, block after block. Smaller: nearer to "
                    "writing from left to right.",
                ),
                temperature_widget(
                    "temperature",
                    ASKED.temperature,
                    tooltip="Randomness of the words. 0: always the most likely one.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "text",
                    display_name="text",
                    is_output_list=True,
                    tooltip="The answer; of a batch one for each image.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        image: Tensor,
        question: str,
        seed: int,
        max_tokens: int,
        steps: int,
        block_length: int,
        temperature: float,
    ) -> io.NodeOutput:
        settings = TextSettings(
            max_tokens=max_tokens,
            num_steps=steps,
            block_length=block_length,
            temperature=temperature,
        )
        num_passes = sum(len(block.steps) for block in text_plan(settings))
        masked_model, rules, node_text = _begun(model, UNDERSTAND, DESCRIBE)
        checkpoint = masked_model.checkpoint
        codes_BYX = encoded(checked_vae(vae, checkpoint), image, checkpoint.config.num_codes)
        request = Request(prompt=question, task=UNDERSTAND, sources=(codes_BYX,))
        condition = masked_model.conditioner.conditions(request, len(image))[0]
        output = _text_output(masked_model)
        runs = rules.answer(masked_model.network, output.model, max_tokens, (0, 0))
        _load(model, output, runs, [condition])
        conditioner = cast(TextConditioner, masked_model.conditioner)
        report = PassReport(num_passes, node_text)
        with masked_model.running(model), advice_on_memory(MEMORY_ADVICE):
            ids_BT = answer(
                runs,
                condition.to(model.load_device),
                settings,
                seed=seed % 2**64,
                image_indices=range(len(image)),
                end=conditioner.end,
                device=model.load_device,
                on_pass=report,
            )
        texts = [conditioner.words(ids) for ids in ids_BT.tolist()]
        _say(texts, report, node_text, DESCRIBE)
        return io.NodeOutput(texts)


class ReasonedEdit(io.ComfyNode):
    """An image and the model's reasoning, made in the same passes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShortcutReasonedEdit",
            display_name=EDIT,
            category="shortcut",
            description="Edits an image with MMaDA-Parallel-A: the model reasons in words and "
            "makes the image in the same passes, so that each sees the other.",
            search_aliases=["mmada", "thinking", "instruction edit", "parallel"],
            inputs=[
                io.Model.Input("model", tooltip="From Load MIGM: MMaDA-Parallel-A."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="From Text Condition with the task edit and the image to edit.",
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="From Empty Latent Image: the size of the result, in multiples of 16 "
                    "pixels, best near 512 x 512. Without a noise mask.",
                ),
                seed_widget(SEED),
                _count(
                    "steps",
                    REASONED.num_steps,
                    tooltip="Steps of the whole run; each reveals some of the text. Fewer: faster.",
                ),
                _count(
                    "image_steps",
                    REASONED.image_steps,
                    tooltip="Of the steps, those that reveal some of the image too, from a quarter "
                    "of the run on. At most steps. With guidance each has more passes.",
                ),
                _count(
                    "max_tokens",
                    REASONED.max_tokens,
                    tooltip="Most tokens of the text, about 4 for 3 words.",
                ),
                weight_widget(
                    "cfg",
                    REASONED.guidance[0],
                    tooltip="Guidance of the image towards the instruction. 0: off, a pass less in "
                    "each image step. The model's authors use 0 or 2.5.",
                ),
                weight_widget(
                    "cfg_image",
                    REASONED.guidance[1],
                    tooltip="Guidance towards the source image, as in the original: its effect is "
                    "small. 0: off, a pass less in each image step.",
                ),
                temperature_widget(
                    "temperature",
                    REASONED.temperature,
                    tooltip="Randomness of where the image is revealed, falling to 0. At 0 its "
                    "codes are the most likely ones too.",
                ),
                temperature_widget(
                    "text_temperature",
                    REASONED.text_temperature,
                    tooltip="Randomness of the words. 0: always the most likely one.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="LATENT", tooltip="For VAE Decode."),
                io.String.Output(
                    "text",
                    display_name="text",
                    is_output_list=True,
                    tooltip="The model's reasoning; of a batch one for each image.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        latent_image: dict[str, Any],
        seed: int,
        steps: int,
        image_steps: int,
        max_tokens: int,
        cfg: float,
        cfg_image: float,
        temperature: float,
        text_temperature: float,
    ) -> io.NodeOutput:
        settings = ParallelSettings(
            max_tokens=max_tokens,
            num_steps=steps,
            text_temperature=text_temperature,
            image_steps=image_steps,
            guidance=(cfg, cfg_image),
            temperature=temperature,
        )
        settings.check()
        masked_model, rules, node_text = _begun(model, REASONED_EDIT, EDIT)
        if has_mask_of(latent_image):
            raise ValueError(
                "latent_image has a noise mask, but a reasoned edit makes the whole image. Use Empty Latent Image."
            )
        samples = samples_of(latent_image, model)
        grid: Grid = (samples.shape[2], samples.shape[3])
        conditions = masked_model.conditioner.from_conditioning(positive, None, len(samples))
        if len(conditions) <= len(settings.guidance):
            raise ValueError(
                "positive has no image to edit. Choose the task edit in Text Condition, and wire its image."
            )
        output = _text_output(masked_model)
        runs = rules.answer(masked_model.network, output.model, max_tokens, grid)
        if len({runs.sequence_length(conditions[0][i : i + 1]) for i in range(len(samples))}) > 1:
            raise ValueError(
                "positive holds texts of different lengths, but a reasoned edit takes texts of one length. Turn "
                "prompt_per_line of Text Condition off."
            )
        branches, guidance = needed_branches(rules.branches(conditions), settings.guidance)
        _load(model, output, runs, branches)
        device = model.load_device
        colours_V3 = model.get_model_object("latent_format").colours_V3
        report = PassReport(steps, node_text, Preview(grid, colours_V3))
        with masked_model.running(model), advice_on_memory(MEMORY_ADVICE):
            codes_BL, ids_BT = in_parallel(
                runs,
                [branch.to(device) for branch in branches],
                replace(settings, guidance=guidance),
                num_codes=grid[0] * grid[1],
                seed=seed % 2**64,
                image_indices=indices_of(latent_image, len(samples)),
                device=device,
                on_pass=report,
            )
        conditioner = cast(TextConditioner, masked_model.conditioner)
        texts = [conditioner.words(ids) for ids in ids_BT.tolist()]
        _say(texts, report, node_text, EDIT)
        return io.NodeOutput(latent_of(codes_BL, grid, latent_image), texts)


def _begun(model: Any, task: str, node: str) -> tuple[MaskedImageModel, TextRules, NodeText]:
    """Return the model of a MODEL, how it answers, and the node's text. Raise ValueError if it does not do the task."""
    masked_model = model_of(model)
    architecture = masked_model.checkpoint.architecture
    if architecture.text is None:
        raise ValueError(
            f"{masked_model.checkpoint.name} is a {architecture.title}, which makes images only. Load Lumina-DiMOO or "
            "MMaDA-Parallel-A."
        )
    architecture.check_task(task)
    node_text = NodeText()
    node_text.keep(lines_without_effect(model, node))
    return masked_model, architecture.text, node_text


def _text_output(model: MaskedImageModel) -> Any:
    """Return the patcher of what only text needs of a model, read when it is first asked for."""
    if model not in OUTPUTS:
        dtype = str(model.network.dtype).removeprefix("torch.")
        OUTPUTS[model] = build_head(text_part(model.checkpoint), dtype)
    return OUTPUTS[model]


def _load(model: Any, output: Any, runs: AnswerModel, conditions: Sequence[Conditions]) -> None:
    """Load what a run needs onto the device."""
    lengths = [runs.sequence_length(condition) for condition in conditions]
    needed = MARGIN * runs.activation_bytes(len(conditions[0]), lengths)
    mm.load_models_gpu([model, output], memory_required=needed)


def _say(texts: list[str], report: PassReport, node_text: NodeText, node: str) -> None:
    """Show the texts on the node, and what they took in the log."""
    logging.info("%s: %s", node, report.took())
    node_text.show("\n\n".join(texts))
