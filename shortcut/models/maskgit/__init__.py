"""MaskGIT for ImageNet and models of its layout: classes -> images of one size.

Source: Chang et al. 2022 (arXiv 2202.04200); Besnier and Chen 2023 (arXiv 2310.14400); arXiv 2602.23996 for the head.
"""

from __future__ import annotations

import torch

from ...schedule import Settings
from .. import token_head
from ..architecture import Architecture, Branches, Download, Preset, PublishedSize
from . import head, transformer, vqgan
from .classes import ClassConditioner

_VQGAN = tuple(f"pretrained_maskgit/VQGAN/{name}" for name in ("last.ckpt", "model.yaml"))

# Source: facts of the published files (docs/models.md).
_MODEL = transformer.Config(
    grid=32, width=768, depth=24, num_heads=16, mlp_width=3072, num_codes=1024, num_classes=1000
)
_HEAD = token_head.Config(model_width=768, width=384, num_blocks=2, num_heads=16, has_time=True)
_VQ = vqgan.Config(128, (1, 1, 2, 2, 4), 2, (4,), 256, 256, 1024)


def _conditions(num_prompt_tokens: int) -> Branches:
    """Return a class and no class, on the meta device."""
    return (torch.zeros(1, dtype=torch.long, device="meta"),) * 2


ARCHITECTURE = Architecture(
    title=transformer.LAYOUT.title,
    model=transformer.LAYOUT,
    vqs=(vqgan.LAYOUT,),
    head=head.LAYOUT,
    settings=Settings(),
    has_students=True,
    # Source: arXiv 2602.23996, its MaskGIT figure: FID at ImageNet 512, where 32 full passes have 8.08.
    presets={
        "quality": Preset(32, 12),  # 6.84
        "balanced": Preset(32, 9),  # 6.97
        "fast": Preset(32, 8),  # 7.30
    },
    sizes={"maskgit-512": PublishedSize(_MODEL, _HEAD, _VQ, (32, 32), _conditions)},
    downloads={
        **{
            f"maskgit-{side}": Download(
                "llvictorll/Maskgit-pytorch",
                (f"pretrained_maskgit/MaskGIT/MaskGIT_ImageNet_{side}.pth", *_VQGAN),
                "migm",
            )
            for side in (512, 256)
        },
        "maskgit-head": Download(
            "Kaiwen-Zhu/MIGM-Shortcut", ("MaskGIT-Shortcut/maskgit-shortcut.pth",), "migm_heads"
        ),
    },
    takes=frozenset({"label"}),
    conditioner=ClassConditioner.of,
    fixed_grid=lambda config: (config.grid, config.grid),
    num_heads=lambda config: config.num_heads,
    new_head=token_head.new_head,
    guided_kl=token_head.guided_kl,
)
