"""Lumina-DiMOO and MMaDA-Parallel-A: text and source images -> images of any size, and text.

Source: Xin et al. 2025 (arXiv 2510.06308); arXiv 2602.23996 for the head; `mmada.py` for MMaDA-Parallel-A.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ...schedule import SamplerRules, Settings
from .. import amused_vq
from ..architecture import Architecture, Branches, Download, Preset, PublishedSize
from ..text_rules import REASONED_EDIT, UNDERSTAND, TextRules
from . import head, mmada, transformer
from .answer import Answer
from .conditioner import PromptConditioner
from .prompts import TASKS
from .tokenizer import copy_tokenizer_of, tokenizer_or_advice

# Source: facts of the published files (docs/models.md); config.json there is authoritative.
_MODEL = transformer.Config(
    width=4096,
    depth=32,
    num_heads=32,
    num_kv_heads=32,
    mlp_width=12288,
    num_text_ids=126_356,
    num_codes=8192,
    rope_theta=transformer.ROPE_THETA,
    norm_eps=transformer.NORM_EPS,
)
_HEAD = head.Config(
    model_width=4096,
    width=2048,
    num_blocks=1,
    num_heads=32,
    num_kv_heads=32,
    mlp_width=12288,
    rope_theta=transformer.ROPE_THETA,
    norm_eps=transformer.NORM_EPS,
    has_time=True,
    sees_new=True,
)
_NO_PROMPT = 14  # tokens of the prompt that says nothing


def _conditions(num_prompt_tokens: int) -> Branches:
    """Return prompts without values: one of that length, and the one that says nothing."""
    lengths = (num_prompt_tokens, _NO_PROMPT)
    return tuple(torch.zeros(1, n, dtype=torch.long, device="meta") for n in lengths)


_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vqvae/config.json",
    "vqvae/*.safetensors",
)
_TEXT = TextRules(answer=Answer.of, tasks={UNDERSTAND: 1})

ARCHITECTURE = Architecture(
    title=transformer.LAYOUT.title,
    model=transformer.LAYOUT,
    vqs=(amused_vq.LAYOUT,),
    head=head.LAYOUT,
    settings=Settings(
        num_steps=64,
        guidance=(4.0,),
        guidance_ramp=False,
        schedule="lumina",
        temperature=1.0,
        choice_temperature=1.0,
    ),
    rules=SamplerRules(choice_ramp=False, score_temperature=1.0, ratio_of_made=True),
    guidance={2: (2.5, 4.0)},  # of the text and of the source images
    # Source: arXiv 2602.23996, its main figure: ImageReward and times as fast as 64 full passes, which have 0.913.
    presets={
        "quality": Preset(64, 14),  # 0.895, 4.0
        "balanced": Preset(64, 11),  # 0.868, 4.9
        "fast": Preset(64, 9),  # 0.829, 5.8
    },
    sizes={
        "lumina-dimoo": PublishedSize(_MODEL, _HEAD, amused_vq.PUBLISHED, (64, 64), _conditions)
    },
    downloads={
        "lumina-dimoo": Download(
            "Alpha-VLLM/Lumina-DiMOO", _FILES, "migm/Lumina-DiMOO", is_tree=True
        ),
        "dimoo-head": Download(
            "Kaiwen-Zhu/MIGM-Shortcut", ("DiMOO-Shortcut/dimoo-shortcut.pth",), "migm_heads"
        ),
    },
    takes=frozenset({"prompt", "negative", "task", "sources"}),
    tasks={name: task.num_sources for name, task in TASKS.items()},
    text=_TEXT,
    conditioner=PromptConditioner.of,
    usual_grid=lambda config: (64, 64),
    num_heads=lambda config: config.num_heads,
    new_head=head.new_head,
    copy_companions=copy_tokenizer_of,
    companions=tokenizer_or_advice,
)

MMADA_PARALLEL_A = replace(
    ARCHITECTURE,
    title=mmada.LAYOUT.title,
    model=mmada.LAYOUT,
    presets={},  # no head of it was ever measured
    sizes={
        "mmada-parallel-a": PublishedSize(_MODEL, _HEAD, amused_vq.PUBLISHED, (32, 32), _conditions)
    },
    downloads={
        # The model card tells it apart.
        "mmada-parallel-a": Download(
            "tyfeld/MMaDA-Parallel-A", ("README.md", *_FILES), "migm/MMaDA-Parallel-A", is_tree=True
        ),
    },
    tasks={name: TASKS[name].num_sources for name in mmada.TASKS},
    text=replace(_TEXT, tasks={UNDERSTAND: 1, REASONED_EDIT: 1}, branches=mmada.laid_over),
    usual_grid=lambda config: (32, 32),
)
