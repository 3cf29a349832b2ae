"""How near a head keeps to its model: what is compared, counted and shared out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import builders
import fakes
import pytest
import torch
from shortcut_pack.shortcut import weights
from shortcut_pack.shortcut.accelerators.reuse import Reuse
from shortcut_pack.shortcut.denoiser import Denoiser, Features, Revealed
from shortcut_pack.shortcut.distributed import World
from shortcut_pack.shortcut.noise import Noise
from shortcut_pack.shortcut.sampler import Trace, sample
from shortcut_pack.shortcut.schedule import Settings, Step, plan
from shortcut_pack.shortcut.train.evaluate import Keeps, Oversight, evaluate
from shortcut_pack.shortcut.train.head import initialised
from shortcut_pack.shortcut.train.judging import (
    REUSE,
    VANILLA,
    Trial,
    Verdict,
    judge,
)
from shortcut_pack.shortcut.train.teacher import Teacher, teacher_of
from torch import Tensor

MODEL_FILE, GRID, L = builders.model(), (4, 4), 16
SETTINGS = Settings(num_steps=6, choice_temperature=2.0)
TRIAL = Trial(  # odd sizes, so that batches differ
    settings=SETTINGS, full_steps=(2, 3), num_images=5, batch_size=2, seeds=(1, 2)
)


def teacher() -> Teacher:
    return teacher_of(MODEL_FILE, weights.build(MODEL_FILE), settings=SETTINGS)


def overseen(
    model: Any, conditions: Sequence[Tensor], settings: Settings, predictor: Any, noise_seed: int
) -> tuple[Oversight, list[Trace]]:
    """An accelerated run with noise 0 under an oversight that draws with noise `noise_seed`."""
    num_images, steps = len(conditions[0]), plan(settings, L, L)
    noise, other = (
        Noise.draw(seed, range(num_images), len(steps), L, "cpu") for seed in (0, noise_seed)
    )
    seen, traces = Oversight(model, conditions, other), list[Trace]()

    def on_step(trace: Trace) -> None:
        seen(trace)
        traces.append(trace)
        if hasattr(predictor, "state"):
            predictor.state = trace.codes_BL, trace.is_masked_BL

    codes_BL = torch.zeros(num_images, L, dtype=torch.long)
    denoiser = Denoiser(model, conditions, predictor)
    sample(denoiser, codes_BL, torch.ones_like(codes_BL, dtype=torch.bool), steps, noise, on_step)
    return seen, traces


class Exact:
    """Predicts by what it must not have: a full pass of the model in the state of the run."""

    def __init__(self, model: Any, conditions: Sequence[Tensor]):
        self.model, self.conditions = model, conditions
        self.state = torch.empty(0), torch.empty(0)

    def observe(self, step: Step, features: Features) -> None:
        pass

    def predict(
        self, step: Step, features: Features, revealed: Revealed, index_BN: Tensor
    ) -> Features:
        return self.model.features(*self.state, self.conditions)


@pytest.mark.parametrize("spread", [0, 1])
def test_the_model_itself_agrees_in_every_token_and_only_with_the_same_noise(spread):
    model, conditions = teacher().model, (torch.tensor([0, 1, 2]), torch.full((3,), 3))
    settings = Settings(num_steps=6, full_steps=2, choice_temperature=2.0, spread=spread)
    seen, traces = overseen(model, conditions, settings, Exact(model, conditions), noise_seed=0)
    predicted = [trace for trace in traces if not trace.denoised.was_full]
    assert seen.num_steps == len(predicted) == 4
    assert seen.num_predicted == 3 * sum(trace.step.num_revealed for trace in predicted)
    assert seen.num_same == seen.num_predicted
    assert seen.cosine / seen.num_steps == pytest.approx(1, abs=1e-5)
    assert seen.divergence == pytest.approx(0, abs=1e-5)
    # Controls: other draws; features that nobody updated.
    seen, _ = overseen(model, conditions, settings, Exact(model, conditions), noise_seed=1)
    assert seen.num_same < 0.7 * seen.num_predicted
    seen, _ = overseen(model, conditions, settings, Reuse(), noise_seed=0)
    assert seen.num_same < seen.num_predicted
    assert seen.cosine / seen.num_steps < 0.999 and seen.divergence > 0.01


class Placed(fakes.TableModel):
    """A model whose features do not depend on the tokens."""

    def image_places(self, index_BN: Tensor, num_tokens: int) -> Tensor:
        return index_BN


class WrongCodes(Reuse):
    """Is sure of the code beside the right one in the image that comes first."""

    def predict(
        self, step: Step, features: Features, revealed: Revealed, index_BN: Tensor
    ) -> Features:
        (features_BSV,) = features
        if step.index == 1:  # later it is given its own features
            features_BSV = torch.cat([features_BSV[:1].roll(1, -1), features_BSV[1:]])
        return (features_BSV,)


def test_a_token_with_another_code_is_not_the_same():
    images_CL = torch.randint(8, (2, L), generator=torch.Generator().manual_seed(0))
    model = Placed(100.0 * torch.nn.functional.one_hot(images_CL, 8))
    settings = Settings(num_steps=6, full_steps=1, **fakes.UNGUIDED)
    conditions = (torch.tensor([0, 1]),)
    seen, _ = overseen(model, conditions, settings, WrongCodes(), noise_seed=0)
    assert seen.num_same == seen.num_predicted / 2
    assert seen.cosine / seen.num_steps == pytest.approx(0.5)
    assert seen.divergence / seen.num_predicted == pytest.approx(50)  # 100 nats in one image of two
    seen, _ = overseen(model, conditions, settings, Reuse(), noise_seed=0)
    assert seen.num_same == seen.num_predicted


def test_keeping_the_features_has_the_error_of_reuse():
    run = teacher().run((SETTINGS,), 3, (0, 1))
    for row in evaluate(Keeps(), teacher().model, run, 3):
        assert row["error"] == 1 and row["kl"] == row["kl_reuse"] > 0
    cosines = [row["cosine"] for row in evaluate(Keeps(), teacher().model, run, 3)]
    assert 0.999 > cosines[0] > cosines[2]


def heads() -> dict[str, Any]:
    untrained = initialised(builders.HEAD_CONFIG, 0).requires_grad_(False)
    return {"untrained": untrained, "random": weights.build(builders.head())}


def verdict(trial: Trial = TRIAL, **options: Any) -> Verdict:
    return judge(teacher(), MODEL_FILE, heads(), trial, GRID, **options)


def test_every_head_and_budget_has_a_row_and_an_untrained_head_is_reuse():
    seen = []
    found = verdict(on_run=lambda *progress: seen.append(progress))
    assert [(row.name, row.num_full) for row in found.rows] == [
        (VANILLA, 6),
        *((name, num_full) for num_full in (2, 3) for name in (REUSE, "untrained", "random")),
    ]
    vanilla, reuse, untrained, random, *_ = found.rows
    assert (vanilla.same, vanilla.same_of_predicted) == (1, None)
    assert vanilla.operations > untrained.operations > reuse.operations
    assert all(row.seconds > 0 for row in found.rows)
    assert untrained.same_of_seeds == reuse.same_of_seeds
    assert untrained.cosine == pytest.approx(reuse.cosine)
    assert random.same < reuse.same < 1
    # Of all tokens, those of full passes too; of the predicted steps, without them.
    assert reuse.same_of_predicted is not None and reuse.same_of_predicted < reuse.same
    assert found.chains.keys() == {REUSE, "untrained", "random"}
    assert [row["chain"] for row in found.chains["random"]] == [1, 2]
    assert all(row["error"] == pytest.approx(1) for row in found.chains["untrained"])
    assert all(row["error"] > 1 for row in found.chains["random"])
    assert seen[-1] == (6 * 8, 6 * 8)


def test_processes_that_share_the_batches_find_the_same():
    parts: list[Any] = []
    short = replace(TRIAL, full_steps=(2,))

    class Handed(Exception):
        pass

    def hand_in(mine: Any) -> list[Any]:
        parts.append(mine)
        raise Handed

    for rank in (0, 1):
        with pytest.raises(Handed):
            verdict(short, world=World(rank, 2), gather=hand_in)
    assert [len(part) for part in parts] == [3, 3]
    together = verdict(short, world=World(0, 2), gather=lambda mine: parts)
    alone = verdict(short)
    assert together.chains == alone.chains
    for one, other in zip(together.rows, alone.rows, strict=True):
        assert asdict(one) | {"seconds": 0} == asdict(other) | {"seconds": 0}


def test_scores_are_means_over_the_images_of_each_seed():
    shown = []

    def score(conditions: Sequence[Tensor], codes_BL: Tensor) -> float:
        assert codes_BL.shape == (len(conditions[0]), L)
        shown.append(codes_BL)
        return 3.0 * len(codes_BL)

    found = verdict(replace(TRIAL, full_steps=(2,)), score=score)
    assert all(row.score == 3 and row.score_of_seeds == [3, 3] for row in found.rows)
    assert sum(map(len, shown)) == 10 * len(found.rows)


@pytest.mark.parametrize(
    ("num_steps", "full_steps", "chain"),
    [(8, (2, 4), 3), (32, (8,), 3), (6, (5,), 1), (5, (1,), 4)],
)
def test_a_head_is_followed_over_the_longest_stretch_that_it_has(num_steps, full_steps, chain):
    settings = Settings(num_steps=num_steps)
    trial = Trial(settings=settings, full_steps=full_steps, num_images=1, batch_size=1, seeds=(0,))
    assert trial.max_chain == chain
