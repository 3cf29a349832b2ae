"""The network that reads what stands where off a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments import data, text_judge
from experiments.judges.reader import NUM_COLUMNS, UNSURE
from experiments.scenes.facts import GROUPS, Facts, facts_of
from experiments.scenes.scene import compose_varied
from shortcut.train.fit import Recipe

NARROW = (8, 8, 8, 8, 8)
FACTS = [facts_of(compose_varied(seed)) for seed in range(200)]
NO_PIXELS = torch.zeros(len(FACTS), 3, 96, 96)


class Oracle:
    """Says of FACTS what it should, surely; where nobody can be sure it says the kind beside, less surely."""

    def __init__(self, shift: int = 0):
        self.shift = shift

    def __call__(self, pixels_BCYX: Tensor) -> dict[str, Tensor]:
        found = {}
        for name, wanted in text_judge.targets(FACTS).items():
            if wanted.ndim == 1:
                found[name] = F.one_hot(wanted, 4) * 9.0
                continue
            beside = (wanted == UNSURE).nonzero().tolist()
            for row, column in beside:
                near = wanted[row, max(column - 1, 0) : column + 2]
                wanted[row, column] = near.max()
            logits = F.one_hot(wanted, 1 + len(GROUPS[name])).movedim(-1, 1) * 9.0
            for row, column in beside:
                logits[row, :, column] *= 0.5
            found[name] = logits.roll(self.shift, -1)
        return found


def test_perfect_answers_give_the_facts_back() -> None:
    found = text_judge.read(Oracle(), NO_PIXELS, batch_size=len(FACTS))
    for actual, wanted in zip(found, FACTS, strict=True):
        assert (actual.time, actual.biome) == (wanted.time, wanted.biome)
        for group in GROUPS:
            assert actual.kinds(group) == wanted.kinds(group)
            assert actual.xs(group) == pytest.approx(wanted.xs(group), abs=0.03)


def test_control_answers_a_column_off_give_other_places() -> None:
    found = text_judge.read(Oracle(shift=1), NO_PIXELS, batch_size=len(FACTS))
    off = [
        abs(a - b)
        for actual, wanted in zip(found, FACTS, strict=True)
        for a, b in zip(actual.xs("houses"), wanted.xs("houses"), strict=False)
    ]
    assert max(off) > 0.04


def test_an_empty_picture_has_nothing_on_it() -> None:
    nothing = {g: torch.zeros(1, 1 + len(k), NUM_COLUMNS) for g, k in GROUPS.items()}
    for logits in nothing.values():
        logits[:, 0] = 5
    answer = {"time": torch.zeros(1, 4), "biome": torch.zeros(1, 4), **nothing}
    reader: Any = lambda pixels: answer  # noqa: E731
    (found,) = text_judge.read(reader, torch.zeros(1, 3, 96, 96))
    assert found == Facts("dawn", "forest", {group: () for group in GROUPS})


def test_a_thing_is_wanted_in_the_column_of_its_centre() -> None:
    wanted = text_judge.targets(FACTS)
    for row, fact in enumerate(FACTS):
        for group, kinds in GROUPS.items():
            columns_W = wanted[group][row]
            assert (columns_W > 0).sum() == len(fact.things[group])
            for thing in fact.things[group]:
                assert columns_W[int(thing.x * NUM_COLUMNS)] == 1 + kinds.index(thing.kind)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen training pictures."""
    path = tmp_path_factory.mktemp("demo")
    pixels, labels = data.render(range(16), compose=compose_varied)
    train = path / text_judge.TRAIN_FOLDER
    train.mkdir()
    import numpy as np

    np.save(train / "pixels.npy", pixels)
    np.save(train / "labels.npy", labels)
    return path


def test_training_makes_it_better(folder: Path) -> None:
    recipe = Recipe(iterations=30, lr=5e-3, warmup=5, ema=0.5, checkpoint_every=30)
    reader = text_judge.train(folder, recipe, NARROW, batch_size=8)
    pixels = data.to_network(torch.from_numpy(data.render(range(16), compose=compose_varied)[0]))
    wanted = text_judge.targets(facts_of(compose_varied(seed)) for seed in range(16))
    batch = text_judge.Batch(pixels, wanted)
    before, after = (
        text_judge.loss_of(network, batch)[0].item()
        for network in (text_judge.initialised(0, NARROW), reader)
    )
    assert after < 0.5 * before
    assert (folder / "text-judge.ckpt").exists()


def test_its_accuracy_is_stated_for_all_that_it_reads() -> None:
    reader = text_judge.initialised(0, NARROW).eval()
    figures = text_judge.accuracy(reader, range(30_000_000, 30_000_010), through=torch.zeros_like)
    assert set(figures) == {"time", "biome", *GROUPS, "claims"}
    assert all(0 <= share <= 1 for share in figures.values())


def test_a_file_gives_the_same_reading(tmp_path: Path) -> None:
    reader = text_judge.initialised(0, NARROW).eval()
    text_judge.save(tmp_path / "a.safetensors", reader, {"iterations": 0})
    again = text_judge.load(tmp_path / "a.safetensors")
    pixels = data.to_network(torch.from_numpy(data.render(range(4))[0]))
    with torch.no_grad():
        a, b = reader(pixels), again(pixels)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-2, atol=1e-2)


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = builders.write(tmp_path / "vq.safetensors", builders.vq())
    with pytest.raises(ValueError, match=r"has format None .* expected 'shortcut scene reader'"):
        text_judge.load(path)
    text_judge.save(tmp_path / "b.safetensors", text_judge.initialised(0, NARROW), {})
    monkeypatch.setitem(text_judge.GROUPS, "boats", ("green",))
    with pytest.raises(ValueError, match=r"b.safetensors reads the groups .* Make it with"):
        text_judge.load(tmp_path / "b.safetensors")


def test_missing_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"text-train.pixels.npy not found.*text-data"):
        text_judge.train(tmp_path)
