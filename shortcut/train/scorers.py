"""Scores of pictures by networks of others, through their own packages, which are loaded only when asked for.

The packages fetch their weights themselves, at the first use.

    B  images    L  image tokens    P  prompt tokens    C, Y, X  channels, pixel rows, columns
    h, w  rows, columns of codes
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..grid import Grid
from ..image import to_pictures

CLIP = "openai/clip-vit-large-patch14"
IMAGE_REWARD = "ImageReward-v1.0"
# (prompts, as many pictures) -> a score for each, higher is better
Scores = Callable[[Sequence[str], Sequence[Image.Image]], list[float]]


@dataclass(frozen=True, slots=True)
class Scorer:
    """A way to score pictures."""

    title: str
    load: Callable[[torch.device], Scores]  # raises ValueError if its package is not installed


def _clip(device: torch.device) -> Scores:
    """CLIPScore (Hessel et al. 2021), 0 to 100; of a long prompt it sees the first 77 tokens."""
    with _installed("clip", "torchmetrics transformers"):
        from torchmetrics.multimodal.clip_score import CLIPScore  # pyright: ignore

        metric = CLIPScore(model_name_or_path=CLIP).to(device)

    def scores(prompts: Sequence[str], pictures: Sequence[Image.Image]) -> list[float]:
        pixels = [torch.from_numpy(np.asarray(p).copy()).permute(2, 0, 1) for p in pictures]
        return [
            float(metric(pixels_CYX.to(device), prompt))
            for prompt, pixels_CYX in zip(prompts, pixels, strict=True)
        ]

    return scores


def _image_reward(device: torch.device) -> Scores:
    """ImageReward (Xu et al. 2023), about -2 to 2: the measure of the paper for Lumina-DiMOO."""
    with _installed("image-reward", "image-reward"):
        import ImageReward  # pyright: ignore

        network = ImageReward.load(IMAGE_REWARD, device=str(device))

    @torch.no_grad()
    def scores(prompts: Sequence[str], pictures: Sequence[Image.Image]) -> list[float]:
        return [
            float(network.score(prompt, picture))
            for prompt, picture in zip(prompts, pictures, strict=True)
        ]

    return scores


SCORERS = {"clip": Scorer("CLIPScore", _clip), "image-reward": Scorer("ImageReward", _image_reward)}


def score_of_codes(
    scores: Scores, texts: Mapping[tuple[int, ...], str], vq: Any, grid: Grid
) -> Callable[[Sequence[Tensor], Tensor], float]:
    """(conditions of images, their codes (B, L)) -> sum of the scores of their pictures.

    Args:
        texts: prompts by their tokens, which are the first of the conditions.
        vq: the VQ model of the codes.
        grid: rows and columns of codes.
    """

    @torch.no_grad()
    def score(conditions: Sequence[Tensor], codes_BL: Tensor) -> float:
        prompts = [texts[tuple(prompt_P)] for prompt_P in conditions[0].tolist()]
        codes_Bhw = codes_BL.unflatten(1, grid)
        # One at a time: decoding a large picture takes much memory.
        pictures = [to_pictures(vq.decode(codes_1hw))[0] for codes_1hw in codes_Bhw.split(1)]
        return sum(scores(prompts, pictures))

    return score


@contextlib.contextmanager
def _installed(name: str, packages: str) -> Iterator[None]:
    """Says what to install where an import fails."""
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"--scorer {name} needs what is not installed here, or not in a version that works ({error}). Install it "
            f"with: pip install {packages}. Without --scorer nothing else is needed."
        ) from error
