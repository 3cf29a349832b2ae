"""aMUSEd: text -> images of about 256 x 256 or 512 x 512 pixels, with 0.6 billion parameters.

Source: Patil et al. 2024 (arXiv 2401.01808); diffusers pipelines/deprecated/amused for the settings.
"""

from __future__ import annotations

from ..architecture import Preset
from ..uvit_family import MICRO_WIDTH, architecture
from . import transformer


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
        micro_width=MICRO_WIDTH,
        downsamples=downsamples,
    )


ARCHITECTURE = architecture(
    transformer.LAYOUT,
    {512: _model(downsamples=True), 256: _model(downsamples=False)},
    {f"amused-{side}": f"amused/amused-{side}" for side in (512, 256)},
    (12, 10.0),
    # No head is published, and the quality with one that was trained here was not measured: about the shares of steps
    # that the presets of Lumina-DiMOO and MaskGIT have. In ComfyUI a preset without a head is the original's run.
    presets={"quality": Preset(12, 5), "balanced": Preset(12, 4), "fast": Preset(12, 3)},
    usual_grid=transformer.usual_grid,
)
