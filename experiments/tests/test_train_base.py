"""Training of the small class model, on a few tiny random pictures: loss, stages, resuming."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import train_base
from experiments.training.base import Batch, Stage, initialised, loss_of
from shortcut.models.maskgit.transformer import Config, MaskGIT
from shortcut.train.fit import Recipe

CONFIG = Config(grid=4, width=32, depth=1, num_heads=2, mlp_width=64, num_codes=16, num_classes=16)
RECIPE = Recipe(iterations=60, seed=3, lr=1e-2, warmup=3, ema=0.8, checkpoint_every=10)
STAGES = (
    Stage(name="first", recipe=RECIPE, batch_size=8),
    Stage(name="second", recipe=replace(RECIPE, iterations=30), batch_size=4, kinds_weight=2.0),
)
GENERATOR = torch.Generator().manual_seed(0)
CODES = torch.randint(CONFIG.num_codes, (6, 16), generator=GENERATOR, dtype=torch.int16)
CLASSES = torch.arange(6)


def batch() -> Batch:
    is_masked_BL = train_base.draw_masks(6, 16, torch.Generator().manual_seed(1))
    return Batch(CODES.long(), CLASSES, is_masked_BL, torch.ones(6, 16).long())


def learned(directory: Path, *stages: Stage) -> MaskGIT:
    return train_base.learn(CODES, CLASSES, CONFIG, stages, directory)


def masked_loss(network: MaskGIT) -> float:
    training = initialised(CONFIG, 0)
    training.network = network
    return loss_of(training, batch())[1]["masked"].item()


@torch.no_grad()
def test_the_loss_adds_up_masked_and_known_codes_places_and_kinds() -> None:
    training = initialised(CONFIG, 0)
    loss, figures = loss_of(training, batch(), kinds_weight=2.0)
    assert figures["masked"].item() == pytest.approx(math.log(CONFIG.num_codes), abs=0.05)
    parts = figures["masked"] + 0.3 * figures["known"] + 0.3 * figures["places"]
    torch.testing.assert_close(loss, parts + 2 * figures["kinds"])


def test_training_learns_the_pictures(tmp_path: Path) -> None:
    before = masked_loss(initialised(CONFIG, RECIPE.seed).network)
    assert masked_loss(learned(tmp_path, STAGES[0])) < 0.7 * before


def test_a_stage_goes_on_from_the_one_before(tmp_path: Path) -> None:
    both = learned(tmp_path / "both", *STAGES)
    second = learned(tmp_path / "second", STAGES[1])
    assert masked_loss(both) < masked_loss(second)


def test_stages_that_are_done_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = learned(tmp_path, *STAGES).state_dict()

    def refused(*arguments: object, **weights: float) -> None:
        pytest.fail("a stage was trained again")

    monkeypatch.setattr(train_base, "loss_of", refused)
    again = learned(tmp_path, *STAGES).state_dict()
    assert all(torch.equal(again[name], value) for name, value in whole.items())
