"""The training loop for every network, on a line: what a recipe says is done, and what cannot work is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from shortcut_pack.shortcut.train import state_file
from shortcut_pack.shortcut.train.fit import LossError, Recipe, fit
from shortcut_pack.shortcut.train.log import read_log, time_left
from torch import nn

RECIPE = Recipe(iterations=60, seed=3, lr=5e-3, warmup=5, ema=0.9, checkpoint_every=20)


def fit_a_line(recipe: Recipe, bad_iteration: int = -1, scale: float = 1.0, **options):
    """Fits y = 2 x; the loss of one iteration is not a number."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Linear(1, 1)
    iterations = iter(range(recipe.iterations))

    def loss_of(network: nn.Module, x: torch.Tensor):
        loss = (network(x) - 2 * x).square().mean() * scale
        return (loss * float("nan") if next(iterations) == bad_iteration else loss), {}

    return fit(
        network, lambda generator: torch.rand(8, 1, generator=generator), loss_of, recipe, **options
    )


def test_a_loss_that_is_no_number_stops_and_the_last_good_weights_stay(tmp_path):
    file = tmp_path / "line.ckpt"
    told = r"in iteration 31 of 60\. .*lower learning rate \(now 0\.005\)\."
    with pytest.raises(FloatingPointError, match=rf"{told} Delete or rename .*line\.ckpt first"):
        fit_a_line(RECIPE, bad_iteration=30, checkpoint=file)
    saved = torch.load(file, weights_only=True)
    assert saved["iteration"] == 30
    assert all(tensor.isfinite().all() for tensor in saved["network"].values())


def test_where_there_is_no_state_none_is_to_be_deleted(tmp_path):
    file = tmp_path / "line.ckpt"
    for options in ({"bad_iteration": 0, "checkpoint": file}, {"bad_iteration": 9}):
        with pytest.raises(LossError) as caught:
            fit_a_line(RECIPE, **options)
        assert "Delete" not in str(caught.value) and not file.exists()


def full_disk(state: dict, path: Path) -> None:
    """Saves as torch does where there is no room: half of it, then an error of its own."""
    path.write_bytes(b"half")
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nmore")


def free(num_bytes: int) -> Callable[[Path], SimpleNamespace]:
    return lambda path: SimpleNamespace(free=num_bytes)


def test_a_state_that_cannot_be_saved_is_named_and_the_last_one_stays(tmp_path, monkeypatch):
    file = tmp_path / "line.ckpt"
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda *a: (full_disk if file.exists() else save)(*a))
    monkeypatch.setattr(state_file.shutil, "disk_usage", free(int(2e6)))
    with pytest.raises(
        OSError, match=r"line\.ckpt could not .*takes 0\.0 MB and 2\.0 MB"
    ) as caught:
        fit_a_line(RECIPE, checkpoint=file)
    assert "Of the training iteration 20 is kept" in str(caught.value)
    assert "partial" not in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setattr(state_file.shutil, "disk_usage", free(5))
    with pytest.raises(OSError, match=r"could not be written \(the disk is full\)"):
        fit_a_line(RECIPE, checkpoint=file)
    assert torch.load(file, weights_only=True)["iteration"] == 20
    assert not list(tmp_path.glob("*.partial"))


def test_the_result_is_not_lost_where_nothing_can_be_written(tmp_path, monkeypatch, caplog):
    expected = fit_a_line(RECIPE)
    monkeypatch.setattr(torch, "save", full_disk)
    log = tmp_path / "line.jsonl"
    recipe = replace(RECIPE, checkpoint_every=100)
    found = fit_a_line(
        recipe,
        checkpoint=tmp_path / "line.ckpt",
        log_every=30,
        before_batch=lambda iteration: log.mkdir(exist_ok=True),  # so that it cannot be opened
    )
    assert torch.equal(found.weight, expected.weight)
    assert "line.ckpt could not be written" in caplog.text
    assert "line.jsonl could not be written" in caplog.text


