"""MaskGIT for ImageNet and models of its layout: classes -> images of one size.

Source: Chang et al. 2022 (arXiv 2202.04200); Besnier and Chen 2023 (arXiv 2310.14400); arXiv 2602.23996 for the head.
"""

from __future__ import annotations

from ...schedule import Settings
from ..architecture import Architecture, Download, Preset
from . import head, transformer, vqgan
from .classes import ClassConditioner

_VQGAN = tuple(f"pretrained_maskgit/VQGAN/{name}" for name in ("last.ckpt", "model.yaml"))

ARCHITECTURE = Architecture(
    name="maskgit",
    title=transformer.LAYOUT.title,
    model=transformer.LAYOUT,
    vqs=(vqgan.LAYOUT,),
    head=head.LAYOUT,
    settings=Settings(),
    # Source: arXiv 2602.23996, its MaskGIT figure: FID at ImageNet 512, where 32 full passes have 8.08.
    presets={
        "quality": Preset(32, 12),  # 6.84
        "balanced": Preset(32, 9),  # 6.97
        "fast": Preset(32, 8),  # 7.30
    },
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
    new_head=head.new_head,
    guided_kl=head.guided_kl,
)
