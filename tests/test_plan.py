"""What is planned for a head where the user says nothing."""

from __future__ import annotations

from dataclasses import replace

import builders
import pytest
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.models.lumina_dimoo import transformer as lumina
from shortcut_pack.shortcut.models.maskgit import transformer as maskgit
from shortcut_pack.shortcut.train.learn import HeadPlan, head_config, recipe_for


@pytest.mark.parametrize(
    ("iterations", "weight"), [(10, 0.3), (300, 0.36), (1000, 4.0), (3500, 4.0)]
)
def test_codes_count_for_more_in_a_longer_training(iterations: int, weight: float) -> None:
    found = HeadPlan.default(builders.model(), iterations=iterations).objective
    assert (found.mse, found.guided_kl) == (1.0, pytest.approx(weight))
    text = HeadPlan.default(builders.text_model(), iterations=iterations).objective
    assert text.guided_kl == 0.3


def test_the_learning_rate_is_that_of_the_shipped_heads_or_of_the_authors() -> None:
    """96 wide, and that of Lumina-DiMOO, 2048 wide."""
    config = head_config(builders.model())
    found = [recipe_for(replace(config, width=w), 100, 0).lr for w in (16, 96, 2048)]
    assert found == [3e-3, 3e-3, pytest.approx(1e-4, rel=0.01)]


def test_a_plan_suits_the_published_models() -> None:
    """The head has the published sizes, the rate is its authors', and memory holds the runs kept."""
    sizes = maskgit.Config(
        grid=32, width=768, depth=24, num_heads=16, mlp_width=3072, num_codes=1024, num_classes=1000
    )
    text = lumina.Config(
        width=4096,
        depth=32,
        num_heads=32,
        num_kv_heads=32,
        mlp_width=12288,
        num_text_ids=126_356,
        num_codes=8192,
        rope_theta=5e5,
        norm_eps=1e-5,
    )
    for layout, config in ((maskgit.LAYOUT, sizes), (lumina.LAYOUT, text)):
        model_file = checkpoints.Checkpoint(layout, config, {}, "f")
        plan = HeadPlan.default(model_file)
        plan.recipe.check()
        plan.rollouts.check()
        assert plan.config.width == config.width // 2 and plan.config.num_blocks == 1
    assert plan.recipe.lr == pytest.approx(1e-4, rel=0.2)
    assert (plan.rollouts.images_per_run, plan.rollouts.runs_kept) == (1, 2)
    assert head_config(model_file, bottleneck=1).width == 4096
