"""A third, tiny architecture, which no file outside this folder knows: the example of CONTRIBUTING.md.

Unlike the two of the pack it has float conditions of two tensors, a pass that depends on the step, no presets, no tasks
and a head of another kind.
"""

from __future__ import annotations

import torch
from shortcut_pack.shortcut.models.architecture import Architecture, PublishedSize
from shortcut_pack.shortcut.models.maskgit import vqgan
from shortcut_pack.shortcut.schedule import Settings

from . import head, transformer
from .conditioner import MoodConditioner

ARCHITECTURE = Architecture(
    title=transformer.LAYOUT.title,
    model=transformer.LAYOUT,
    vqs=(vqgan.LAYOUT,),
    head=head.LAYOUT,
    settings=Settings(num_steps=8, guidance=(1.5,), guidance_ramp=False, choice_temperature=2.0),
    takes=frozenset({"prompt", "negative"}),
    conditioner=MoodConditioner.of,
    usual_grid=lambda config: (4, 4),
    new_head=head.new_head,
    sizes={
        "mood": PublishedSize(
            transformer.Config(width=32, mlp_width=64, num_codes=16, condition_width=12),
            head.Config(model_width=32, width=16),
            vqgan.Config(32, (1, 2), 1, (1,), 8, 8, 16),
            (4, 4),
            lambda num_prompt_tokens: tuple(
                transformer.Mood(
                    torch.zeros(1, 3, 12, device="meta"), torch.zeros(1, 12, device="meta")
                )
                for _ in range(2)
            ),
        )
    },
)
