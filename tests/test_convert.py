"""The commands `info` and `convert`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import builders
import lumina_folder
import pytest
import torch
from builders import KINDS, assert_same
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import quantized
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.compatibility import check_head
from shortcut_pack.shortcut.models.lumina_dimoo.tokenizer import tokenizer_folder


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


# The commands.


def test_info_says_what_a_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = builders.model(title="Tiny", class_names=("a", "b", "c"))
    path = builders.write(tmp_path / "a.safetensors", model)
    assert main(["info", str(path)]) == 0
    said = capsys.readouterr().out
    in_memory = 4 * sum(tensor.numel() for tensor in model.tensors.values()) / 1e6
    assert f"{path}, {path.stat().st_size / 1e6:.1f} MB" in said
    assert f"{in_memory:.1f} MB in memory" in said
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


def test_a_published_file_becomes_one_of_ours(kind: str, tmp_path: Path) -> None:
    make, known = KINDS[kind]
    source = builders.write(tmp_path / "a.pth", make())
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in known.items()]
    ours = tmp_path / "b.safetensors"
    assert main(["convert", str(source), str(ours), *sizes, "--title", "T"]) == 0
    assert_same(checkpoints.load(ours), make())
    assert checkpoints.load(ours).metadata.title == "T"


def test_convert_halves_and_ties_a_head_to_its_model(tmp_path: Path) -> None:
    model = builders.write(tmp_path / "model.safetensors", builders.model())
    source = builders.write(tmp_path / "a.pth", builders.head())
    out = tmp_path / "b.safetensors"
    options = ["--model", str(model), "--dtype", "float16", "--num-heads", "4"]
    assert main(["convert", str(source), str(out), *options]) == 0
    head = checkpoints.load(out)
    assert head.dtype == torch.float16
    assert check_head(head, builders.model()) is None


@pytest.mark.parametrize("target", list(quantized.TARGETS))
def test_a_quantized_file_is_converted_back(target: str, tmp_path: Path) -> None:
    source = builders.write(tmp_path / "a.safetensors", builders.model())
    small, back = tmp_path / "b.safetensors", tmp_path / "c.safetensors"
    assert main(["convert", str(source), str(small), "--dtype", target]) == 0
    assert main(["convert", str(small), str(back), "--dtype", "bfloat16"]) == 0
    found, stored = checkpoints.load(back), checkpoints.load(small)
    assert (found.dtype, found.quantized) == (torch.bfloat16, {}) and stored.quantized
    for name in stored.quantized:
        expected = quantized.dequantized(name, stored.tensors, torch.bfloat16)
        assert torch.equal(found.tensors[name], expected)
    # A head of the model stays one, however often it is converted.
    again = tmp_path / "d.safetensors"
    assert main(["convert", str(back), str(again), "--dtype", "float32"]) == 0
    assert checkpoints.load(again).fingerprint == builders.model().fingerprint == stored.fingerprint


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


# A published folder to one file.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lumina_folder.write(tmp_path / "Lumina")


CODES = "--num-codes=64"


@pytest.mark.parametrize("dtype", [None, "float16", "float8_e4m3fn"])
def test_a_folder_becomes_one_file_with_its_tokenizer(
    dtype: str | None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "lumina.v2.safetensors"
    options = ["--dtype", dtype] if dtype else []
    assert main(["convert", str(folder), str(out), CODES, *options]) == 0
    expected, found = checkpoints.load(folder, **lumina_folder.SIZES), checkpoints.load(out)
    assert (found.config, found.fingerprint) == (expected.config, expected.fingerprint)
    if dtype is None:
        assert_same(found, expected)
    else:
        assert_same(found, checkpoints.cast(expected, getattr(torch, dtype)))
    tokenizer = tmp_path / "new" / "lumina.v2.tokenizer"
    assert {file.name: file.read_text() for file in tokenizer.iterdir()} == lumina_folder.TOKENIZER
    assert tokenizer_folder(out) == tokenizer
    assert sorted(os.listdir(out.parent)) == [out.name, tokenizer.name]
    said = capsys.readouterr().out
    assert f"tokenizer    {tokenizer}" in said
    assert ("mostly float8_e4m3fn, else float32" in said) == (dtype == "float8_e4m3fn")
    assert ("as float8" in said) == (dtype != "float8_e4m3fn")


def test_a_converted_file_can_be_converted_again(folder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert main(["convert", str(folder), str(first), CODES]) == 0
    stale = tmp_path / "b.tokenizer" / "added_tokens.json"
    stale.parent.mkdir()
    stale.write_text("{}")
    assert main(["convert", str(first), str(second), "--dtype", "float8_e4m3fn"]) == 0
    assert tokenizer_folder(second) == tmp_path / "b.tokenizer"
    assert not stale.exists(), "a file of another tokenizer"
    back = tmp_path / "c.safetensors"
    assert main(["convert", str(second), str(back), "--dtype", "float16"]) == 0
    assert checkpoints.load(back).fingerprint == checkpoints.load(first).fingerprint


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_failed_conversion_leaves_the_files_beside_its_output(
    suffix: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, kept = tmp_path / f"b{suffix}", tmp_path / "b.tokenizer" / "tokenizer.json"
    kept.parent.mkdir()
    kept.write_text("{}")

    def interrupted(*rest: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints, "write_safetensors", interrupted)
    assert main(["convert", str(folder), str(out), CODES]) == 1
    assert kept.read_text() == "{}" and list(kept.parent.iterdir()) == [kept]


def test_the_vq_model_of_a_folder_converts_without_a_tokenizer(tmp_path: Path) -> None:
    folder = lumina_folder.write(tmp_path / "Lumina", has_vq=True)
    assert main(["convert", str(folder / "vqvae"), str(tmp_path / "vq.safetensors")]) == 0
    assert sorted(os.listdir(tmp_path)) == ["Lumina", "vq.safetensors"]


def test_a_tokenizer_may_lie_plainly_beside_the_file(folder: Path, tmp_path: Path) -> None:
    assert tokenizer_folder(folder / lumina_folder.INDEX) == folder
    out = folder / "ours.safetensors"
    assert main(["convert", str(folder / lumina_folder.INDEX), str(out), CODES]) == 0
    for file in (folder / "ours.tokenizer").iterdir():
        file.unlink()
    assert tokenizer_folder(out) == folder


def test_a_missing_tokenizer_is_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = lumina_folder.write(tmp_path / "Lumina", has_tokenizer=False)
    out = tmp_path / "a.safetensors"
    assert main(["convert", str(folder), str(out), CODES]) == 1
    said = capsys.readouterr().err
    for part in ("index.json has no tokenizer: there is no tokenizer.json in", "Copy tokenizer.js"):
        assert part in said
    assert os.listdir(tmp_path) == ["Lumina"]
    assert main(["info", str(folder), CODES]) == 0
    assert f"tokenizer    missing; it belongs into {folder}\n" in capsys.readouterr().out
    moved = tmp_path / "moved.safetensors"
    with pytest.raises(FileNotFoundError, match=r"in .*moved.tokenizer or in .* you moved or ren"):
        tokenizer_folder(moved)


def test_a_part_of_the_input_is_not_overwritten(folder: Path, capsys) -> None:
    shard = folder / lumina_folder.SHARDS[1]
    before = shard.read_bytes()
    assert main(["convert", str(folder), str(shard), CODES]) == 1
    assert "is the input itself" in capsys.readouterr().err
    assert shard.read_bytes() == before


def modules_after(*arguments: str) -> set[str]:
    """The modules that a command has imported when it is done, in a process of its own."""
    code = "import sys; from shortcut.__main__ import main; main(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_info_imports_neither_commands_nor_training(tmp_path: Path) -> None:
    path = builders.write(tmp_path / "model.safetensors", builders.model())
    imported = modules_after("info", str(path))
    assert {"torch", "shortcut.cli.files"} <= imported
    unused = ("sympy", "transformers", "PIL", "shortcut.pipeline", "shortcut.train")
    assert not imported.intersection(unused)
    assert {name for name in imported if name.startswith("shortcut.cli.")} == {"shortcut.cli.files"}


def test_a_published_file_is_written_for_programs_that_read_no_safetensors(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its keys are those of the original, its values ours; what it cannot hold is said."""
    make, known = KINDS[kind]
    checkpoint = make(class_names=("a", "b", "c")) if kind == "model" else make()
    source, out = tmp_path / "in.safetensors", tmp_path / "out.pth"
    builders.write(source, checkpoint)
    assert main(["convert", str(source), str(out)]) == 0
    written = torch.load(out, weights_only=True)
    content = written[checkpoint.layout.container] if checkpoint.layout.container else written
    assert set(checkpoint.layout.marks) <= content.keys()
    again = checkpoints.load(out, **known)
    assert_same(again, checkpoints.load(source))
    assert ("class names" in caplog.text) == bool(checkpoint.metadata.class_names)
    assert out.stat().st_size < 1.5 * source.stat().st_size


def test_a_published_file_is_not_written_of_what_it_cannot_hold(tmp_path: Path, capsys) -> None:
    source, out = tmp_path / "in.safetensors", tmp_path / "out.pth"
    for checkpoint, options, said in (
        (builders.model(), ["--dtype", "float8_e4m3fn"], "no quantized weights"),
        (
            checkpoints.cast(builders.model(), quantized.TARGETS["nvfp4"]),
            [],
            "no quantized weights",
        ),
        (builders.text_model(), [], "not published as a PyTorch file"),
    ):
        builders.write(source, checkpoint)
        assert main(["convert", str(source), str(out), *options]) == 1
        assert said in capsys.readouterr().err
        assert not out.exists()
