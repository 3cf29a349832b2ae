"""What the image shall show, as ComfyUI's CONDITIONING, and from there to the conditions of a run.

A class is one row (1, 1, classes), 1 at the class; all zero = no class. A text is one row (1, P, 1) of its tokens, and
beside it the `Prompt` that they were made from; all zero = no text. So ComfyUI's own Conditioning Zero Out means what
it says.

B  images    P  prompt tokens    Y, X  rows and columns of a source image's codes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..shortcut.models.lumina_dimoo import prompts
from ..shortcut.models.maskgit.classes import class_id
from .latents import codes_of
from .native import CodeVAE, MaskedImageModel, model_of

PROMPT = "shortcut_prompt"  # entry of a CONDITIONING
NODES = {"class": "Class Condition", "text": "Text Condition"}  # by what a model's conditions are


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a text model is asked to do."""

    task: str
    text: str
    sources: tuple[Tensor, ...]  # codes (B, Y, X) of each source image


class ClassCondition(io.ComfyNode):
    """What the image shall show, for models that know classes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShortcutClassCondition",
            display_name="Class Condition",
            category="shortcut",
            description="Says what the image shall show, as one of the classes that the model was "
            "trained on. The shipped model knows dawn, day, dusk and night with forest, desert, "
            "snow and coast.",
            search_aliases=["class", "label", "imagenet", "maskgit", "prompt"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="From Load MIGM: it knows the names and the number of classes."
                ),
                io.String.Input(
                    "class_name",
                    default="dusk coast",
                    tooltip="The name of a class, or its number counted from 0. The order of "
                    "words does not matter: 'snow night' is 'night snow'. ImageNet models have "
                    "numbers only: 0 to 999. Empty, none or -1: no class, the model shows "
                    "anything.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    display_name="conditioning",
                    tooltip="For positive (or negative) of the Shortcut Masked Sampler.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: Any, class_name: str) -> io.NodeOutput:
        checkpoint = _conditioned_by("class", model).checkpoint
        num_classes = checkpoint.config.num_classes
        chosen = class_id(class_name, checkpoint.metadata.class_names, num_classes)
        return io.NodeOutput(to_conditioning(chosen, num_classes))


class TextCondition(io.ComfyNode):
    """What the image shall show, or what to do with images, for models that know text."""

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
                    tooltip="What the image shall show; for edit what to change. Empty or "
                    "<uncondition>: nothing in particular. At most 1024 tokens with the system "
                    "prompt, about 750 words; usual texts cost hardly any time.",
                ),
                io.Combo.Input(
                    "task",
                    options=list(prompts.TASKS),
                    default="text_to_image",
                    tooltip="What the model is told to do. text_to_image needs no image. edit: "
                    "change image as text says. control: text, laid out as the edges, depth or "
                    "pose in image. subject: the thing in image, where text says. style: image in "
                    "the style of style_image. predict_...: that map of image. view: image seen "
                    "from the side that text names. other: image and text, freely.",
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="From Load MIGM; needed where image is wired."
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The source image of all tasks but text_to_image. Its tokens make "
                    "every pass longer: scale it to about the size of the result. Sides that are "
                    "no multiples of 16 are cropped.",
                ),
                io.Image.Input(
                    "style_image",
                    optional=True,
                    tooltip="For the task style: the image that has the style. Costs time as image "
                    "does.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    display_name="conditioning",
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
    ) -> io.NodeOutput:
        masked_model = _conditioned_by("text", model)
        images = _wired(task, {"image": image, "style_image": style_image})
        if images and not isinstance(vae, CodeVAE):
            found = "not connected" if vae is None else f"a {type(vae).__name__}"
            raise ValueError(f"vae is {found}, expected the vae of Load MIGM. Wire it.")
        num_codes = masked_model.checkpoint.config.num_codes
        sources = tuple(_encoded(vae, pixels, num_codes) for pixels in images)
        prompt = Prompt(task, text, sources)
        return io.NodeOutput([[_row(masked_model, prompt), {PROMPT: prompt}]])


def _conditioned_by(kind: str, patcher: Any) -> MaskedImageModel:
    """The model that a MODEL carries. Raises ValueError if its conditions are of another kind."""
    model = model_of(patcher)
    found = model.checkpoint.format.conditioning
    if found != kind:
        raise ValueError(
            f"{model.checkpoint.name} is a {model.checkpoint.format.title}, whose conditions are "
            f"{found}, not {kind}. Use {NODES[found]} in place of {NODES[kind]}."
        )
    return model


def _wired(task: str, inputs: dict[str, Any]) -> list[Any]:
    """The source images of a task. Raises ValueError if too few or too many are wired."""
    num_sources = prompts.TASKS[task].num_sources
    for index, (name, pixels) in enumerate(inputs.items()):
        if index < num_sources and pixels is None:
            raise ValueError(f"task {task} needs {name}, which is not connected. Wire an image.")
        if index >= num_sources and pixels is not None:
            fitting = [t for t, about in prompts.TASKS.items() if about.num_sources > index]
            raise ValueError(
                f"task {task} takes no {name}. Disconnect it, or choose the task "
                f"{' or '.join(fitting)}."
            )
    return list(inputs.values())[:num_sources]


def _encoded(vae: CodeVAE, pixels_BYXC: Tensor, num_codes: int) -> Tensor:
    """Codes (B, Y, X) of IMAGEs."""
    samples_B1YX = vae.encode(pixels_BYXC)
    return codes_of(samples_B1YX, num_codes).unflatten(1, samples_B1YX.shape[2:])


def _row(model: MaskedImageModel, prompt: Prompt) -> Tensor:
    """The tokens of a prompt, without its images: (1, P, 1)."""
    ids = prompts.prompt_tokens(model.tokenizer, prompt.task, prompt.text)
    return torch.tensor(ids, dtype=torch.float32).view(1, -1, 1)


def to_conditioning(chosen: int, num_classes: int) -> list[list[Any]]:
    """CONDITIONING of a class; `num_classes` itself stands for no class."""
    row = torch.zeros(1, 1, num_classes)
    if chosen < num_classes:
        row[..., chosen] = 1
    return [[row, {}]]


def _single(conditioning: list[list[Any]], name: str) -> tuple[Tensor, dict[str, Any]]:
    """The only row and its entries; `name` is the input's, for messages."""
    if len(conditioning) != 1:
        raise ValueError(
            f"{name} combines {len(conditioning)} conditions, expected one. Wire one directly."
        )
    row, entries = conditioning[0]
    return row, entries