def test_what_ended_a_training_is_told_though_its_state_cannot_be_saved(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(FloatingPointError, match="in iteration 11 of 60"):
        fit_a_line(RECIPE, bad_iteration=10, checkpoint=tmp_path / "line.ckpt")
    assert "line.ckpt could not be written" in caplog.text


def test_slow_iterations_are_saved_by_the_clock(tmp_path, monkeypatch):
    """Else a kill would cost hours of a large model."""
    file, hour, now = tmp_path / "line.ckpt", 3600.0, [0.0]
    monkeypatch.setattr(state_file.time, "perf_counter", lambda: now[0])
    found = []

    def before_batch(iteration):
        now[0] += hour / 10  # six minutes
        found.append(torch.load(file, weights_only=True)["iteration"] if file.exists() else 0)

    fit_a_line(replace(RECIPE, iterations=9), checkpoint=file, before_batch=before_batch)
    assert found == [0, 0, 2, 2, 4, 4, 6, 6, 8]


def test_a_line_of_the_log_that_was_cut_off_is_made_again(tmp_path):
    file, log = tmp_path / "line.ckpt", tmp_path / "line.jsonl"
    recipe = replace(RECIPE, iterations=40)
    stopped = KeyboardInterrupt()

    def stop(iteration):
        if iteration == 35:
            raise stopped

    with pytest.raises(KeyboardInterrupt):
        fit_a_line(recipe, checkpoint=file, log_every=10, before_batch=stop)
    log.write_text(log.read_text() + '{"loss": 0.')
    fit_a_line(recipe, checkpoint=file, log_every=10)
    lines = log.read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("done", "seconds", "said"),
    [
        (60, 5.0, "0 s left"),
        (59, 80.2, "80 s left"),
        (50, 30.0, "5 min left"),
        (0, 90.0, "1 h 30 min left"),
        (0, 3600.0, "60 h 0 min left"),
    ],
)
def test_the_time_left_is_said_in_units_that_are_read_at_a_glance(done, seconds, said):
    assert time_left({"iteration": done, "seconds_per_iteration": seconds}, 60) == said


def test_the_gradient_is_clipped_and_the_weights_are_averaged():
    recipe = replace(RECIPE, iterations=20, lr=1e-2)
    clipped = replace(recipe, clip=1e-4)
    plain, small, large = fit_a_line(recipe), fit_a_line(clipped), fit_a_line(clipped, scale=3.0)
    assert not torch.equal(small.weight, plain.weight)
    torch.testing.assert_close(small.weight, large.weight, rtol=1e-5, atol=1e-6)
    slow, last = fit_a_line(replace(recipe, ema=0.99)), fit_a_line(replace(recipe, ema=0.0))
    assert last.weight.item() > slow.weight.item()  # the way to 2 is upwards


