"""The part of the contract of `architecture.py` for models that answer in text.

B  images    S  sequence of one guidance branch
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..denoiser import Conditions
from ..text import TextModel

Branches = tuple[Conditions, ...]  # the wanted condition, then what to guide away from
# Tasks whose answer has a text: a question about an image; an edit with the model's reasoning.
UNDERSTAND, REASONED_EDIT = "understand", "reasoned_edit"


class TextConditioner(Protocol):
    """What the conditioner of a model that answers in text knows besides. It knows the tasks of `TextRules`."""

    @property
    def end(self) -> int | None:
        """The token that ends a text; None = there is none."""
        ...

    def words(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, up to the first that ends it, without special tokens."""
        ...


class AnswerModel(TextModel, Protocol):
    """A model for answers of one length, with images of one size or without."""

    def sequence_length(self, condition: Conditions) -> int:
        """Return the positions of a branch with that condition."""
        ...

    def activation_bytes(self, num_images: int, lengths: Sequence[int]) -> float:
        """Return the memory that a run needs above the weights, for branches of these lengths."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRules:
    """How an architecture answers in text."""

    # (network, network of `Layout.text_output`, tokens of the text, grid of the image or (0, 0)) -> what runs
    answer: Callable[[Any, Any, int, tuple[int, int]], AnswerModel]
    tasks: Mapping[str, int]  # UNDERSTAND, REASONED_EDIT -> number of source images
    # Conditions of the guidance branches of an image alone -> those of an image with a text
    branches: Callable[[Branches], Branches] = lambda branches: branches
