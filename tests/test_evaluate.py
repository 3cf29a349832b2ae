"""Check what `evaluate` measures and prints."""

from __future__ import annotations

import json
from pathlib import Path

import builders
import pytest
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.cli import evaluate as cli
from shortcut_pack.shortcut.flops import LiveTensors
from shortcut_pack.shortcut.models.maskgit.head import LAYOUT
from shortcut_pack.shortcut.pipeline import conditioner_of
from shortcut_pack.shortcut.schedule import Settings
from shortcut_pack.shortcut.train.evaluate import evaluate, held_out_runs
from shortcut_pack.shortcut.train.head import initialised
from shortcut_pack.shortcut.train.teacher import RUNS, Teacher, teacher_of

MODEL_FILE = builders.model()
SETTINGS = Settings(num_steps=6, choice_temperature=2.0)


def teacher() -> Teacher:
    network = checkpoints.build(MODEL_FILE)
    return teacher_of(MODEL_FILE, network, conditioner_of(MODEL_FILE), settings=SETTINGS)


def test_an_untrained_head_has_the_error_of_kept_features_and_a_random_one_more() -> None:
    (run,) = held_out_runs(teacher(), (SETTINGS,), 3, 0)
    untrained = initialised(LAYOUT, builders.HEAD_CONFIG, 0)
    rows = evaluate(untrained, teacher().model, [run], 3)
    assert [row["chain"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["error"] == pytest.approx(1) and row["kl"] == pytest.approx(row["kl_reuse"])
    assert 0.999 > rows[0]["cosine"] > rows[2]["cosine"]
    for row in evaluate(checkpoints.build(builders.head()), teacher().model, [run], 3):
        assert row["error"] > 1 and row["kl"] > 0


def test_runs_held_out_are_other_runs_than_those_of_a_training() -> None:
    (run,) = held_out_runs(teacher(), (SETTINGS,), 8, 0)
    for number in range(3):
        learned = teacher().run((SETTINGS,), 8, (0, RUNS, number))
        assert not (run.codes_BL == learned.codes_BL).all()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    builders.write(tmp_path / "model.safetensors", MODEL_FILE)
    head = builders.head(model_fingerprint=MODEL_FILE.fingerprint)
    builders.write(tmp_path / "head.safetensors", head)
    return tmp_path


def command(folder: Path, *more: str) -> list[str]:
    files = ["--model", str(folder / "model.safetensors")]
    how = ["--head", str(folder / "head.safetensors"), "--num", "2", "--steps", "6"]
    return ["evaluate", *files, *how, *more]


def test_the_command_compares_with_vanilla_and_with_kept_features(folder: Path, capsys) -> None:
    assert main(command(folder, "--full-steps", "2", "3", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    names = [(row["name"], row["num_full"]) for row in found["cost"]]
    others = [(name, n) for n in (2, 3) for name in ("reuse", "head")]
    assert names == [("vanilla", 6), *others]
    vanilla, kept, head, *_ = (row["flops"] for row in found["cost"])
    assert vanilla > head > kept > vanilla / 3
    assert all(row["seconds"] > 0 for row in found["cost"])
    assert len(found["following"]) == 4
    assert main(command(folder, "--full-steps", "2")) == 0
    out = capsys.readouterr().out
    assert "| steps in a row | error |" in out and "| vanilla | 6 | 6 |" in out


def test_the_memory_to_be_asked_for_covers_what_is_alive(capsys, monkeypatch) -> None:
    """With sizes as people use them, the record left out: at most a quarter more, which is asked for besides."""
    asked, live = [], LiveTensors()

    def at_once(needed, num_images, device) -> int:
        asked.append(3 / 4 * needed(num_images))
        return num_images

    def watched(head, model, runs, chain):
        runs = [*runs]
        with live:
            return evaluate(head, model, runs, chain)

    monkeypatch.setattr(cli, "images_at_once", at_once)
    monkeypatch.setattr(cli, "evaluate", watched)
    assert main(["evaluate", "--num", "2", "--steps", "6", "--full-steps", "2"]) == 0
    assert live.peak < asked[0] < 2 * live.peak
    capsys.readouterr()


def test_images_that_do_not_fit_are_measured_in_parts_with_the_same_figures(
    folder: Path, capsys, monkeypatch
) -> None:
    found, asked = [], []
    for most in (5, 2, 1):

        def at_once(needed, num_images, device, most=most) -> int:
            asked.append(needed(num_images))
            return most

        monkeypatch.setattr(cli, "images_at_once", at_once)
        assert main(command(folder, "--num", "5", "--full-steps", "2", "--json")) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert main(command(folder, "--num", "5", "--chain", "10000", "--json")) == 0
    assert asked[-1] < 2 * asked[0], "there are 6 steps"
    capsys.readouterr()
    whole, *in_parts = found
    for parts in in_parts:
        assert parts["following"] == [pytest.approx(row, rel=1e-4) for row in whole["following"]]
        for row, wanted in zip(parts["cost"], whole["cost"], strict=True):
            assert row["nats"] == pytest.approx(wanted["nats"], rel=1e-4)
            assert row["flops"] == wanted["flops"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--full-steps", "7"], "full steps must be between 1 and steps (6), got 7"),
        (["--num", "0"], "must be a whole number of at least 1"),
        (["--seed", "-1"], "--seed must be a whole number of at least 0, got -1"),
        (["--steps", "4,8"], "--steps of evaluate must be one number, got 2"),
        (["--accelerator", "partial"], "--head has no effect with --accelerator partial"),
        (["--head", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["--prompts", __file__], "prompt is not for a MaskGIT transformer"),
    ],
)
def test_what_cannot_work_is_refused(folder: Path, capsys, options, message) -> None:
    assert main(command(folder, *options)) == 1
    assert message in capsys.readouterr().err


def test_accelerators_without_a_head_have_rows_of_their_own(folder: Path, capsys) -> None:
    names = ("reuse", "partial", "partial+neighbours")
    how = ["--steps", "6", "--full-steps", "2", "6", "--num", "4", "--accelerator", *names]
    assert main(["evaluate", "--model", str(folder / "model.safetensors"), *how, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["following"] == []
    vanilla, *rows = found["cost"]
    assert [(row["name"], row["num_full"]) for row in rows] == [
        (n, f) for f in (2, 6) for n in names
    ]
    assert vanilla["nats"] == 0
    assert all(row["nats"] > row["nats_error"] > 0 for row in rows[:3])
    assert all(row["nats"] == row["nats_error"] == 0 for row in rows[3:])  # all steps are full


def test_a_file_that_states_full_steps_is_measured_with_other_steps(tmp_path: Path, capsys) -> None:
    file = builders.model(defaults={"num_steps": 8, "full_steps": 7})
    builders.write(tmp_path / "model.safetensors", file)
    how = ["--steps", "6", "--full-steps", "2", "--accelerator", "reuse", "--num", "1", "--json"]
    assert main(["evaluate", "--model", str(tmp_path / "model.safetensors"), *how]) == 0
    rows = json.loads(capsys.readouterr().out)["cost"]
    assert [(row["num_steps"], row["num_full"]) for row in rows] == [(6, 6), (6, 2)]


def test_all_rows_are_computed_as_autocast_says(folder: Path, capsys) -> None:
    found = []
    for more in ([], ["--autocast", "bfloat16"]):
        assert main(command(folder, "--full-steps", "2", "--json", *more)) == 0
        found.append([row["nats"] for row in json.loads(capsys.readouterr().out)["cost"][1:]])
    assert all(a != b for a, b in zip(*found, strict=True))


def test_one_image_has_no_standard_error(folder: Path, capsys) -> None:
    """Strict readers of JSON, such as browsers, refuse a NaN."""
    assert main(command(folder, "--num", "1", "--full-steps", "2", "--json")) == 0
    out = capsys.readouterr().out
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [row["nats_error"] for row in found["cost"]] == [None] * 3


def test_a_head_is_needed(folder: Path, capsys) -> None:
    assert main(["evaluate", "--model", str(folder / "model.safetensors")]) == 1
    assert "give --head FILE" in capsys.readouterr().err
