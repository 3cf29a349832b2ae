"""Classes as ComfyUI's CONDITIONING: one row (1, 1, classes), 1 at the class; all zero = no class.

So ComfyUI's own Conditioning Zero Out means what it says.
"""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..shortcut.classes import class_id
from .native import model_of


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
        checkpoint = model_of(model).checkpoint
        num_classes = checkpoint.config.num_classes
        chosen = class_id(class_name, checkpoint.metadata.class_names, num_classes)
        return io.NodeOutput(to_conditioning(chosen, num_classes))


def to_conditioning(chosen: int, num_classes: int) -> list[list[Any]]:
    """CONDITIONING of a class; `num_classes` itself stands for no class."""
    row = torch.zeros(1, 1, num_classes)
    if chosen < num_classes:
        row[..., chosen] = 1
    return [[row, {}]]


def to_class(conditioning: list[list[Any]], num_classes: int, name: str) -> int:
    """The inverse of `to_conditioning`; `name` is the input's, for messages.

    Raises:
        ValueError: the CONDITIONING is not one class of this model.
    """
    if len(conditioning) != 1:
        raise ValueError(
            f"{name} combines {len(conditioning)} conditions, expected one class. Wire one."
        )
    row = conditioning[0][0]
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
