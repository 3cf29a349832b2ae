"""Meissonic and Monetico: text -> images of about 1024 x 1024 or 512 x 512 pixels, with one billion parameters.

Source: Bai et al. 2024 (arXiv 2410.08261); viiika/Meissonic src/pipeline.py, and inference.py for the negative prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...schedule import AMUSED, AMUSED_LINEAR, SamplerRules, Settings
from .. import amused_vq, token_head
from ..architecture import Architecture, Branches, Download, Preset, PublishedSize
from ..clip_encoder import encoder_or_advice
from ..clip_text import ClipConditioner
from ..uvit import DIFFUSERS_FILES, shapes_of_text
from . import head, transformer

NEGATIVE = (
    "worst quality, low quality, low res, blurry, distortion, watermark, logo, signature, text, jpeg artifacts, "
    "signature, sketch, duplicate, ugly, identifying mark"
)

# Source: facts of the published files (docs/models.md).
_MODEL = transformer.Config(
    width=1024,
    depth=14,
    single_depth=28,
    num_heads=8,
    rope_axes=transformer.ROPE_AXES,
    num_codes=8192,
    vocabulary=8256,
    text_width=1024,
    pooled_width=1024,
    downsamples=True,
)
_HEAD = token_head.Config(
    model_width=1024, width=512, num_blocks=1, num_heads=8, has_time=True, kernel=7, attends=False
)


def _conditions(num_prompt_tokens: int) -> Branches:
    """Return two texts of the length that any has, on the meta device."""
    return (shapes_of_text(transformer.NUM_TEXT_TOKENS, 1024, 1024),) * 2


def _conditioner(config: Any, names: Sequence[str], path: Path | None) -> ClipConditioner:
    return ClipConditioner(config, path, NEGATIVE)


ARCHITECTURE = Architecture(
    name="meissonic",
    title=transformer.LAYOUT.title,
    model=transformer.LAYOUT,
    vqs=(amused_vq.LAYOUT,),
    head=head.LAYOUT,
    settings=Settings(
        num_steps=48,
        guidance=(8.0,),  # the original's 9: uncond + 9 * (cond - uncond)
        guidance_ramp=False,
        schedule=AMUSED,
        temperature=1.0,
        choice_temperature=2.0,
    ),
    rules=SamplerRules(score_temperature=1.0),
    inpaint_schedule=AMUSED_LINEAR,
    # As of aMUSEd: no head is published, and nothing was measured.
    presets={"quality": Preset(48, 14), "balanced": Preset(48, 10), "fast": Preset(48, 8)},
    sizes={
        "meissonic-1024": PublishedSize(_MODEL, _HEAD, amused_vq.PUBLISHED, (64, 64), _conditions)
    },
    downloads={
        name: Download(repository, DIFFUSERS_FILES, f"migm/{folder}", is_tree=True)
        for name, repository, folder in (
            ("meissonic-1024", "MeissonFlow/Meissonic", "Meissonic"),
            ("monetico-512", "Collov-Labs/Monetico", "Monetico"),
        )
    },
    takes=frozenset({"prompt", "negative"}),
    conditioner=_conditioner,
    usual_grid=transformer.usual_grid,
    num_heads=lambda config: config.num_heads,
    new_head=token_head.new_head,
    guided_kl=token_head.guided_kl,
    clip=lambda config: (config.text_width, config.pooled_width),
    companions=encoder_or_advice,
)
