"""Check the training of shortcut heads, on a tiny random model: it learns, and it is the same again."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from functools import cache

import pytest
import torch
from shortcut_pack.shortcut.accelerators.reuse import Reuse
from shortcut_pack.shortcut.accelerators.shortcut_head import ShortcutHead
from shortcut_pack.shortcut.distributed import ALONE, Ranks
from shortcut_pack.shortcut.gather import tokens_at
from shortcut_pack.shortcut.generate import generate
from shortcut_pack.shortcut.models.maskgit.classes import ClassConditioner
from shortcut_pack.shortcut.models.maskgit.head import LAYOUT
from shortcut_pack.shortcut.models.maskgit.head import Config as HeadConfig
from shortcut_pack.shortcut.models.maskgit.transformer import Config, MaskGIT
from shortcut_pack.shortcut.noise import seeded
from shortcut_pack.shortcut.schedule import SamplerRules, Settings
from shortcut_pack.shortcut.train import teacher as training_teacher
from shortcut_pack.shortcut.train.evaluate import evaluate, held_out_runs
from shortcut_pack.shortcut.train.fit import Recipe
from shortcut_pack.shortcut.train.head import (
    ReplayBuffer,
    RolloutConfig,
    device_of_runs,
    initialised,
    train_head,
)
from shortcut_pack.shortcut.train.log import log_of, read_log
from shortcut_pack.shortcut.train.loss import (
    Objective,
    Window,
    predict,
    window,
    window_loss,
)
from shortcut_pack.shortcut.train.record import Recorder, Trajectories
from shortcut_pack.shortcut.train.teacher import RUNS, Teacher
from torch import nn
from torch.optim.swa_utils import AveragedModel

NUM_CLASSES, NUM_TOKENS = 4, 16
HEAD = HeadConfig(model_width=32, width=16, num_blocks=1, num_heads=2, has_time=True)
CONDITIONER = ClassConditioner(NUM_CLASSES, ())
RECIPE = Recipe(iterations=60, seed=3, lr=5e-3, warmup=5, ema=0.9, checkpoint_every=20)
ROLLOUTS = RolloutConfig(
    runs=(Settings(num_steps=6), Settings(num_steps=8)),
    images_per_run=8,
    runs_kept=3,
    iterations_per_run=15,
    windows_per_batch=2,
    images_per_window=8,
    max_chain=3,
)


@cache
def model() -> MaskGIT:
    """Return a random model made to listen to its tokens, as a trained one does."""
    sizes = Config(
        grid=4, width=32, depth=2, num_heads=2, mlp_width=64, num_codes=12, num_classes=NUM_CLASSES
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MaskGIT(sizes).requires_grad_(False).eval()
    network.position.weight.mul_(0.3)
    for block in network.blocks:
        block.attention.value.weight.mul_(4)
        block.attention.out.weight.mul_(2)
    return network


def teacher() -> Teacher:
    return Teacher(
        model=model(),
        draw_conditions=CONDITIONER.draw(()),
        requests=(),
        settings=Settings(),
        rules=SamplerRules(),
        num_tokens=NUM_TOKENS,
    )


def train(
    recipe: Recipe = RECIPE,
    rollouts: RolloutConfig = ROLLOUTS,
    objective: Objective = Objective(),  # noqa: B008 - frozen
    config: HeadConfig = HEAD,
    **options,
) -> nn.Module:
    head = initialised(LAYOUT, config, recipe.seed)
    return train_head(teacher(), head, recipe, rollouts, objective, **options)


@cache
def whole() -> nn.Module:
    """Return the head of an undisturbed training; only read."""
    return train()


def held_out() -> list[Trajectories]:
    return held_out_runs(teacher(), ROLLOUTS.runs, 8, RECIPE.seed)


def is_same(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


@pytest.mark.parametrize("objective", [Objective(), Objective(guided_kl=1.0)])
def test_a_trained_head_is_nearer_to_the_teacher_than_its_last_features(objective):
    head = train(objective=objective)
    for run in held_out():
        for row in evaluate(head, model(), [run], 3):
            assert row["error"] < 0.7
            assert row["kl"] < 0.7 * row["kl_reuse"]


def test_an_untrained_head_is_reuse():
    for has_time in (True, False):
        for width in (16, 32):
            head = initialised(LAYOUT, replace(HEAD, width=width, has_time=has_time), 0)
            for row in evaluate(head, model(), held_out()[:1], 2):
                assert row["error"] == 1
                assert row["kl"] == row["kl_reuse"]


def test_the_loss_falls_and_is_logged():
    logs = []
    train(replace(RECIPE, iterations=100), on_log=logs.append)
    assert [log["iteration"] for log in logs] == [50, 100]
    assert logs[-1]["loss"] < 0.8 * logs[0]["loss"]
    assert logs[-1]["mse"] < logs[-1]["reuse"]


def test_the_same_seed_gives_the_same_head_and_another_seed_another():
    recipe = replace(RECIPE, iterations=10)
    first, again, other = train(recipe), train(recipe), train(replace(recipe, seed=4))
    assert is_same(first, again)
    assert not is_same(first, other)


def test_a_killed_and_resumed_training_gives_the_same_head_and_log(tmp_path):
    file = tmp_path / "head.ckpt"
    left = tmp_path / "left"

    def kill(done):  # what a kill at that moment leaves
        if done == 55:
            left.mkdir()
            for path in (file, log_of(file)):
                shutil.copy(path, left)

    train(checkpoint=file, on_iteration=kill, log_every=7)
    killed = left / file.name
    assert torch.load(killed, weights_only=True)["iteration"] == 40  # within a run's time
    assert [figures["iteration"] for figures in read_log(killed)][-2:] == [42, 49]
    assert is_same(train(checkpoint=killed, log_every=7), whole())
    for path in (file, killed):
        assert [f["iteration"] for f in read_log(path)] == [7, 14, 21, 28, 35, 42, 49, 56, 60]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_training_keeps_its_last_state(tmp_path, error):
    file = tmp_path / "head.ckpt"

    def interrupt(done):
        if done == 47:
            raise error

    with pytest.raises(error):
        train(checkpoint=file, on_iteration=interrupt)
    assert torch.load(file, weights_only=True)["iteration"] == 47
    assert is_same(train(checkpoint=file), whole())


def test_a_state_in_the_middle_of_a_step_is_not_kept(tmp_path, monkeypatch):
    file = tmp_path / "head.ckpt"
    steps = []

    def interrupted(self, network):
        steps.append(1)
        if len(steps) == 25:
            raise KeyboardInterrupt  # after the weights, before their average

    with monkeypatch.context() as patch:
        patch.setattr(AveragedModel, "update_parameters", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(checkpoint=file)
    assert torch.load(file, weights_only=True)["iteration"] == 20


def test_another_training_does_not_resume(tmp_path):
    file = tmp_path / "head.ckpt"
    recipe = replace(RECIPE, iterations=2)
    train(recipe, checkpoint=file, about={"model": "a"})
    with pytest.raises(ValueError, match=r"another recipe \(iterations 2, now 3\)"):
        train(replace(recipe, iterations=3), checkpoint=file, about={"model": "a"})
    with pytest.raises(ValueError, match=r"another recipe \(model a, now b\)"):
        train(recipe, checkpoint=file, about={"model": "b"})
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="no checkpoint of a training, or damaged"):
        train(recipe, checkpoint=file, about={"model": "a"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images_per_run": 0}, "images per run must be a whole number of at least 1, got 0"),
        ({"max_chain": 0}, "max chain must be a whole number of at least 1, got 0"),
        ({"runs": (Settings(num_steps=1),)}, r"at least 2 steps, got \[1\]"),
    ],
)
def test_rollouts_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        train(rollouts=replace(ROLLOUTS, **changes))


def test_windows_one_after_the_other_give_the_same_head_but_for_rounding():
    recipe = replace(RECIPE, iterations=10)
    at_once, one_by_one = train(recipe), train(recipe, one_by_one=True)
    assert not is_same(at_once, train(replace(recipe, seed=4)))
    for name, tensor in at_once.state_dict().items():
        torch.testing.assert_close(one_by_one.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("images_per_window", [8, 4])
def test_processes_share_the_images_of_a_window(images_per_window):
    """Each picks as many of its own; where a window has all images of a run, together they are those of one."""
    rollouts = replace(ROLLOUTS, images_per_window=images_per_window)
    all_images = run()

    def windows(ranks: Ranks) -> list[Window]:
        mine = ranks.share(8)
        part = teacher().run(rollouts.runs, 8, (RECIPE.seed, RUNS), mine)
        assert torch.equal(part.codes_BL, all_images.codes_BL[mine])
        replay = buffer_of(lambda n: part, rollouts, ranks=ranks)
        replay.advance(0)
        return replay.draw(seeded(0, 5))

    alone, first, second = (windows(ranks) for ranks in (Ranks(0, 1), Ranks(0, 2), Ranks(1, 2)))
    for together, one, other in zip(alone, first, second, strict=True):
        assert together.steps == one.steps == other.steps
        shown = [part.revealed[0].codes_BK for part in (one, other, together)]
        assert len(shown[0]) == len(shown[1]) == images_per_window // 2
        if images_per_window == 8:
            assert sorted(torch.cat(shown[:2]).tolist()) == sorted(shown[2].tolist())


def test_training_only_reads_the_model():
    before = copy.deepcopy(model())
    train(replace(RECIPE, iterations=5))
    assert is_same(before, model())


def test_the_replay_keeps_the_newest_runs_and_makes_each_once():
    made = []

    def make_run(number: int) -> int:
        made.append(number)
        return number

    replay = buffer_of(make_run)
    for iteration in range(46):
        replay.advance(iteration)
    assert made == [0, 1, 2, 3, 4, 5]
    assert list(replay.runs) == [3, 4, 5]
    resumed = buffer_of(lambda number: number)
    resumed.advance(45)
    assert resumed.runs == replay.runs


def test_windows_spread_over_the_run_and_stay_inside():
    rollouts = replace(ROLLOUTS, runs=(Settings(num_steps=8),), windows_per_batch=7)
    replay = buffer_of(lambda n: run(rollouts, n), rollouts)
    replay.advance(0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        parts = replay.draw(generator)
        assert [part.steps[0].index for part in parts] == [1, 2, 3, 4, 5, 6, 7]
        assert all(1 <= len(part.steps) <= 3 for part in parts)
        assert all(part.steps[-1].index <= 7 for part in parts)


def buffer_of(
    make_run, rollouts: RolloutConfig = ROLLOUTS, from_full: bool = False, ranks: Ranks = ALONE
) -> ReplayBuffer:
    return ReplayBuffer(make_run, rollouts, from_full, ranks, torch.device("cpu"))


def run(rollouts: RolloutConfig = ROLLOUTS, number: int = 0) -> Trajectories:
    return teacher().run(rollouts.runs, rollouts.images_per_run, (RECIPE.seed, RUNS, number))


def test_a_record_says_what_the_run_did():
    recorded = run()
    order_BL = torch.full_like(recorded.codes_BL, -1)
    for t, revealed in enumerate(recorded.revealed):
        order_BL.scatter_(1, revealed.index_BK, t)
    assert recorded.num_images == 8
    for t, step in enumerate(recorded.steps):
        assert step.index == t
        assert (order_BL == t).sum(1).tolist() == [step.num_revealed] * 8
        assert torch.equal(recorded.masked_index[t], (order_BL > t).nonzero()[:, 1].view(8, -1))
        # The features are those of the codes that stood before the step.
        features = model().features(recorded.codes_BL, order_BL >= t, recorded.conditions)
        for kept, expected in zip(recorded.features[t], features, strict=True):
            assert kept.dtype == torch.float16
            torch.testing.assert_close(kept.float(), expected, rtol=1e-2, atol=1e-2)


def test_a_window_has_the_steps_after_its_start_and_only_these():
    recorded = run()
    part = window(recorded, 1, 2, torch.tensor([5, 2]))
    assert [step.index for step in part.steps] == [2, 3]
    for i, t in enumerate((2, 3)):
        assert torch.equal(part.revealed[i].codes_BK, recorded.revealed[t - 1].codes_BK[[5, 2]])
        assert part.masked_index[i].shape == (2, part.steps[i].num_masked)
        assert torch.equal(part.targets[i][1], recorded.features[t][1][[5, 2]].float())
    last = len(recorded.steps) - 1
    for start, length in ((-1, 1), (0, 0), (last, 1), (last - 1, 2)):
        with pytest.raises(ValueError, match="does not fit"):
            window(recorded, start, length)


def test_a_chain_feeds_the_head_its_own_features():
    """An error of the first step of a window is carried to the next."""
    recorded = run()

    class Adds(nn.Module):
        config = HEAD

        def next_features(self, model, features, conditions, revealed, mask_ratio):
            return tuple(f + 1 for f in features)

    part = window(recorded, 0, 3)
    part = replace(part, targets=[part.features] * 3)
    loss, parts = window_loss(Adds(), model(), part, Objective(mse=2.0))
    assert parts["mse"].item() == pytest.approx((1 + 4 + 9) / 3)
    assert loss.item() == pytest.approx(2 * parts["mse"].item())


def test_a_head_that_starts_from_full_passes_learns_whole_stretches_at_once():
    recorded = run()
    replay = buffer_of(lambda n: recorded, from_full=True)
    replay.advance(0)
    parts = [part for seed in range(9) for part in replay.draw(torch.Generator().manual_seed(seed))]
    assert {len(part.steps) for part in parts} == {1}
    lengths = set()
    for part in parts:
        end, num_shown = part.steps[0].index, part.revealed[0].index_BK.shape[1]
        stretch = [n for n in (1, 2, 3) if shown_before(recorded, end, n) == num_shown]
        assert len(stretch) == 1
        lengths |= set(stretch)
        assert part.targets[0][0].sum().item() == pytest.approx(
            recorded.features[end][0].float().sum().item(), rel=1e-4
        )
    assert lengths == {1, 2, 3}


def shown_before(recorded: Trajectories, end: int, length: int) -> int:
    """Return the tokens that the `length` steps before step `end` revealed; -1 = there are not as many steps."""
    counts = [step.num_revealed for step in recorded.steps[:end]]
    return sum(counts[-length:]) if length <= end else -1


def used_run(
    head: nn.Module, num_steps: int, full_steps: tuple[int, ...], seed: int
) -> Trajectories:
    """Return the trajectories of a run in which a head predicts the steps that are not full."""
    conditions = (torch.tensor([0, 1]), torch.full((2,), NUM_CLASSES))
    recorder = Recorder(conditions, dtype=torch.float32)
    generate(
        model(),
        conditions,
        Settings(num_steps=num_steps, full_steps=full_steps),
        SamplerRules(),
        seed=seed,
        image_indices=range(2),
        num_tokens=NUM_TOKENS,
        accelerator=lambda model, c: ShortcutHead(head, model, c),
        on_step=recorder,
    )
    return recorder.trajectories()


def loud_head(from_full: bool) -> nn.Module:
    """Return a random head that changes what it is given."""
    head = initialised(LAYOUT, replace(HEAD, from_full=from_full), 0)
    nn.init.normal_(head.proj_out.weight, generator=torch.Generator().manual_seed(1))
    return head


@pytest.mark.parametrize("from_full", [False, True])
def test_training_asks_the_head_as_a_run_does(from_full):
    head = loud_head(from_full)
    used = used_run(head, 6, (0, 4), seed=0)
    for start, length in ((0, 3), (4, 1)):
        part = window(used, start, length)
        for i, features in enumerate(predict(head, model(), part)):
            # In a run a head that starts from full passes predicts what is still masked, and no more.
            masked_BN = part.masked_index[i] if from_full else None
            for all_BSD, used_BSD in zip(features, used.features[start + 1 + i], strict=True):
                found, expected = tokens_at(all_BSD, masked_BN), tokens_at(used_BSD, masked_BN)
                torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("from_full", [False, True])
def test_the_head_serves_runs_with_few_full_steps(from_full):
    """At use, fewer codes differ from the teacher's than with the last features unchanged."""
    # From a full pass a window has one step to learn from, not three.
    recipe = replace(RECIPE, iterations=180 if from_full else 60)
    head = train(
        recipe, objective=Objective(guided_kl=1.0), config=replace(HEAD, from_full=from_full)
    )
    classes = torch.arange(64) % NUM_CLASSES
    conditions = (classes, torch.full_like(classes, NUM_CLASSES))

    def codes(full_steps, accelerator):
        settings = Settings(num_steps=8, full_steps=full_steps)
        return generate(
            model(),
            conditions,
            settings,
            SamplerRules(),
            seed=1,
            image_indices=range(64),
            num_tokens=NUM_TOKENS,
            accelerator=accelerator,
        ).codes_BL

    wanted = codes(None, None)
    by_head = codes(3, lambda model, c: ShortcutHead(head, model, c))
    by_reuse = codes(3, lambda model, c: Reuse())
    assert (by_head != wanted).float().mean() < 0.75 * (by_reuse != wanted).float().mean()


def test_runs_are_kept_on_a_gpu_only_where_they_take_little_of_it(monkeypatch):
    assert device_of_runs(teacher(), ROLLOUTS).type == "cpu"
    on_gpu = replace(teacher(), device=torch.device("cuda"))
    # 3 runs of 8 images, 8 steps, 2 branches of 17 positions, width 32, in half precision.
    needed = 3 * 8 * (8 * 2 * 17 * 32 * 2)
    for free, expected in ((4 * needed, "cuda"), (4 * needed - 4, "cpu")):
        monkeypatch.setattr(training_teacher, "memory_of", lambda device, free=free: (free, 2**40))
        assert device_of_runs(on_gpu, ROLLOUTS).type == expected
