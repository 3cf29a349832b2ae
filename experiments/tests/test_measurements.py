"""The commands that measure weight types, published sizes and the memory of loading, at the least size."""

from __future__ import annotations

import mmap
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from experiments.__main__ import main
from experiments.tables import load_memory, real_sizes
from experiments.tables.text_measure import text_cases
from experiments.tables.weight_types import FLOAT8, by_lengths, sampled
from shortcut import shipped, weights
from shortcut.cli.files import DTYPES
from shortcut.models.lumina_dimoo import transformer as lumina
from shortcut.models.lumina_dimoo.prompts import load_tokenizer
from shortcut.models.maskgit import head as maskgit_head
from shortcut.models.maskgit import transformer as maskgit
from shortcut.models.maskgit import vqgan

# Weight types


@torch.no_grad()
def test_the_fewer_bits_the_further_away_and_float32_is_as_itself() -> None:
    pytest.importorskip("transformers")
    file = tiny.checkpoint(lumina.FORMAT, tiny.TEXT_MODEL, 3, grid=(4, 4))
    cases = text_cases(load_tokenizer(shipped.TEXT_FOLDER, file.config), file.config, 2)
    groups = by_lengths(cases)
    assert sorted(n for numbers in groups for n in numbers) == list(range(len(cases)))
    exact = weights.build(file, dtype=torch.float32)
    settings, seen = replace(weights.settings(file), num_steps=4), {}
    for name in ("float32", "bfloat16", FLOAT8):
        dtype = torch.bfloat16 if name == FLOAT8 else DTYPES[name]
        model = weights.build(weights.cast(file, DTYPES[name]), dtype=dtype)
        codes_Bhw, found = sampled(model, exact, cases, groups[0], settings, 3, (4, 4))
        assert found.num_steps == 4 and found.num_predicted == codes_Bhw.numel()
        seen[name] = found
    assert seen["float32"].num_same == seen["float32"].num_predicted
    assert seen["float32"].divergence == pytest.approx(0, abs=1e-6)
    assert 0 < seen["bfloat16"].divergence < seen[FLOAT8].divergence


# Published sizes


def test_rows_are_vanilla_the_presets_and_decoding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "maskgit-512"
    system = replace(
        real_sizes.SYSTEMS[name],
        model=(maskgit.FORMAT, tiny.MODEL),
        head=(maskgit_head.FORMAT, tiny.HEAD),
        vq=(vqgan.FORMAT, tiny.vq_config()),
        side=8,
        downscale=2,
        conditions=lambda num: 2 * (torch.zeros(num, dtype=torch.long),),
    )
    monkeypatch.setitem(real_sizes.SYSTEMS, name, system)
    where = ["--models", name, "--device", "cpu", "--dtypes", "float32", "--repeats", "2"]
    assert main(["real-sizes", *where]) == 0
    printed = capsys.readouterr().out
    lines = [line.split("|") for line in printed.splitlines() if line.startswith("|")][2:]
    assert len(lines) == 2 + len(maskgit.FORMAT.presets)
    assert [cell.strip() for cell in lines[0][3:5]] == ["32", "32"]
    assert "decoding 8 x 8" in lines[-1][1] and "Random weights" in printed
    with pytest.raises(ValueError, match="makes images of"):
        main(["real-sizes", *where, "--size", "10"])


# The memory of loading


def test_the_synthetic_checkpoint_has_the_real_layout(tmp_path: Path) -> None:
    sizes = {"width": 16, "depth": 2, "num_heads": 2, "num_kv_heads": 2, "mlp_width": 24}
    config = replace(load_memory.REAL, **sizes)
    largest = load_memory.write_folder(tmp_path, config)
    shards = [path.stat().st_size for path in tmp_path.glob("model-*-of-00003.safetensors")]
    assert len(shards) == 3 and max(shards) == largest
    found = weights.load(tmp_path)
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
