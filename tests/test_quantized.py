"""Float8 weights: what is stored, how exact it is, what loads and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import builders
import lumina_folder
import pytest
import torch
from builders import assert_same
from safetensors.torch import load_file
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import quantized
from shortcut_pack.shortcut.checkpoint import Checkpoint
from shortcut_pack.shortcut.compatibility import check_head
from shortcut_pack.shortcut.files import read
from shortcut_pack.shortcut.models.key_table import rename_keys
from shortcut_pack.shortcut.models.layers import Bare
from shortcut_pack.shortcut.models.lumina_dimoo import transformer as lumina
from shortcut_pack.shortcut.pipeline import default_dtype
from shortcut_pack.shortcut.quantized import MARK
from shortcut_pack.shortcut.weight_formats import with_plain_lookups
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
LAYER = "blocks.1.feed_forward.up"


def tiny(dtype: torch.dtype = torch.float32) -> Checkpoint:
    checkpoint = checkpoints.from_tensors(lumina_folder.raw(), num_heads=4, **lumina_folder.SIZES)
    return checkpoints.cast(checkpoint, dtype)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    checkpoints.save(tmp_path / "float8.safetensors", tiny(torch.bfloat16), dtype=FLOAT8)
    return tmp_path / "float8.safetensors"


@torch.no_grad()
def features(checkpoint: Checkpoint, **options: Any) -> Tensor:
    network: Any = checkpoints.build(checkpoint, **options)
    generator = torch.Generator().manual_seed(0)
    tokens_BS = torch.randint(checkpoint.config.vocabulary, (2, 21), generator=generator)
    return network([tokens_BS])[0]


# Values.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [1e-4, 0.02, 30.0])
def test_the_only_error_is_the_rounding_of_float8(dtype: torch.dtype, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight_OI = (torch.randn(64, 128, generator=generator) * spread).to(dtype)
    stored = quantized.quantize("a.weight", weight_OI, "float8_e4m3fn")
    scale = stored["a.weight_scale"]
    assert scale.log2() == scale.log2().round(), "a power of two"
    exact_OI = stored["a.weight"].double() * scale.double()
    assert torch.equal(
        quantized.dequantize(stored["a.weight"], scale, torch.bfloat16).double(), exact_OI
    )
    error_OI = (exact_OI - weight_OI.double()).abs()
    # Half a step of 3 bits of mantissa, or of the smallest step there is.
    assert (error_OI <= torch.maximum(weight_OI.double().abs() / 16, scale * 2.0**-10)).all()
    assert stored["a.weight"].float().abs().max() > 200, "the range is used"


def test_control_float8_without_a_scale_loses_small_weights() -> None:
    weight_OI = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) * 0.001
    stored = quantized.quantize("a.weight", weight_OI, "float8_e4m3fn")

    def error(found_OI: Tensor) -> float:
        return ((found_OI - weight_OI).norm() / weight_OI.norm()).item()

    scaled_OI = quantized.dequantize(stored["a.weight"], stored["a.weight_scale"], torch.float32)
    assert error(scaled_OI) < 0.03
    assert error(weight_OI.to(FLOAT8).float()) > 0.2


def test_weights_that_are_all_zero() -> None:
    stored = quantized.quantize("a.weight", torch.zeros(4, 4), "float8_e4m3fn")
    back_OI = quantized.dequantize(stored["a.weight"], stored["a.weight_scale"], torch.float32)
    assert torch.equal(back_OI, torch.zeros(4, 4))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(value: float, tmp_path: Path) -> None:
    checkpoint = tiny()
    damaged = checkpoint.tensors[f"{LAYER}.weight"].clone()
    damaged[3, 3] = value
    checkpoint = replace(checkpoint, tensors=checkpoint.tensors | {f"{LAYER}.weight": damaged})
    with pytest.raises(ValueError, match=rf"'{LAYER}.weight(_scale)?' holds NaN"):
        checkpoints.save(tmp_path / "a.safetensors", checkpoint, dtype=FLOAT8)
    assert not list(tmp_path.iterdir())


# Files.


def test_the_linear_weights_of_the_blocks_are_stored_as_comfyui_reads_them(path: Path) -> None:
    raw, source = load_file(path), tiny(torch.bfloat16)
    layers = {name.removesuffix(".weight") for name in raw if raw[name].dtype == FLOAT8}
    assert len(layers) == 3 * 7 and all(name.startswith("blocks.") for name in layers)
    assert not any("norm" in name for name in layers)
    for layer in layers:
        scale = raw.pop(f"{layer}.weight_scale")
        assert (scale.dtype, scale.shape) == (torch.float32, ())
        mark = raw.pop(f"{layer}.comfy_quant")
        assert mark.dtype == torch.uint8
        assert json.loads(mark.numpy().tobytes())["format"] == "float8_e4m3fn"
    whole = source.with_text().tensors
    assert raw.keys() == whole.keys()
    for name, tensor in raw.items():
        if name.removesuffix(".weight") not in layers:
            assert torch.equal(tensor, whole[name]), name


def test_activations_are_not_quantized_by_comfyui() -> None:
    stored = quantized.quantize("a.weight", torch.ones(1, 1), "float8_e4m3fn")
    assert json.loads(bytes(stored["a.comfy_quant"]))["full_precision_matrix_mult"] is True


def test_a_file_is_a_checkpoint_of_the_same_model(path: Path) -> None:
    found, source = checkpoints.load(path, "model"), tiny()
    assert (found.config, found.num_parameters) == (source.config, source.num_parameters)
    assert found.fingerprint == source.fingerprint
    assert found.dtype == torch.bfloat16
    assert set(found.quantized.values()) == {"float8_e4m3fn"} and len(found.quantized) == 21
    assert found.with_text().tensors.keys() == load_file(path).keys()


def test_a_cast_in_memory_is_what_a_file_holds(path: Path) -> None:
    found, source = checkpoints.load(path), checkpoints.cast(tiny(torch.bfloat16), FLOAT8)
    assert_same(found, source)
    assert found.quantized == source.quantized


def test_a_model_of_maskgit_can_be_float8_too(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "a.safetensors", builders.model(), dtype=FLOAT8)
    found = checkpoints.load(tmp_path)
    assert found.fingerprint == builders.model().fingerprint
    head = builders.head(model_fingerprint=builders.model().fingerprint)
    assert check_head(head, found) is None
    network: Any = checkpoints.build(found)
    tokens_BS = torch.zeros(1, 17, dtype=torch.long)
    assert network(tokens_BS).isfinite().all()


def test_the_published_sizes_take_less_than_9_gb() -> None:
    config = lumina.Config(4096, 32, 32, 32, 12288, 126356, 8192, 500_000.0, 1e-5)
    network = lumina.LuminaDiMOO(config, dtype=torch.bfloat16, device="meta", operations=Bare)
    checkpoint = Checkpoint(lumina.LAYOUT, config, network.state_dict(), "")
    assert checkpoint.num_parameters == 8_081_805_312 - 126_356 * 4096
    sizes = {
        dtype: sum(tensor.nbytes for tensor in checkpoint.shapes(dtype).values())
        for dtype in (torch.bfloat16, FLOAT8)
    }
    assert 15.0e9 < sizes[torch.bfloat16] < 15.2e9
    assert 8.0e9 < sizes[FLOAT8] < 8.2e9


# Networks.


def test_a_network_keeps_float8_and_computes_with_what_it_stands_for(path: Path) -> None:
    found = checkpoints.load(path)
    network: Any = checkpoints.build(found)
    layer = network.get_submodule(LAYER)
    assert layer.weight.dtype == FLOAT8
    assert layer.weight.data_ptr() == found.tensors[f"{LAYER}.weight"].data_ptr(), "no copy"
    assert network.token.weight.dtype == network.dtype == torch.bfloat16
    dequantized = checkpoints.cast(found, torch.float32)
    assert not dequantized.quantized
    expected_BSD = features(dequantized)
    torch.testing.assert_close(features(found, dtype=torch.float32), expected_BSD)
    error = (expected_BSD - features(tiny())).norm() / features(tiny()).norm()
    assert 0.001 < error < 0.2, "float8 is close to the original, but not it"


def test_control_a_scale_counts(path: Path) -> None:
    found = checkpoints.load(path)
    scale = found.tensors[f"{LAYER}.weight_scale"] * 2
    wrong = replace(found, tensors={**found.tensors, f"{LAYER}.weight_scale": scale})
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            features(wrong, dtype=torch.float32), features(found, dtype=torch.float32)
        )


def test_a_host_with_its_own_layers_gets_all_that_is_stored(path: Path) -> None:
    seen: set[str] = set()

    class Host(quantized.Operations):
        class Linear(quantized.Operations.Linear):
            def _load_from_state_dict(self, state: Any, prefix: str, *others: Any) -> None:
                seen.update(state)
                super()._load_from_state_dict(state, prefix, *others)

    found = checkpoints.load(path)
    checkpoints.build(found, operations=Host)
    assert set(found.tensors) - seen == {
        name for name in found.tensors if "norm" in name or name == "token.weight"
    }


def test_a_device_that_cannot_hold_float8(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    to = Tensor.to

    def refuse(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
        if FLOAT8 in args:
            raise TypeError("no such type here")
        return to(tensor, *args, **options)

    found = checkpoints.load(path)
    monkeypatch.setattr(Tensor, "to", refuse)
    network = checkpoints.build(found, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.bfloat16}
    assert "float8 weights, which cpu cannot hold (no such type here)" in caplog.text


# What is refused.


def changed(path: Path, **changes: Any) -> tuple[dict[str, Any], Mapping[str, str]]:
    """What the file holds, with changes to parts of one layer; None removes one."""
    raw, metadata = read(path)
    raw |= {f"{LAYER}.{name}": value for name, value in changes.items()}
    return {name: value for name, value in raw.items() if value is not None}, metadata


def mark(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"weight_scale": None}, f"'{LAYER}.weight_scale' is missing: .* as float8_e4m3fn"),
        ({"weight": None}, f"'{LAYER}.weight' is missing, but it is said to be quantized"),
        ({"comfy_quant": mark("{")}, f"'{LAYER}.comfy_quant' does not hold the description"),
        ({"comfy_quant": mark("{}")}, f"'{LAYER}.comfy_quant' does not hold .*KeyError"),
        ({"comfy_quant": torch.zeros(2, 2)}, "does not hold the description .*ValueError"),
        (
            {"comfy_quant": mark('{"format": "int3"}')},
            "quantized as 'int3', expected one of float8",
        ),
        (
            {"comfy_quant": torch.zeros(1, dtype=torch.uint8).expand(2**40)},
            "does not hold the description .*does not store all its values",
        ),
        ({"comfy_quant": "text"}, "does not hold the description .*is a str"),
        ({"weight": torch.zeros(160, 64)}, r"is torch.float32 .*, expected torch.float8_e4m3fn"),
        ({"weight": torch.zeros(160, 65).to(FLOAT8)}, r"has shape \(160, 65\), expected \(160, 64"),
        ({"weight_scale": torch.zeros(())}, "expected one positive float32 value"),
        ({"weight_scale": torch.ones(160)}, r"is torch.float32 \(160,\), expected one positive"),
        ({"weight_scale": torch.tensor(torch.nan)}, "expected one positive float32 value"),
        ({"weight_scale": 1.0}, "'.*weight_scale' is a float, expected a tensor"),
    ],
)
def test_a_damaged_layer(changes: dict[str, Any], match: str, path: Path) -> None:
    raw, metadata = changed(path, **changes)
    with pytest.raises(ValueError, match=match):
        checkpoints.from_tensors(raw, metadata, path)


def test_scales_of_activations_are_left_to_comfyui(path: Path) -> None:
    raw, metadata = changed(path, input_scale=torch.ones(()))
    found = checkpoints.from_tensors(raw, metadata)
    assert torch.equal(features(found), features(checkpoints.load(path)))


@pytest.mark.parametrize(
    ("format", "stored", "scales"),
    [
        (
            "mxfp8",
            torch.zeros(160, 64, dtype=FLOAT8),
            {"weight_scale": torch.zeros(160, 2, dtype=torch.uint8)},
        ),
        (
            "mxfp8",
            torch.zeros(160, 64, dtype=FLOAT8),
            {"weight_scale": torch.ones(160, 2).to(torch.float8_e8m0fnu)},
        ),
        (
            "convrot_w4a4",
            torch.zeros(160, 32, dtype=torch.int8),
            {"weight_scale": torch.ones(160, 1)},
        ),
        (
            "awq_w4a16",
            torch.zeros(160, 32, dtype=torch.int8),
            {"weight_scale": torch.ones(1, 160), "weight_zeros": torch.zeros(1, 160)},
        ),
    ],
)
def test_other_quantized_layers_load_for_comfyui_alone(
    format: str, stored: Tensor, scales: dict[str, Any], path: Path, tmp_path: Path
) -> None:
    raw, metadata = changed(
        path, weight=stored, comfy_quant=mark(json.dumps({"format": format})), **scales
    )
    found = checkpoints.from_tensors(raw, metadata)
    assert found.num_parameters == tiny().num_parameters
    checkpoints.save(tmp_path / "again.safetensors", found)
    again = checkpoints.load(tmp_path / "again.safetensors")
    assert {k: v.dtype for k, v in again.tensors.items()} == {
        k: v.dtype for k, v in found.tensors.items()
    }
    kept = found.tensors[f"{LAYER}.weight"]
    assert kept.dtype == stored.dtype and torch.equal(kept.float(), stored.float())
    for refused in (checkpoints.build, lambda found: checkpoints.cast(found, torch.float32)):
        with pytest.raises(ValueError, match=f"quantized as {format}, which only ComfyUI computes"):
            refused(found)


def test_a_float8_embedding_is_looked_up_as_it_is(path: Path, tmp_path: Path) -> None:
    raw, metadata = changed(path)
    stored = quantized.quantize("token.weight", raw["token.weight"], "float8_e4m3fn")
    found = checkpoints.from_tensors(raw | stored, metadata, path)
    expected = quantized.dequantize(
        stored["token.weight"], stored["token.weight_scale"], torch.bfloat16
    )
    tensors, formats = with_plain_lookups(found.layout, found.tensors, found.quantized)
    plain = replace(found, tensors=tensors, quantized=formats)
    assert torch.equal(plain.tensors["token.weight"], expected)
    assert plain.quantized == {k: v for k, v in found.quantized.items() if k != "token.weight"}
    assert found.quantized["token.weight"] == "float8_e4m3fn"
    assert "token.comfy_quant" not in plain.tensors
    torch.testing.assert_close(features(found), features(plain), rtol=0, atol=0)
    checkpoints.save(tmp_path / "again.safetensors", found)
    assert checkpoints.load(tmp_path / "again.safetensors").quantized == found.quantized


@pytest.mark.parametrize("format", ["float8_e4m3fn", "float8_e5m2", "int8_tensorwise"])
def test_a_host_that_looks_no_quantized_embedding_up_gets_a_plain_one(path: Path, format: str):
    raw, metadata = changed(path)
    stored = quantized.quantize("token.weight", raw["token.weight"], format)
    found = checkpoints.from_tensors(raw | stored, metadata, path)
    tensors, formats = with_plain_lookups(found.layout, found.tensors, found.quantized)
    assert "token.weight" in found.quantized and "token.weight" not in formats
    expected = quantized.dequantized("token.weight", stored, torch.bfloat16)
    assert torch.equal(tensors["token.weight"], expected)


def test_a_float8_embedding_that_makes_logits_too_becomes_bfloat16() -> None:
    source = builders.model()
    stored = quantized.quantize("token.weight", source.tensors["token.weight"], "float8_e4m3fn")
    found = checkpoints.from_tensors(
        {**source.tensors, **stored}, checkpoints.metadata_of(replace(source, tensors={}))
    )
    assert found.tensors["token.weight"].dtype == torch.bfloat16
    assert not found.quantized and "token.comfy_quant" not in found.tensors


# The same in files of others.


Raw = dict[str, Any]


def in_the_header(raw: Raw, metadata: Raw) -> tuple[Raw, Raw]:
    layers = {
        key.removesuffix(".comfy_quant"): json.loads(bytes(value.tolist()))
        for key, value in raw.items()
        if key.endswith(".comfy_quant")
    }
    rest = {key: value for key, value in raw.items() if not key.endswith(".comfy_quant")}
    about = json.dumps({"format_version": "1.0", "layers": layers})
    return rest, {**metadata, "_quantization_metadata": about}


def older(raw: Raw, metadata: Raw) -> tuple[Raw, Raw]:
    rest = {"scaled_fp8": torch.zeros(2, dtype=FLOAT8)}
    for key, value in raw.items():
        layer, _, name = key.rpartition(".")
        if name == "weight_scale":
            rest[f"{layer}.scale_weight"] = value.reshape(1)
            rest[f"{layer}.scale_input"] = torch.ones(1)
        elif name != "comfy_quant":
            rest[key] = value
    return rest, metadata


def without_marks(raw: Raw, metadata: Raw) -> tuple[Raw, Raw]:
    return {key: value for key, value in raw.items() if not key.endswith("comfy_quant")}, metadata


def with_input_scales(raw: Raw, metadata: Raw) -> tuple[Raw, Raw]:
    rest, _ = older(raw, metadata)
    return rest | {f"{LAYER}.scale_input": torch.tensor(0.5)}, metadata


def as_published(raw: Raw, metadata: Raw) -> tuple[Raw, Raw]:
    theirs = {
        name: key
        for key in lumina_folder.raw()
        for name in rename_keys(lumina.LAYOUT.table, [key])
        if name != "code_output.weight"
    }
    weights = {theirs[key]: value for key, value in raw.items() if key in theirs}
    around = {
        f"{theirs[f'{layer}.weight'].removesuffix('.weight')}.{name}": value
        for key, value in raw.items()
        for layer, _, name in [key.rpartition(".")]
        if name in quantized.EXTRAS
    }
    return lumina_folder.raw() | weights | around, {}


@pytest.mark.parametrize("where", ["", "model.diffusion_model."])
@pytest.mark.parametrize(
    "write", [in_the_header, older, without_marks, with_input_scales, as_published]
)
def test_every_way_to_say_float8_is_the_same_model(write: Any, where: str, path: Path) -> None:
    raw, metadata = write(*changed(path))
    raw = {where + key: value for key, value in raw.items()}
    if "_quantization_metadata" in metadata and where:
        about = json.loads(metadata["_quantization_metadata"])
        about["layers"] = {where + layer: value for layer, value in about["layers"].items()}
        metadata = {**metadata, "_quantization_metadata": json.dumps(about)}
    sizes = {"num_heads": 4, **lumina_folder.SIZES, "rope_theta": 500_000.0}
    found = checkpoints.from_tensors(raw, metadata, **(sizes if write is as_published else {}))
    expected = checkpoints.load(path)
    assert found.quantized == expected.quantized
    network: Any = checkpoints.build(found)
    assert network.get_submodule(LAYER).weight.dtype == FLOAT8
    actual, wanted = (features(item, dtype=torch.float32) for item in (found, expected))
    if write is not as_published:  # whose other weights are float32
        assert found.fingerprint == expected.fingerprint
        torch.testing.assert_close(actual, wanted)
    assert (actual - wanted).norm() < 0.05 * wanted.norm()
    marks = [json.loads(bytes(v.tolist())) for k, v in found.tensors.items() if MARK in k]
    assert [mark["full_precision_matrix_mult"] for mark in marks] == [True] * 21
    scales = [name for name in found.tensors if name.endswith("input_scale")]
    assert scales == ([f"{LAYER}.input_scale"] if write is with_input_scales else [])


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"layers": 3}'])
def test_a_header_that_describes_nothing(text: str, path: Path) -> None:
    raw, metadata = changed(path)
    with pytest.raises(ValueError, match="_quantization_metadata do not describe quantized layers"):
        checkpoints.from_tensors(raw, {**metadata, "_quantization_metadata": text}, path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("is_everything", [True, False])
def test_a_plain_cast_is_no_type_to_compute_in(dtype: torch.dtype, is_everything: bool) -> None:
    raw = {
        key: value.to(dtype) if is_everything or "proj" in key else value
        for key, value in lumina_folder.raw().items()
    }
    found = checkpoints.from_tensors(raw, num_heads=4, **lumina_folder.SIZES)
    assert found.dtype not in quantized.FLOAT8 and found.quantized
    assert default_dtype(found) not in quantized.FLOAT8
    exact = {key: value.float() for key, value in raw.items()}
    expected = checkpoints.from_tensors(exact, num_heads=4, **lumina_folder.SIZES)
    assert found.config == expected.config
    torch.testing.assert_close(features(found, dtype=torch.float32), features(expected))
    assert_same(checkpoints.cast(found, torch.float32), expected)
    with pytest.raises(ValueError, match="quantized already"):
        checkpoints.cast(found, FLOAT8)


@pytest.mark.parametrize("make", [builders.head, builders.vq])
def test_a_plain_cast_of_a_small_network_becomes_bfloat16(make: Any) -> None:
    checkpoint = make()
    raw = {name: tensor.to(FLOAT8) for name, tensor in checkpoint.tensors.items()}
    found = checkpoints.from_tensors(raw, described(checkpoint))
    assert (found.dtype, found.quantized) == (torch.bfloat16, {})
    for name, tensor in raw.items():
        assert torch.equal(found.tensors[name].float(), tensor.float()), name


def described(checkpoint: Checkpoint) -> dict[str, str]:
    return {
        "shortcut.format": checkpoint.layout.name,
        "shortcut.version": "1",
        "shortcut.config": json.dumps(asdict(checkpoint.config)),
    }


def test_rows_of_another_quantized_output_matrix_are_not_guessed() -> None:
    raw: dict[str, Any] = lumina_folder.raw()
    output = "model.transformer.ff_out"
    weight = raw[f"{output}.weight"].to(torch.int8)
    raw |= {f"{output}.weight": weight, f"{output}.weight_scale": torch.ones(())}
    raw[f"{output}.comfy_quant"] = mark('{"format": "int8_tensorwise"}')
    with pytest.raises(ValueError, match="int8_tensorwise, and only some of its rows"):
        checkpoints.from_tensors(raw, num_heads=4, **lumina_folder.SIZES)


def test_rows_of_a_float8_output_matrix_are_kept_with_its_scale() -> None:
    raw: dict[str, Any] = lumina_folder.raw()
    output = "model.transformer.ff_out"
    exact = checkpoints.from_tensors(raw, num_heads=4, **lumina_folder.SIZES)
    raw |= quantized.quantize(f"{output}.weight", raw[f"{output}.weight"], "float8_e4m3fn")
    found = checkpoints.from_tensors(raw, num_heads=4, **lumina_folder.SIZES)
    back = checkpoints.cast(found, torch.float32).tensors["code_output.weight"]
    torch.testing.assert_close(back, exact.tensors["code_output.weight"], rtol=0.07, atol=1e-3)


def test_conversions_that_make_no_sense(path: Path, tmp_path: Path) -> None:
    found, out = checkpoints.load(path), tmp_path / "b.safetensors"
    with pytest.raises(ValueError, match=r"float8.safetensors: its weights are quantized already"):
        checkpoints.save(out, found, dtype=FLOAT8)
    for other in (builders.head(), builders.vq()):
        with pytest.raises(
            ValueError, match=r"float8_e4m3fn is for the large weights of a model, and"
        ):
            checkpoints.save(out, other, dtype=FLOAT8)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
