"""Check heads of text models in training: where they begin, and which positions count in their loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import shipped
from shortcut_pack.shortcut.models.architecture import Request
from shortcut_pack.shortcut.models.lumina_dimoo import ARCHITECTURE
from shortcut_pack.shortcut.models.lumina_dimoo import transformer as lumina
from shortcut_pack.shortcut.models.lumina_dimoo.conditioner import PromptConditioner
from shortcut_pack.shortcut.models.lumina_dimoo.head import LAYOUT
from shortcut_pack.shortcut.train.evaluate import evaluate, held_out_runs
from shortcut_pack.shortcut.train.head import initialised
from shortcut_pack.shortcut.train.learn import HeadPlan, learn
from shortcut_pack.shortcut.train.loss import feature_mse
from shortcut_pack.shortcut.train.teacher import Teacher, teacher_of

GRID = (4, 3)
CONFIG = builders.TEXT_CONFIG
HEAD = replace(
    builders.TEXT_HEAD_CONFIG, model_width=CONFIG.width, width=16, mlp_width=32, from_full=True
)
SETTINGS = replace(ARCHITECTURE.settings, num_steps=6)


def teacher() -> Any:
    """Return a random model on its grid, made to listen to its tokens, as a trained one does."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = lumina.LuminaDiMOO(CONFIG).requires_grad_(False).eval()
    for block in network.blocks:
        block.value.weight.mul_(4)
        block.out.weight.mul_(2)
    return network.on_grid(*GRID)


def test_an_untrained_head_is_reuse() -> None:
    model, head = teacher(), initialised(LAYOUT, HEAD, 0)
    pytest.importorskip("transformers")
    conditioner = PromptConditioner.of(CONFIG, (), shipped.TEXT_MODEL)
    requests = [Request(prompt=text) for text in ("a red house", "two boats")]
    shown = Teacher(
        model=model,
        draw_conditions=conditioner.draw(requests),
        requests=tuple(requests),
        settings=SETTINGS,
        rules=ARCHITECTURE.rules,
        num_tokens=model.num_tokens,
    )
    (run,) = held_out_runs(shown, (SETTINGS,), 8, 3)
    for row in evaluate(head, model, [run], 2):
        assert row["error"] == pytest.approx(1)
        assert row["kl"] == pytest.approx(row["kl_reuse"])


def test_a_training_does_not_go_on_with_another_shape_of_as_many_tokens(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    file, settings = builders.text_model(), replace(SETTINGS, num_steps=3)
    conditioner = PromptConditioner.of(CONFIG, (), shipped.TEXT_MODEL)
    plan = HeadPlan.default(file, runs=(settings,), iterations=1)

    def train(rows: int, columns: int) -> None:
        asked = conditioner, [Request(prompt="a red house")]
        network: Any = checkpoints.build(file)
        shown = teacher_of(file, network, *asked, settings=settings, grid=(rows, columns))
        learn(shown, file, plan, checkpoint=tmp_path / "head.ckpt")

    train(4, 3)
    train(4, 3)
    with pytest.raises(ValueError, match=r"another recipe .*4 x 3 tokens.*now .*3 x 4 tokens"):
        train(3, 4)


@torch.no_grad()
def test_only_masked_image_positions_count_in_the_loss() -> None:
    model = teacher()
    index_BN = torch.tensor([[0, 5]])
    (features_BSD,) = model.features(
        torch.zeros(1, 12).long(), torch.ones(1, 12).bool(), [torch.zeros(1, 9).long()]
    )
    place_N = model.image_positions(index_BN, features_BSD.shape[1])[0]
    elsewhere = torch.ones(features_BSD.shape[1], dtype=torch.bool)
    elsewhere[place_N] = False
    other_BSD = features_BSD + elsewhere.view(1, -1, 1)
    assert feature_mse(model, other_BSD, features_BSD, index_BN) == 0
    other_BSD[:, place_N[1]] += 1
    assert feature_mse(model, other_BSD, features_BSD, index_BN).item() == pytest.approx(0.5)
