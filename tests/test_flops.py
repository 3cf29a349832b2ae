"""Operations of a run, against counts by hand from the sizes of the networks."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import builders
import torch
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.flops import count_flops
from shortcut_pack.shortcut.models.maskgit import head as maskgit_head
from shortcut_pack.shortcut.models.maskgit import transformer as maskgit
from shortcut_pack.shortcut.schedule import SamplerRules, Settings, plan

MODEL_CONFIG = replace(builders.MODEL_CONFIG, num_classes=16)


def pass_by_hand(config: maskgit.Config, sequences: int) -> int:
    """Multiply-adds of a full pass: projections, feed-forward, two products of attention."""
    length, width = config.num_tokens + 1, config.width
    block = 4 * width**2 + 2 * width * config.mlp_width + 2 * length * width
    return sequences * length * (2 * width**2 + config.depth * block + width**2)


def head_by_hand(config: maskgit_head.Config, length: int, num_new: int, sequences: int) -> int:
    width = config.width
    kept = length * (2 * width**2 + 16 * width**2 + 4 * width**2 + 2 * width * (num_new + length))
    block = kept + num_new * 2 * width**2
    around = 2 * length * config.model_width * width + num_new * config.model_width * width
    middle = round((256 * width) ** 0.5)
    time = 256 * middle + middle * width + width * 2 * width
    return sequences * (config.num_blocks * block + around + length * width**2 + time)


def logits_by_hand(config: maskgit.Config, settings: Settings, images: int) -> int:
    steps = plan(settings, config.num_tokens, config.num_tokens)
    rows = sum(step.num_masked for step in steps)  # guidance comes before: one branch is left
    return images * rows * config.width * config.num_codes


def operations_by_part(model, head, settings: Settings, num_images: int = 1, **options):
    config = model.config
    class_B = torch.zeros(num_images, dtype=torch.long)
    classes = (class_B,) * (1 + len(settings.guidance))
    grid = (config.grid, config.grid)
    return count_flops(model, head, settings, classes, grid, rules=SamplerRules(), **options)


def test_operations_of_a_vanilla_run_are_two_per_multiply_add():
    model, settings = checkpoints.build(builders.model(MODEL_CONFIG)), Settings(num_steps=5)
    found = operations_by_part(model, None, settings, num_images=3)
    assert found.full == 2 * 5 * pass_by_hand(MODEL_CONFIG, sequences=6)
    assert found.logits == 2 * logits_by_hand(MODEL_CONFIG, settings, images=3)
    assert found.head == 0
    assert found.total == found.full + found.logits


def test_operations_of_a_shortcut_run_depend_on_the_tokens_that_each_step_reveals():
    model, head = (
        checkpoints.build(builders.model(MODEL_CONFIG)),
        checkpoints.build(builders.head()),
    )
    settings = Settings(num_steps=5, full_steps=2)
    steps = plan(settings, MODEL_CONFIG.num_tokens, MODEL_CONFIG.num_tokens)
    found = operations_by_part(model, head, settings)
    by_head = sum(
        head_by_hand(builders.HEAD_CONFIG, MODEL_CONFIG.num_tokens + 1, before.num_revealed, 2)
        for before, step in pairwise(steps)
        if not step.is_full
    )
    assert found.full == 2 * 2 * pass_by_hand(MODEL_CONFIG, sequences=2)
    assert found.head == 2 * by_head
    assert found.logits == 2 * logits_by_hand(MODEL_CONFIG, settings, images=1)


def test_a_head_that_starts_from_full_passes_works_for_masked_tokens_alone():
    """The second half of its last block and what follows are of these; the rest is of the whole sequence."""
    config = replace(builders.HEAD_CONFIG, from_full=True)
    model, head = (
        checkpoints.build(builders.model(MODEL_CONFIG)),
        checkpoints.build(builders.head(config)),
    )
    settings = Settings(num_steps=5, full_steps=(0,))
    length, width = MODEL_CONFIG.num_tokens + 1, config.width
    # Query, output, feed-forward, last layer, projection out; both products of self-attention.
    for_each = 2 * width**2 + 8 * width**2 + width**2 + config.model_width * width
    for_each += 2 * length * width
    expected, num_new = 0, 0
    for before, step in pairwise(plan(settings, MODEL_CONFIG.num_tokens, MODEL_CONFIG.num_tokens)):
        num_new += before.num_revealed
        known = length - step.num_masked
        expected += head_by_hand(config, length, num_new, 2) - 2 * known * for_each
    assert operations_by_part(model, head, settings).head == 2 * expected


def test_operations_without_guidance_are_those_of_one_branch():
    settings = Settings(num_steps=4, guidance=())
    found = operations_by_part(checkpoints.build(builders.model(MODEL_CONFIG)), None, settings)
    assert found.full == 2 * 4 * pass_by_hand(MODEL_CONFIG, sequences=1)


def test_reused_features_cost_nothing():
    model, settings = (
        checkpoints.build(builders.model(MODEL_CONFIG)),
        Settings(num_steps=5, full_steps=2),
    )
    found = operations_by_part(model, None, settings, accelerator="reuse")
    assert found.full == 2 * 2 * pass_by_hand(MODEL_CONFIG, sequences=2)
    assert found.head == 0
