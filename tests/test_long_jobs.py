"""What a long job must not cost: files of others, and work that ends without a place or without a word."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import builders
import pytest
from PIL import Image
from shortcut_pack.shortcut import shipped
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.cli import train
from shortcut_pack.shortcut.cli.train_options import read_prompts
from shortcut_pack.shortcut.writing import locked

ROOT = Path(__file__).resolve().parents[1]
HOW = ("--steps", "2", "--rollout", "1", "--batch-size", "1", "--iterations", "1")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return builders.write(tmp_path / "models" / "model.safetensors", builders.model())


def run_train(model: Path, out: Path) -> int:
    return main(["train", "--model", str(model), "--out", str(out), *HOW])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("n.png", "no chart of a training"),
        ("n.jsonl", "no log of a training"),
        ("n.safetensors", "no head of ours"),
        ("n.ckpt", "no checkpoint of a training"),
        (".n.ckpt.lock", "no lock"),
    ],
)
def test_a_training_refuses_to_overwrite_what_it_did_not_write(
    model: Path, tmp_path: Path, capsys: Any, name: str, said: str
) -> None:
    others = [tmp_path / other for other in (name, "n.partial", "n.md", ".n.ckpt.partial")]
    for other in others:
        other.write_text("mine\n")
    assert run_train(model, tmp_path / "n.safetensors") == 1
    error = capsys.readouterr().err
    assert name in error and said in error
    assert set(tmp_path.iterdir()) == {*others, model.parent}
    assert all(other.read_text() == "mine\n" for other in others)


def test_neither_a_picture_nor_a_model_is_overwritten(
    model: Path, tmp_path: Path, capsys: Any
) -> None:
    before = model.read_bytes()
    assert run_train(model, model) == 1 and model.read_bytes() == before
    Image.new("RGB", (2, 2)).save(tmp_path / "n.png")
    assert run_train(model, tmp_path / "n.safetensors") == 1
    assert "n.png is no chart" in capsys.readouterr().err


def test_its_own_files_are_taken_again_and_others_stay(model: Path, tmp_path: Path) -> None:
    (tmp_path / "n.partial").write_text("mine")
    out = tmp_path / "n.safetensors"
    assert run_train(model, out) == 0
    head = out.read_bytes()
    (tmp_path / "n.ckpt").unlink()
    assert run_train(model, out) == 0 and out.read_bytes() == head
    names = {"n.safetensors", "n.ckpt", "n.jsonl", "n.png", "n.partial", "models"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_second_training_is_told_before_anything_is_loaded(
    model: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; from pathlib import Path; from shortcut.writing import locked\n"
    code += "with locked(Path(sys.argv[1]), 'a training'):\n print(1, flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "n.ckpt")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None and other.stdout.readline() == "1\n"
    monkeypatch.setattr(train, "load_teacher", pytest.fail)
    assert run_train(model, tmp_path / "n.safetensors") == 1
    assert f"n.ckpt is in use: process {other.pid} on" in capsys.readouterr().err
    other.communicate("\n")
    with locked(tmp_path / "n.ckpt", ""):
        pass


def test_prompts_of_a_training_in_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("caf\u00e9\n\na\u2028b\n", encoding="utf-16")
    assert list(read_prompts(path).values()) == ["caf\u00e9", "a\u2028b"]
    path.write_bytes(b"one\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"prompts\.txt, line 2: byte 0xe9 is not UTF-8"):
        read_prompts(path)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437"])
@pytest.mark.parametrize("name", ["Kopf-\u96ea", "a\u0301\U0001f98a"])
def test_a_console_that_cannot_show_a_name(tmp_path: Path, encoding: str, name: str) -> None:
    file = tmp_path / f"{name}.safetensors"
    shutil.copyfile(shipped.HEAD, file)
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for path, status in ((file, 0), (tmp_path / f"no {name}", 1)):
        done = subprocess.run(
            [sys.executable, "-m", "shortcut", "info", str(path)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == status and b"Traceback" not in said
        assert name.encode("ascii", "backslashreplace")[-6:] in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "con.png"), "device"),
        (("--out", "a:b.png"), "has ':'"),
        (("--out", "new?/a.png"), "has '?'"),
        (("--out", "a.png", "--save-tokens", "a.png"), "the same file"),
        (("--out", "a" * 250 + ".png", "--batch-size", "11"), "more than 255"),
        (("--out", "a.png", "--save-tokens", os.devnull), "is a device or a pipe"),
    ],
)
def test_names_are_tried_before_the_work(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, arguments: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shortcut_pack.shortcut.cli.generate.load_pipeline", pytest.fail)
    assert main(["generate", *arguments]) == 1
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_picture_with_the_longest_name(tmp_path: Path) -> None:
    out = tmp_path / ("a" * 251 + ".png")
    assert main(["generate", "--class", "3", "--steps", "2", "--out", str(out)]) == 0
    assert list(tmp_path.iterdir()) == [out]
