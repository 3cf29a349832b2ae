"""Answers of Lumina-DiMOO in text, or in an image and text.

    prompt, BOA, [image,] text, EOA

Source: Alpha-VLLM/Lumina-DiMOO inference/inference_mmu.py; tyfeld/MMaDA-Parallel MMaDA-Parallel-A/inference.py.

    B  images    T  text tokens    L  image tokens    S  sequence    N  positions asked for    V  text ids and codes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ...denoiser import Canvas, Conditions, Features
from ...gather import tokens_at
from ..layers import transformer_bytes
from .transformer import LuminaDiMOO, OnGrid, TextOutput, between


@dataclass(frozen=True, slots=True)
class Answer:
    """A network that answers in a text of one length, behind an image of one size if there is one."""

    grid: OnGrid  # 0 x 0 = no image
    output: TextOutput
    max_tokens: int

    @classmethod
    def of(
        cls, model: LuminaDiMOO, output: TextOutput, max_tokens: int, grid: tuple[int, int]
    ) -> Answer:
        """Make it of a network and the rest of its output matrix."""
        return cls(model.on_grid(*grid), output, max_tokens)

    @property
    def _model(self) -> LuminaDiMOO:
        return self.grid.model

    @property
    def _image_length(self) -> int:
        """Tokens of the image with its marks."""
        return 2 + self.grid.rows * (self.grid.columns + 1) if self.grid.num_tokens else 0

    def features(
        self, conditions: Sequence[Conditions], text: Canvas, image: Canvas | None = None
    ) -> Features:
        """Run one full pass for each of the prompts (B, P), one after the other."""
        config = self._model.config
        parts = [text.codes_BL.masked_fill(text.is_masked_BL, config.special_id("mask"))]
        if image is not None:
            parts.insert(0, self.grid.image_part(image.codes_BL, image.is_masked_BL))
        answer_BS = between("boa", torch.cat(parts, 1), "eoa", config)
        prompts = cast(Sequence[Tensor], conditions)
        return tuple(f for p_BP in prompts for f in self._model([torch.cat([p_BP, answer_BS], 1)]))

    def text_logits(self, features_BSD: Tensor, index_BN: Tensor) -> Tensor:
        """Return float32 logits (B, N, V) of all token ids."""
        start = features_BSD.shape[1] - 1 - self.max_tokens
        features_BND = tokens_at(features_BSD, start + index_BN)
        outputs = self.output(features_BND), self._model.code_output(features_BND)
        return torch.cat([logits_BNV.float() for logits_BNV in outputs], -1)

    def image_positions(self, index_BN: Tensor, length: int) -> Tensor:
        """Return the positions of image tokens in a sequence of `length` tokens."""
        # Without the text it would be the sequence of an image alone.
        return self.grid.image_positions(index_BN, length - self.max_tokens)

    def logits(self, features_BND: Tensor, index_BN: Tensor) -> Tensor:
        """Return float32 logits (B, N, V) of codes."""
        return self.grid.logits(features_BND, index_BN)

    def sequence_length(self, condition: Conditions) -> int:
        """Return the positions of a branch with that prompt (B, P)."""
        num_prompt_tokens = cast(Tensor, condition).shape[1]
        return num_prompt_tokens + 1 + self._image_length + self.max_tokens + 1

    def activation_bytes(self, num_images: int, lengths: Sequence[int]) -> float:
        """Return the memory that a run needs above the weights."""
        config = self._model.config
        run = transformer_bytes(
            lengths,
            num_images=num_images,
            num_tokens=self.grid.num_tokens,
            config=config,
            itemsize=self._model.compute_dtype.itemsize,
            is_sequential=True,
        )
        return run + 4 * num_images * self.max_tokens * config.vocabulary * 4
