"""The conditions of MaskGIT: the class of each image.

As ComfyUI's CONDITIONING classes are one row (B, 1, classes), 1 at the class. All zero = no class, so ComfyUI's own
Conditioning Zero Out means what it says.

B  images    C  classes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..architecture import LOADED_MODEL, Branches, Conditioning, GraphNode, Request
from ..conditioning import batch_of, in_turn
from .transformer import Config

NO_CLASS = ("", "none", "-1")


@dataclass(frozen=True, slots=True)
class ClassConditioner:
    """Turns class names and numbers into class ids (B,), guided away from no class (`num_classes`)."""

    num_classes: int
    names: tuple[str, ...]  # empty: the classes have numbers only

    @classmethod
    def of(cls, config: Config, names: Sequence[str], path: Path | None) -> ClassConditioner:
        """Make the conditioner of a model."""
        return cls(config.num_classes, tuple(names))

    def conditions(self, request: Request, num_images: int) -> Branches:
        """Return the class of each image, and no class."""
        return self._branches(torch.full((num_images,), self._class_id(request)))

    def draw(self, requests: Sequence[Request]) -> Callable[[int, torch.Generator], Branches]:
        """Return a function that draws random classes, evenly from `requests`; none = from all classes."""
        chosen_C = torch.tensor(
            [self._class_id(request) for request in requests] or list(range(self.num_classes))
        )

        def draw(num_images: int, generator: torch.Generator) -> Branches:
            index_B = torch.randint(len(chosen_C), (num_images,), generator=generator)
            return self._branches(chosen_C[index_B])

        return draw

    def unknown_words(self, request: Request) -> tuple[str, ...]:
        """Return no words: a class that the model does not know is an error."""
        return ()

    def described(self, request: Request) -> dict[str, Any]:
        """Return the class as a picture's settings name it."""
        return {"class": _label(request)}

    def graph_nodes(self, request: Request) -> Sequence[GraphNode]:
        """Return ComfyUI's node of the class."""
        return [("ShortcutClassCondition", {"model": LOADED_MODEL, "class_name": _label(request)})]

    def to_conditioning(self, requests: Sequence[Request]) -> Conditioning:
        """Return the CONDITIONING of classes."""
        class_B = torch.tensor([self._class_id(request) for request in requests])
        one_hot_BC = torch.eye(self.num_classes + 1)[class_B, : self.num_classes]
        return [[one_hot_BC.unsqueeze(1), {}]]

    def from_conditioning(
        self, positive: Conditioning, negative: Conditioning | None, num_images: int
    ) -> Branches:
        """Return the class of each image, and the class to guide away from.

        Raises:
            ValueError: a CONDITIONING is not one class of this model for each image.
        """
        wanted_B = self._classes(positive, "positive", num_images)
        if negative is None:
            return self._branches(wanted_B)
        return wanted_B, self._classes(negative, "negative", num_images)

    def _class_id(self, request: Request) -> int:
        return class_id(_label(request), self.names, self.num_classes)

    def _branches(self, class_B: Tensor) -> Branches:
        return class_B, torch.full_like(class_B, self.num_classes)

    def _classes(self, conditioning: Conditioning, name: str, num_images: int) -> Tensor:
        """Return the class (B,) of each image."""
        rows, _ = batch_of(conditioning, name)
        if rows.ndim != 3 or rows.shape[-1] != self.num_classes:
            raise ValueError(
                f"{name} has shape {tuple(rows.shape)}, expected (1, 1, {self.num_classes}): it is text, or "
                "a class of another model. Use Class Condition with this model."
            )
        if rows.shape[1] != 1:
            raise ValueError(
                f"{name} holds {rows.shape[1]} classes in a row, as Conditioning (Concat) makes them, expected one. "
                "Wire one Class Condition."
            )
        class_B = torch.tensor([self._only_class(row_1C[0], name) for row_1C in rows])
        return class_B[in_turn(len(class_B), name, num_images)]

    def _only_class(self, row_C: Tensor, name: str) -> int:
        chosen = row_C.nonzero().flatten().tolist()
        if len(chosen) > 1:
            raise ValueError(
                f"{name} mixes {len(chosen)} classes, expected one. Wire one Class Condition."
            )
        strength = float(row_C.sum())
        if chosen and not math.isclose(strength, 1, abs_tol=1e-4):
            raise ValueError(
                f"{name} holds its class times {strength:.4g}, as Conditioning (Average) or ConditioningMultiply makes "
                "it, expected 1: a class is there or not. Wire Class Condition directly; cfg is its strength."
            )
        return chosen[0] if chosen else self.num_classes


def _label(request: Request) -> str:
    return "0" if request.label is None else request.label


def class_id(text: str, class_names: Sequence[str], num_classes: int) -> int:
    """Return the class that `text` means: a number, a name, its words in any order, or none (`num_classes`).

    Raises:
        ValueError: there is no such class, or several.
    """
    wanted = text.strip().lower()
    if wanted in NO_CLASS:
        return num_classes
    if wanted.isdecimal():
        if int(wanted) >= num_classes:
            raise ValueError(f"class must be between 0 and {num_classes - 1}, got {wanted}.")
        return int(wanted)
    if not class_names:
        raise ValueError(
            f"this model names no classes, got {text!r}. Give a number from 0 to {num_classes - 1}."
        )
    exact = [i for i, name in enumerate(class_names) if name.lower() == wanted]
    words = set(wanted.replace(",", " ").split())
    found = exact or [i for i, name in enumerate(class_names) if words <= set(name.lower().split())]
    if len(found) != 1:
        problem = "no class is" if not found else f"{len(found)} classes are"
        raise ValueError(f"{problem} called {text!r}. Classes: {', '.join(class_names)}.")
    return found[0]
