"""The command line: what a user types and gets, on a tiny model with random weights."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import tqdm
from PIL import Image
from safetensors.torch import load_file
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import shipped
from shortcut_pack.shortcut.__main__ import COMMANDS, main
from shortcut_pack.shortcut.cli.generate import progress
from shortcut_pack.shortcut.cli.requests import shipped_for
from shortcut_pack.shortcut.models.maskgit import head as head_file
from shortcut_pack.shortcut.models.maskgit import transformer as maskgit
from shortcut_pack.shortcut.models.maskgit import vqgan as maskgit_vqgan
from shortcut_pack.shortcut.models.token_head import TokenHead
from shortcut_pack.shortcut.pipeline import Pipeline

SIDE, CODES, CLASSES = 4, 16, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, its VQGAN and its head, all with random weights."""
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = maskgit.MaskGIT(maskgit.Config(SIDE, 32, 2, 2, 64, CODES, CLASSES))
        vq = maskgit_vqgan.VQGAN(maskgit_vqgan.Config(32, (1, 1), 1, (), 32, 8, CODES))
        head = TokenHead(
            head_file.Config(model_width=32, width=16, num_blocks=1, num_heads=2, has_time=True)
        )
    packed = checkpoints.pack(model, maskgit.LAYOUT, class_names=("red", "green", "dark blue"))
    checkpoints.save(folder / "model.safetensors", packed)
    checkpoints.save(folder / "vq.safetensors", checkpoints.pack(vq, maskgit_vqgan.LAYOUT))
    fits = {"model_fingerprint": packed.fingerprint}
    checkpoints.save(folder / "head.safetensors", checkpoints.pack(head, head_file.LAYOUT, **fits))
    stranger = {"model_fingerprint": "0" * 16}
    checkpoints.save(
        folder / "stranger.safetensors", checkpoints.pack(head, head_file.LAYOUT, **stranger)
    )
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs `generate` on the tiny model; returns exit status, pictures' codes if there are any, stdout and stderr."""

    def call(*arguments: str, out: str = "a.png"):
        tokens = tmp_path / "tokens.safetensors"
        tokens.unlink(missing_ok=True)
        files = [
            "--model",
            str(folder / "model.safetensors"),
            "--vq",
            str(folder / "vq.safetensors"),
        ]
        common = ["--out", str(tmp_path / out), "--save-tokens", str(tokens)]
        status = main(["generate", *files, *common, "--steps", "6", *arguments])
        codes = load_file(tokens)["codes"] if tokens.exists() else None
        said = capsys.readouterr()
        return status, codes, said.out, said.err

    return call


def test_tokens_take_the_name_of_no_picture_of_the_batch(run, tmp_path: Path) -> None:
    more = ("--batch-size", "2", "--save-tokens", str(tmp_path / "a-1.png"))
    status, _, _, said = run(*more)
    assert status == 1 and "name the same file" in said
    assert not list(tmp_path.glob("a*.png"))


def test_a_picture_with_its_settings_and_tokens(run, folder: Path, tmp_path: Path) -> None:
    head = str(folder / "head.safetensors")
    status, codes, out, _ = run(
        "--head", head, "--full-steps", "2", "--class", "1", "--seed", "5", "--json"
    )
    assert status == 0
    assert codes.shape == (1, SIDE, SIDE) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < CODES
    report = json.loads(out.splitlines()[-1])
    assert (report["steps"], report["full_steps"], report["seeds"]) == (6, 2, [[5, 0]])
    assert report["seconds"] > 0 and report["flops"] > 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (2 * SIDE, 2 * SIDE)
        described = json.loads(picture.info["shortcut"])
    assert described["seed"] == 5 and described["full_steps"] == 2


