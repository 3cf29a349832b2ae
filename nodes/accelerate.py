"""The node Accelerator: what answers the steps between full passes, with or without a shortcut head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..shortcut.accelerators import MakeAccelerator
from ..shortcut.accelerators.choice import FLOAT8, HEAD, NAMES, keeps, named, needs_head
from .host import NodeText
from .load import FLOAT8_E4M3, Head
from .native import head_of

NAME = "Accelerator"
AS_COMPUTED = "as computed"


@dataclass(frozen=True, slots=True)
class Accelerated:
    """What a SHORTCUT_HEAD stands for: an accelerator and the head that it asks."""

    name: str | None = None  # one of `choice.NAMES`; None = no accelerator
    head: Any = None  # its patcher

    @classmethod
    def of(cls, given: Any) -> Accelerated:
        """Return what a socket of the type holds: a head alone is an accelerator too, and nothing is none."""
        if given is None or isinstance(given, cls):
            return given or cls()
        return cls(HEAD, given)

    @property
    def make(self) -> MakeAccelerator | None:
        """Makes the accelerator of a run."""
        network = None if self.head is None else head_of(self.head)[0]
        return None if self.name is None else named(self.name, network)


class Accelerator(io.ComfyNode):
    """A choice of accelerator."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShortcutAccelerator",
            display_name=NAME,
            category="shortcut",
            description="Chooses what answers the steps between full passes of the model. partial "
            "needs no shortcut head, so that every model is accelerated; some choices need one.",
            search_aliases=["accelerate", "speed up", "cache", "partial", "ml-cache", "taylor"],
            inputs=[
                io.Combo.Input(
                    "accelerator",
                    options=[name for name in NAMES if not name.endswith(FLOAT8)],
                    default="partial",
                    tooltip="partial, ml-cache: keep keys and values, no head. neighbours: nearer "
                    "to the model, dearer. head: needs one. taylor, reuse: hardly any cost, "
                    "farthest off. Details in the help.",
                ),
                io.Combo.Input(
                    "keys_and_values",
                    options=[AS_COMPUTED, FLOAT8_E4M3],
                    default=AS_COMPUTED,
                    advanced=True,
                    tooltip="Type in which partial and ml-cache keep them. For Lumina-DiMOO at "
                    "1024 x 1024 partial takes 2.2 GB in bfloat16, 1.1 GB in float8, less "
                    "exact; ml-cache twice that.",
                ),
                Head.Input(
                    "head",
                    optional=True,
                    tooltip="From Load Shortcut Head. For head, partial+head and "
                    "partial+head+neighbours.",
                ),
            ],
            outputs=[
                Head.Output(
                    "accelerator",
                    display_name="accelerator",
                    tooltip="For the input head of the Shortcut Masked Sampler.",
                )
            ],
        )

    @classmethod
    def execute(cls, accelerator: str, keys_and_values: str, head: Any = None) -> io.NodeOutput:
        head, text = Accelerated.of(head).head, NodeText()
        if needs_head(accelerator) and head is None:
            raise ValueError(
                f"accelerator {accelerator} needs a shortcut head. Connect Load Shortcut Head, or choose partial."
            )
        if head is not None and not needs_head(accelerator):
            text.warn(NAME, f"{accelerator} does not ask the connected head")
            head = None
        if keys_and_values == FLOAT8_E4M3 and not keeps(accelerator):
            text.warn(
                NAME, f"{accelerator} keeps no keys and values: keys_and_values has no effect"
            )
        elif keys_and_values == FLOAT8_E4M3:
            accelerator += FLOAT8
        return io.NodeOutput(Accelerated(accelerator, head))
