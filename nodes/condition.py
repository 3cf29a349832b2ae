"""The condition nodes: a user's request -> the CONDITIONING that the model's conditioner makes of it.

B  images    Y, X  rows and columns of a source image's codes
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..shortcut import models
from ..shortcut.checkpoint import Checkpoint
from ..shortcut.compatibility import check_vq
from ..shortcut.models.architecture import Conditioning, Request
from .host import NodeText
from .latents import codes_of
from .native import CodeVAE, MaskedImageModel, model_of

NODES = {"label": "Class Condition", "prompt": "Text Condition"}  # by the field of a request
# (word:1.5) and (word:2) of other models; not (at 10:30), (16:9) or (hint: 3).
WEIGHT = re.compile(r"\([^()]*[^():\d\s]\s*:(-?\d+|\s*-?\d*\.\d+)\s*\)")
USUAL_TASK = "text_to_image"  # which needs no source image


class ClassCondition(io.ComfyNode):
    """A class for models that know classes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShortcutClassCondition",
            display_name="Class Condition",
            category="shortcut",
            description="Says what the image shall show, as one of the classes that the model was "
            "trained on. The shipped model knows dawn, day, dusk and night with forest, desert, "
            "snow, coast, lake and town.",
            search_aliases=["class", "label", "imagenet", "maskgit", "prompt"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="From Load MIGM: it knows the names and the number of classes."
                ),
                io.String.Input(
                    "class_name",
                    default="dusk coast",
                    tooltip="A class: its name, the words of a name, or a number from 0. Empty: "
                    "no class. With semicolons between them: a class for each image of "
                    "the batch.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    display_name="CONDITIONING",
                    tooltip="For positive (or negative) of the Shortcut Masked Sampler.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: Any, class_name: str) -> io.NodeOutput:
        masked_model = _taking("label", model)
        labels = [part for part in class_name.split(";") if part.strip()] or [""]
        requests = [Request(label=label) for label in labels]
        return io.NodeOutput(_conditioning(masked_model, requests))


class TextCondition(io.ComfyNode):
    """A prompt, perhaps with source images, for models that know text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShortcutTextCondition",
            display_name="Text Condition",
            category="shortcut",
            description="Says in words what the image shall show, or what to do with a source "
            "image: change it, follow its edges, depth or pose, keep its subject, take over a "
            "style. For models that know text, such as Lumina-DiMOO.",
            search_aliases=["prompt", "text", "clip text encode", "edit", "lumina", "controlnet"],
            inputs=[
                io.Model.Input("model", tooltip="From Load MIGM: it brings its tokenizer."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What the image shall show; for edit what to change. Empty: nothing "
                    "in particular. At most about 750 words.",
                ),
                io.Combo.Input(
                    "task",
                    options=list(models.tasks()),
                    default=USUAL_TASK,
                    tooltip="What the model is told to do. text_to_image takes no image, style "
                    "two, all others one. The help page says what each does with image "
                    "and text.",
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="From Load MIGM; needed where image is wired."
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The source image of all tasks but text_to_image. It makes every pass "
                    "longer: scale it to about the size of the result.",
                ),
                io.Image.Input(
                    "style_image",
                    optional=True,
                    tooltip="For the task style: the image that has the style. Costs time as image "
                    "does.",
                ),
                io.Boolean.Input(
                    "prompt_per_line",
                    default=False,
                    optional=True,
                    tooltip="On: each line of text is a prompt of its own, for one image of the "
                    "batch, the first again after the last. Set batch_size to the number "
                    "of lines.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    display_name="CONDITIONING",
                    tooltip="For positive of the Shortcut Masked Sampler; for negative only the "
                    "text counts.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        text: str,
        task: str,
        vae: Any = None,
        image: Any = None,
        style_image: Any = None,
        prompt_per_line: bool = False,
    ) -> io.NodeOutput:
        masked_model = _taking("prompt", model)
        architecture = masked_model.checkpoint.architecture
        images = _wired(architecture.tasks, task, {"image": image, "style_image": style_image})
        if images:
            checked_vae(vae, masked_model.checkpoint)
        num_codes = masked_model.checkpoint.config.num_codes
        # A model without tasks does what the usual one says.
        told = None if task == USUAL_TASK and not architecture.tasks else task
        sources = tuple(encoded(vae, pixels, num_codes) for pixels in images)
        lines = [line for line in text.splitlines() if line.strip()] or [""]
        requests = [
            Request(prompt=prompt, task=told, sources=sources)
            for prompt in (lines if prompt_per_line else [text])
        ]
        return io.NodeOutput(_conditioning(masked_model, requests))


def _taking(field: str, patcher: Any) -> MaskedImageModel:
    """Return the model that a MODEL carries. Raise ValueError if it does not read that field of a request."""
    model = model_of(patcher)
    checkpoint, takes = model.checkpoint, model.checkpoint.architecture.takes
    if field not in takes:
        fitting = [node for other, node in NODES.items() if other in takes]
        advice = f"Use {' or '.join(fitting)} in place of {NODES[field]}."
        raise ValueError(
            f"{checkpoint.name} is a {checkpoint.layout.title}, which does not read what {NODES[field]} says. "
            + (advice if fitting else "Use the conditioning node that its author names.")
        )
    return model


def checked_vae(vae: Any, model: Checkpoint) -> CodeVAE:
    """Return a VAE that goes with a model. Raise ValueError if it does not."""
    if not isinstance(vae, CodeVAE):
        found = "not connected" if vae is None else f"a {type(vae).__name__}"
        raise ValueError(f"vae is {found}, expected the vae of Load MIGM. Wire it.")
    check_vq(vae.checkpoint, model)
    return vae


def _conditioning(model: MaskedImageModel, requests: Sequence[Request]) -> Conditioning:
    """Return the CONDITIONING of requests, and say on the node which of their words the model never saw.

    Raises:
        ValueError: the model does not know what one says, or it gives a word a weight.
    """
    for request in requests:
        model.checkpoint.architecture.check(request)
        if found := WEIGHT.search(request.prompt or ""):
            raise ValueError(
                f"text holds the weight {found[0]}, which this model would read letter by letter. Write the words "
                "alone; cfg of the sampler says how closely the whole text is followed."
            )
    unknown = dict.fromkeys(
        word for request in requests for word in model.conditioner.unknown_words(request)
    )
    if unknown:
        line = f"{model.checkpoint.name} never saw these words, which say nothing to it: {', '.join(unknown)}"
        NodeText().warn(NODES["prompt"], line)
    return model.conditioner.to_conditioning(requests)


def _wired(tasks: Mapping[str, int], task: str, inputs: dict[str, Any]) -> list[Any]:
    """Return the source images of a task. Raise ValueError if too few or too many are wired.

    Args:
        tasks: number of source images of each task that the model knows.
    """
    num_sources = tasks.get(task, 0)
    for index, (name, pixels) in enumerate(inputs.items()):
        if index < num_sources and pixels is None:
            raise ValueError(f"task {task} needs {name}, which is not connected. Wire an image.")
        if index >= num_sources and pixels is not None:
            fitting = [other for other, count in tasks.items() if count > index]
            advice = f", or choose the task {' or '.join(fitting)}" if fitting else ""
            raise ValueError(f"task {task} takes no {name}. Disconnect it{advice}.")
    return list(inputs.values())[:num_sources]


def encoded(vae: CodeVAE, pixels_BYXC: Tensor, num_codes: int) -> Tensor:
    """Return the codes (B, Y, X) of IMAGEs."""
    samples_B1YX = vae.encode(pixels_BYXC)
    return codes_of(samples_B1YX, num_codes).unflatten(1, samples_B1YX.shape[2:])
