"""Prompts as random but fixed floats. As CONDITIONING they have the form of CLIP Text Encode."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from shortcut_pack.shortcut.models.architecture import (
    LOADED_MODEL,
    Branches,
    Conditioning,
    GraphNode,
    Request,
)
from shortcut_pack.shortcut.models.conditioning import batch_of, in_turn

from .transformer import Config, Mood

NUM_TOKENS = 3


@dataclass(frozen=True)
class MoodConditioner:
    """Turns prompts into `Mood`s."""

    width: int

    @classmethod
    def of(cls, config: Config, names: Sequence[str], path: Path | None) -> MoodConditioner:
        return cls(config.condition_width)

    def conditions(self, request: Request, num_images: int) -> Branches:
        rows = torch.zeros(num_images, dtype=torch.long)
        return self._mood(request.prompt)[rows], self._mood(request.negative)[rows]

    def draw(self, requests: Sequence[Request]) -> Callable[[int, torch.Generator], Branches]:
        moods = [self._mood(request.prompt) for request in requests or [Request(prompt="a")]]
        tokens = torch.cat([mood.tokens_BPC for mood in moods])
        every = Mood(tokens, torch.cat([mood.pooled_BC for mood in moods]))

        def draw(num_images: int, generator: torch.Generator) -> Branches:
            chosen = torch.randint(len(moods), (num_images,), generator=generator)
            return every[chosen], self._mood(None)[torch.zeros_like(chosen)]

        return draw

    def unknown_words(self, request: Request) -> tuple[str, ...]:
        return ()

    def described(self, request: Request) -> dict[str, Any]:
        return {"prompt": request.prompt or "", "negative": request.negative or ""}

    def graph_nodes(self, request: Request) -> Sequence[GraphNode]:
        texts = [text for text in (request.prompt or "", request.negative) if text is not None]
        return [("ShortcutTextCondition", {"model": LOADED_MODEL, "text": text}) for text in texts]

    def to_conditioning(self, requests: Sequence[Request]) -> Conditioning:
        moods = [self._mood(request.prompt) for request in requests]
        pooled = torch.cat([mood.pooled_BC for mood in moods])
        return [[torch.cat([mood.tokens_BPC for mood in moods]), {"pooled_output": pooled}]]

    def from_conditioning(
        self, positive: Conditioning, negative: Conditioning | None, num_images: int
    ) -> Branches:
        moods = [self._mood(None) if c is None else self._read(c) for c in (positive, negative)]
        return tuple(mood[in_turn(len(mood), "positive", num_images)] for mood in moods)

    def _read(self, conditioning: Conditioning) -> Mood:
        row, entries = batch_of(conditioning, "positive")
        if row.shape[-1] != self.width or "pooled_output" not in entries:
            raise ValueError(f"the condition has width {row.shape[-1]}, expected {self.width}.")
        return Mood(row, entries["pooled_output"])

    def _mood(self, prompt: str | None) -> Mood:
        if not prompt:
            return Mood(torch.zeros(1, NUM_TOKENS, self.width), torch.zeros(1, self.width))
        generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
        return Mood(
            torch.randn(1, NUM_TOKENS, self.width, generator=generator),
            torch.randn(1, self.width, generator=generator),
        )
