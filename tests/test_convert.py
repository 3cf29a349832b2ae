"""The commands `info` and `convert`."""

from __future__ import annotations

import os
from pathlib import Path

import builders
import pytest
import torch
from builders import KINDS, assert_same
from shortcut_pack.shortcut import weights
from shortcut_pack.shortcut.__main__ import main


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


# The commands.


def test_info_says_what_a_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = builders.model(title="Tiny", class_names=("a", "b", "c"))
    assert main(["info", str(builders.write(tmp_path / "a.safetensors", model))]) == 0
    said = capsys.readouterr().out
    for part in ("MaskGIT transformer (maskgit), our file", "grid 4, width 32", "Tiny", "a, b, c"):
        assert part in said
    assert f"{model.num_parameters:,} parameters, mostly float32" in said
    assert model.fingerprint in said
    published = builders.write(tmp_path / "maskgit-shortcut.pth", builders.head())
    assert main(["info", str(published), "--num-heads", "4"]) == 0
    said = capsys.readouterr().out
    assert "published layout" in said and "only the width can be checked" in said


def test_info_of_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tmp_path / "nothing.pth")]) == 1
    assert "nothing.pth does not exist" in capsys.readouterr().err


def test_convert_there_and_back(kind: str, tmp_path: Path) -> None:
    make, known = KINDS[kind]
    source = builders.write(tmp_path / "a.pth", make())
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in known.items()]
    ours, back = tmp_path / "b.safetensors", tmp_path / "c.ckpt"
    assert main(["convert", str(source), str(ours), *sizes, "--title", "T"]) == 0
    assert_same(weights.load(ours), make())
    assert weights.load(ours).metadata.title == "T"
    assert main(["convert", str(ours), str(back)]) == 0
    assert_same(weights.load(back, **known), make())


def test_convert_halves_and_ties_a_head_to_its_model(tmp_path: Path) -> None:
    model = builders.write(tmp_path / "model.safetensors", builders.model())
    source = builders.write(tmp_path / "a.pth", builders.head())
    out = tmp_path / "b.safetensors"
    options = ["--model", str(model), "--dtype", "float16", "--num-heads", "4"]
    assert main(["convert", str(source), str(out), *options]) == 0
    head = weights.load(out)
    assert head.dtype == torch.float16
    assert weights.check_head(head, builders.model()) is None


def test_convert_refuses_what_does_not_fit(tmp_path: Path, capsys) -> None:
    model = builders.write(tmp_path / "model.safetensors", builders.model())
    path = str(builders.write(tmp_path / "a.safetensors", builders.vq()))
    before = Path(path).read_bytes()
    for arguments, match in (
        ([path], "is the input itself"),
        ([str(tmp_path / "b.safetensors"), "--model", str(model)], "does not go with"),
        ([str(tmp_path / "b.txt")], "has the suffix '.txt'"),
    ):
        assert main(["convert", path, *arguments]) == 1
        assert match in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "model.safetensors"]
    assert Path(path).read_bytes() == before