def test_tokens_are_kept_where_the_pictures_find_no_memory(run, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(Pipeline, "decode", full)
    status, codes, *_ = run()
    assert status == 1 and codes.shape == (1, SIDE, SIDE)


def test_more_steps_than_tokens_are_not_taken_and_that_is_said(
    run, caplog: pytest.LogCaptureFixture
) -> None:
    status, _, out, _ = run("--steps", str(SIDE**2 + 1), "--json")
    assert status == 0 and json.loads(out)["steps"] == SIDE**2
    assert (
        f"--steps {SIDE**2 + 1} is more than the tokens to make: it takes {SIDE**2}" in caplog.text
    )
    caplog.clear()
    assert run("--steps", str(SIDE**2))[0] == 0 and not caplog.text


def test_full_steps_equal_to_steps_is_vanilla(run, folder: Path) -> None:
    head = str(folder / "head.safetensors")
    vanilla = run("--head", "none")[1]
    assert torch.equal(run("--head", head, "--full-steps", "6")[1], vanilla)
    assert not torch.equal(run("--head", head, "--full-steps", "1", "--cfg", "0")[1], vanilla)


def test_spread_of_earlier_versions_is_said_to_have_no_effect(run, folder: Path, caplog) -> None:
    short = ("--head", str(folder / "head.safetensors"), "--full-steps", "2")
    usual = run(*short)[1]
    assert torch.equal(run(*short, "--spread", "0")[1], usual) and not caplog.text
    assert torch.equal(run(*short, "--spread", "1")[1], usual)
    assert "spread has no effect any more" in caplog.text


def test_the_order_changes_the_picture_which_says_so(run, tmp_path: Path) -> None:
    few = ("--steps", "12", "--full-steps", "3", "--accelerator", "reuse")
    usual = run(*few)[1]
    for order in ("halton", "corrected"):
        assert not torch.equal(run(*few, "--order", order)[1], usual)
        with Image.open(tmp_path / "a.png") as picture:
            assert json.loads(picture.info["shortcut"])["order"] == order
    assert run("--order", "corrected", "--choice-temperature", "4")[0] == 0
    status, _, _, printed = run("--order", "halton", "--choice-temperature", "4")
    assert status and "the order halton has no choice temperature" in printed


def test_the_head_costs_less_than_the_passes_it_replaces(run, folder: Path) -> None:
    def flops(*arguments: str) -> float:
        return json.loads(run(*arguments, "--json")[2].splitlines()[-1])["flops"]

    head = str(folder / "head.safetensors")
    assert flops("--head", head, "--full-steps", "2") < flops("--head", "none")


def test_an_image_does_not_depend_on_its_batch(run, tmp_path: Path) -> None:
    alone, several = run("--seed", "3")[1], run("--seed", "3", "--batch-size", "3")[1]
    assert torch.equal(several[:1], alone)
    assert not torch.equal(several[1], several[0])
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "a.png",
        "a-0.png",
        "a-1.png",
        "a-2.png",
    }


def test_no_noise_means_no_seed(run) -> None:
    quiet = ("--temperature", "0", "--choice-temperature", "0")
    assert torch.equal(run(*quiet, "--seed", "1")[1], run(*quiet, "--seed", "2")[1])
    assert not torch.equal(run("--seed", "1")[1], run("--seed", "2")[1])


def test_classes_by_name_and_number(run) -> None:
    by_number, by_name = run("--class", "2")[1], run("--class", "blue")[1]
    assert torch.equal(by_number, by_name)
    assert not torch.equal(run("--class", "none")[1], by_number)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_makes_a_picture(run, folder: Path, dtype: str) -> None:
    status, codes, _, _ = run(
        "--dtype", dtype, "--head", str(folder / "head.safetensors"), "--full-steps", "2"
    )
    assert status == 0 and codes.shape == (1, SIDE, SIDE)


def test_without_a_head_partial_passes_answer_between_full_ones(run, tmp_path: Path) -> None:
    options = ("--accelerator", "partial", "--full-steps", "2", "--json")
    status, _, out, _ = run(*options)
    said = json.loads(out.splitlines()[-1])
    assert status == 0 and said["full_steps"] == 2
    with Image.open(tmp_path / "a.png") as picture:
        assert json.loads(picture.info["shortcut"])["accelerator"] == "partial"
    flops = {
        name: json.loads(run(*options, "--accelerator", name)[2].splitlines()[-1])["flops"]
        for name in ("reuse", "partial", "partial+neighbours")
    }
    vanilla = json.loads(run("--json")[2].splitlines()[-1])["flops"]
    assert flops["reuse"] < flops["partial"] == said["flops"] < flops["partial+neighbours"]
    assert flops["partial"] < vanilla
    assert torch.equal(run("--accelerator", "partial", "--full-steps", "6")[1], run()[1])


def test_without_a_head_fewer_full_steps_are_answered_by_partial_passes(run, folder: Path) -> None:
    by_name = run("--accelerator", "partial", "--full-steps", "2")[1]
    status, codes, out, _ = run("--full-steps", "2", "--json")
    assert status == 0 and torch.equal(codes, by_name)
    assert json.loads(out.splitlines()[-1])["accelerator"] == "partial"
    head = ("--head", str(folder / "head.safetensors"), "--full-steps", "2", "--json")
    assert json.loads(run(*head)[2].splitlines()[-1])["accelerator"] == "head"
    assert json.loads(run("--json")[2].splitlines()[-1])["accelerator"] is None


def test_ml_cache_has_the_full_passes_of_its_own_rule(run) -> None:
    said = json.loads(run("--accelerator", "ml-cache", "--steps", "12", "--json")[2])
    assert said["full_steps"] == 5  # of 12: steps 0 to 3, which is 0.3 of them, and 8


