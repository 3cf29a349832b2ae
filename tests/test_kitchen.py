"""Weights in int8 and in 4 bits: what is stored, how exact it is, what computes it and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import comfy_kitchen.tensor
import pytest
import torch
import uvit_folder
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import kitchen, quantized
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.checkpoint import Checkpoint
from shortcut_pack.shortcut.compatibility import check_head
from shortcut_pack.shortcut.files import read
from shortcut_pack.shortcut.models.layers import Bare
from shortcut_pack.shortcut.models.lumina_dimoo import transformer as lumina
from torch import Tensor

STORED = {"int8_convrot": "int8_tensorwise", "nvfp4": "nvfp4", "asym_w4a8": "asym_w4a8_int8"}
FORMATS = tuple(STORED)
FOUR_BITS = FORMATS[1:]
# Relative error of weights that are normally distributed, as measured, and a tenth more.
ERROR = {"int8_convrot": 0.0095, "nvfp4": 0.104, "asym_w4a8": 0.08}


@pytest.fixture(autouse=True)
def known(request: pytest.FixtureRequest) -> None:
    """Skip tests of asym_w4a8 where comfy-kitchen is that of an older ComfyUI."""
    if "asym" in request.node.name and not hasattr(comfy_kitchen.tensor, "AsymW4A8Int8Layout"):
        pytest.skip("this comfy-kitchen does not know asym_w4a8")


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02


def parts_of(weight_OI: Tensor, target: str) -> dict[str, Tensor]:
    return quantized.quantize("a.weight", weight_OI, STORED[target])


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact.float()).norm() / exact.float().norm())


def family(name: str, folder: Path) -> Checkpoint:
    """A tiny model of a family, with sides that are multiples of 16."""
    if name in ("amused", "meissonic"):
        is_amused = name == "amused"
        kind = "amused_sampling_cfg" if is_amused else "meissonic_sampling_512"
        return checkpoints.load(uvit_folder.write(folder, kind, has_text=False), "model")
    return builders.model() if name == "maskgit" else builders.text_model()


FAMILIES = ("maskgit", "lumina", "amused", "meissonic")


# Values.


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("shape", [(48, 32), (160, 512), (16, 1536)])
def test_the_error_is_that_of_the_format(target: str, shape: tuple[int, int]) -> None:
    weight_OI = normal(*shape)
    stored = parts_of(weight_OI, target)
    for dtype in (torch.float32, torch.bfloat16):
        found_OI = quantized.dequantized("a.weight", stored, dtype)
        assert found_OI.dtype == dtype and found_OI.shape == shape
        assert ERROR[target] / 3 < relative(found_OI, weight_OI) < ERROR[target]


@pytest.mark.parametrize("target", FORMATS)
def test_a_linear_layer_computes_what_is_stored(target: str) -> None:
    weight_OI, bias_O, input_BSI = normal(48, 64), normal(48), normal(2, 5, 64)
    stored = {k.removeprefix("a."): v for k, v in parts_of(weight_OI, target).items()}
    layer: Any = quantized.Operations.Linear(64, 48, device="meta")
    layer.load_state_dict({**stored, "bias": bias_O}, assign=True)
    weight = quantized.dequantized("a.weight", parts_of(weight_OI, target), torch.float32)
    with torch.no_grad():
        found = layer(input_BSI)
    # Activations become int8 too.
    bound = 1e-6 if target == "nvfp4" else 0.02
    assert relative(found, torch.nn.functional.linear(input_BSI, weight, bias_O)) < bound


def test_scales_of_int8_without_their_last_axis_are_those_of_rows() -> None:
    stored = parts_of(normal(48, 32), "int8_convrot")
    expected = quantized.dequantized("a.weight", stored, torch.float32)
    flat = {**stored, "a.weight_scale": stored["a.weight_scale"].flatten()}
    assert torch.equal(quantized.dequantized("a.weight", flat, torch.float32), expected)


def test_asym_w4a8_as_others_write_it() -> None:
    """Scales as bytes, coarser groups, and 16 evenly spaced values in the place of a codebook."""
    weight_OI, input_SI = normal(48, 64), normal(5, 64)
    library: Any = kitchen._library("asym_w4a8_int8")
    layout = library.tensor.AsymW4A8Int8Layout
    values, params = layout.quantize(weight_OI, group_size=32, convrot_groupsize=16, codebook=False)
    about = {"format": "asym_w4a8_int8", "params": {"group_size": 32, "convrot_groupsize": 16}}
    stored = {
        "weight": values,
        "weight_s_rel": params.scale.view(torch.uint8),
        "weight_s_channel": params.s_channel,
        "comfy_quant": quantized.bytes_of(json.dumps(about)),
    }
    kitchen.check(weight_OI.shape, about, stored)
    named = {f"a.{name}": tensor for name, tensor in stored.items()}
    found_OI = quantized.dequantized("a.weight", named, torch.float32)
    assert torch.equal(found_OI, layout.dequantize(values, params))
    assert relative(found_OI, weight_OI) < 0.2
    layer: Any = quantized.Operations.Linear(64, 48, bias=False, device="meta")
    layer.load_state_dict(stored, assign=True)
    with torch.no_grad():
        assert relative(layer(input_SI), input_SI @ found_OI.T) < 0.02


def test_a_comfy_kitchen_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(comfy_kitchen.tensor, "AsymW4A8Int8Layout", raising=False)
    monkeypatch.setattr(kitchen, "version", lambda name: "0.2.20")
    match = "comfy-kitchen is 0.2.20, .* asym_w4a8_int8 .*0.2.31 or newer.*pip install -U comfy-kit"
    with pytest.raises(ValueError, match=match):
        parts_of(normal(48, 32), "asym_w4a8")
    for target in ("int8_convrot", "nvfp4"):
        assert parts_of(normal(48, 32), target)


def test_rotation_keeps_a_value_that_stands_out_from_spoiling_its_row() -> None:
    weight_OI = normal(32, 256)
    weight_OI[:, 7] = 3.0
    rest = [i for i in range(256) if i != 7]
    rotated = quantized.dequantized("a.weight", parts_of(weight_OI, "int8_convrot"), torch.float32)
    step = 3.0 / 127
    plain = (weight_OI / step).round() * step
    assert relative(rotated[:, rest], weight_OI[:, rest]) < 0.15
    assert relative(plain[:, rest], weight_OI[:, rest]) > 0.3


@pytest.mark.parametrize("target", FORMATS)
def test_shapes_without_values_are_those_with(target: str) -> None:
    for shape in ((48, 32), (272, 48), (128, 64)):
        made = parts_of(normal(*shape), target)
        foreseen = parts_of(torch.empty(shape, device="meta"), target)
        assert {k: (v.shape, v.dtype) for k, v in made.items()} == {
            k: (v.shape, v.dtype) for k, v in foreseen.items()
        }


@pytest.mark.parametrize(
    ("target", "largest"), [("int8_convrot", 8.2e9), ("nvfp4", 4.7e9), ("asym_w4a8", 4.7e9)]
)
def test_the_published_size(target: str, largest: float) -> None:
    config = lumina.Config(4096, 32, 32, 32, 12288, 126356, 8192, 500_000.0, 1e-5)
    network = lumina.LuminaDiMOO(config, dtype=torch.bfloat16, device="meta", operations=Bare)
    shapes = Checkpoint(lumina.LAYOUT, config, network.state_dict(), "").shapes(target)
    assert 0.95 * largest < sum(tensor.nbytes for tensor in shapes.values()) < largest


# Files.


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_each_family_is_written_and_computed(
    name: str, target: str, tmp_path: Path
) -> None:
    source, out = family(name, tmp_path / "in"), tmp_path / "small.safetensors"
    checkpoints.save(out, source, dtype=target)
    found = checkpoints.load(out)
    assert {STORED[target]} <= set(found.quantized.values()) <= {STORED[target], "float8_e4m3fn"}
    assert (found.fingerprint, found.num_parameters) == (source.fingerprint, source.num_parameters)
    for weight in found.quantized:
        exact = source.tensors[weight]
        again = quantized.dequantized(weight, found.tensors, torch.float32)
        assert relative(again, exact) < 1.3 * ERROR[target], weight
    network: Any = checkpoints.build(found, dtype=torch.float32)
    layer = network.get_submodule(next(iter(found.quantized)).removesuffix(".weight"))
    with torch.no_grad():
        assert layer(torch.ones(3, layer.in_features)).isfinite().all()
    assert not checkpoints.cast(found, torch.float32).quantized
    with pytest.raises(ValueError, match="quantized already"):
        checkpoints.cast(found, target)


@pytest.mark.parametrize("target", FORMATS)
def test_the_last_block_and_embeddings_bear_no_4_bits_and_the_file_says_so(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = builders.text_model(), tmp_path / "small.safetensors"
    checkpoints.save(out, source, dtype=target)
    found, last = checkpoints.load(out), f"blocks.{builders.TEXT_CONFIG.depth - 1}."
    inner = {name for name in source.quantizable if not name.startswith(last)}
    others = {*source.quantizable, "token.weight"} - inner if target in FOUR_BITS else set()
    assert len(others) == (8 if target in FOUR_BITS else 0)
    expected = dict.fromkeys(source.quantizable, STORED[target])
    assert found.quantized == expected | dict.fromkeys(others, "float8_e4m3fn")
    assert main(["info", str(out)]) == 0
    said = capsys.readouterr().out
    if others:
        assert f"mostly float8_e4m3fn, else {STORED[target]} and float32" in said  # of two blocks
        listed = re.search(rf"^{STORED[target]} +(.*)$", said, re.MULTILINE)
        assert listed is not None and {f"{n}.weight" for n in listed[1].split(", ")} == inner


@pytest.mark.parametrize("format", [STORED[target] for target in FOUR_BITS])
def test_sides_that_4_bits_have_no_blocks_for_are_float8(format: str) -> None:
    sizes = {
        "blocks.0.a": (32, 48),
        "blocks.0.b": (32, 40),
        "blocks.0.c": (8, 16),
        "blocks.1.a": (32, 48),
    }
    weights = {name: torch.Size(shape) for name, shape in sizes.items()}
    found = kitchen.formats_of(weights, ["token"], format)
    assert found.pop("blocks.0.a") == format
    assert found == dict.fromkeys(
        ("token", "blocks.0.b", "blocks.0.c", "blocks.1.a"), "float8_e4m3fn"
    )
    expected = dict.fromkeys(sizes, "int8_tensorwise")
    assert kitchen.formats_of(weights, ["token"], "int8_tensorwise") == expected
    one_block = {"blocks.0.a": torch.Size((32, 48))}
    assert kitchen.formats_of(one_block, [], format) == {"blocks.0.a": format}


def test_a_head_still_knows_its_model(tmp_path: Path) -> None:
    source, out = builders.text_model(), tmp_path / "small.safetensors"
    head = builders.text_head(model_fingerprint=source.fingerprint)
    checkpoints.save(out, source, dtype="nvfp4")
    small = checkpoints.load(out)
    assert check_head(head, small) is None
    checkpoints.save(tmp_path / "again.safetensors", small)
    assert checkpoints.load(tmp_path / "again.safetensors").fingerprint == source.fingerprint
    raw, metadata = read(out)
    unsaid = {k: v for k, v in metadata.items() if k != "shortcut.fingerprint"}
    with pytest.raises(ValueError, match="was trained for the model"):
        check_head(head, checkpoints.from_tensors(raw, unsaid))


def test_a_long_conversion_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, out = (
        builders.write(tmp_path / "a.safetensors", builders.model()),
        tmp_path / "b.safetensors",
    )
    monkeypatch.setattr(quantized.logger, "level", quantized.logger.level)  # the command sets it
    assert main(["convert", str(source), str(out), "--dtype", "nvfp4"]) == 0
    assert "converted" not in caplog.text, "it took less than INTERVAL"
    monkeypatch.setattr(quantized, "INTERVAL", 0.0)
    assert main(["convert", str(source), str(out), "--dtype", "nvfp4"]) == 0
    assert "100 % of the weights converted, 0 s left" in caplog.messages
    caplog.clear()
    checkpoints.cast(builders.model(), "nvfp4")
    lines = [re.match(r"(\d+) % of the weights", message) for message in caplog.messages]
    shares = [int(line[1]) for line in lines if line]
    assert len(shares) == len(builders.model().tensors) and shares == sorted(shares)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = builders.write(tmp_path / "a.safetensors", builders.model())
    assert main(["info", str(source)]) == 0
    said = capsys.readouterr().out
    assert all(f"as {name}" in said for name in ("float8_e4m3fn", *FORMATS))
    out = tmp_path / "b.safetensors"
    assert main(["convert", str(source), str(out), "--dtype", "nvfp4"]) == 0
    assert re.search("mostly .*nvfp4.*else .*float32", capsys.readouterr().out)
    assert main(["convert", str(source), str(tmp_path / "b.pth"), "--dtype", "nvfp4"]) == 1
    assert "know no quantized weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "changes", "match"),
    [
        ("int8_convrot", {"weight_scale": torch.ones(7, 1)}, r"'weight_scale' is .*\(7, 1\), exp"),
        ("int8_convrot", {"convrot_groupsize": 5}, "5 inputs are rotated together, expected one"),
        ("int8_convrot", {"convrot_groupsize": 256}, "256 inputs are rotated .* that divides 32"),
        (
            "int8_convrot",
            {"convrot_groupsize": "16"},
            "convrot_groupsize is '16', expected a whole",
        ),
        ("nvfp4", {"weight_scale": torch.ones(4, 2)}, r"'weight_scale' is .*expected torch.float8"),
        ("nvfp4", {"weight_scale_2": torch.ones(2)}, r"'weight_scale_2' is .*\(2,\), expected"),
        (
            "asym_w4a8",
            {"weight_s_rel": torch.ones(48, 2)},
            "'weight_s_rel' is .*expected torch.float8",
        ),
        (
            "asym_w4a8",
            {"weight_s_channel": torch.ones(48, 1)},
            r"'weight_s_channel' .*\(48, 1\), exp",
        ),
        (
            "asym_w4a8",
            {"weight_codebook": torch.ones(8)},
            r"'weight_codebook' is .*\(8,\), expected",
        ),
        (
            "asym_w4a8",
            {"weight_codebook": torch.ones(16, dtype=torch.int32)},
            "'weight_codebook' is torch.int32",
        ),
        ("asym_w4a8", {"group_size": 0}, "0 inputs share a scale, expected 4 or more"),
        ("asym_w4a8", {"group_size": 64}, "64 inputs share a scale, expected .* divide 32"),
        ("asym_w4a8", {"group_size": None}, "group_size is None, expected a whole"),
        ("asym_w4a8", {"convrot_groupsize": 64}, "64 inputs are rotated .* that divides 32"),
    ],
)
def test_scales_that_a_kernel_must_not_see(
    target: str, changes: dict[str, Any], match: str
) -> None:
    layer = "blocks.0.feed_forward.up"
    small = checkpoints.cast(builders.text_model(), target)
    raw = dict(small.tensors)
    about = quantized.described(raw[f"{layer}.comfy_quant"])
    for name, value in changes.items():
        if isinstance(value, Tensor):
            raw[f"{layer}.{name}"] = value
        else:
            about[name] = value
    raw[f"{layer}.comfy_quant"] = quantized.bytes_of(json.dumps(about))
    metadata = checkpoints.metadata_of(replace(small, tensors={}))
    with pytest.raises(ValueError, match=f"{layer}.*{match}"):
        checkpoints.from_tensors(raw, metadata)
