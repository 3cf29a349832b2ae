"""MMaDA-Parallel-A: the network of Lumina-DiMOO, trained further to edit pictures and to say why in the same passes.

Source: Tian et al. 2025 (arXiv 2511.09611), tyfeld/MMaDA-Parallel MMaDA-Parallel-A. The weights are under the MIT
licence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from torch import Tensor

from ..architecture import Branches
from . import transformer
from .config import CARD, CARD_NAMES, denies_network, has_card


def denies(file: Path) -> str | None:
    """Return why the published `file` is not MMaDA-Parallel-A, or None."""
    if not has_card(file):
        return f"there is no {CARD} beside it that names {CARD_NAMES}."
    return denies_network(file)


LAYOUT = replace(
    transformer.LAYOUT,
    name="mmada-parallel-a",
    title="MMaDA-Parallel-A transformer",
    denies=denies,
)
TASKS = ("text_to_image", "edit")  # that it was trained for


def laid_over(conditions: Branches) -> Branches:
    """Return prompts of equal lengths: each but the first lies over the beginning of the first.

    Source: tyfeld/MMaDA-Parallel MMaDA-Parallel-A/generators/parallel_generator.py. What should be the prompt without
    its image has the image still, without the mark that begins it.
    """
    first_BP, *others = cast(Sequence[Tensor], conditions)
    laid = [first_BP.clone() for _ in others]
    for over_BP, prompt_BP in zip(laid, others, strict=True):
        over_BP[:, : prompt_BP.shape[1]] = prompt_BP
    return (first_BP, *laid)