def test_flops_count_the_passes_of_the_model_and_of_the_head(run, folder: Path) -> None:
    options = ("--head", str(folder / "head.safetensors"), "--full-steps", "2", "--json")
    flops = {
        name: json.loads(run(*options, "--accelerator", name)[2])["flops"]
        for name in ("reuse", "head", "partial", "partial+head")
    }
    # The same passes of the head, and partial ones: logits of the tokens to reveal are made twice in both.
    assert flops["partial+head"] - flops["partial"] == flops["head"] - flops["reuse"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "0"), "steps must be a whole number of at least 1, got 0"),
        (
            ("--head", "HEAD", "--full-steps", "7"),
            "full steps must be between 1 and steps (6), got 7",
        ),
        (
            ("--head", "HEAD", "--full-steps", "0"),
            "full steps must be between 1 and steps (6), got 0",
        ),
        (("--head", "HEAD", "--full-steps", "1,2"), "must contain 0"),
        (("--head", "HEAD", "--full-steps", "many"), "must be a number or a list such as 0,4,9"),
        (("--accelerator", "head"), "the accelerator head needs a shortcut head"),
        (("--class", "3"), "class must be between 0 and 2, got 3"),
        (("--class", "mauve"), "Classes: red, green, dark blue"),
        (("--cfg", "-1"), "cfg must be a finite number of at least 0"),
        (("--cfg", "nan"), "cfg must be a finite number of at least 0"),
        (("--temperature", "-0.5"), "temperature must be a finite number of at least 0"),
        (("--batch-size", "0"), "batch size must be a whole number of at least 1, got 0"),
        (("--seed", "-1"), "seed must be a whole number of at least 0, got -1"),
        (("--device", "abacus"), "device 'abacus' cannot be used here"),
        (("--head", "STRANGER"), "Pick the head that was trained for this model"),
        (("--head", "MODEL"), "expected a shortcut head"),
        (("--head", "nowhere.pth"), "nowhere.pth does not exist"),
        (("--vq", "MODEL"), "expected a VQ model"),
    ],
)
def test_wrong_input_ends_in_a_clear_error(
    run, folder: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    names = {"HEAD": "head", "STRANGER": "stranger", "MODEL": "model"}
    given = [str(folder / f"{names[a]}.safetensors") if a in names else a for a in arguments]
    status, codes, _, error = run(*given)
    assert status == 1
    assert error.startswith("error: ") and message in error
    assert codes is None and not list(tmp_path.glob("*.png")), "nothing is written"


def test_a_head_is_used_without_being_asked_for_steps(run, folder: Path) -> None:
    head = ("--head", str(folder / "head.safetensors"))
    said = {
        steps: json.loads(run(*head, "--steps", steps, "--json")[2]) for steps in ("2", "6", "16")
    }
    # In the proportion of "balanced", which is 9 of 32.
    assert {steps: report["full_steps"] for steps, report in said.items()} == {
        "2": 1,
        "6": 2,
        "16": 4,
    }


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("a.jpg", "a.jpg is no PNG"),
        ("folder.png", "folder.png is a folder. Give the name of a file in it."),
        ("file/a.png", "file is a file, not a folder"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_told_before_the_run(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, message: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr("shortcut_pack.shortcut.pipeline.generate", pytest.fail)
    status, codes, _, error = run(out=out)
    assert status == 1 and codes is None and message in error


def test_help_lists_the_commands_without_pytorch() -> None:
    code = "import atexit, sys; atexit.register(lambda: print(*sys.modules)); import shortcut.__main__ as m; m.main()"
    said = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    imported = set(said.splitlines()[-1].split())
    assert "shortcut.__main__" in imported
    assert not imported.intersection(("torch", "numpy", "shortcut.models", "shortcut.train"))
    assert all(f"\n    {name} " in said for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_own_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"python -m shortcut {command} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ((), shipped.NAME),
        (("label",), shipped.NAME),
        (("prompt",), shipped.TEXT_NAME),
        (("task", "sources"), shipped.TEXT_NAME),
        (("label", "prompt"), shipped.NAME),  # neither takes both: the first says what it takes
    ],
)
def test_the_shipped_model_that_takes_what_is_given(given: tuple[str, ...], name: str) -> None:
    assert shipped_for(frozenset(given)) == name


def test_a_shipped_model_by_name_with_and_without_its_head(tmp_path: Path, capsys) -> None:
    run = ["generate", "--model", "scenes", "--out", str(tmp_path / "a.png"), "--steps", "4"]
    for head, num_full, name in (
        ([], 1, "partial"),
        (["--head", str(shipped.HEAD)], 1, "head"),
        (["--head", "none"], 4, None),
    ):
        assert main([*run, *head, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["full_steps"], said["accelerator"]) == (num_full, name)


def test_the_bar_begins_anew_for_each_part_of_a_batch() -> None:
    shown = io.StringIO()
    trace: Any = SimpleNamespace(denoised=SimpleNamespace(was_full=True))
    with tqdm.tqdm(total=3, file=shown) as bar:
        for step in range(7):
            progress(bar, trace)
            assert bar.n == step % 3 + 1 and bar.total == 3


def test_an_interrupt_writes_nothing(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(bar, trace) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shortcut_pack.shortcut.cli.generate.progress", interrupted)
    status, codes, _, error = run()
    assert status == 130 and "interrupted" in error
    assert codes is None and not list(tmp_path.iterdir())