def test_the_learning_rate_rises_then_falls_to_its_end():
    recipe = Recipe(iterations=100, lr=1e-2, lr_end=1e-3, warmup=10)
    rates = [recipe.lr * recipe.lr_factor(i) for i in range(100)]
    assert rates[0] == pytest.approx(1e-3, rel=0.01)
    assert max(rates) == pytest.approx(rates[9], rel=0.05)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"lr": 0.0}, "lr must be a number above 0"),
        ({"lr": float("nan")}, "lr must be a number above 0"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1"),
        ({"autocast": torch.float16}, "Use bfloat16 or float32"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        fit_a_line(replace(RECIPE, **changes))


def test_the_time_of_an_iteration_is_without_what_the_first_one_waits_for(monkeypatch):
    """Such as the runs that a head's training begins with, which take longer than many iterations."""
    now, logged = [0.0], []
    monkeypatch.setattr(state_file.time, "perf_counter", lambda: now[0])

    def before_batch(iteration: int) -> None:
        now[0] += 100.0 if iteration == 0 else 2.0

    fit_a_line(
        replace(RECIPE, iterations=4), before_batch=before_batch, on_log=logged.append, log_every=4
    )
    assert logged[-1]["seconds_per_iteration"] == 1.5  # 3 x 2 s in 4 iterations


def killed_log(tmp_path: Path) -> Path:
    """The log of a training that was stopped after iteration 20 of 60."""

    def stop(iteration: int) -> None:
        if iteration == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_a_line(RECIPE, checkpoint=tmp_path / "n.ckpt", log_every=5, before_batch=stop)
    return tmp_path / "n.jsonl"


HUGE_ITERATION = b'{"loss": 1, "seconds_per_iteration": 1, "iteration": 1' + b"0" * 400 + b"}"


@pytest.mark.parametrize(
    "damage", [b"\xff", b"\0\0\0", b'{"iteration": "x"}', b"[" * 100_000, b"5", HUGE_ITERATION]
)
def test_a_damaged_line_of_the_log_costs_that_line_and_no_more(
    tmp_path: Path, damage: bytes
) -> None:
    log = killed_log(tmp_path)
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([lines[0], damage + lines[1][9:], *lines[2:], lines[0][:20]]))
    fit_a_line(RECIPE, checkpoint=tmp_path / "n.ckpt", log_every=5)
    found = [json.loads(line)["iteration"] for line in log.read_bytes().splitlines()]
    assert found == [5, *range(15, 61, 5)]


def test_a_log_whose_only_line_was_cut_off_is_a_log(tmp_path: Path) -> None:
    (tmp_path / "n.jsonl").write_bytes(b'{"loss": 0.1, "iter')
    fit_a_line(RECIPE, checkpoint=tmp_path / "n.ckpt", log_every=30)
    assert len((tmp_path / "n.jsonl").read_text().splitlines()) == 2


def test_a_line_that_a_full_disk_cut_off_costs_no_other(tmp_path: Path) -> None:
    log = tmp_path / "n.jsonl"

    def cut(figures: dict[str, float]) -> None:
        if figures["iteration"] == 10:
            log.write_bytes(log.read_bytes()[:-9])

    fit_a_line(RECIPE, checkpoint=tmp_path / "n.ckpt", log_every=5, on_log=cut)
    assert [f["iteration"] for f in read_log(tmp_path / "n.ckpt")] == [5, *range(15, 61, 5)]


@pytest.mark.parametrize(
    "text", ["mine\n", '{"prompt": "a fox"}\n', "[1, 2]", '{"iteration": 3}\n']
)
def test_a_file_in_the_place_of_the_log_stays(tmp_path: Path, text: str) -> None:
    (tmp_path / "n.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"n\.jsonl is no log of a training"):
        fit_a_line(RECIPE, checkpoint=tmp_path / "n.ckpt")
    assert [file.name for file in tmp_path.iterdir()] == ["n.jsonl"]
    assert (tmp_path / "n.jsonl").read_text() == text


def test_no_other_process_may_train_under_the_same_name(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from shortcut.writing import locked\n"
    code += "with locked(Path(sys.argv[1]), 'a training'):\n print(1, flush=True); input()"
    file = tmp_path / "n.ckpt"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(file)],
        cwd=Path(__file__).resolve().parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None and other.stdout.readline() == "1\n"
    with pytest.raises(OSError, match=rf"n\.ckpt is in use: process {other.pid} on"):
        fit_a_line(RECIPE, checkpoint=file)
    other.communicate("\n")
    fit_a_line(RECIPE, checkpoint=file)


@pytest.mark.parametrize(
    "damage",
    [
        {"iteration": "x"},
        {"iteration": -1},
        {"iteration": 10**30},
        {"iteration": None},
        {"network": {}},
        {"network": {"weight": torch.zeros(2, 2), "bias": torch.zeros(1)}},
        {"optimizer": 5},
        {"schedule": []},
        {"sums": [1]},
        {"recipe": "[]"},
        {"recipe": "["},
        {"recipe": 5},
    ],
)
def test_a_damaged_state_is_named(tmp_path: Path, damage: dict[str, object]) -> None:
    killed_log(tmp_path)
    file = tmp_path / "n.ckpt"
    torch.save(torch.load(file, weights_only=True) | damage, file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"n\.ckpt is no checkpoint of a training, or damaged"):
        fit_a_line(RECIPE, checkpoint=file)
    assert file.read_bytes() == before
