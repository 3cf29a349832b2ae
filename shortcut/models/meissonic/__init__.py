"""Meissonic and Monetico: text -> images of about 1024 x 1024 or 512 x 512 pixels, with one billion parameters.

Source: Bai et al. 2024 (arXiv 2410.08261); viiika/Meissonic src/pipeline.py, and inference.py for the negative prompt.
"""

from __future__ import annotations

from ..architecture import Preset
from ..uvit_family import architecture
from . import transformer

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

ARCHITECTURE = architecture(
    transformer.LAYOUT,
    {1024: _MODEL},
    {"meissonic-1024": "MeissonFlow/Meissonic", "monetico-512": "Collov-Labs/Monetico"},
    (48, 9.0),
    negative=NEGATIVE,
    has_students=True,
    # As of aMUSEd: no head is published, and nothing was measured.
    presets={"quality": Preset(48, 14), "balanced": Preset(48, 10), "fast": Preset(48, 8)},
    usual_grid=transformer.usual_grid,
)
