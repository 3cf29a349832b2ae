"""Heads of text models in training: where they begin, and which positions count in their loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import builders
import pytest
import torch
from shortcut_pack.shortcut import shipped
from shortcut_pack.shortcut.models.lumina_dimoo import transformer as lumina
from shortcut_pack.shortcut.models.lumina_dimoo.prompts import load_tokenizer
from shortcut_pack.shortcut.schedule import Settings
from shortcut_pack.shortcut.train.evaluate import evaluate, held_out_runs
from shortcut_pack.shortcut.train.fit import Recipe
from shortcut_pack.shortcut.train.head import Teaching, initialised
from shortcut_pack.shortcut.train.loss import feature_mse
from shortcut_pack.shortcut.train.teacher import Teacher, text_conditions

GRID = (4, 3)
CONFIG = builders.TEXT_CONFIG
RECIPE = Recipe(iterations=30, seed=3, lr=1e-2, warmup=3, ema=0.8, checkpoint_every=10)
HEAD = replace(
    builders.TEXT_HEAD_CONFIG, model_width=CONFIG.width, width=16, mlp_width=32, from_full=True
)
SETTINGS = Settings(**lumina.FORMAT.defaults)
TEACHING = Teaching(
    runs=(),
    images_per_run=8,
    runs_kept=3,
    iterations_per_run=15,
    windows_per_batch=2,
    images_per_window=8,
    max_chain=3,
)


def teacher() -> Any:
    """A random model on its grid, made to listen to its tokens, as a trained one does."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = lumina.LuminaDiMOO(CONFIG).requires_grad_(False).eval()
    for block in network.blocks:
        block.value.weight.mul_(4)
        block.out.weight.mul_(2)
    return network.on_grid(*GRID)


def test_an_untrained_head_is_reuse() -> None:
    model, head = teacher(), initialised(HEAD, 0)
    pytest.importorskip("transformers")
    tokenizer = load_tokenizer(shipped.TEXT_FOLDER, CONFIG)
    draw = text_conditions(tokenizer, CONFIG, ["a red house", "two boats"])
    teaching = replace(TEACHING, runs=(replace(SETTINGS, num_steps=6),))
    (run,) = held_out_runs(
        Teacher(model=model, draw_conditions=draw, settings=SETTINGS, num_tokens=model.num_tokens),
        RECIPE,
        teaching,
    )
    for row in evaluate(head, model, run, 2):
        assert row["error"] == pytest.approx(1)
        assert row["kl"] == pytest.approx(row["kl_reuse"])


@torch.no_grad()
def test_only_masked_image_positions_count_in_the_loss() -> None:
    model = teacher()
    index_BN = torch.tensor([[0, 5]])
    (features_BSD,) = model.features(
        torch.zeros(1, 12).long(), torch.ones(1, 12).bool(), [torch.zeros(1, 9).long()]
    )
    place_N = model.places(index_BN, 9)[0]
    elsewhere = torch.ones(features_BSD.shape[1], dtype=torch.bool)
    elsewhere[place_N] = False
    other_BSD = features_BSD + elsewhere.view(1, -1, 1)
    assert feature_mse(model, other_BSD, features_BSD, index_BN) == 0
    other_BSD[:, place_N[1]] += 1
    assert feature_mse(model, other_BSD, features_BSD, index_BN).item() == pytest.approx(0.5)
