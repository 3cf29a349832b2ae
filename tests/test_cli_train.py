"""The command `train`: a head that `generate` takes, resumed, shared out among processes, and what it refuses."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builders
import pytest
import torch
import tqdm
from PIL import Image
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.cli import train as cli_train
from shortcut_pack.shortcut.compatibility import check_head
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
TEXT_HEAD = str(ROOT / "shipped" / "scenes-lumina" / "scenes-lumina-head.safetensors")
WIDE_HEAD = str(ROOT / "shipped" / "scenes-maskgit-head.safetensors")  # of a model 256 wide
ITERATIONS = 12
HOW = ("--steps", "3,4", "--batch-size", "4", "--iterations", str(ITERATIONS))

# A process that has half written what follows iteration 6 when it is killed.
KILLED = """
import json, os, signal, sys, torch
from shortcut.__main__ import main
from shortcut.train import state_file

def die_half_way(path):
    os.truncate(path, path.stat().st_size - 20)
    os.kill(os.getpid(), signal.SIGKILL)

def save(state, path):
    write(state, path)
    if state["iteration"] == 6 and moment == "state":
        die_half_way(path)

def write_log(file, means):
    add(file, means)
    if means["iteration"] == 6 and moment == "log":
        die_half_way(state_file.log_of(file.path))

