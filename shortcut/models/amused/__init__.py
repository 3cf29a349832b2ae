"""aMUSEd: text -> images of about 256 x 256 or 512 x 512 pixels, with 0.6 billion parameters.

Source: Patil et al. 2024 (arXiv 2401.01808); diffusers pipelines/deprecated/amused for the settings.
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

NUM_TEXT_TOKENS = 77


def _model(*, downsamples: bool) -> transformer.Config:
    """Return the published sizes. Source: facts of the published files (docs/models.md)."""
    return transformer.Config(
        width=768,
        channels=768,
        blocks_per_stage=3,
        stage_heads=12,
        trunk_width=1024,
        depth=22,
        num_heads=16,
        mlp_width=2816,
        num_codes=8192,
        vocabulary=8256,
        text_width=768,
        pooled_width=768,
        micro_width=256,
        downsamples=downsamples,
    )


_HEAD = token_head.Config(
    model_width=768, width=384, num_blocks=1, num_heads=16, has_time=True, kernel=7, attends=False
)


def _conditions(num_prompt_tokens: int) -> Branches:
    """Return two texts of the length that any has, on the meta device."""
    return (shapes_of_text(NUM_TEXT_TOKENS, 768, 768),) * 2


def _conditioner(config: Any, names: Sequence[str], path: Path | None) -> ClipConditioner:
    return ClipConditioner(config, path)


ARCHITECTURE = Architecture(
    name="amused",
    title=transformer.LAYOUT.title,
    model=transformer.LAYOUT,
    vqs=(amused_vq.LAYOUT,),
    head=head.LAYOUT,
    settings=Settings(
        num_steps=12,
        guidance=(9.0,),  # the original's 10: uncond + 10 * (cond - uncond)
        guidance_ramp=False,
        schedule=AMUSED,
        temperature=1.0,
        choice_temperature=2.0,
    ),
    rules=SamplerRules(score_temperature=1.0),
    inpaint_schedule=AMUSED_LINEAR,
    # No head is published, and the quality with one that was trained here was not measured: about the shares of steps
    # that the presets of Lumina-DiMOO and MaskGIT have. Without a head a preset is the original's run.
    presets={"quality": Preset(12, 5), "balanced": Preset(12, 4), "fast": Preset(12, 3)},
    sizes={
        f"amused-{side}": PublishedSize(
            _model(downsamples=side == 512),
            _HEAD,
            amused_vq.PUBLISHED,
            (side // 16, side // 16),
            _conditions,
        )
        for side in (512, 256)
    },
    downloads={
        f"amused-{side}": Download(
            f"amused/amused-{side}", DIFFUSERS_FILES, f"migm/amused-{side}", is_tree=True
        )
        for side in (512, 256)
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
