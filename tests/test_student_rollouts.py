"""Roll-outs in which the head draws the tokens itself: they go where a run with that head goes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from shortcut_pack.shortcut.distributed import World
from shortcut_pack.shortcut.noise import Noise, seeded
from shortcut_pack.shortcut.train.evaluate import evaluate
from shortcut_pack.shortcut.train.head import Replay
from shortcut_pack.shortcut.train.loss import on_its_own, window
from shortcut_pack.shortcut.train.teacher import RUNS
from test_train import (
    HEAD,
    NUM_TOKENS,
    RECIPE,
    TEACHING,
    held_out,
    is_same,
    loud_head,
    model,
    run,
    teacher,
    train,
    used_run,
)

ALONE = replace(TEACHING, student_rollouts=True)


@pytest.mark.parametrize("from_full", [False, True])
def test_a_student_rollout_goes_where_a_run_with_that_head_goes(from_full):
    head = loud_head(from_full)
    used = used_run(head, 6, (0,), seed=5)

    def end(seed: int):
        noise = Noise.draw(seed, range(2), 6, NUM_TOKENS, "cpu")
        return on_its_own(head, model(), window(used, 0, 4), noise)

    part, after = end(5), window(used, 3, 1)
    index_BN, last = part.masked_index[0], part.revealed[0]
    assert torch.equal(index_BN, after.masked_index[0])
    known_BL = torch.ones(2, NUM_TOKENS, dtype=torch.bool).scatter(1, index_BN, False)
    assert torch.equal(part.codes_BL[known_BL], used.codes_BL[known_BL])
    num_shown = sum(step.num_revealed for step in used.steps[:4])
    assert last.codes_BK.shape[1] == (num_shown if from_full else used.steps[3].num_revealed)
    wanted = model().features(used.codes_BL, ~known_BL, used.conditions)
    assert all(torch.equal(f, w) for f, w in zip(part.targets[0], wanted, strict=True))
    started = used.features[0 if from_full else 3]
    assert all(torch.equal(f, s) for f, s in zip(part.features, started, strict=True))
    assert not torch.equal(end(6).masked_index[0], index_BN)


@pytest.mark.parametrize("from_full", [False, True])
def test_a_head_learns_from_its_own_rollouts(from_full):
    config = replace(HEAD, from_full=from_full)
    head = train(teaching=ALONE, config=config)
    assert evaluate(head, model(), held_out()[0], 3)[-1]["error"] < 0.9
    assert is_same(head, train(teaching=ALONE, config=config))
    assert not is_same(head, train(config=config))


def test_processes_share_the_noise_of_a_rollout():
    """Together they draw as one process does."""

    def noise(world: World) -> list[Noise]:
        part = teacher().run(ALONE.runs, 8, (RECIPE.seed, RUNS), world.share(8))
        replay = Replay(lambda n: part, ALONE, False, world)
        replay.advance(0)
        return [part.noise for part in replay.draw(seeded(0, 5))]

    alone, first, second = (noise(world) for world in (World(0, 1), World(0, 2), World(1, 2)))
    for together, one, other in zip(alone, first, second, strict=True):
        rows = torch.cat([one.code_TBL, other.code_TBL], 1).unbind(1), together.code_TBL.unbind(1)
        assert sorted(map(torch.Tensor.tolist, rows[0])) == sorted(
            map(torch.Tensor.tolist, rows[1])
        )


def test_control_the_teachers_windows_have_no_noise():
    replay = Replay(lambda n: run(), TEACHING, from_full=False)
    replay.advance(0)
    assert all(part.noise is None for part in replay.draw(seeded(0)))