moment, *arguments = sys.argv[1:]
write, torch.save = torch.save, save
add, state_file.StateFile.write_log = state_file.StateFile.write_log, write_log
state_file.SAVE_SECONDS = 0.0  # a state after every iteration
main(arguments)
"""


@dataclass
class Place:
    """A folder with a tiny model, and the command line to train heads for it."""

    folder: Path
    capsys: Any = None

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    def arguments(self, name: str, *more: str) -> list[str]:
        out = str(self.folder / name)
        return ["train", "--model", str(self.model), "--out", out, *HOW, *more]

    def train(self, name: str, *more: str) -> Path:
        assert main(self.arguments(name, *more)) == 0
        return self.folder / name

    def error(self, name: str, *more: str) -> str:
        """What a command that fails says."""
        assert main(self.arguments(name, *more)) == 1
        return self.capsys.readouterr().err

    def tensors(self, name: str) -> dict[str, Tensor]:
        return dict(checkpoints.load(self.folder / name, kind="head").tensors)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """With one head trained: head.safetensors."""
    place = Place(tmp_path_factory.mktemp("train"))
    builders.write(place.model, builders.model(title="Tiny"))
    builders.write(place.folder / "vq.safetensors", builders.vq())
    place.train("head.safetensors")
    return place


@pytest.fixture
def place(made: Place, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(made.folder, capsys)


def test_a_trained_head_makes_pictures(place: Place) -> None:
    files = ["--model", place.model, "--vq", place.folder / "vq.safetensors"]
    head, out = place.folder / "head.safetensors", place.folder / "picture.png"
    how = ["--head", head, "--class", "1", "--steps", "4", "--full-steps", "2", "--out", out]
    assert main(["generate", *map(str, files), *map(str, how), "--json"]) == 0
    assert json.loads(place.capsys.readouterr().out)["full_steps"] == 2


def test_a_head_says_what_it_is(place: Place) -> None:
    head = checkpoints.load(place.folder / "head.safetensors", kind="head")
    base = checkpoints.load(place.model)
    assert check_head(head, base) is None
    assert head.dtype == torch.float16
    trained = head.metadata.trained
    assert trained["recipe"]["iterations"] == ITERATIONS
    assert trained["rollouts"]["steps"] == [3, 4]
    assert trained["last"]["iteration"] == ITERATIONS and trained["last"]["mse"] > 0
    assert [row["chain"] for row in trained["held_out"]["4 steps"]] == [1, 2, 3]
    assert str(place.folder) not in json.dumps(trained)


def test_the_log_and_its_chart_lie_beside_the_head(place: Place) -> None:
    lines = (place.folder / "head.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    assert [figures["iteration"] for figures in logged] == list(range(1, ITERATIONS + 1))
    assert {"loss", "mse", "guided_kl", "reuse", "seconds_per_iteration"} < logged[0].keys()
    with Image.open(place.folder / "head.png") as chart:
        assert len(chart.convert("RGB").getcolors(2**20)) > 20


def test_a_head_does_not_replace_the_one_it_starts_from(place: Place) -> None:
    head = place.folder / "head.safetensors"
    before = head.read_bytes()
    said = place.error("head.safetensors", "--start", str(head))
    assert "--out is the head of --start" in said and "Give another name" in said
    assert head.read_bytes() == before


def interrupt(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    iteration: int,
    by: signal.Signals = signal.SIGINT,
) -> None:
    """Interrupts a training after an iteration."""

    def interrupted(logs: list[Any]) -> Any:
        if logs[-1]["iteration"] == iteration:
            signal.raise_signal(by)
        return Image.new("RGB", (1, 1))

    with monkeypatch.context() as patch:
        patch.setattr(cli_train, "loss_chart", interrupted)
        assert main(place.arguments(name)) == 130
    first, said = place.capsys.readouterr().err.splitlines()
    assert first.startswith("first runs: 0/12 iterations")
    assert said.startswith("interrupted: the same command goes on from") and ".ckpt" in said
    assert not (place.folder / name).exists()


def test_an_interrupted_training_goes_on_to_the_same_file(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(place, monkeypatch, "again.safetensors", 5)
    again = place.train("again.safetensors")
    assert again.read_bytes() == (place.folder / "head.safetensors").read_bytes()
    assert place.train("other.safetensors", "--seed", "1").read_bytes() != again.read_bytes()


def test_a_training_that_is_terminated_is_kept_as_if_interrupted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    interrupt(place, monkeypatch, "ended.safetensors", 5, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert torch.load(place.folder / "ended.ckpt", weights_only=True)["iteration"] == 5


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("moment", ["state", "log"])
def test_a_training_that_was_killed_while_writing_goes_on_to_the_same_file(
    place: Place, moment: str
) -> None:
    """By SIGKILL, which leaves no time to save or to tidy up."""
    name = f"killed_{moment}.safetensors"
    process = subprocess.run(
        [sys.executable, "-c", KILLED, moment, *place.arguments(name)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    file, log = place.folder / f"killed_{moment}.ckpt", place.folder / f"killed_{moment}.jsonl"
    assert len(list(place.folder.glob(f".{file.name}.*.partial"))) == (moment == "state")
    assert log.read_text().endswith("\n") == (moment == "state")
    assert torch.load(file, weights_only=True)["iteration"] == 5
    head = place.train(name)
    assert head.read_bytes() == (place.folder / "head.safetensors").read_bytes()
    assert not list(place.folder.glob(f".{file.name}.*"))  # neither a partial file nor a lock
    logged = [json.loads(line)["iteration"] for line in log.read_text().splitlines()]
    assert logged == list(range(1, ITERATIONS + 1))


def test_a_full_disk_costs_chart_and_state_but_not_the_head(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*arguments: Any, **options: Any) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fail)
        patch.setattr(torch, "save", fail)
        head = place.train("full.safetensors")
    assert head.read_bytes() == (place.folder / "head.safetensors").read_bytes()
    assert "full.png could not be written" in caplog.text
    assert "full.ckpt could not be written" in caplog.text
    monkeypatch.setattr(cli_train.checkpoints, "save", fail)
    said = place.error("full.safetensors")
    assert "full.safetensors could not" in said and "same command again" in said


def test_two_processes_go_on_where_one_stopped(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And end, but for rounding, with the head of one process, which had batches twice as large as each of theirs."""
    interrupt(place, monkeypatch, "shared.safetensors", 3)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [sys.executable, *launcher, "-m", "shortcut", *place.arguments("shared.safetensors")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        timeout=600,
        check=True,
    )
    alone, shared = (place.tensors(f"{name}.safetensors") for name in ("head", "shared"))
    for name, tensor in alone.items():
        torch.testing.assert_close(shared[name], tensor, rtol=2e-3, atol=1e-3)
    lines = (place.folder / "shared.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    expected = (place.folder / "head.jsonl").read_text().splitlines()
    for found, line in zip(logged, expected, strict=True):
        for name in ("iteration", "loss", "mse", "reuse"):
            assert found[name] == pytest.approx(json.loads(line)[name], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--iterations", "0"], "iterations must be a whole number of at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be a whole number of at least 1, got 0"),
        (["--rollout", "0"], "--rollout must be a whole number of at least 1, got 0"),
        (["--steps", "1"], "at least 2 steps, got [1]"),
        (["--lr", "-1"], "lr must be a number above 0"),
        (["--kl", "-1"], "--kl must be a finite number of at least 0, got -1"),
        (["--replay-memory", "inf"], "--replay-memory must be a finite number of at least 0"),
        (["--blocks", "0"], "at least 1 block"),
        (["--autocast", "float16"], "Use bfloat16 or float32"),
        (["--out", "head.pth"], "expected .safetensors"),
        (["--start", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["--start", TEXT_HEAD], "does not go with a MaskGIT transformer"),
        (["--start", WIDE_HEAD], "is for a width of 256, not 32"),
        (["--start", "head.safetensors", "--kernel", "0"], "--kernel has no effect with --start"),
        (["--seed", "99999999999999999999999"], "seed must be at most"),
        (["--prompts", __file__], "prompt is not for a MaskGIT transformer. It takes label"),
        (["--tensorboard", "runs"], "pip install tensorboard"),
    ],
)
def test_what_cannot_work_is_refused_before_it_begins(
    place: Place, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert message in place.error("refused.safetensors", *options)
    assert not list(place.folder.glob("refused*"))


def test_figures_go_to_tensorboard_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, list[int]] = {}

    class Writer:
        def __init__(self, folder: str):
            assert folder == str(place.folder / "board")

        def add_scalar(self, name: str, value: float, iteration: int) -> None:
            written.setdefault(name, []).append(iteration)

        def flush(self) -> None: ...

    board = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    place.train("board.safetensors", "--tensorboard", str(place.folder / "board"))
    assert written["loss"] == written["guided_kl"] == list(range(1, ITERATIONS + 1))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("folder.safetensors", "folder.safetensors is a folder"),
        ("state.safetensors", "state.ckpt is a folder"),
        ("model.safetensors/head.safetensors", "model.safetensors is a file, not a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_before_anything_is_loaded(
    place: Place, monkeypatch: pytest.MonkeyPatch, out: str, message: str
) -> None:
    for name in ("folder.safetensors", "state.ckpt"):
        (place.folder / name).mkdir(exist_ok=True)
    monkeypatch.setattr(cli_train, "load_teacher", None)
    said = place.error(out)
    assert message in said and str(place.folder) in said


def test_a_checkpoint_of_another_model_or_plan_is_refused(place: Place) -> None:
    shutil.copy(place.folder / "head.ckpt", place.folder / "mine.ckpt")
    said = place.error("mine.safetensors", "--bottleneck", "4")
    assert "mine.ckpt was made by another recipe (head width 16, now 8" in said
    other = builders.write(place.folder / "fine.safetensors", builders.model(seed=8))
    command = place.arguments("mine.safetensors")
    assert main([*command, "--model", str(other)]) == 1
    assert "another recipe (model" in place.capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "kernel", "weight"),
    [
        ([], 7, 0.3),  # 12 iterations are few
        (["--kernel", "0", "--stepwise"], 0, 0.3),
    ],
)
def test_a_head_of_ours_is_made_unless_that_of_the_authors_is_asked_for(
    place: Place, asked: list[str], kernel: int, weight: float
) -> None:
    head = checkpoints.load(place.train(f"kind{kernel}.safetensors", *asked), kind="head")
    trained = head.metadata.trained
    assert (head.config.kernel, head.config.from_full) == (kernel, kernel > 0)
    assert trained["loss"]["guided_kl"] == weight


