"""The command line where the answer has a text: questions about a picture, and edits with reasoning."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from shortcut_pack.shortcut import shipped
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.models.lumina_dimoo import transformer as lumina
from shortcut_pack.shortcut.models.lumina_dimoo.tokenizer import copy_tokenizer
from test_cli_text import mask, picture
from test_lumina_prompts import real_words, save_tokenizer, tags_of

Run = Callable[..., tuple[int, str, str]]
QUESTION = ("--task", "understand", "--prompt", "what is it", "--image", "picture.png")
EDIT = ("--task", "reasoned_edit", "--prompt", "make it night", "--image", "picture.png")
QUICK = ("--max-tokens", "12", "--text-steps", "6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("answers")
    for name, model in (
        ("mmada", builders.answering_model()),
        ("lumina", builders.answering_model(lumina.LAYOUT)),
        ("bare", builders.text_model()),
    ):
        copy_tokenizer(shipped.TEXT_FOLDER, builders.write(folder / f"{name}.safetensors", model))
    builders.write(folder / "alone.safetensors", builders.answering_model())
    builders.write(folder / "vq.safetensors", builders.vq())
    builders.write(folder / "classes.safetensors", builders.model())
    picture(folder / "picture.png", 12, 8)
    mask(folder / "mask.png", 12, 8, (0, 0, 5, 4))
    return folder


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `generate`; returns exit status, stdout and stderr. Names of pictures are those of `folder`."""

    def call(*arguments: str, model: str = "mmada") -> tuple[int, str, str]:
        files = ["--model", str(folder / f"{model}.safetensors")]
        files += ["--vq", str(folder / "vq.safetensors")]
        given = [str(folder / a) if a.endswith(".png") and "/" not in a else a for a in arguments]
        status = main(["generate", *files, *given])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def test_the_blocks_of_an_answer_are_compiled_too(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda block: compiled.append(block) or block)
    plain, by_compiler = run(*QUESTION, *QUICK), run(*QUESTION, *QUICK, "--compile")
    assert plain == by_compiler and plain[0] == 0 and compiled


@pytest.mark.parametrize("model", ["lumina", "mmada"])
def test_a_question_is_answered_on_stdout(run: Run, model: str) -> None:
    status, out, error = run(*QUESTION, *QUICK, model=model)
    assert (status, error) == (0, "") and len(out.split()) > 3
    assert run(*QUESTION, *QUICK, model=model)[1] == out
    other = list(QUESTION)
    other[3] = "which sky is it"
    assert run(*other, *QUICK, model=model)[1] != out, "the question counts"


def test_an_answer_as_json(run: Run) -> None:
    status, out, _ = run(*QUESTION, *QUICK, "--block-length", "4", "--json", "--seed", "7")
    told = json.loads(out)
    assert status == 0 and len(told["texts"]) == 1
    assert (told["steps"], told["seed"]) == (6, 7) and told["seconds"] > 0


def test_an_edit_says_why_and_its_picture_holds_that(run: Run, tmp_path: Path) -> None:
    out, tokens = tmp_path / "a.png", tmp_path / "a.safetensors"
    more = ("--out", str(out), "--save-tokens", str(tokens), "--steps", "4", "--cfg", "1.5")
    size = ("--width", "10", "--height", "6")
    status, said, error = run(*EDIT, *QUICK, *more, *size, "--batch-size", "2", "--json")
    assert (status, error) == (0, "")
    texts = json.loads(said)["texts"]
    assert len(texts) == 2 and all(texts)
    codes = load_file(tokens)["codes"]
    assert codes.shape == (2, 3, 5) and codes.min() >= 0 and codes.max() < 16
    for i in range(2):
        with Image.open(tmp_path / f"a-{i}.png") as image:
            inside = json.loads(image.info["shortcut"])
            assert image.size == (10, 6)
        assert inside["texts"] == texts
        assert (inside["task"], inside["prompt"]) == ("reasoned_edit", "make it night")
        assert (inside["guidance"], inside["image_steps"]) == ([1.5, 4.0], 4)


def test_a_text_is_printed_as_it_is(run: Run, tmp_path: Path) -> None:
    more = ("--out", str(tmp_path / "a.png"), "--steps", "2")
    texts = json.loads(run(*EDIT, *QUICK, *more, "--json")[1])["texts"]
    assert run(*EDIT, *QUICK, *more)[1] == texts[0] + "\n"


