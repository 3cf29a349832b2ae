"""Checkpoint files that are damaged, hostile or of something else: each has its own error."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import lumina_folder
import pytest
import torch
from builders import KINDS, assert_same
from safetensors.torch import load_file, save_file
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import values
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.files import read


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


# Tensors that do not fit.


def edited(kind: str, **changes: Any) -> dict[str, Any]:
    """The published tensors of `kind`; a change to None removes one."""
    raw = builders.published(KINDS[kind][0]())
    raw = dict(raw.get("model_state_dict", raw.get("state_dict", raw))) | changes
    return {key: value for key, value in raw.items() if value is not None}


def refused(kind: str, raw: Mapping[str, Any], match: str, **known: Any) -> None:
    with pytest.raises(ValueError, match=match):
        checkpoints.from_tensors(raw, path="FILE", **(KINDS[kind][1] | known))


MARKS = {"model": "last_layer.0.bias", "head": "last_layer.0.bias", "vq": "encoder.norm_out.bias"}


def test_unknown_and_missing_keys_are_named(kind: str) -> None:
    known_key = MARKS[kind]
    raw = edited(kind, **{known_key: None, "what.is.this": torch.zeros(1)})
    refused(kind, raw, f"(?s)FILE: 1 keys are not of.*'what.is.this'; 1 keys.*{known_key}")


def test_of_many_keys_five_are_named_and_the_rest_counted(kind: str) -> None:
    refused(kind, edited(kind, **{f"x{i}": torch.zeros(1) for i in range(9)}), "'x4' and 4 more")


def test_published_keys_are_named_also_when_several_of_ours_come_from_one() -> None:
    key = "transformer.layers.1.0.fn.mha.in_proj_weight"
    refused("model", edited("model", **{key: None}), f"1 keys .* are missing: '{key}'")
    extra = {"transformer.layers.7.0.norm.bias": torch.zeros(32)}
    refused("model", edited("model", **extra), "12 keys .* missing: 'transformer.layers.2.0.norm")


def test_a_tensor_that_sizes_are_read_from_is_missing() -> None:
    key = "transformer.layers.0.1.fn.net.0.weight"
    refused("model", edited("model", **{key: None}), f"1 keys .* are missing: '{key}'")
    refused("vq", edited("vq", **{"encoder.conv_in.weight": None}), "missing: 'encoder.conv_in.w")


def test_a_file_of_ours_is_as_strict(tmp_path: Path) -> None:
    path = builders.write(tmp_path / "a.safetensors", builders.model())
    raw, metadata = read(path)
    with pytest.raises(ValueError, match="1 keys are not of a MaskGIT transformer: 'x'"):
        checkpoints.from_tensors(raw | {"x": torch.zeros(1)}, metadata, path)
    del raw["last_layer.0.bias"]
    with pytest.raises(
        ValueError, match=r"a.safetensors: 1 keys of .* missing: 'last_layer.0.bias'"
    ):
        checkpoints.from_tensors(raw, metadata, path)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        (
            "last_layer.0.bias",
            torch.zeros(5),
            r"'last_layer.0.bias' has shape \(5,\), expected \(32,",
        ),
        ("tok_emb.weight", torch.zeros(5), r"'token.weight' has shape \(5,\), expected 2 axes"),
        (
            "pos_emb",
            torch.zeros(2, 17, 32),
            r"'pos_emb' has shape \(2, 17, 32\), expected 1 at axes",
        ),
        ("pos_emb", torch.zeros(1, 18, 32), "18 positions, expected those of a square grid"),
        (
            "transformer.layers.0.0.fn.mha.in_proj_bias",
            torch.zeros(97),
            r"has shape \(97,\), expected a first axis of 3 parts",
        ),
        ("last_layer.0.bias", torch.zeros(32).long(), "is torch.int64, expected a floating point"),
        ("last_layer.0.bias", [0.0] * 32, "'last_layer.0.bias' is a list, expected a floating"),
        ("last_layer.0.bias", torch.zeros(1).expand(32), "does not store all its values"),
        ("last_layer.0.bias", torch.zeros(32).to_sparse(), "does not store all its values"),
        ("last_layer.0.bias", torch.full((32,), torch.nan), "'last_layer.0.bias' holds NaN"),
        ("last_layer.0.bias", torch.full((32,), -torch.inf), "'last_layer.0.bias' holds NaN, inf"),
    ],
)
def test_a_wrong_tensor(key: str, value: Any, match: str) -> None:
    refused("model", edited("model", **{key: value}), match)


def test_channels_of_a_vqgan_that_do_not_fit() -> None:
    wrong = {"encoder.down.1.block.0.conv1.weight": torch.zeros(40, 32, 3, 3)}
    refused("vq", edited("vq", **wrong), r"levels have \[32, 40\] channels, expected multiples")


def test_sizes_that_no_tensor_shows() -> None:
    raw = edited("model")
    with pytest.raises(ValueError, match=r"num_codes cannot .* convert IN .* --num-codes N"):
        checkpoints.from_tensors(raw)
    with pytest.raises(ValueError, match=r"num_heads cannot .*presets: 16 for 768.* --num-heads N"):
        checkpoints.from_tensors(raw, num_codes=16)
    refused("model", raw, "num_heads is 5, expected a divisor of the width 32", num_heads=5)
    refused("model", raw, "num_heads must be a whole number of at least 1, got 0", num_heads=0)
    refused("model", raw, "num_codes is 19, expected at most 18", num_codes=19)
    refused("model", raw, "MaskGIT transformer has no 'heads', expected depth, grid", heads=4)
    refused("model", raw, "depth is 2, but you gave 3", depth=3)


@pytest.mark.parametrize(
    ("entry", "text", "match"),
    [
        ("format", "dimoo", "it has format 'dimoo' version 1, expected version 1 of maskgit"),
        ("version", "2", "format 'maskgit' version 2, expected version 1 .* update"),
        ("config", "{", "shortcut.config cannot be used: it is not JSON"),
        ("config", "[]", "shortcut.config are \\[\\], expected a dict"),
        ("config", '{"num_heads": 4, "num_codes": 16, "depth": 3}', "depth is 2, but its metadata"),
        (
            "config",
            '{"num_heads": "4", "num_codes": 16}',
            "num_heads must be a whole number .*, got '4'",
        ),
        ("config", '{"num_heads": 4, "num_codes": 1000}', "num_codes is 1000, expected at most 18"),
        ("config", '{"num_heads": 4, "num_codes": 16, "speed": 3}', "has no 'speed', expected"),
        ("class_names", '["a", 3]', "shortcut.class_names are .* expected a list"),
        ("class_names", '["a"]', "metadata name 1 classes, but it has 3"),
        ("title", "3", "shortcut.title are 3, expected a str"),
        ("trained", "[" * 100_000, "shortcut.trained cannot be used: it is nested too deeply"),
        (
            "trained",
            "[" * 40 + "]" * 40,
            "shortcut.trained cannot be used: it is nested too deeply",
        ),
        ("defaults", f'{{"temperature": 1{"0" * 400}}}', "the number 100000000... has 401 digits"),
        ("defaults", '{"temperature": 1e999}', "the number 1e999 is too large"),
    ],
)
def test_wrong_metadata(entry: str, text: str, match: str, tmp_path: Path) -> None:
    path = builders.write(tmp_path / "a.safetensors", builders.model())
    raw, metadata = read(path)
    with pytest.raises(ValueError, match=match):
        checkpoints.from_tensors(raw, metadata | {f"shortcut.{entry}": text}, path)


def test_what_the_caller_says_does_not_override_the_file(tmp_path: Path) -> None:
    path = builders.write(tmp_path / "a.safetensors", builders.model())
    with pytest.raises(ValueError, match="num_heads is 4, but you gave 8"):
        checkpoints.load(path, num_heads=8)


def test_a_file_of_another_kind() -> None:
    for kind, (make, known) in KINDS.items():
        wanted = next(other for other in KINDS if other != kind)
        with pytest.raises(ValueError, match=r"FILE: it is a .*, expected a .*\. Give it as the "):
            checkpoints.from_tensors(builders.published(make()), path="FILE", kind=wanted, **known)


def test_a_checkpoint_of_something_else() -> None:
    raw = {f"model.diffusion_model.{i}.weight": torch.zeros(1) for i in range(7)}
    match = "it is no MaskGIT transformer or VQGAN .* Its 7 entries: .* and 2 more"
    refused("model", raw, match)
    refused("model", {}, "Its 0 entries: none")


def test_a_conversion_that_overflows() -> None:
    model = builders.model()
    big = dict(model.tensors) | {"token.weight": model.tensors["token.weight"] * 1e6}
    with pytest.raises(ValueError, match=r"'token.weight' holds NaN.* in torch.float16"):
        checkpoints.cast(replace(model, tensors=big), torch.float16)


def test_large_tensors_are_looked_at_in_part_and_after_a_conversion_in_full(monkeypatch) -> None:
    monkeypatch.setattr(values, "WHOLE", 100)
    monkeypatch.setattr(values, "PART", 32)
    monkeypatch.setattr(values, "CHUNK", 64)
    damaged = torch.zeros(20, 10)
    damaged[-1, -1] = torch.nan
    checkpoints.check_finite({"a": damaged})
    with pytest.raises(ValueError, match="'a' holds NaN"):
        checkpoints.check_finite({"a": damaged}, is_full=True)
    for tensor in (damaged.flip(0), damaged[-10:], damaged[-1, -1]):
        with pytest.raises(ValueError, match="'a' holds NaN"):
            checkpoints.check_finite({"a": tensor})


# Files that are not what they should be.


class Hostile:
    """Unpickled, it would make the file `mark`."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo 1 > {self.mark}",)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda t: t.to(torch.float8_e4m3fnuz),
            "'tok_emb.weight' is torch.float8_e4m3fnuz. Have its author",
        ),
        (lambda t: t.to(torch.complex64), "'tok_emb.weight' is torch.complex64"),
        (lambda t: t.to("meta"), "a tensor without values"),
        (lambda t: t.to_sparse(), "'tok_emb.weight' does not store all its values"),
    ],
)
def test_a_tensor_of_a_kind_that_no_weights_have(
    change: Any, match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, path = builders.published(builders.model()), tmp_path / "a.pth"
    weights = raw["model_state_dict"]
    weights["tok_emb.weight"] = change(weights["tok_emb.weight"])
    torch.save(raw, path)
    out = str(tmp_path / "b.safetensors")
    assert main(["convert", str(path), out, "--num-heads", "4", "--num-codes", "16"]) == 1
    said = capsys.readouterr().err
    assert match in said and "a.pth" in said


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes among the files")
@pytest.mark.parametrize(
    ("pipe", "command"),
    [
        ("p.jsonl", "generate --class 0 --prompts p.jsonl --out-dir o"),
        ("p.txt", "train --out h.safetensors --prompts p.txt"),
        ("h.jsonl", "train --out h.safetensors"),
        ("m.pth", "info m.pth"),
        ("i.png", "generate --class 0 --image i.png --denoise 0.5 --out o.png"),
    ],
)
def test_a_pipe_in_the_place_of_a_file(
    pipe: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Else the command waits for ever."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo(pipe)
    assert main(command.split()) == 1
    assert f"error: {pipe} " in capsys.readouterr().err


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("place", ["beside", "inside", "instead"])
def test_a_pickle_that_would_run_code_is_refused(place: str, is_zip: bool, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pth"
    raw = builders.published(builders.model())
    if place == "inside":
        raw["model_state_dict"]["x"] = Hostile(mark)
    content = Hostile(mark) if place == "instead" else raw | {"iter": Hostile(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(
        ValueError, match=r"evil.pth was refused: it asks for \w+.system, which could"
    ):
        checkpoints.load(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the file is as hostile as it claims
    assert mark.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_is_refused_too(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pth"
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Hostile(mark), protocol))
        with pytest.raises(ValueError, match=r"evil.pth (was refused|is a damaged)"):
            checkpoints.load(path)
    assert not mark.exists()


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Identity(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"asks for torch.nn.modules.linear.Identity.* state_dict"):
        checkpoints.load(tmp_path / "a.pth")


def test_files_from_before_pytorch_1_6_are_read(kind: str, tmp_path: Path) -> None:
    make, known = KINDS[kind]
    path = tmp_path / "old.pth"
    torch.save(builders.published(make()), path, _use_new_zipfile_serialization=False)
    assert_same(checkpoints.load(path, **known), make())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_that_was_cut_off(suffix: str, tmp_path: Path) -> None:
    path = builders.write(tmp_path / f"cut{suffix}", builders.head())
    whole = path.read_bytes()
    for length in (0, 1, 5, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"cut{suffix} (is|was)"):
            checkpoints.load(path, **builders.HEAD_SIZES)


@pytest.mark.parametrize("layout", ["ours", "published", "old"])
def test_a_file_with_a_wrong_byte_is_read_or_refused_by_name(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.bin"
    if layout == "ours":
        path = builders.write(tmp_path / "odd.safetensors", builders.head())
    else:
        raw = builders.published(builders.head())
        torch.save(raw, path, _use_new_zipfile_serialization=layout == "published")
    whole, choice = path.read_bytes(), random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[choice.randrange(min(len(whole), 5000))] ^= 1 << choice.randrange(8)
        path.write_bytes(damaged)
        try:
            checkpoints.load(path, **builders.HEAD_SIZES)
        except ValueError as error:
            assert "odd" in str(error)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (bytes(1000), r"is empty \(1000 bytes\)"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "is a JPEG picture"),
        (b"\x89PNG\r\n\x1a\n", "is a PNG picture"),
        (b"GGUF\x03\0\0\0", "is a GGUF file, which is not supported"),
        (b"epoch,loss\n1,0.5\n", "is not a safetensors or PyTorch file"),
    ],
)
def test_something_else_under_a_checkpoints_name(
    content: bytes, match: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"a.pth {match}"):
        checkpoints.load(path)


def test_a_zip_and_a_list_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(ValueError, match=r"a.pth is a damaged PyTorch file or none at all"):
        checkpoints.load(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match=r"a.pth holds a list, expected a dict of tensors"):
        checkpoints.load(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing.pth does not exist"):
        checkpoints.load(tmp_path / "nothing.pth")


def test_a_folder_stands_for_the_one_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"holds no MaskGIT .* for MaskGIT_ImageNet_512.pth"
    ):
        checkpoints.load(tmp_path)
    model = builders.write(tmp_path / "MaskGIT" / "MaskGIT_ImageNet_256.pth", builders.model())
    vq = builders.write(tmp_path / "VQGAN" / "last.ckpt", builders.vq())
    (tmp_path / "notes.txt").write_text("x")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    assert checkpoints.load(tmp_path, "model", **builders.MODEL_SIZES).path == model
    assert checkpoints.load(tmp_path, "vq").path == vq
    head = builders.write(tmp_path / "head.safetensors", builders.head())
    assert checkpoints.load(tmp_path, "head").path == head
    builders.write(tmp_path / "head2.safetensors", builders.head())
    with pytest.raises(
        ValueError, match=r"holds 2 such files: head.safetensors, head2.safetensors"
    ):
        checkpoints.load(tmp_path, "head")
    with pytest.raises(FileNotFoundError, match=r"holds no MaskGIT shortcut head .*Looked"):
        checkpoints.load(tmp_path / "VQGAN", "head")


# A published folder of many files.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lumina_folder.write(tmp_path / "Lumina")


def refused_folder(folder: Path, match: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=match):
        checkpoints.load(folder, "model", **lumina_folder.SIZES)


def test_a_folder_without_its_index(folder: Path) -> None:
    (folder / lumina_folder.INDEX).unlink()
    match = (
        r"holds no MaskGIT .* It holds model-00001-of-00002.safetensors, a part .* download model"
    )
    refused_folder(folder, match, FileNotFoundError)


def test_a_folder_without_a_vq_model(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no .*VQ.* Looked there and in its sub"):
        checkpoints.load(folder, "vq")


def test_a_folder_with_both_an_index_and_one_file(folder: Path) -> None:
    save_file(lumina_folder.raw(), folder / "model.safetensors")
    refused_folder(
        folder, r"holds 2 such files: model.safetensors, model.safetensors.index.json. Give"
    )


def test_a_missing_shard(folder: Path) -> None:
    (folder / lumina_folder.SHARDS[1]).unlink()
    match = (
        r"index.json names 2 files, of which 1 are missing in .*: model-00002-of-00002.safetensors"
    )
    refused_folder(folder, match, FileNotFoundError)


def test_a_truncated_shard(folder: Path) -> None:
    shard = folder / lumina_folder.SHARDS[1]
    shard.write_bytes(shard.read_bytes()[:-1000])
    refused_folder(folder, r"model-00002-of-00002.safetensors is a damaged .* cut off: download")


def test_a_tensor_that_its_shard_does_not_hold(folder: Path) -> None:
    shard = folder / lumina_folder.SHARDS[0]
    tensors = load_file(shard)
    key, _ = tensors.popitem()
    save_file(tensors, shard)
    refused_folder(folder, f"'{key}' is in model-00001-of-00002.safetensors, but it is not .1 such")


def test_a_tensor_in_two_shards(folder: Path) -> None:
    first, second = (folder / name for name in lumina_folder.SHARDS)
    tensors = load_file(second)
    key = sorted(load_file(first))[0]
    save_file(tensors | {key: torch.zeros(1)}, second)
    refused_folder(folder, f"00002.safetensors holds tensor '{key}', .* says is in model-00001-of")


def test_a_tensor_that_the_index_does_not_know(folder: Path) -> None:
    first = folder / lumina_folder.SHARDS[0]
    save_file(load_file(first) | {"extra": torch.zeros(1)}, first)
    refused_folder(folder, "00001-of-00002.safetensors holds tensor 'extra', .* does not know")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "is not an index of safetensors files .ValueError: .*not JSON .JSONDecodeError"),
        ('{"weights": {}}', "is not an index of safetensors files .KeyError: 'weight_map'"),
        ('{"weight_map": []}', "is not an index of safetensors files .AttributeError"),
        ('{"weight_map": {}}', "names no files for its tensors"),
        ('{"weight_map": {"a": 3}}', "names no files for its tensors"),
        (
            '{"weight_map": {"a": "../secret.safetensors"}}',
            "names '../secret.safetensors', expected a",
        ),
        ('{"weight_map": {"a": ".."}}', "names '..', expected a .safetensors file"),
    ],
)
def test_an_index_that_is_none(content: str, match: str, folder: Path) -> None:
    (folder / lumina_folder.INDEX).write_text(content)
    refused_folder(folder, f"index.json {match}")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"n_layers": 4}, "depth is 3, but the files beside it say 4"),
        ({"d_model": 128}, "width is 64, but the files beside it say 128"),
        ({"mlp_hidden_size": 161}, "mlp_width is 160, but the files beside it say 161"),
        ({"n_heads": 5}, "num_heads is 5, expected a divisor of the width 64"),
        ({"n_kv_heads": 2}, "num_kv_heads is 4, but the files beside it say 2"),
        ({"embedding_size": 400}, "has 364 rows, but config.json .* vocabulary has 400"),
        ({"embedding_size": None, "vocab_size": 400}, "has 364 rows, but config.json .* has 400"),
        ({"rope_theta": "x"}, "rope_theta is 'x', expected a positive number"),
        ({"rope": False}, "config.json beside it says rope = False, expected True: .* another"),
        ({"activation_type": "gelu"}, "says activation_type = 'gelu', expected 'silu'"),
    ],
)
def test_a_config_json_that_contradicts_the_tensors(
    change: dict[str, Any], match: str, folder: Path
) -> None:
    lumina_folder.rewrite_json(folder / "config.json", **change)
    refused_folder(folder, f"{lumina_folder.INDEX}: .*{match}")


