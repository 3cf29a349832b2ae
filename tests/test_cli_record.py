"""The command `record`: of classes and of prompts, refused, resumed, killed, shared out among processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import pytest
from shortcut_pack.shortcut import weights
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.cli import record as cli_record
from shortcut_pack.shortcut.train import progress
from shortcut_pack.shortcut.train.dataset import Dataset

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("red house", "blue house", "tree")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return builders.write(folder / "base.safetensors", builders.model(class_names=NAMES))


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return builders.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `record`; returns exit status, stdout, stderr."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        status = main(["record", *map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def opened(folder: Path, model: Path, grid: tuple[int, int] = (4, 4)) -> Dataset:
    return Dataset.open(folder, weights.load(model, kind="model"), grid)


def test_classes_steps_and_guidance_as_chosen(run: Run, model: Path, tmp_path: Path) -> None:
    options = ("--classes", "red house", "2", "--steps", "3,4", "--cfg", "1.5", "--seed", "2")
    sizes = ("--num", "16", "--batch-size", "4", "--json")
    status, out, error = run("--model", model, "--out", tmp_path / "d", *options, *sizes)
    assert (status, error) == (0, "")
    said = json.loads(out)
    assert (said["images"], said["files"], said["made"]) == (16, 4, 4)
    data = opened(tmp_path / "d", model)
    runs = [data.run(number) for number in range(4)]
    assert {int(c) for run in runs for c in run.conditions[0]} == {0, 2}
    assert {len(run.steps) for run in runs} == {3, 4}
    assert runs[0].steps[-1].guidance == (1.5,)
    said = run("--model", model, "--out", tmp_path / "d", *options, *sizes[:-1])[1]
    assert "16 images in 4 files" in said and "0 files made now" in said


@pytest.mark.parametrize(("num", "per_run"), [(40, 20), (32, 32), (3, 3), (37, 1)])
def test_runs_are_as_large_as_they_can_be_filled(
    run: Run,
    model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    num: int,
    per_run: int,
) -> None:
    what = ("--model", model, "--out", tmp_path / "d", "--steps", "2", "--json")
    status, out, _ = run(*what, "--num", num)
    assert status == 0
    assert ("--num 64 fills runs of 32" in caplog.text) == (per_run == 1)
    assert json.loads(out)["files"] == num // per_run
    # More images come in runs as they are there.
    added = json.loads(run(*what, "--num", 2 * num)[1])
    assert (added["files"], added["made"]) == (2 * num // per_run, num // per_run)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_prompts(run: Run, text_folder: Path, tmp_path: Path, suffix: str) -> None:
    lines = ["a red house", "", "trees"]
    if suffix == ".jsonl":
        lines = [line and json.dumps({"prompt": line, "seed": 1}) for line in lines]
    prompts = tmp_path / f"prompts{suffix}"
    prompts.write_text("\n".join(lines))
    files = ("--model", text_folder, "--prompts", prompts, "--out", tmp_path / "d")
    status, _, error = run(
        *files, "--num", "4", "--batch-size", "1", "--steps", "2", "--grid", "2x3"
    )
    assert (status, error) == (0, "")
    data = opened(tmp_path / "d", text_folder, (2, 3))
    lengths = {data.run(number).conditions[0].shape[1] for number in range(4)}
    assert len(lengths) == 2
    assert data.run(0).codes_BL.shape == (1, 6)


def test_without_a_terminal_progress_is_a_line_now_and_then(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = ("--model", model, "--out", tmp_path / "d", "--steps", "2", "--batch-size", "1")
    assert run(*what, "--num", "3")[2] == ""  # it takes less than the time to the first line
    monkeypatch.setattr(progress, "SECONDS", 1e-9)
    lines = run(*what, "--num", "6")[2].splitlines()
    assert [line.split(",")[0] for line in lines[:3]] == ["1/3 runs", "2/3 runs", "3/3 runs"]
    assert all(line.endswith(" left") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--num", "5", "--batch-size", "4"),
            "5 images do not fill whole runs of 4. Record 4 or 8, or give another --batch-size",
        ),
        (("--num", "0"), "--num must be at least 1, got 0."),
        (("--num", "-3"), "--num must be at least 1, got -3."),
        (("--num", "4", "--batch-size", "0"), "--batch-size must be at least 1, got 0."),
        (("--num", "4", "--seed", "-1"), "--seed must be at least 0, got -1"),
        (("--num", "4", "--steps", "0"), "steps must be at least 1"),
        (("--num", "4", "--cfg", "-1"), "cfg must be"),
        (("--num", "4", "--grid", "5x4"), "4 x 4 codes only, got 5 x 4"),
        (("--num", "4", "--classes", "house"), "2 classes are called 'house'"),
        (("--num", "4", "--prompts", "PROMPTS"), "knows no prompts"),
        (("--num", "4", "--size-limit", "0"), "and the limit is 0 GB"),
        (("--num", "416", "--size-limit", "1e-4"), "GB, and the limit is 0.0001 GB. "),
        (("--num", "4", "--device", "nowhere"), "device 'nowhere' cannot be used"),
    ],
)
def test_what_is_refused(
    run: Run, model: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "PROMPTS").write_text("a\n")
    given = [str(tmp_path / a) if a == "PROMPTS" else a for a in arguments]
    status, _, error = run("--model", model, "--out", tmp_path / "d", *given)
    assert status == 1 and message in error
    assert not (tmp_path / "d").exists()


def test_a_place_that_cannot_be_written_is_named_before_anything_is_loaded(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_record, "load_teacher", None)
    (tmp_path / "taken").touch()
    for out in (tmp_path / "taken", tmp_path / "taken" / "data"):
        status, _, error = run("--model", model, "--out", out, "--num", "4")
        assert status == 1 and f"{tmp_path / 'taken'} is a file, not a folder" in error


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (None, "", "a text model needs prompts"),
        ("a.txt", "\n \n", "a.txt has no prompts"),
        ("a.jsonl", '{"text": "a"}', "is not JSON with a"),
        ("a.jsonl", "a", "is not JSON with a"),
    ],
)
def test_prompts_that_cannot_be_used(
    run: Run, text_folder: Path, tmp_path: Path, name: str | None, text: str, message: str
) -> None:
    options = []
    if name is not None:
        (tmp_path / name).write_text(text)
        options = ["--prompts", tmp_path / name]
    status, _, error = run("--model", text_folder, "--out", tmp_path / "d", "--num", "2", *options)
    assert status == 1 and message in error


@pytest.mark.parametrize("text", ["5", "5x", "0x4", "4x4x4"])
def test_a_grid_that_is_none(run: Run, tmp_path: Path, text: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--out", tmp_path / "d", "--num", "2", "--grid", text)
    assert ended.value.code == 2


def command(model: Path, folder: Path, *arguments: str) -> list[str]:
    options = ("--num-images", "12", "--batch-size", "2", "--steps", "3")
    return ["record", "--model", str(model), "--out", str(folder), *options, *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_two_processes_share_the_runs(model: Path, tmp_path: Path) -> None:
    main(command(model, tmp_path / "alone"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "shortcut", *command(model, tmp_path / "two", "--json")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["made"] == 6
    assert files(tmp_path / "two") == files(tmp_path / "alone")
    for folder in ("two", "alone"):  # which one process goes on with
        main([*command(model, tmp_path / folder), "--num", "16"])
    assert files(tmp_path / "two") == files(tmp_path / "alone")


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_process_that_was_killed_is_resumed(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    # More than it will get to, so that it is killed at its work.
    arguments = [*command(model, folder), "--num", "4000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "shortcut", *arguments], cwd=ROOT, env=environment()
    )
    try:
        deadline = time.monotonic() + 240
        while not list(folder.glob("shard-*")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    made = len(list(folder.glob("shard-*")))
    assert made > 0
    main([*command(model, folder), "--num", str(2 * made + 4)])
    main([*command(model, tmp_path / "alone"), "--num", str(2 * made + 4)])
    assert files(folder) == files(tmp_path / "alone")
