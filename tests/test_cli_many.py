"""A file of prompts: a picture for each line, resumed, shared out among processes, whatever becomes of single lines."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.cli import batch, texts
from shortcut_pack.shortcut.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return builders.write_text(tmp_path_factory.mktemp("text"))


def command(folder: Path, tmp_path: Path, lines: list[Any], *arguments: str) -> list[str]:
    """The arguments of `generate` for these lines: objects, or text as it stands."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (tmp_path / "prompts.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    files = ["--model", str(folder), "--prompts", str(tmp_path / "prompts.jsonl")]
    return [
        *("generate", *files, "--out-dir", str(tmp_path / "out")),
        *("--steps", "3", "--json", *arguments),
    ]


@pytest.fixture
def run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the lines; returns exit status, what the JSON line says, stderr."""

    def call(lines: list[Any], *arguments: str):
        status = main(command(folder, tmp_path, lines, *arguments))
        said = capsys.readouterr()
        return status, json.loads(said.out or "{}"), said.err

    return call


def files(tmp_path: Path) -> dict[str, bytes]:
    """What is in the folder of pictures."""
    return {path.name: path.read_bytes() for path in sorted((tmp_path / "out").glob("*"))}


def inside(tmp_path: Path, name: str) -> dict[str, Any]:
    """The settings in a picture."""
    with Image.open(tmp_path / "out" / name) as image:
        return {**json.loads(image.info["shortcut"]), "size": image.size}


THREE: list[Any] = [
    {"prompt": "a red house"},
    {"prompt": "trees", "negative": "snow", "seed": 7, "width": 12, "name": "trees"},
    "",
    {"prompt": "", "cfg": 0, "temperature": 0.5},
]


def test_a_picture_for_each_line_with_its_settings(run: Run, tmp_path: Path) -> None:
    status, outcome, error = run(THREE, "--seed", "3")
    assert (status, error) == (0, "")
    assert outcome == {"made": [1, 2, 4], "skipped": [], "failed": {}}
    assert list(files(tmp_path)) == ["00001.png", "00004.png", "trees.png"]
    first, trees = inside(tmp_path, "00001.png"), inside(tmp_path, "trees.png")
    assert (first["prompt"], first["seed"], first["size"]) == ("a red house", 3, (8, 8))
    assert (trees["negative"], trees["seed"], trees["size"]) == ("snow", 7, (12, 8))
    last = inside(tmp_path, "00004.png")
    assert (last["guidance"], last["temperature"]) == ([], 0.5)


def test_a_line_makes_what_the_options_alone_make(run: Run, folder: Path, tmp_path: Path) -> None:
    run(THREE)
    alone = tmp_path / "alone.png"
    options = ("--prompt", "trees", "--negative", "snow", "--seed", "7", "--width", "12")
    main(["generate", "--model", str(folder), *options, "--steps", "3", "--out", str(alone)])
    assert alone.read_bytes() == files(tmp_path)["trees.png"]


def test_each_line_may_have_an_accelerator_of_its_own(run: Run, tmp_path: Path) -> None:
    names = ("partial", "ml-cache", "partial+head", "taylor")
    lines = [
        {"prompt": "a red house", "name": name, "accelerator": name, "full_steps": 2}
        for name in names
    ]
    status, outcome, error = run([*lines, {"prompt": "a red house", "name": "usual"}])
    assert status == 1 and outcome["made"] == [1, 2, 4, 5]
    assert "line 3: the accelerator partial+head needs a shortcut head" in error
    assert inside(tmp_path, "usual.png").get("accelerator") is None
    for name in ("partial", "ml-cache", "taylor"):
        assert inside(tmp_path, f"{name}.png")["accelerator"] == name
    assert run(lines[:2])[1]["skipped"] == [1, 2]
    changed = [{**lines[0], "accelerator": "reuse"}]
    assert "settings" in run(changed)[2]


def test_a_list_of_one_full_step_is_a_list(run: Run, tmp_path: Path) -> None:
    """It says which step is full, as longer ones do, not how many."""
    line = {"prompt": "a red house", "accelerator": "reuse"}
    status, outcome, error = run([{**line, "full_steps": [0]}, {**line, "full_steps": [2]}])
    assert status == 1 and outcome["made"] == [1]
    assert inside(tmp_path, "00001.png")["full_steps"] == [0]
    assert "line 2: the list of full steps must contain 0" in error


def test_what_is_finished_is_not_made_again(run: Run, tmp_path: Path) -> None:
    run(THREE)
    made = files(tmp_path)
    (tmp_path / "out" / "trees.png").unlink()
    status, outcome, _ = run(THREE)
    assert status == 0 and outcome == {"made": [2], "skipped": [1, 4], "failed": {}}
    assert files(tmp_path) == made


def test_pictures_of_other_settings_are_not_taken_for_finished(run: Run, tmp_path: Path) -> None:
    run(THREE)
    made = files(tmp_path)
    (tmp_path / "out" / "trees.png").write_text("cut off")
    status, outcome, error = run([{"prompt": "a blue house"}, *THREE[1:]])
    assert status == 1 and outcome["skipped"] == [4]
    Image.new("RGB", (8, 8)).save(tmp_path / "out" / "00004.png")  # somebody else's, cut off
    theirs = (tmp_path / "out" / "00004.png").read_bytes()[:-20] + b"more"
    (tmp_path / "out" / "00004.png").write_bytes(theirs)
    assert "it has none of ours" in run(THREE)[1]["failed"]["4"]
    assert (tmp_path / "out" / "00004.png").read_bytes() == theirs
    assert "00001.png is there and was made with other settings" in outcome["failed"]["1"]
    assert "trees.png is there and was made with other settings" in outcome["failed"]["2"]
    assert "error: 2 of 3 lines failed" in error
    assert files(tmp_path)["00001.png"] == made["00001.png"]


@pytest.mark.parametrize(("spread", "is_same"), [(0, True), (1, False)])
def test_pictures_of_earlier_versions_are_finished_unless_they_were_spread(
    run: Run, tmp_path: Path, spread: int, is_same: bool
) -> None:
    run(THREE[:1])
    about = {**inside(tmp_path, "00001.png"), "spread": spread}
    del about["size"]
    chunks = PngInfo()
    chunks.add_text("shortcut", json.dumps(about))
    with Image.open(tmp_path / "out" / "00001.png") as picture:
        picture.save(tmp_path / "out" / "00001.png", pnginfo=chunks)
    _, outcome, error = run(THREE[:1])
    assert outcome["skipped"] == ([1] if is_same else [])
    assert is_same or "other settings (spread)" in error


def test_several_images_of_a_line(run: Run, tmp_path: Path) -> None:
    run(THREE[1:2], "--batch-size", "2")
    made = files(tmp_path)
    assert list(made) == ["trees-0.png", "trees-1.png"]
    (tmp_path / "out" / "trees-1.png").unlink()
    assert run(THREE[1:2], "--batch-size", "2")[1]["made"] == [1]
    assert files(tmp_path) == made


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "it is not JSON"),
        ('["a"]', "expected a JSON object with a prompt"),
        (
            {"prompt": "a", "colour": "red"},
            "it has 'colour', which is no option. Known are: name, class, prompt,",
        ),
        ({"prompt": "a", "model": "x"}, "it has 'model', which is no option"),
        ({"prompt": "a", "width": "wide"}, "argument --width: invalid int value: 'wide'"),
        ({"prompt": "a", "batch-size": 10**9}, "batch size must be at most 4096"),
        ({"prompt": "a", "batch-size": 1, "batch_size": 2}, "it says an option twice"),
        ('{"prompt": "a", "seed": 1e999}', "the number 1e999 is too large"),
        ('{"prompt": "a", "cfg": 1' + "0" * 400 + "}", "has 401 digits"),
        ('{"prompt": ' + "[" * 99 + "]" * 99 + "}", "nested too deeply"),
        ({"prompt": "a", "preset": "\x1b" * 9999}, "--preset: invalid choice: '\\x1b\\x1b"),
        ({"prompt": "a", "width": True}, "its width is True, expected a text, a number"),
        ({"prompt": "a", "width": 9}, "The nearest sizes are 8 or 10 wide and 8 high"),
        ({"prompt": "a", "name": "../a"}, "its name is '../a', expected that of a file"),
        ({"prompt": "a", "name": "good"}, "a line above it has the name 'good' too"),
        ({"prompt": "a", "task": "edit"}, "Add --image PICTURE"),
        ({"seed": 1}, "needs --prompt TEXT"),
        ({"prompt": "a", "class": 1}, "--class is not for a Lumina-DiMOO"),
        ({"prompt": "a", "steps": 0}, "steps must be a whole number of at least 1, got 0"),
        (
            {"prompt": "a \ud800"},
            "the prompt has '\\ud800' at place 2, which is half of a character",
        ),
    ],
)
def test_a_line_that_fails_does_not_stop_the_others(
    run: Run, tmp_path: Path, line: Any, message: str
) -> None:
    good = {"prompt": "trees", "name": "good"}
    status, outcome, error = run(
        [good, line, {"prompt": "-x", "outpaint": [2, 0, 0, 0]}, good | {"name": "last"}]
    )
    assert status == 1
    assert outcome["made"] == [1, 4] and message in outcome["failed"]["2"]
    assert "needs the picture to change" in outcome["failed"]["3"]
    assert len(outcome["failed"]["2"]) < 2000 and "\x1b" not in error
    assert f"line 2: {outcome['failed']['2']}" in error and "error: 2 of 4 lines failed" in error
    assert list(files(tmp_path)) == ["good.png", "last.png"]


@pytest.mark.parametrize(
    ("failure", "message"),
    [(RuntimeError("no memory"), "no memory"), (KeyError("bug"), "KeyError: 'bug'")],
)
def test_whatever_fails_is_the_failure_of_its_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, failure: Exception, message: str
) -> None:
    from shortcut_pack.shortcut.models.lumina_dimoo.transformer import OnGrid

    features, calls = OnGrid.features, []

    def exhausted(self: OnGrid, *arguments: Any):
        calls.append(1)
        if len(calls) == 1:
            raise failure
        return features(self, *arguments)

    monkeypatch.setattr(OnGrid, "features", exhausted)
    status, outcome, _ = run(THREE)
    assert status == 1 and outcome["made"] == [2, 4] and outcome["failed"] == {"1": message}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "a.png"), "--out does not go with --prompts"),
        (("--save-tokens", "a.safetensors"), "--save-tokens does not go with --prompts"),
    ],
)
def test_options_of_one_picture(run: Run, arguments: tuple[str, ...], message: str) -> None:
    status, _, error = run(THREE, *arguments)
    assert status == 1 and message in error


def source_line(tmp_path: Path, colour: str, folder: str = "sources") -> dict[str, Any]:
    """A line that changes a picture."""
    (tmp_path / folder).mkdir(exist_ok=True)
    for name, mode, fill in (("a.png", "RGB", colour), ("m.png", "L", "white")):
        Image.new(mode, (8, 8), fill).save(tmp_path / folder / name)
    picture, mask = (str(tmp_path / folder / name) for name in ("a.png", "m.png"))
    return {"prompt": "a", "image": picture, "mask": mask, "name": "x"}


def test_another_source_picture_is_another_picture(run: Run, tmp_path: Path) -> None:
    line = source_line(tmp_path, "red")
    assert run([line])[1]["made"] == [1]
    assert run([line])[1]["skipped"] == [1]
    # The same picture elsewhere is the same.
    assert run([source_line(tmp_path, "red", "moved")])[1]["skipped"] == [1]
    source_line(tmp_path, "blue")
    assert "other settings (image_sha256)" in run([line])[1]["failed"]["1"]
    source_line(tmp_path, "red")
    Image.new("L", (8, 8), 200).save(line["mask"])
    assert "other settings (mask_sha256)" in run([line])[1]["failed"]["1"]


def test_settings_hold_names_and_no_folders(run: Run, tmp_path: Path) -> None:
    run([source_line(tmp_path, "red")])
    about = inside(tmp_path, "x.png")
    assert (about["image"], about["mask"], about["index"]) == ("a.png", "m.png", 0)
    assert about["vq"] and about["vq_fingerprint"] and about["model_fingerprint"]
    assert str(tmp_path) not in json.dumps(about) and "/" not in json.dumps(about)


@pytest.mark.parametrize("kind", ["model", "vq"])
def test_other_weights_make_other_pictures(
    folder: Path, run: Run, tmp_path: Path, kind: str
) -> None:
    """Even if one value differs, whose sign is the same: the fingerprint does not see that."""
    run(THREE[:1])
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    file = checkpoints.load(copy, kind=kind)
    name, last = list(file.tensors.items())[-1]
    changed = last.clone()
    changed.view(-1)[-1] = changed.view(-1)[-1] * 1.5 + 1
    assert file.path is not None
    checkpoints.save(file.path, replace(file, tensors={**file.tensors, name: changed}))
    status, outcome, error = run(THREE[:1], "--model", str(copy))
    assert status == 1 and outcome, error
    failed = outcome["failed"]
    assert "other settings" in failed["1"] and "weights" in failed["1"]


@pytest.mark.parametrize("kept", [0, 5, 30, -1, -12, -40, "zeros", "bit", "more"])
def test_a_picture_that_is_not_whole_is_made_anew(run: Run, tmp_path: Path, kept: Any) -> None:
    run(THREE)
    made, path = files(tmp_path), tmp_path / "out" / "trees.png"
    content = bytearray(path.read_bytes())
    if kept == "bit":
        content[content.index(b"IDAT") + 6] ^= 1
    elif kept == "zeros":
        content = bytearray(len(content))
    else:
        content = content + b"x" if kept == "more" else content[:kept]
    path.write_bytes(content)
    assert run(THREE)[1] == {"made": [2], "skipped": [1, 4], "failed": {}}
    assert files(tmp_path) == made


@pytest.mark.parametrize(
    "name", ["..\\a", "C:x", "a:b", "con", "con.b", "COM1", "a\tb", "a" * 252, "a\ud800"]
)
def test_a_name_that_some_system_cannot_hold_costs_its_line(run: Run, name: str) -> None:
    status, outcome, _ = run([{"prompt": "a", "name": name}, *THREE])
    assert status == 1 and list(outcome["failed"]) == ["1"] and "name" in outcome["failed"]["1"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"name": "Fox"}, {"name": "fox"}),
        ({"name": "\u00e9"}, {"name": "e\u0301"}),
        ({"name": "x", "batch_size": 2}, {"name": "x-0"}),
        ({"name": "00002"}, {}),
    ],
)
def test_two_lines_never_write_one_file(run: Run, first: Any, second: Any) -> None:
    outcome = run([{"prompt": "a", **first}, {"prompt": "b", **second}])[1]
    assert outcome["made"] == [1] and "a line above it" in outcome["failed"]["2"]


def test_lines_as_pandas_writes_them(run: Run, tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "seed": 5.0, "negative": None, "width": 12.0, "name": 7.0, "cfg": 3.0},
        {"prompt": "a", "seed": 5, "width": 12, "name": None, "cfg": 3, "outpaint": None},
        '{"prompt": "a", "seed": 5, "width": 12, "cfg": 3, "negative": NaN, "name": "nan"}',
    ]
    assert run(lines)[1]["made"] == [1, 2, 3]
    made = files(tmp_path)
    assert len(made) == 3 and made["7.png"] == made["00002.png"] == made["nan.png"]
    failed = run([{"prompt": "a", "seed": 5.5}, {"prompt": None}])[1]["failed"]
    assert "invalid int value: '5.5'" in failed["1"] and "needs --prompt" in failed["2"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_are_read(run: Run, tmp_path: Path, encoding: str) -> None:
    run([])
    text = json.dumps({"prompt": "caf\u00e9"}, ensure_ascii=False) + "\r\n"
    (tmp_path / "prompts.jsonl").write_bytes((text * 2).encode(encoding))
    assert texts.read_lines(tmp_path / "prompts.jsonl") == [text.strip(), text.strip(), ""]


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("latin-1", "line 2: byte 0xe9 is not UTF-8. Save it as UTF-8."),
        ("utf-32", "UTF-32"),
        ("utf-16-le", "line 1: it holds a zero byte"),
    ],
)
def test_encodings_that_are_refused(
    folder: Path, tmp_path: Path, capsys: Any, encoding: str, message: str
) -> None:
    arguments = command(folder, tmp_path, [])
    text = '{"prompt": "a"}\n{"prompt": "caf\u00e9"}\n'
    (tmp_path / "prompts.jsonl").write_bytes(text.encode(encoding))
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "prompts.jsonl" in said and message in said and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").write_text("no folder")
    monkeypatch.setattr(batch, "load_pipeline", pytest.fail)
    status, outcome, error = run(THREE)
    assert status == 1 and outcome == {} and "out is a file, not a folder" in error


def test_a_disk_that_fills_up_costs_no_more_pictures(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, full = [], OSError(errno.ENOSPC, "No space left on device")
    decode, check = Pipeline.decode, batch.check_writable

    def decode_and_fill(pipeline: Pipeline, codes: Any) -> Any:
        decoded.append(1)
        return decode(pipeline, codes)

    def checked(path: Path) -> None:
        if decoded:
            raise full
        check(path)

    monkeypatch.setattr(Pipeline, "decode", decode_and_fill)
    monkeypatch.setattr(batch, "check_writable", checked)
    outcome = run(THREE)[1]
    assert outcome["made"] == [1] and list(outcome["failed"]) == ["2", "4"] and len(decoded) == 1


def test_lines_end_where_json_lines_end(run: Run, tmp_path: Path) -> None:
    text = "a\u2028red\x85house"
    status, outcome, _ = run(["\ufeff" + json.dumps({"prompt": text}, ensure_ascii=False), *THREE])
    assert status == 0 and outcome["made"] == [1, 2, 3, 5]
    assert inside(tmp_path, "00001.png")["prompt"] == text


def test_an_empty_file(run: Run) -> None:
    status, _, error = run(["", ""])
    assert status == 1 and "prompts.jsonl has no lines" in error


def test_two_processes_share_the_lines(folder: Path, tmp_path: Path) -> None:
    lines = [*THREE, {"prompt": "a", "width": 9}, {"prompt": "hills", "name": "hills"}]
    arguments = command(folder, tmp_path, lines)
    main(arguments)
    alone = files(tmp_path)
    for path in (tmp_path / "out").glob("*"):
        path.unlink()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "shortcut", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("error: 1 of 5 lines failed") == 1, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["made"] == [1, 2, 4, 6] and list(outcome["failed"]) == ["5"]
    assert files(tmp_path) == alone