def test_what_to_do_about_a_loss_that_is_no_number_can_be_done(place: Place) -> None:
    said = place.error("steep.safetensors", "--lr", "1e30")
    assert "not finite in iteration" in said and "lower learning rate (now 1e+30)" in said
    assert "steep.ckpt first" in said and "Such as: --lr 5e+29 --out OTHER.safetensors" in said
    assert "another recipe" in place.error("steep.safetensors", "--lr", "1e-3")
    place.train("gentle.safetensors", "--lr", "1e-3")
    (place.folder / "steep.ckpt").rename(place.folder / "kept.ckpt")
    place.train("steep.safetensors", "--lr", "1e-3")


def test_a_head_goes_on_from_that_of_another_base(place: Place) -> None:
    base = builders.write(place.folder / "tuned.safetensors", builders.model(seed=7))
    start = ["--start", str(place.folder / "head.safetensors"), "--model", str(base)]
    out = place.train("tuned_head.safetensors", *start, "--lr", "1e-9")
    head = checkpoints.load(out, kind="head")
    assert check_head(head, checkpoints.load(base)) is None
    for name, tensor in place.tensors("head.safetensors").items():
        torch.testing.assert_close(head.tensors[name], tensor, rtol=1e-3, atol=1e-4)
    fresh = place.tensors(place.train("fresh.safetensors", "--lr", "1e-9").name)
    assert any(not torch.allclose(fresh[n], t, atol=1e-2) for n, t in head.tensors.items())


def test_a_head_of_a_text_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    folder = builders.write_text(tmp_path / "text")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red house\ntrees\nsnow\n\n")
    place = Place(folder, capsys)
    assert "give --prompts FILE" in place.error("mine.safetensors")
    (tmp_path / "long.txt").write_text("trees\n\n" + "x" * 20_000)
    said = place.error("mine.safetensors", "--prompts", str(tmp_path / "long.txt"))
    assert "long.txt, line 3: the prompt has 20000 characters" in said
    head = place.train("mine.safetensors", "--prompts", str(prompts), "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["head"] == str(head) and report["mse"] < 2 * report["reuse"]
    out = tmp_path / "picture.png"
    how = ["--prompt", "trees", "--steps", "4", "--full-steps", "2", "--out", str(out), "--json"]
    command = ["generate", "--model", str(place.model), "--head", str(head), *how]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["full_steps"] == 2


def test_the_time_left_is_without_the_first_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, shown = [0.0], io.StringIO()
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    monkeypatch.setattr(cli_train.time, "time", lambda: now[0])
    bar = tqdm.tqdm(total=5, file=shown, bar_format="{remaining}", mininterval=0, miniters=1)
    report = cli_train.Report(Namespace(out=tmp_path / "head.safetensors", tensorboard=None), bar)
    for done, seconds in enumerate((100.0, 2.0, 0.0)):  # the first iteration, the second
        report.on_iteration(done)
        now[0] += seconds
    assert shown.getvalue().split("\r")[-1].strip() == "00:06"  # three more of 2 s