def to_class(conditioning: list[list[Any]], num_classes: int, name: str) -> int:
    """The inverse of `to_conditioning`; `name` is the input's, for messages.

    Raises:
        ValueError: the CONDITIONING is not one class of this model.
    """
    row, _ = _single(conditioning, name)
    if row.ndim != 3 or row.shape[-1] != num_classes:
        raise ValueError(
            f"{name} has shape {tuple(row.shape)}, expected (1, 1, {num_classes}): it is text, or "
            "a class of another model. Use Class Condition with this model."
        )
    chosen = row[0, 0].nonzero().flatten().tolist()
    if len(chosen) > 1:
        raise ValueError(
            f"{name} mixes {len(chosen)} classes, expected one. Wire one Class Condition."
        )
    return chosen[0] if chosen else num_classes


def to_prompt(conditioning: list[list[Any]], model: MaskedImageModel, name: str) -> Prompt:
    """What Text Condition put into a CONDITIONING; `name` is the input's, for messages.

    Raises:
        ValueError: it is no prompt for this model, or a node has changed it.
    """
    row, entries = _single(conditioning, name)
    prompt = entries.get(PROMPT)
    if not isinstance(prompt, Prompt):
        raise ValueError(
            f"{name} holds no prompt for {model.checkpoint.name}: it is a class, or text of "
            "another kind of model. Use Text Condition with this model."
        )
    if not row.any():
        return replace(prompt, text="")
    if not torch.equal(row, _row(model, prompt)):
        raise ValueError(
            f"{name} does not hold the tokens of its text: it was made with another model, or a "
            "node mixes it with another. Wire Text Condition with this model directly."
        )
    return prompt


def branches_of(
    model: MaskedImageModel, positive: Any, negative: Any, num_images: int
) -> tuple[Tensor, ...]:
    """The conditions of all guidance branches: the wanted one, then what to guide away from.

    Rows = images. `negative` may be None.

    Raises:
        ValueError: a CONDITIONING does not go with the model.
    """
    kind = model.checkpoint.format.conditioning
    return BRANCHES[kind or ""](model, positive, negative, num_images)


def _class_branches(
    model: MaskedImageModel, positive: Any, negative: Any, num_images: int
) -> tuple[Tensor, ...]:
    """The class of each image (B,), and the one to guide away from."""
    num_classes = model.checkpoint.config.num_classes
    wanted = to_class(positive, num_classes, "positive")
    unwanted = num_classes if negative is None else to_class(negative, num_classes, "negative")
    return torch.full((num_images,), wanted), torch.full((num_images,), unwanted)


def _text_branches(
    model: MaskedImageModel, positive: Any, negative: Any, num_images: int
) -> tuple[Tensor, ...]:
    """The prompt tokens (B, P), those with the negative text, and with source images those without."""
    wanted = to_prompt(positive, model, "positive")
    for codes_BYX in wanted.sources:
        if len(codes_BYX) not in (1, num_images):
            raise ValueError(
                f"positive has {len(codes_BYX)} source images, but latent_image {num_images} images. "
                "Give one source image, or as many."
            )
    return prompts.conditions(
        model.tokenizer,
        model.checkpoint.config,
        wanted.task,
        wanted.text,
        negative="" if negative is None else to_prompt(negative, model, "negative").text,
        sources=wanted.sources,
        num_images=num_images,
    )


BRANCHES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "class": _class_branches,
    "text": _text_branches,
}
