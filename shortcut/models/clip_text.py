"""From requests and ComfyUI's CONDITIONING to conditions by a text encoder of CLIP.

Its CONDITIONING is the native one of ComfyUI: CLIP Text Encode makes it, with the CLIP of Load MIGM. Here, on the
command line, `ClipTextEncoder` encodes texts with what lies in the model's folder.

Source: Radford et al. 2021 (CLIP); facts of the text encoders in tests/golden/UVIT.md.

    B  images    P  text tokens, padding included    C  width of the encoder
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..guard import check_number
from .architecture import LOADED_CLIP, Branches, Conditioning, GraphNode, Request
from .clip_encoder import ClipTextEncoder, Widths
from .conditioning import batch_of, in_turn
from .uvit_parts import AESTHETIC, TextCondition

MAX_MICRO = 16_384.0  # pixels
KEPT = 512  # texts whose conditions are kept while heads are trained, of 0.3 MB each
# Entries of a CONDITIONING that are micro-conditions, as CLIPTextEncodeSDXLRefiner and CLIPTextEncodeSDXL name them,
# and the largest values that they may have.
MICRO = {
    "width": MAX_MICRO,
    "height": MAX_MICRO,
    "crop_w": MAX_MICRO,
    "crop_h": MAX_MICRO,
    "aesthetic_score": 10.0,
}
# What CLIPTextEncodeSDXL writes besides, which these models have no input for: the size of the image says it.
UNUSED = ("target_width", "target_height")


@dataclass(frozen=True)
class ClipConditioner:
    """Turns texts into `TextCondition`s, guided away from a text, which may be empty."""

    config: Widths
    path: Path | None  # of the model's file
    negative: str = ""  # what to guide away from, where nothing is said

    def conditions(self, request: Request, num_images: int) -> Branches:
        """Return the encoded prompt, and what to guide away from.

        Raises:
            FileNotFoundError, ValueError: the text encoder is missing, or not that of the model; there is no prompt.
        """
        if request.prompt is None:
            raise ValueError("a text model needs --prompt TEXT; '' stands for anything.")
        rows = torch.zeros(num_images, dtype=torch.long)
        wanted, unwanted = (self.encoder(text) for text in self._texts(request))
        return wanted[rows], unwanted[rows]

    def draw(self, requests: Sequence[Request]) -> Callable[[int, torch.Generator], Branches]:
        """Return a function that draws random prompts, each as likely as the others.

        Raises:
            FileNotFoundError, ValueError: there is no prompt; as `conditions`.
        """
        if not requests:
            raise ValueError(
                "a text model needs prompts to show what it does: give --prompts FILE with one prompt a line."
            )
        _, unwanted = self._texts(requests[0])
        unwanted_condition = self.encoder(unwanted)
        encoded = lru_cache(KEPT)(self.encoder)  # a text takes longer than a picture of it

        def draw(num_images: int, generator: torch.Generator) -> Branches:
            index = torch.randint(len(requests), (num_images,), generator=generator).tolist()
            wanted = [encoded(self._texts(requests[i])[0]) for i in index]
            rows = torch.zeros(num_images, dtype=torch.long)
            return TextCondition.joined(wanted), unwanted_condition[rows]

        return draw

    def unknown_words(self, request: Request) -> tuple[str, ...]:
        """Return nothing: CLIP saw more texts than can be told."""
        return ()

    def described(self, request: Request) -> dict[str, Any]:
        """Return the texts as a picture's settings name them."""
        prompt, negative = self._texts(request)
        return {"prompt": prompt, "negative": negative}

    def graph_nodes(self, request: Request) -> Sequence[GraphNode]:
        """Return ComfyUI's nodes of the prompt and of what to guide away from."""
        return [
            ("CLIPTextEncode", {"clip": LOADED_CLIP, "text": text}) for text in self._texts(request)
        ]

    def to_conditioning(self, requests: Sequence[Request]) -> Conditioning:
        """Raise ValueError: ComfyUI's own node makes it."""
        raise ValueError(
            "this model reads text through CLIP. Use CLIP Text Encode, with the clip of Load MIGM, in place of Text "
            "Condition."
        )

    def from_conditioning(
        self, positive: Conditioning, negative: Conditioning | None, num_images: int
    ) -> Branches:
        """Return the conditions that two CONDITIONINGs hold.

        Raises:
            ValueError: there is no negative one, or one is of another text encoder, or a micro-condition is out of
                range.
        """
        if negative is None:
            raise ValueError(
                "negative is not connected, and this model is guided away from a text: wire a CLIP Text Encode, empty "
                "for nothing in particular."
            )
        wanted, unwanted = self._read(positive, "positive"), self._read(negative, "negative")
        return (
            wanted[in_turn(len(wanted), "positive", num_images)],
            unwanted[in_turn(len(unwanted), "negative", num_images)],
        )

    @cached_property
    def encoder(self) -> ClipTextEncoder:
        """The text encoder in the model's folder, loaded on first use."""
        if self.path is None:
            raise ValueError("a model without a file has no text encoder. Load it from its file.")
        return ClipTextEncoder.of(self.path, self.config)

    def _texts(self, request: Request) -> tuple[str, str]:
        negative = self.negative if request.negative is None else request.negative
        return request.prompt or "", negative

    def _read(self, conditioning: Conditioning, name: str) -> TextCondition:
        states_BPC, entries = batch_of(conditioning, name, reads=(*MICRO, *UNUSED))
        pooled_BC = entries.get("pooled_output")
        widths = (self.config.text_width, self.config.pooled_width)
        found = (states_BPC.shape[-1], None if pooled_BC is None else pooled_BC.shape[-1])
        if states_BPC.ndim != 3 or found != widths:
            raise ValueError(
                f"{name} is {found[0]} wide with {found[1] or 'no'} pooled values, expected {widths[0]} with "
                f"{widths[1]}: it is of another text encoder. Wire CLIP Text Encode with the clip of this Load MIGM."
            )
        assert isinstance(pooled_BC, Tensor)
        if len(pooled_BC) != len(states_BPC):
            raise ValueError(
                f"{name} holds {len(states_BPC)} texts, but pooled values of {len(pooled_BC)}, expected as many: a "
                "node joined one without the other. Wire CLIP Text Encode directly."
            )
        micro = {entry: entries[entry] for entry in MICRO if entry in entries}
        for entry, value in micro.items():
            check_number(f"{entry} of {name}", value, 0, MICRO[entry])
        values = {**dict.fromkeys(MICRO, 0.0), "aesthetic_score": AESTHETIC, **micro}
        micro_15 = torch.tensor([[float(values[entry]) for entry in MICRO]])
        micro_B5 = micro_15.expand(len(states_BPC), -1)
        condition = TextCondition(states_BPC.float().cpu(), pooled_BC.float().cpu(), micro_B5)
        if not condition.is_finite:
            raise ValueError(
                f"{name} holds numbers that are not finite: the weights of its text encoder are damaged, or too large "
                "for float16. Download the text encoder again."
            )
        return condition
