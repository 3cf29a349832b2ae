"""Class-conditional models: from what a user writes to the conditions of a run.

B  images
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NO_CLASS = ("", "none", "-1")


def class_id(text: str, class_names: Sequence[str], num_classes: int) -> int:
    """The class that `text` means: a number, a name, the words of a name in any order, or none (`num_classes`).

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


def class_branches(class_B: Tensor, num_classes: int, num_guided: int) -> tuple[Tensor, ...]:
    """Conditions for the guidance branches: the classes, then `num_guided` times "no class". Each (B,)."""
    return (class_B, *(torch.full_like(class_B, num_classes) for _ in range(num_guided)))
