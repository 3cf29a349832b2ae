"""The networks that look at pictures, and their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.judges import attributes, reader
from experiments.judges.file import JUDGE, TEXT_JUDGE
from experiments.scenes import dataset
from experiments.scenes.facts import GROUPS, facts_of
from experiments.scenes.scene import compose, compose_varied

FACTS = [facts_of(compose_varied(seed)) for seed in range(100)]


def test_our_judges_read_fresh_scenes() -> None:
    seeds = range(30_000_000, 30_000_020)
    pixels, labels = dataset.render(seeds)
    _, predicted = attributes.judged(
        attributes.FILE.load(JUDGE), dataset.to_network(torch.from_numpy(pixels))
    )
    assert (predicted["time"].numpy() == labels[:, 0]).all()
    figures = reader.accuracy(reader.FILE.load(TEXT_JUDGE), seeds)
    assert set(figures) == {"time", "biome", *GROUPS, "claims"} and min(figures.values()) == 1


def test_a_file_gives_the_same_network_and_other_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = reader.FILE.initialised(0, (8,) * 5).eval()
    reader.FILE.save(tmp_path / "a.safetensors", network, {"iterations": 0})
    pixels = dataset.to_network(torch.from_numpy(dataset.render(range(4))[0]))
    with torch.no_grad():
        found, again = network(pixels), reader.FILE.load(tmp_path / "a.safetensors")(pixels)
    for name, logits in found.items():
        torch.testing.assert_close(again[name], logits, rtol=1e-2, atol=1e-2)
    files = tiny.classes(tmp_path)
    with pytest.raises(ValueError, match=r"vq\.safetensors has format .*'shortcut scene judge'"):
        attributes.FILE.load(files["vq"])
    monkeypatch.setitem(GROUPS, "boats", ("green",))
    with pytest.raises(ValueError, match=r"a\.safetensors reads the groups .* Make it with"):
        reader.FILE.load(tmp_path / "a.safetensors")


def make_data(folder: Path) -> None:
    """Write 16 training pictures of both judges."""
    for name, make in (("train", compose), (reader.TRAIN_FOLDER, compose_varied)):
        pixels, labels = dataset.render(range(16), compose=make)
        (folder / name).mkdir()
        np.save(folder / name / "pixels.npy", pixels)
        np.save(folder / name / "labels.npy", labels)


def test_training_makes_them_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"text-train.pixels\.npy not found.*text-data"):
        reader.train(tmp_path)
    make_data(tmp_path)
    monkeypatch.setattr(attributes, "BATCH_SIZE", 16)
    recipe = replace(attributes.RECIPE, iterations=12, warmup=2, ema=0.5)
    judge = attributes.train(tmp_path, recipe, (8, 8, 16, 16))
    pixels, labels = dataset.load(tmp_path / "train")
    batch = dataset.to_network(pixels), labels
    untrained = attributes.FILE.initialised(recipe.seed, (8, 8, 16, 16))
    assert attributes.loss_of(judge, batch)[0] < attributes.loss_of(untrained, batch)[0] - 1
    recipe = replace(reader.RECIPE, iterations=30, lr=5e-3, warmup=5, ema=0.5)
    trained = reader.train(tmp_path, recipe, (8,) * 5, batch_size=8)
    pixels, _ = dataset.load(tmp_path / reader.TRAIN_FOLDER)
    batch = reader.Batch(dataset.to_network(pixels), reader.targets(FACTS[:16]))
    before = reader.loss_of(reader.FILE.initialised(0, (8,) * 5), batch)[0]
    assert reader.loss_of(trained, batch)[0] < 0.6 * before


class Oracle:
    """Answer with the targets of FACTS; where a column is unsure, the kind beside it, less surely."""

    def __call__(self, pixels_BCYX: Tensor) -> dict[str, Tensor]:
        found = {}
        for name, wanted in reader.targets(FACTS).items():
            if wanted.ndim == 1:
                found[name] = F.one_hot(wanted, 4) * 9.0
                continue
            unsure = (wanted == reader.UNSURE).nonzero().tolist()
            for row, column in unsure:
                wanted[row, column] = wanted[row, max(column - 1, 0) : column + 2].max()
            logits = F.one_hot(wanted, 1 + len(GROUPS[name])).movedim(-1, 1) * 9.0
            for row, column in unsure:
                logits[row, :, column] *= 0.5
            found[name] = logits
        return found


def test_perfect_answers_give_the_facts_back() -> None:
    pixels = torch.zeros(len(FACTS), 3, 96, 96)
    found = reader.read(Oracle(), pixels, batch_size=len(FACTS))  # pyright: ignore
    for actual, wanted in zip(found, FACTS, strict=True):
        assert (actual.time, actual.biome) == (wanted.time, wanted.biome)
        for group in GROUPS:
            assert actual.kinds(group) == wanted.kinds(group)
            assert actual.xs(group) == pytest.approx(wanted.xs(group), abs=0.03)
