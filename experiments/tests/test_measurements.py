"""The commands that measure weight types, published sizes and the memory of loading, at the least size."""

from __future__ import annotations

import mmap
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import tiny
import torch

from experiments.__main__ import main
from experiments.tables import load_memory, real_sizes, weight_layers
from experiments.tables.cases import FIRST_SEED, batches, cases_of
from experiments.tables.rows import DTYPES
from experiments.tables.weight_types import WEIGHTS, cell, sampled
from shortcut import Pipeline
from shortcut import checkpoint as checkpoints
from shortcut.models import lumina_dimoo, maskgit
from shortcut.models.architecture import ModelNetwork, PublishedSize
from shortcut.settings import usual_settings

# Weight types


@torch.no_grad()
def test_the_fewer_bits_the_further_away_and_float32_is_as_itself(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    files = tiny.text(tmp_path)
    exact = Pipeline.load(files["model"], files["vq"])
    cases = cases_of(exact, range(FIRST_SEED, FIRST_SEED + 16))
    groups = batches(cases, 16)
    assert sorted(n for numbers in groups for n in numbers) == list(range(len(cases)))
    settings, seen = replace(usual_settings(exact.model_file), num_steps=4), {}
    names = ("float32", "bfloat16", "float8_e4m3fn", "asym_w4a8", "nvfp4")
    for name in names:
        file = checkpoints.cast(checkpoints.load(files["model"]), WEIGHTS[name])
        dtype = DTYPES.get(name, torch.bfloat16)
        tested = replace(exact, model=checkpoints.build(file, dtype=dtype))
        codes_Bhw, found = sampled(tested, exact, cases, groups[0], settings, 3, (12, 12))
        assert found.num_steps == 4 and found.num_tokens == codes_Bhw.numel()
        seen[name] = found
    assert seen["float32"].num_same == seen["float32"].num_tokens
    assert seen["float32"].divergence == pytest.approx(0, abs=1e-5)
    divergences = [seen[name].divergence for name in names]
    assert divergences == sorted(set(divergences))


def test_a_cell_has_a_standard_error_where_there_are_several_seeds() -> None:
    assert cell([0.5], ".1%") == "50.0%"
    assert cell([0.4, 0.6], ".1%") == "50.0% (10.0%)"


@torch.no_grad()
def test_the_error_of_layers_alone_and_together(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    files = tiny.text(tmp_path)
    pipeline = Pipeline.load(files["model"], files["vq"])
    before = {name: id(layer) for name, layer in pipeline.model.named_modules()}
    states = weight_layers.recorded(pipeline, 8)
    rows = {row[0]: errors(row) for row in weight_layers.layer_rows(pipeline, states)}
    assert before == {name: id(layer) for name, layer in pipeline.model.named_modules()}
    by_layer, every = rows["query"], rows["all"]
    assert all(0 < few < many for few, many in zip(by_layer, every, strict=True))
    assert rows["all"][1] < rows["all"][0] < rows["all"][3] < rows["all"][2]
    config = weight_layers.resized(lumina_dimoo.ARCHITECTURE.sizes["lumina-dimoo"].model, 256)
    _, float8, int8, nvfp4, asym = list(weight_layers.block_rows(config))[-1]
    assert errors(("", int8)) < errors(("", float8)) < errors(("", asym)) < errors(("", nvfp4))


def errors(row: tuple[str, ...]) -> list[float]:
    return [float(cell.removesuffix("%")) for cell in row[1:]]


# Published sizes


def test_rows_are_vanilla_the_presets_and_decoding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "maskgit-512"
    conditions = real_sizes.SYSTEMS["maskgit-512"].size.conditions
    size = PublishedSize(replace(tiny.MODEL, grid=4), tiny.HEAD, tiny.VQ, (4, 4), conditions)
    system = replace(real_sizes.SYSTEMS[name], size=size)
    monkeypatch.setitem(real_sizes.SYSTEMS, name, system)
    where = ["--models", name, "--device", "cpu", "--dtypes", "float32", "--repeats", "2"]
    assert main(["real-sizes", *where]) == 0
    printed = capsys.readouterr().out
    lines = [line.split("|") for line in printed.splitlines() if line.startswith("|")][2:]
    assert len(lines) == 2 + len(maskgit.ARCHITECTURE.presets)
    assert [cell.strip() for cell in lines[0][3:6]] == ["vanilla", "32", "32"]
    assert "decoding 32 x 32" in lines[-1][1] and "Random weights" in printed
    more = ["--full-steps", "6", "5", "--accelerator", "head", "partial", "--dtypes", "nvfp4"]
    assert main(["real-sizes", *where, *more]) == 0
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines()][3:-3]
    found = [[cell.strip() for cell in line[3:6]] for line in lines]
    assert found == [[name, "32", full] for name in ("head", "partial") for full in ("6", "5")]


@pytest.mark.parametrize("name", real_sizes.SYSTEMS)
def test_every_published_model_has_conditions_for_a_batch(name: str) -> None:
    system = real_sizes.SYSTEMS[name]
    model = system.architecture.model.network(system.size.model, device="meta")
    on_grid = cast(ModelNetwork, model).on_grid(*system.size.grid)
    for of_one, of_three in zip(system.conditions(1), system.conditions(3), strict=True):
        assert on_grid.sequence_length(of_one) == on_grid.sequence_length(of_three)
        assert len(of_three[[0, 1, 2]]) == 3


# The memory of loading


def test_the_synthetic_checkpoint_has_the_real_layout(tmp_path: Path) -> None:
    sizes = {"width": 16, "depth": 2, "num_heads": 2, "num_kv_heads": 2, "mlp_width": 24}
    config = replace(load_memory.REAL, **sizes)
    largest = load_memory.write_folder(tmp_path, config)
    shards = [path.stat().st_size for path in tmp_path.glob("model-*-of-00003.safetensors")]
    assert len(shards) == 3 and max(shards) == largest
    found = checkpoints.load(tmp_path)
    assert (found.config, found.dtype) == (config, torch.bfloat16)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_anonymous_memory_is_seen() -> None:
    def work() -> None:
        # Fresh pages, whatever the allocator kept of other tests; held until the watch has looked.
        size, flags = 30_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        with mmap.mmap(-1, size, flags=flags) as pages:
            pages.write(b"x" * size)
            time.sleep(5 * load_memory.INTERVAL)

    anonymous, _, seconds = load_memory.measured(work)
    assert 25e6 < anonymous < 100e6 and seconds > 0
