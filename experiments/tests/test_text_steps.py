"""The steps that remake the shipped text model, one after the other as on the command line, at the least size."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import __main__ as demo
from experiments import text_judge, train_text, train_text_head
from shortcut import shipped, weights
from shortcut.models.lumina_dimoo.prompts import load_tokenizer
from shortcut.models.lumina_dimoo.tokenizer import tokenizer_folder

pytest.importorskip("transformers")

TEACHING = replace(
    train_text_head.TEACHING,
    images_per_run=2,
    runs_kept=1,
    windows_per_batch=1,
    images_per_window=2,
    max_chain=2,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the steps write: networks of the shipped sizes, hardly trained."""
    folder = tmp_path / "scenes-lumina"
    monkeypatch.setattr(shipped, "TEXT_FOLDER", folder)
    for name in ("TEXT_MODEL", "TEXT_HEAD", "TEXT_JUDGE"):
        monkeypatch.setattr(shipped, name, folder / getattr(shipped, name).name)
    monkeypatch.setattr(demo, "NUM_TRAIN", 12)
    monkeypatch.setattr(demo, "NUM_EDITS", 6)
    monkeypatch.setattr(demo, "keep_memory", lambda: None)
    monkeypatch.setattr(demo.scene_tokenizer, "CAPTION_SEEDS", range(2000))
    stages = tuple(
        replace(stage, recipe=replace(stage.recipe, iterations=2), num_pictures=2, num_edits=1)
        for stage in train_text.STAGES
    )
    monkeypatch.setattr(train_text, "STAGES", stages)
    recipe = replace(train_text_head.RECIPE, iterations=2)
    learn = partial(train_text_head.learn, recipe=recipe, teaching=TEACHING, num_steps=(4,))
    monkeypatch.setattr(train_text_head, "learn", learn)
    conditions = partial(train_text_head.caption_conditions, num_captions=20)
    monkeypatch.setattr(train_text_head, "caption_conditions", conditions)
    return folder


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_the_steps_make_a_model_with_tokenizer_and_head_and_measure_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def step(*arguments: str) -> str:
        assert demo.main([*arguments]) == 0
        return capsys.readouterr().out

    work = ("--dir", str(tmp_path / "work"))
    for name in ("text-data", "tokenizer", "text-base", "text-head"):
        step(name, *work)
    text_judge.save(shipped.TEXT_JUDGE, text_judge.initialised(0, (8,) * 5), {})
    model_file, head_file = (weights.load(folder, kind=kind) for kind in ("model", "head"))
    assert model_file.metadata.grid == (12, 12)
    assert model_file.dtype == head_file.dtype == torch.float16
    assert weights.check_head(head_file, model_file) is None
    assert model_file.path is not None
    load_tokenizer(tokenizer_folder(model_file.path), model_file.config)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8_000_000
    assert head_file.metadata.trained["held_out"].keys() == {"4 steps"}
    files = [f"--{n}={getattr(shipped, f'TEXT_{n.upper()}')}" for n in ("model", "head", "judge")]
    rows = ["--per-task", "1", "--seeds", "1", "--rows", "vanilla-2", "shortcut-4-2"]
    printed = step("text-quality", *files, *rows, "--work", str(tmp_path / "q"))
    assert "| shortcut | 4 | 2 |" in printed


def test_missing_pictures_are_named(folder: Path, tmp_path: Path) -> None:
    vqgan: Any = None
    with pytest.raises(FileNotFoundError, match=r"pixels\.npy not found\. .*text-data"):
        train_text.train(tmp_path, vqgan, None)
