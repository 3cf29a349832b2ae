"""The quality command of the demo model: distance, operations, judge, table, resuming."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from types import SimpleNamespace

import builders
import fakes
import numpy as np
import pytest
import torch
from PIL import Image

from experiments import classifier, quality, quality_measure
from experiments.scenes.scene import ATTRIBUTE_SIZES
from experiments.tables.frechet import Gaussian, frechet_distance
from experiments.tables.quality_measure import Kit, Row, measure
from experiments.tables.report import Line, markdown, quality_chart
from shortcut import weights
from shortcut.chart import SIZE
from shortcut.schedule import Settings

MODEL_CONFIG = replace(builders.MODEL_CONFIG, num_classes=16)


# Frechet distance


def test_the_distance_of_a_set_from_itself_is_zero():
    features = np.random.default_rng(0).normal(size=(200, 64))
    assert frechet_distance(Gaussian.of(features), Gaussian.of(features)) < 1e-9


def test_the_distance_of_shifted_features_is_the_squared_shift():
    features = np.random.default_rng(0).normal(size=(200, 5))
    shift = np.array([1.0, -2.0, 0.5, 0.0, 3.0])
    found = frechet_distance(Gaussian.of(features), Gaussian.of(features + shift))
    assert found == pytest.approx((shift**2).sum(), rel=1e-9)


def test_the_distance_of_gaussians_whose_covariances_do_not_commute():
    a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    # In two dimensions tr(M^(1/2)) = sqrt(tr M + 2 sqrt(det M)).
    root_trace = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = 0.25 + np.trace(a) + np.trace(b) - 2 * root_trace
    means = np.zeros(2), np.array([0.3, 0.4])
    found = frechet_distance(Gaussian(means[0], a), Gaussian(means[1], b))
    assert found == pytest.approx(expected, rel=1e-12)
    assert found == pytest.approx(frechet_distance(Gaussian(means[1], b), Gaussian(means[0], a)))


def test_fewer_vectors_than_dimensions_are_measured_too():
    features = np.random.default_rng(0).normal(size=(8, 64))
    assert frechet_distance(Gaussian.of(features), Gaussian.of(features)) < 1e-9


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        Gaussian.of(np.array([[0.0, 1.0], [np.nan, 0.0]]))


# Judge


def test_a_judge_file_is_small_and_gives_the_same_verdict(tmp_path):
    judge = classifier.initialised(0).eval().requires_grad_(False)
    classifier.save(tmp_path / "judge.safetensors", judge, {"iterations": 0})
    loaded = classifier.load(tmp_path / "judge.safetensors")
    pixels = torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (features, predicted), (again, predicted_again) = (
        classifier.judged(network, pixels) for network in (judge, loaded)
    )
    torch.testing.assert_close(again, features, rtol=2e-2, atol=5e-3)
    assert features.shape == (4, 64)
    assert predicted.keys() == predicted_again.keys() == ATTRIBUTE_SIZES.keys()
    assert (tmp_path / "judge.safetensors").stat().st_size < 1_000_000


def test_another_file_is_refused_as_a_judge(tmp_path):
    path = builders.write(tmp_path / "vq.safetensors", builders.vq())
    with pytest.raises(ValueError, match=r"vq\.safetensors .*expected 'shortcut scene judge'"):
        classifier.load(path)


def test_augmentation_moves_a_picture_by_two_pixels_at_most():
    pixels = torch.zeros(64, 3, 16, 16)
    pixels[:, :, 8, 8] = 1.0
    found = classifier.augmented(pixels, torch.Generator().manual_seed(0))
    brightest = found[:, 0].flatten(1).argmax(1)
    moved = torch.stack([brightest // 16 - 8, brightest % 16 - 8])
    assert found.shape == pixels.shape
    assert moved.unique().tolist() == [-2, -1, 0, 1, 2]


def test_a_judge_learns_to_read_scenes(tmp_path, monkeypatch):
    (tmp_path / "train").mkdir()
    pixels, labels = quality_scenes(16)
    np.save(tmp_path / "train" / "pixels.npy", pixels)
    np.save(tmp_path / "train" / "labels.npy", labels)
    monkeypatch.setattr(classifier, "BATCH_SIZE", 16)
    recipe = replace(classifier.RECIPE, iterations=12, warmup=2, ema=0.5)
    judge = classifier.train(tmp_path, recipe, widths=(8, 8, 16, 16))
    batch = classifier.to_network(torch.from_numpy(pixels)), torch.from_numpy(labels)
    before, _ = classifier.loss_of(classifier.initialised(recipe.seed, (8, 8, 16, 16)), batch)
    after, _ = classifier.loss_of(judge, batch)
    assert after < before - 1.0


def quality_scenes(num: int) -> tuple[np.ndarray, np.ndarray]:
    return classifier.render(range(num))


# Rows


@pytest.mark.parametrize("name", quality.ROWS)
def test_a_row_is_known_by_its_name(name):
    assert Row.parse(name).name == name


@pytest.mark.parametrize(
    "name", ["", "vanila-8", "vanilla", "vanilla-8-8", "shortcut-32", "shortcut-a-8", "real-1"]
)
def test_a_row_that_does_not_exist_is_named(name):
    with pytest.raises(ValueError, match=f"no row '{name}'"):
        Row.parse(name)


GRID = 2


class Painter:
    """A VQ model that paints code c as a flat picture of brightness c / 32."""

    def decode(self, codes_Bhw: torch.Tensor) -> torch.Tensor:
        return (codes_Bhw[:, :1, :1] / 32).unsqueeze(1).expand(-1, 3, 4, 4)


def reader(pixels_BCYX: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A judge that reads the class off the brightness."""
    code_B = (pixels_BCYX[:, 0, 0, 0] * 32).round().long()
    values = {"time": code_B // 4, "biome": code_B % 4}
    logits = {
        name: torch.nn.functional.one_hot(values.get(name, torch.zeros_like(code_B)), size).float()
        for name, size in ATTRIBUTE_SIZES.items()
    }
    return torch.nn.functional.one_hot(code_B, 64).float(), logits


def oracle_kit(shift: int = 0) -> Kit:
    """Networks that make exactly the class asked for, or the class `shift` numbers further."""
    images_CL = ((torch.arange(17) + shift) % 16).unsqueeze(1).repeat(1, GRID**2)
    model = fakes.oracle(images_CL, 16)
    model.config = SimpleNamespace(num_classes=16, num_tokens=GRID**2, grid=GRID)
    device = torch.device("cpu")
    return Kit(model, None, Painter(), reader, Settings(), device, batch_size=5)


@pytest.mark.parametrize(("shift", "time", "biome"), [(0, 1.0, 1.0), (4, 0.0, 1.0), (1, 0.75, 0.0)])
def test_accuracy_is_the_share_of_samples_that_show_their_class(shift, time, biome):
    found = measure(Row.parse("vanilla-2"), 1, 32, oracle_kit(shift), {})
    assert (found["time"], found["biome"]) == (time, biome)
    assert found["both"] == (1.0 if shift == 0 else 0.0)
    assert found["seconds"] > 0


def test_real_scenes_are_compared_with_their_own_class(monkeypatch):
    def draw_class(scene, size):
        return Image.new("RGB", (size, size), (scene.class_id * 4, 0, 0))

    def read_class(pixels_BCYX):
        return reader((pixels_BCYX + 1) * 127.5 / 4 / 32)

    monkeypatch.setattr(quality_measure, "draw", draw_class)
    kit = replace(oracle_kit(), judge=read_class)
    reference = Gaussian.of(quality_measure.judge_scenes(kit, 5, 32)[0])
    found = measure(Row.parse("real"), 1, 32, kit, {"distance": reference})
    assert found["both"] == 1.0
    assert found["distance"] < 1e-9


# The command


@pytest.fixture
def files(tmp_path):
    model = builders.model(MODEL_CONFIG, defaults={"guidance": [2.0], "num_steps": 4})
    head = builders.head(model_fingerprint=model.fingerprint)
    classifier.save(tmp_path / "judge.safetensors", classifier.initialised(0, (8, 8, 8, 16)), {})
    return {
        "model": builders.write(tmp_path / "model.safetensors", model),
        "head": builders.write(tmp_path / "head.safetensors", head),
        "vq": builders.write(tmp_path / "vq.safetensors", builders.vq()),
        "judge": tmp_path / "judge.safetensors",
        "work": tmp_path / "work",
    }


ROWS = ("real", "vq", "vanilla-2", "vanilla-4", "shortcut-4-2", "reuse-4-2")


def command(files, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    quality.add_parser(parser.add_subparsers())
    sizes = ("--num", "8", "--num-reference", "16", "--batch", "3", "--dtype", "float32")
    paths = (part for name, path in files.items() for part in (f"--{name}", str(path)))
    return parser.parse_args(["quality", *sizes, *paths, "--rows", *ROWS, *more])


def test_the_command_prints_a_table_and_writes_figures_and_chart(files, tmp_path, capsys):
    options = command(files, "--json", str(tmp_path / "q.json"), "--chart", str(tmp_path / "q.png"))
    assert options.run(options) == 0
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(ROWS)
    assert len({line.count("|") for line in table}) == 1
    assert "A pass of the head takes" in printed
    assert "seeds [1, 2]" in printed and torch.__version__ in printed
    rows = json.loads((tmp_path / "q.json").read_text())["rows"]
    real, _, vanilla_2, vanilla_4, shortcut, reuse = rows
    assert real["operations"] == 0
    assert vanilla_2["operations"] < shortcut["operations"] < vanilla_4["operations"]
    assert reuse["operations"] < shortcut["operations"]
    assert all(len(row["distances"]) == 2 and row["distance"] >= 0 for row in rows)
    assert all(len(row["vq_distances"]) == 2 and row["vq_distance"] >= 0 for row in rows)
    assert rows[1]["vq_distance"] < rows[1]["distance"]
    with Image.open(tmp_path / "q.png") as picture:
        assert picture.size == SIZE


def test_an_interrupted_run_continues_where_it_stopped(files, monkeypatch, capsys):
    options, done = command(files), []

    def interrupted(row, seed, *rest):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append((row.name, seed))
        return measure(row, seed, *rest)

    monkeypatch.setattr(quality, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        options.run(options)
    with (files["work"] / "rows.jsonl").open("a") as file:
        file.write('{"setup": "cut')  # the machine went down while writing
    monkeypatch.setattr(
        quality,
        "measure",
        lambda row, seed, *rest: done.append((row.name, seed)) or measure(row, seed, *rest),
    )
    assert options.run(options) == 0
    assert sorted(done) == sorted((name, seed) for name in ROWS for seed in (1, 2))
    first = capsys.readouterr().out

    def must_not_measure(*arguments):
        raise AssertionError("measured again")

    monkeypatch.setattr(quality, "measure", must_not_measure)
    assert options.run(options) == 0
    assert capsys.readouterr().out == first


def test_figures_of_another_setup_are_not_taken_over(files, monkeypatch, capsys):
    options = command(files, "--rows", "real")
    options.run(options)
    classifier.save(files["judge"], classifier.initialised(1, (8, 8, 8, 16)), {})
    seen = []
    monkeypatch.setattr(
        quality, "measure", lambda row, *rest: seen.append(row) or measure(row, *rest)
    )
    options.run(options)
    assert len(seen) == 2


def test_another_head_is_measured_anew_and_only_it(files, monkeypatch):
    options = command(files, "--rows", "real", "vanilla-4", "shortcut-4-2", "reuse-4-2")
    options.run(options)
    fits = {"model_fingerprint": weights.load(files["model"]).fingerprint}
    builders.write(files["head"], builders.head(seed=9, **fits))
    seen = []
    monkeypatch.setattr(
        quality, "measure", lambda row, *rest: seen.append(row.name) or measure(row, *rest)
    )
    options.run(options)
    assert seen == ["shortcut-4-2"] * 2


def test_spread_is_the_models_or_as_asked_for(files):
    usual, spread = (quality.load_kit(command(files, *more)) for more in ((), ("--spread", "3")))
    assert (usual.defaults.spread, spread.defaults.spread) == (0, 3)


def test_the_same_seed_gives_the_same_figures_whatever_the_batch(files):
    kit = quality.load_kit(command(files))
    row = Row.parse("shortcut-4-2")
    first, *_ = quality_measure.judge_samples(kit, row, 1, 8)
    again, *_ = quality_measure.judge_samples(replace(kit, batch_size=8), row, 1, 8)
    np.testing.assert_allclose(first, again, atol=1e-4)
    codes, other = (quality_measure.sample_codes(kit, row, seed, range(8))[0] for seed in (1, 2))
    assert not torch.equal(codes, other)


def test_a_model_of_other_classes_is_refused(files):
    builders.write(files["model"], builders.model())
    builders.write(files["head"], builders.head())
    options = command(files)
    with pytest.raises(ValueError, match="has 3 classes, expected the 16 of the scenes"):
        options.run(options)


# The report


def line(kind: str, **figures) -> Line:
    given = {
        **dict.fromkeys(("num_steps", "num_full", "operations"), 0),
        **dict.fromkeys(("operations_full", "operations_head", "operations_logits"), 0),
        **dict.fromkeys(("seconds", "distance", "vq_distance", "time", "biome", "both"), 0.5),
    }
    return Line(kind=kind, **given | {"distances": [4, 6], "vq_distances": [0.4, 0.6]} | figures)


def test_a_cell_says_the_mean_and_each_seed():
    cells = line("vanilla", num_steps=8, num_full=8, operations=int(12.3e9), both=0.975).cells
    assert cells == (
        "vanilla",
        "8",
        "8",
        "0.500",
        "12.30",
        "0.5 (4.0, 6.0)",
        "0.5 (0.4, 0.6)",
        "50.0%",
        "50.0%",
        "97.5%",
    )


def test_the_share_of_the_head_is_that_of_one_pass():
    shortcut = line("shortcut", num_steps=10, num_full=2, operations_full=200, operations_head=40)
    setting = dict.fromkeys(
        ("hardware", "torch", "dtype", "batch", "num", "num_reference", "seeds"), "x"
    )
    assert "takes 5.0% of" in markdown([shortcut], setting | {"sampler": {}})


def test_a_chart_shows_every_kind_in_its_colour():
    lines = [
        line("real", distance=0.1),
        line("vanilla", num_steps=8, num_full=8, operations=10**10),
        line("shortcut", num_steps=8, num_full=2, operations=10**9),
    ]
    colours = {colour for _, colour in quality_chart(lines).getcolors(1 << 20)}
    assert {(96, 104, 122), (214, 84, 44)} <= colours
    with pytest.raises(ValueError, match="at least one sampled row"):
        quality_chart(lines[:1])
