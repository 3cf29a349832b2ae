"""The network that looks at pictures, and its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.judge import reader, training
from experiments.scenes.drawing import pixels_of
from experiments.scenes.facts import GROUPS, seen_facts, visible_groups
from experiments.scenes.scene import SKY_KINDS, compose

SCENES = [compose(seed) for seed in range(60)]
FACTS = [seen_facts(scene) for scene in SCENES]
WIDTHS = (8,) * 5


def test_our_judge_reads_fresh_scenes() -> None:
    assert training.accuracy(reader.load(), 20) >= 0.95


def test_a_file_gives_the_same_network_and_other_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = reader.Reader.initialised(0, WIDTHS).eval()
    reader.save(tmp_path / "a.safetensors", network, {"iterations": 0})
    pixels = pixels_of(SCENES[:4])
    with torch.no_grad():
        found, again = network(pixels), reader.load(tmp_path / "a.safetensors")(pixels)
    for name, logits in found.items():
        torch.testing.assert_close(again[name], logits, rtol=1e-2, atol=1e-2)
    files = tiny.classes(tmp_path)
    with pytest.raises(ValueError, match=r"vq\.safetensors has format .*'shortcut judge'"):
        reader.load(files["vq"])
    monkeypatch.setitem(GROUPS, "boat", ("green",))
    with pytest.raises(ValueError, match=r"a\.safetensors reads .* Make it with"):
        reader.load(tmp_path / "a.safetensors")


def test_training_makes_it_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "WIDTHS", WIDTHS)
    monkeypatch.setattr(training, "BATCH_SIZE", 8)
    recipe = replace(training.RECIPE, iterations=25, lr=1e-2, warmup=5, ema=0.5)
    monkeypatch.setattr(training, "RECIPE", recipe)
    batch = training.Batch(pixels_of(SCENES[:16]), reader.targets(FACTS[:16]))
    before = training.loss_of(reader.Reader.initialised(0), batch)[0]
    assert training.loss_of(training.train(tmp_path), batch)[0] < 0.6 * before


def oracle(pixels_BCYX: Tensor) -> dict[str, Tensor]:
    """Answer with the targets of FACTS."""
    found = {}
    for name, wanted in reader.targets(FACTS).items():
        size = 1 + len(GROUPS[name]) if name in GROUPS else len(reader.CLASSES[name])
        found[name] = F.one_hot(wanted.clamp(min=0), size).float().movedim(-1, 1) * 9
    return found


def test_right_answers_give_the_facts_back() -> None:
    pixels = torch.zeros(len(FACTS), 3, 8, 8)
    found = reader.read(oracle, pixels, batch_size=len(FACTS))  # pyright: ignore
    for scene, actual, wanted in zip(SCENES, found, FACTS, strict=True):
        for name in reader.CLASSES:
            assert getattr(actual, name) == getattr(wanted, name)
        for group in set(visible_groups(scene)) - set(SKY_KINDS):
            assert actual.colours(group) == wanted.colours(group)
            assert actual.xs(group) == pytest.approx(wanted.xs(group), abs=0.03)