def test_another_model_with_the_same_tensors_is_not_taken_for_a_damaged_one(folder: Path) -> None:
    """MMaDA has the tensor names of Lumina-DiMOO, and sizes of its own."""
    lumina_folder.rewrite_json(folder / "config.json", model_type="mmada", embedding_size=134_656)
    refused_folder(folder, "model_type = 'mmada', expected 'llada': it is another network than Lum")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_config_json_that_is_none(content: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    refused_folder(folder, "config.json beside it (cannot be used|is no JSON object).* Download")


def test_output_rows_of_another_vocabulary() -> None:
    raw = lumina_folder.raw()
    name = "model.transformer.ff_out.weight"
    raw[name] = torch.cat([raw[name], raw[name][:8]])
    with pytest.raises(ValueError, match=r"372 rows, expected those of its embedding, 364"):
        checkpoints.from_tensors(raw, num_heads=4, **lumina_folder.SIZES)


def test_a_vocabulary_that_no_file_explains(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"num_codes cannot be read .*8192 for 134548.*--num-codes"
    ):
        checkpoints.load(folder)


@pytest.mark.parametrize("codes", [0, 93, 365])
def test_a_codebook_that_does_not_fit_the_vocabulary(codes: int, folder: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"num_codes must be a whole number of at least 1|which leaves -?\d+ text ids",
    ):
        checkpoints.load(folder, num_codes=codes)


# model.yaml beside a published VQGAN.

YAML = """
model:
  base_learning_rate: 4.5e-06
  target: taming.models.vqgan.VQModel
  params:
    embed_dim: 8
    n_embed: 16
    ddconfig: {double_z: false, z_channels: 8, resolution: 64, in_channels: 3, out_ch: 3, ch: 32,
      ch_mult: [1, 2], num_res_blocks: 1, attn_resolutions: [32], dropout: 0.0}
    lossconfig: {target: taming.modules.losses.DummyLoss}
"""


def described_vq(folder: Path, yaml: str) -> checkpoints.Checkpoint:
    (folder / "model.yaml").write_text(yaml)
    return checkpoints.load(builders.write(folder / "last.ckpt", builders.vq()))


@pytest.mark.parametrize("left_out", ["", "n_embed: 16", "resolution: 64, ", "num_res_blocks: 1, "])
def test_a_description_that_agrees(left_out: str, tmp_path: Path) -> None:
    assert_same(described_vq(tmp_path, YAML.replace(left_out, "")), builders.vq())


@pytest.mark.parametrize(
    ("a", "b", "match"),
    [
        ("n_embed: 16", "n_embed: 1024", "n_embed is 1024, but the tensors say 16"),
        ("[1, 2]", "[1, 2, 4]", r"ch_mult is \[1, 2, 4\], but the tensors say \[1, 2\]"),
        ("[32]", "[64, 16]", r"levels with attention is \[0\], but the tensors say \[1\]"),
        ("ddconfig", "config", "does not describe a VQGAN .KeyError: 'ddconfig'"),
        ("[32]", "5", "does not describe a VQGAN .TypeError"),
        ("model:", "model: !!python/object/apply:os.system ['false']", "does not describe"),
    ],
)
def test_a_description_that_contradicts(a: str, b: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"(?s)last.ckpt: .*model.yaml beside it .*{match}"):
        described_vq(tmp_path, YAML.replace(a, b))
