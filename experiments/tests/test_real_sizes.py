"""The command that measures the published sizes, on small ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import builders
import pytest
import torch

from experiments import real_sizes
from experiments.__main__ import main
from shortcut.flops import count_operations
from shortcut.models.maskgit import head as maskgit_head
from shortcut.models.maskgit import transformer as maskgit
from shortcut.models.maskgit import vqgan as maskgit_vqgan

NAME = "maskgit-512"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> real_sizes.System:
    """The class model in small sizes."""
    system = replace(
        real_sizes.SYSTEMS[NAME],
        model=(maskgit.FORMAT, builders.MODEL_CONFIG),
        head=(maskgit_head.FORMAT, builders.HEAD_CONFIG),
        vq=(maskgit_vqgan.FORMAT, builders.VQ_CONFIG),
        side=builders.MODEL_CONFIG.grid * 2 ** (len(builders.VQ_CONFIG.multipliers) - 1),
        downscale=2 ** (len(builders.VQ_CONFIG.multipliers) - 1),
        conditions=lambda num: 2 * (torch.zeros(num, dtype=torch.long),),
    )
    monkeypatch.setitem(real_sizes.SYSTEMS, NAME, system)
    return system


def test_rows_are_vanilla_the_presets_and_decoding(
    small: real_sizes.System, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "figures.json"
    where = ["--models", NAME, "--device", "cpu", "--dtypes", "float32"]
    assert main(["real-sizes", *where, "--repeats", "2", "--json", str(path)]) == 0
    lines = json.loads(path.read_text())
    presets = [(p.num_steps, p.num_full) for p in maskgit.FORMAT.presets.values()]
    assert [(x["num_steps"], x["num_full"]) for x in lines] == [(32, 32), *presets, (None, None)]
    assert all(len(x["seconds"]) == 2 for x in lines)
    operations = [x["operations"] for x in lines[:-1]]
    assert operations == sorted(operations, reverse=True)
    settings = replace(small.settings, num_steps=32, full_steps=None)
    network = maskgit.MaskGIT(builders.MODEL_CONFIG, device="meta")
    grid = 2 * (builders.MODEL_CONFIG.grid,)
    expected = count_operations(network, None, settings, small.conditions(1), grid)
    assert operations[0] == expected.total
    printed = capsys.readouterr().out
    assert f"decoding {small.side} x {small.side}" in printed and "Random weights" in printed


def test_a_size_that_the_model_does_not_make_is_refused(small: real_sizes.System):
    side = small.side + small.downscale
    with pytest.raises(ValueError, match="makes images of"):
        main(["real-sizes", "--models", NAME, "--device", "cpu", "--size", str(side)])


def test_random_weights_keep_features_finite_in_half_precision(small: real_sizes.System):
    file = real_sizes.random_checkpoint(*small.model, torch.bfloat16, torch.device("cpu"))
    norm = file.tensors["blocks.0.attention_norm.weight"]
    assert torch.equal(norm, torch.ones_like(norm))
    assert float(file.tensors["token.weight"].float().std()) == pytest.approx(0.02, rel=0.1)