def test_the_plain_edit_of_the_same_model_has_no_text(run: Run, tmp_path: Path) -> None:
    plain = ["edit" if a == "reasoned_edit" else a for a in EDIT]
    status, out, error = run(*plain, "--out", str(tmp_path / "a.png"), "--steps", "3")
    assert (status, out, error) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "model", "message"),
    [
        (QUESTION[:4], "mmada", "the task 'understand' starts from a picture. Add --image"),
        (QUESTION[:2] + QUESTION[4:], "mmada", "the task 'understand' needs --prompt TEXT"),
        (QUESTION, "bare", "bare.safetensors makes images only: the part of its weights that"),
        (QUESTION, "classes", "is not for a MaskGIT"),
        (QUESTION, "alone", "alone.safetensors has no tokenizer: there is no tokenizer.json in"),
        (QUESTION, "absent", "absent.safetensors"),
        ((*QUESTION, "--prompt", "a " * 1100), "mmada", "expected at most 1024"),
        ((*QUESTION, "--out", "/tmp/a.png"), "mmada", "--out has no effect with --task understand"),
        ((*QUESTION, "--cfg", "3"), "mmada", "--cfg has no effect with --task understand"),
        ((*QUESTION, "--max-tokens", "0"), "mmada", "max tokens must be a whole number of at"),
        ((*QUESTION, "--text-steps", "999999"), "mmada", "text steps must be at most"),
        ((*QUESTION, "--seed", "-1"), "mmada", "seed must be a whole number"),
        ((*QUESTION, "--mask", "mask.png"), "mmada", "--mask has no effect"),
        (EDIT, "mmada", "nothing says where to write. Add --out FILE.png"),
        ((*EDIT, "--negative", "a"), "mmada", "--negative has no effect with --task reasoned_edit"),
        ((*EDIT, "--prompts", "a.jsonl"), "mmada", "--prompts has no effect"),
        (("--prompt", "a", "--max-tokens", "5"), "mmada", "--max-tokens is for --task understand"),
    ],
)
def test_what_does_not_fit_is_said(run: Run, arguments: Any, model: str, message: str) -> None:
    status, out, error = run(*arguments, model=model)
    assert status == 1 and out == ""
    assert message in error


@pytest.mark.parametrize(
    ("more", "model", "message"),
    [
        ((), "lumina", "does not know the task 'reasoned_edit'. It knows text_to_image, edit"),
        (("--steps", "300"), "mmada", "image steps must be at most 128, got 300"),
        (("--width", "11", "--height", "8"), "mmada", "does not fit the codes of 2 x 2 pixels"),
        (("--text-temperature", "-1"), "mmada", "text temperature must be"),
    ],
)
def test_an_edit_that_cannot_be_is_refused(
    run: Run, tmp_path: Path, more: Any, model: str, message: str
) -> None:
    status, _, error = run(*EDIT, "--out", str(tmp_path / "a.png"), *more, model=model)
    assert status == 1 and not (tmp_path / "a.png").exists()
    assert message in error


def test_a_folder_as_published_with_the_real_vocabulary(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = tmp_path / "published"
    config = builders.published_text(published)
    (published / "README.md").write_text("# MMaDA-Parallel-A")
    words = real_words()
    words |= {f"word{i}": i for i in range(1, 126_000) if i not in words.values()}
    save_tokenizer(published, words, tags_of(config))
    command = ["generate", "--model", str(published), "--image", str(folder / "picture.png")]
    command += ["--prompt", "an image", "--max-tokens", "40", "--text-steps", "4"]
    assert main([*command, "--task", "understand"]) == 0
    assert "word" in capsys.readouterr().out
    out = str(tmp_path / "a.png")
    command += ["--task", "reasoned_edit", "--steps", "2", "--out", out, "--json"]
    assert main(command) == 0
    assert "word" in json.loads(capsys.readouterr().out)["texts"][0]


def test_a_file_of_prompts_has_no_place_for_texts(run: Run, tmp_path: Path, folder: Path) -> None:
    lines = tmp_path / "a.jsonl"
    image = str(folder / "picture.png")
    lines.write_text(json.dumps({"prompt": "what", "task": "understand", "image": image}))
    status, _, error = run("--prompts", str(lines), "--out-dir", str(tmp_path / "out"))
    assert status == 1 and "has a text for an answer, which --prompts has no place for" in error
