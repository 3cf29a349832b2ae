"""Checkpoint files: published and ours, sound, damaged and hostile."""

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
import golden_sets
import pytest
import torch
from safetensors.torch import load_file, save_file
from shortcut_pack.shortcut import weights
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.heads import maskgit as head_file
from shortcut_pack.shortcut.models import maskgit, maskgit_vqgan

KINDS = {
    "model": (builders.model, builders.MODEL_SIZES),
    "head": (builders.head, builders.HEAD_SIZES),
    "vq": (builders.vq, {}),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def assert_same(actual: weights.Checkpoint, expected: weights.Checkpoint) -> None:
    assert (actual.format, actual.config) == (expected.format, expected.config)
    assert actual.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert actual.tensors[name].dtype == tensor.dtype
        assert torch.equal(actual.tensors[name], tensor), name


def swapped(format: Any, a: str, b: str) -> Any:
    """`format` with the parts `a` and `b` of its names exchanged: the negative control."""

    def swap(row: Any) -> Any:
        if isinstance(row, tuple):
            return tuple(map(swap, row))
        return row.replace(a, "?").replace(b, a).replace("?", b) if isinstance(row, str) else row

    return replace(format, table={key: swap(row) for key, row in format.table.items()})


# Published weights through the key tables, against what the originals computed.


@torch.no_grad()
def backbone(raw: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and features of the golden tokens."""
    golden = golden_sets.load("maskgit_backbone")
    sizes = golden.info["config"]["vit"]
    known = {"num_heads": sizes["heads"], "num_codes": sizes["codebook_size"]}
    network: Any = weights.build(weights.from_tensors(raw, kind="model", **known))
    codes_BL = golden["img_token"].flatten(1)
    class_B = golden["labels"].masked_fill(golden["drop_label"], sizes["nclass"])
    is_masked_BL = codes_BL == golden.info["token_ids"]["mask"]
    (features_BSD,) = network.features(codes_BL, is_masked_BL, [class_B])
    index_BL = torch.arange(codes_BL.shape[1]).expand_as(codes_BL)
    return network.logits(features_BSD, index_BL), features_BSD


def test_a_published_model_computes_what_the_original_did() -> None:
    golden = golden_sets.load("maskgit_backbone")
    logits_BLV, features_BSD = backbone({"model_state_dict": golden.weights("vit"), "iter": 3})
    golden.assert_close(logits_BLV, "logits")
    golden.assert_close(features_BSD, "last_feat")


def test_control_exchanged_queries_and_keys_do_not_pass_for_the_model(monkeypatch) -> None:
    golden = golden_sets.load("maskgit_backbone")
    wrong = swapped(maskgit.FORMAT, ".query.", ".key.")
    monkeypatch.setitem(weights.FORMATS, "maskgit", wrong)
    with pytest.raises(AssertionError, match="logits"):
        golden.assert_close(backbone(golden.weights("vit"))[0], "logits")


@torch.no_grad()
def head_features(case: str) -> torch.Tensor:
    golden = golden_sets.load("maskgit_shortcut_head")
    model, _ = golden_sets.tiny_maskgit()
    num_heads = golden.args["cases"][0]["head"]["num_heads"]
    head: Any = weights.build(weights.from_tensors(golden.weights("head"), num_heads=num_heads))
    codes_BN = golden[f"{case}/new_token_ids"]
    index_BN = golden[f"{case}/new_token_map"].nonzero()[:, 1].view_as(codes_BN)
    new_BND = model.embed(codes_BN, index_BN)
    return head(golden[f"{case}/prev_feat"], new_BND, golden[f"{case}/mask_ratio"])


@pytest.mark.parametrize("case", ["head_0", "head_1"])
def test_a_published_head_computes_what_the_original_did(case: str) -> None:
    golden = golden_sets.load("maskgit_shortcut_head")
    golden.assert_close(head_features(case), f"{case}/feat")


def test_control_exchanged_queries_and_keys_do_not_pass_for_the_head(monkeypatch) -> None:
    golden = golden_sets.load("maskgit_shortcut_head")
    wrong = swapped(head_file.FORMAT, ".query.", ".key.")
    monkeypatch.setitem(weights.FORMATS, "maskgit-head", wrong)
    with pytest.raises(AssertionError, match="feat"):
        golden.assert_close(head_features("head_0"), "head_0/feat")


@torch.no_grad()
def check_vqgan() -> None:
    golden = golden_sets.load("taming_vqgan")
    raw = {"epoch": 1, "state_dict": golden.weights("vq") | {"loss.steps": torch.tensor(3)}}
    checkpoint = weights.from_tensors(raw, kind="vq")
    assert checkpoint.config.attention_levels == (2,)
    network: Any = weights.build(checkpoint)
    golden.assert_close(network.decode(golden["codes"]), "decode")
    codes_Bhw = network.encode(golden["image"])
    assert torch.equal(codes_Bhw.flatten(), golden["indices"])
    golden.assert_close(network.decode(codes_Bhw), "recon")


def test_a_published_vqgan_computes_what_the_original_did() -> None:
    check_vqgan()


def test_control_exchanged_up_and_mid_blocks_do_not_pass_for_the_vqgan(monkeypatch) -> None:
    format = maskgit_vqgan.FORMAT
    rows = {
        "decoder.mid.block_1.*": "decoder.mid.block_2.*",
        "decoder.mid.block_2.*": "decoder.mid.block_1.*",
    }
    wrong = replace(format, table=rows | dict(format.table))
    monkeypatch.setitem(weights.FORMATS, "maskgit-vqgan", wrong)
    with pytest.raises(AssertionError, match="decode"):
        check_vqgan()


def test_ours_to_published_gives_every_published_tensor_back() -> None:
    golden = golden_sets.load("maskgit_shortcut_head")
    for name, known in (("vit", {"num_codes": 32}), ("head", {})):
        raw = golden.weights(name)
        again = builders.published(weights.from_tensors(raw, num_heads=4, **known))
        again = again.get("model_state_dict", again)
        assert again.keys() == raw.keys()
        assert all(torch.equal(again[key], raw[key]) for key in raw)


# Files of ours and in the published layout.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
def test_round_trip(kind: str, suffix: str, dtype: torch.dtype, tmp_path: Path) -> None:
    make, known = KINDS[kind]
    checkpoint = weights.cast(make(), dtype)
    path = builders.write(tmp_path / f"a{suffix}", checkpoint)
    again = weights.load(path, kind, **known)
    assert_same(again, checkpoint)
    assert again.dtype == dtype
    assert again.fingerprint == make().fingerprint
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 32},
        {"num_blocks": 3},
        {"has_time": False},
        {"width": 32, "num_blocks": 2, "has_time": False},
    ],
)
def test_the_parts_of_a_head_are_read_from_its_keys(sizes: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = builders.head(replace(builders.HEAD_CONFIG, **sizes))
    path = builders.write(tmp_path / "maskgit-shortcut.pth", checkpoint)
    assert_same(weights.load(tmp_path, **builders.HEAD_SIZES), checkpoint)
    has_projections = any(key.startswith("proj_in") for key in torch.load(path))
    assert has_projections == (checkpoint.config.width != checkpoint.config.model_width)


@pytest.mark.parametrize("attention_levels", [(), (0,), (0, 1)])
def test_the_levels_of_a_vqgan_are_read_from_its_keys(
    attention_levels: tuple[int, ...], tmp_path: Path
) -> None:
    config = replace(builders.VQ_CONFIG, attention_levels=attention_levels, blocks_per_level=2)
    path = builders.write(tmp_path / "last.ckpt", builders.vq(config))
    assert weights.load(path).config == config


def test_heads_of_the_published_sizes_are_known() -> None:
    config = maskgit.Config(2, 768, 1, 16, 8, 1024, 1000)
    raw = builders.published(builders.model(config))
    assert weights.from_tensors(raw).config == config
    head = head_file.Config(768, 384, 1, 16, True)
    assert weights.from_tensors(builders.published(builders.head(head))).config == head


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    model = builders.model(title="T", class_names=("a", "b", "c"), defaults={"num_steps": 9})
    trained = {"steps": 10, "loss": [0.5, 0.25]}
    head = builders.head(model_fingerprint=model.fingerprint, trained=trained)
    for checkpoint in (model, head):
        found = weights.load(builders.write(tmp_path / "a.safetensors", checkpoint)).metadata
        assert replace(found, config={}) == checkpoint.metadata
    assert weights.load(tmp_path).metadata.config["width"] == head.config.width


def test_the_published_layout_has_what_its_loader_reads(tmp_path: Path) -> None:
    raw = torch.load(builders.write(tmp_path / "a.pth", builders.model()))
    assert raw["iter"] == raw["global_epoch"] == 0
    assert raw["model_state_dict"]["pos_emb"].shape == (1, 17, 32)
    assert raw["optimizer_state_dict"] == {}
    assert "state_dict" in torch.load(builders.write(tmp_path / "a.ckpt", builders.vq()))


def test_a_host_may_read_the_file_itself() -> None:
    model, vq = builders.model(), builders.vq()
    bare = builders.published(model)["model_state_dict"]
    assert_same(weights.from_tensors(bare, **builders.MODEL_SIZES), model)
    assert_same(weights.from_tensors(builders.published(vq)["state_dict"], {"format": "pt"}), vq)


def test_networks_are_ready_and_share_the_files_tensors(kind: str) -> None:
    checkpoint = KINDS[kind][0]()
    network = weights.build(checkpoint)
    assert not network.training
    for name, parameter in network.named_parameters():
        assert not parameter.requires_grad
        assert parameter.data_ptr() == checkpoint.tensors[name].data_ptr()
    assert {p.dtype for p in weights.build(checkpoint, dtype=torch.bfloat16).parameters()} == {
        torch.bfloat16
    }


def test_weights_and_activations_may_differ_in_type() -> None:
    network: Any = weights.build(builders.model(), dtype=torch.float16, compute_dtype=torch.float32)
    assert (network.dtype, network.compute_dtype) == (torch.float16, torch.float32)


def test_what_was_trained_can_be_packed(tmp_path: Path) -> None:
    network = weights.build(builders.head()).requires_grad_(True)
    packed = weights.pack(network, head_file.FORMAT, dtype=torch.float16, title="mine")
    again = weights.load(builders.write(tmp_path / "a.safetensors", packed))
    assert_same(again, weights.cast(builders.head(), torch.float16))
    assert again.metadata.title == "mine"


def test_sampler_settings_come_with_a_model() -> None:
    model = builders.model(defaults={"num_steps": 9, "guidance": [1.5], "schedule": "cosine"})
    found = weights.settings(model)
    assert (found.num_steps, found.guidance, found.schedule) == (9, (1.5,), "cosine")
    assert found.choice_temperature == weights.settings(builders.model()).choice_temperature == 7.0


@pytest.mark.parametrize("defaults", [{"speed": 9}, {"num_steps": 0}, {"num_steps": "x"}])
def test_unusable_sampler_settings(defaults: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="unusable sampler settings"):
        weights.settings(builders.model(defaults=defaults))


# Fingerprints, and which head belongs to which model.


def test_a_fingerprint_tells_weights_apart_but_not_types() -> None:
    model = builders.model()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert weights.fingerprint(weights.cast(model, dtype).tensors) == model.fingerprint
    generator = torch.Generator().manual_seed(1)
    tuned = {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.tensors.items()
    }
    assert weights.fingerprint(tuned) != model.fingerprint
    assert builders.model(seed=5).fingerprint != model.fingerprint


def test_a_fingerprint_is_forever() -> None:
    head = golden_sets.load("maskgit_shortcut_head").weights("head")
    assert weights.from_tensors(head, num_heads=4).fingerprint == "978d4e19c49a20ca"


def test_a_head_of_its_model_is_verified() -> None:
    model = builders.model()
    head = builders.head(model_fingerprint=model.fingerprint)
    assert weights.check_head(head, model) is None
    assert weights.check_head(head.without_tensors(), model.without_tensors()) is None


def test_a_published_head_is_verified_by_its_width_only() -> None:
    said = weights.check_head(builders.head(), builders.model())
    assert said is not None and "width 32 fits" in said and "could be verified" in said


def test_a_head_of_other_weights() -> None:
    head = builders.head(model_fingerprint=builders.model().fingerprint)
    with pytest.raises(
        ValueError, match=r"was trained for the model [0-9a-f]{16}, not [0-9a-f]{16}"
    ):
        weights.check_head(head, builders.model(seed=5))


def test_a_head_of_another_width() -> None:
    model = builders.model(replace(builders.MODEL_CONFIG, width=64))
    with pytest.raises(ValueError, match=r"is for a width of 32, not 64 .* Pick the head"):
        weights.check_head(builders.head(), model)


def test_what_is_no_head_at_all() -> None:
    with pytest.raises(ValueError, match="VQGAN of MaskGIT, which does not go with"):
        weights.check_head(builders.vq(), builders.model())


# Tensors that do not fit.


def edited(kind: str, **changes: Any) -> dict[str, Any]:
    """The published tensors of `kind`; a change to None removes one."""
    raw = builders.published(KINDS[kind][0]())
    raw = dict(raw.get("model_state_dict", raw.get("state_dict", raw))) | changes
    return {key: value for key, value in raw.items() if value is not None}


def refused(kind: str, raw: Mapping[str, Any], match: str, **known: Any) -> None:
    with pytest.raises(ValueError, match=match):
        weights.from_tensors(raw, path="FILE", **(KINDS[kind][1] | known))


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
    raw, metadata = weights.read(path)
    with pytest.raises(ValueError, match="1 keys are not of a MaskGIT transformer: 'x'"):
        weights.from_tensors(raw | {"x": torch.zeros(1)}, metadata, path)
    del raw["last_layer.0.bias"]
    with pytest.raises(
        ValueError, match=r"a.safetensors: 1 keys of .* missing: 'last_layer.0.bias'"
    ):
        weights.from_tensors(raw, metadata, path)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        (
            "last_layer.0.bias",
            torch.zeros(5),
            r"'last_layer.0.bias' has shape \(5,\), expected \(32,",
        ),
        ("tok_emb.weight", torch.zeros(5), r"'token.weight' has shape \(5,\), expected 2 axes"),
        ("pos_emb", torch.zeros(2, 17, 32), r"'pos_emb' has shape \(2, 17, 32\), expected \(1, "),
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
        weights.from_tensors(raw)
    with pytest.raises(ValueError, match=r"num_heads cannot .*presets: 16 for 768.* --num-heads N"):
        weights.from_tensors(raw, num_codes=16)
    refused("model", raw, "num_heads is 5, expected a divisor of the width 32", num_heads=5)
    refused("model", raw, "num_heads is 0, expected a whole number", num_heads=0)
    refused("model", raw, "num_codes is 19, expected at most 18", num_codes=19)
    refused("model", raw, "MaskGIT transformer has no 'heads', expected depth, grid", heads=4)
    refused("model", raw, "depth is 2, but you gave 3", depth=3)


@pytest.mark.parametrize(
    ("entry", "text", "match"),
    [
        ("format", "dimoo", "it has format 'dimoo' version 1, expected version 1 of maskgit"),
        ("version", "2", "format 'maskgit' version 2, expected version 1 .* update"),
        ("config", "{", "shortcut.config are not JSON"),
        ("config", "[]", "shortcut.config are \\[\\], expected a dict"),
        ("config", '{"num_heads": 4, "num_codes": 16, "depth": 3}', "depth is 2, but its metadata"),
        ("config", '{"num_heads": "4", "num_codes": 16}', "num_heads is '4', expected a whole"),
        ("config", '{"num_heads": 4, "num_codes": 1000}', "num_codes is 1000, expected at most 18"),
        ("config", '{"num_heads": 4, "num_codes": 16, "speed": 3}', "has no 'speed', expected"),
        ("class_names", '["a", 3]', "shortcut.class_names are .* expected a list"),
        ("class_names", '["a"]', "metadata name 1 classes, but it has 3"),
        ("title", "3", "shortcut.title are 3, expected a str"),
        ("trained", "[" * 100_000, "shortcut.trained are not JSON"),
    ],
)
def test_wrong_metadata(entry: str, text: str, match: str, tmp_path: Path) -> None:
    path = builders.write(tmp_path / "a.safetensors", builders.model())
    raw, metadata = weights.read(path)
    with pytest.raises(ValueError, match=match):
        weights.from_tensors(raw, metadata | {f"shortcut.{entry}": text}, path)


def test_what_the_caller_says_does_not_override_the_file(tmp_path: Path) -> None:
    path = builders.write(tmp_path / "a.safetensors", builders.model())
    with pytest.raises(ValueError, match="num_heads is 4, but you gave 8"):
        weights.load(path, num_heads=8)


def test_a_file_of_another_kind() -> None:
    for kind, (make, known) in KINDS.items():
        wanted = next(other for other in KINDS if other != kind)
        with pytest.raises(ValueError, match=r"FILE: it is a .*, expected a .*\. Give it as the "):
            weights.from_tensors(builders.published(make()), path="FILE", kind=wanted, **known)


def test_a_checkpoint_of_something_else() -> None:
    raw = {f"model.diffusion_model.{i}.weight": torch.zeros(1) for i in range(7)}
    match = "it is no MaskGIT transformer or VQGAN .* Its 7 entries: .* and 2 more"
    refused("model", raw, match)
    refused("model", {}, "Its 0 entries: none")


def test_a_conversion_that_overflows() -> None:
    model = builders.model()
    big = dict(model.tensors) | {"token.weight": model.tensors["token.weight"] * 1e6}
    with pytest.raises(ValueError, match=r"'token.weight' holds NaN.* in torch.float16"):
        weights.cast(replace(model, tensors=big), torch.float16)


# Files that are not what they should be.


class Hostile:
    """Unpickled, it would make the file `mark`."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo 1 > {self.mark}",)


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
        weights.load(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the file is as hostile as it claims
    assert mark.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_is_refused_too(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pth"
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Hostile(mark), protocol))
        with pytest.raises(ValueError, match=r"evil.pth (was refused|is a damaged)"):
            weights.load(path)
    assert not mark.exists()


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Identity(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"asks for torch.nn.modules.linear.Identity.* state_dict"):
        weights.load(tmp_path / "a.pth")


def test_files_from_before_pytorch_1_6_are_read(kind: str, tmp_path: Path) -> None:
    make, known = KINDS[kind]
    path = tmp_path / "old.pth"
    torch.save(builders.published(make()), path, _use_new_zipfile_serialization=False)
    assert_same(weights.load(path, **known), make())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_that_was_cut_off(suffix: str, tmp_path: Path) -> None:
    path = builders.write(tmp_path / f"cut{suffix}", builders.head())
    whole = path.read_bytes()
    for length in (0, 1, 5, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"cut{suffix} (is|was)"):
            weights.load(path, **builders.HEAD_SIZES)


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
            weights.load(path, **builders.HEAD_SIZES)
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
        weights.load(path)


def test_a_zip_and_a_list_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(ValueError, match=r"a.pth is a damaged PyTorch file or none at all"):
        weights.load(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match=r"a.pth holds a list, expected a dict of tensors"):
        weights.load(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing.pth does not exist"):
        weights.load(tmp_path / "nothing.pth")


def test_a_folder_stands_for_the_one_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"holds no MaskGIT .* for MaskGIT_ImageNet_512.pth"
    ):
        weights.load(tmp_path)
    model = builders.write(tmp_path / "MaskGIT" / "MaskGIT_ImageNet_256.pth", builders.model())
    vq = builders.write(tmp_path / "VQGAN" / "last.ckpt", builders.vq())
    (tmp_path / "notes.txt").write_text("x")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    assert weights.load(tmp_path, "model", **builders.MODEL_SIZES).path == model
    assert weights.load(tmp_path, "vq").path == vq
    head = builders.write(tmp_path / "head.safetensors", builders.head())
    assert weights.load(tmp_path, "head").path == head
    builders.write(tmp_path / "head2.safetensors", builders.head())
    with pytest.raises(
        ValueError, match=r"holds 2 such files: head.safetensors, head2.safetensors"
    ):
        weights.load(tmp_path, "head")
    with pytest.raises(FileNotFoundError, match=r"holds no MaskGIT shortcut head. Looked"):
        weights.load(tmp_path / "VQGAN", "head")


# Writing.


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    def fail(tensors: Any, partial: Path, metadata: Any) -> None:
        partial.write_bytes(b"half")
        raise OSError("no space left on device")

    path = builders.write(tmp_path / "a.safetensors", builders.head())
    before = path.read_bytes()
    monkeypatch.setattr(weights, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        weights.save(path, builders.head(seed=9))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_an_output_of_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"suffix '.bin', expected .safetensors .* or .pth, .pt"):
        weights.save(tmp_path / "a.bin", builders.head())
    assert not os.listdir(tmp_path)


def test_files_of_ours_are_ordinary_safetensors(tmp_path: Path) -> None:
    checkpoint = builders.vq()
    path = builders.write(tmp_path / "new" / "a.safetensors", checkpoint)
    assert load_file(path).keys() == checkpoint.tensors.keys()
    if os.name == "posix":
        (tmp_path / "plain").touch()
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


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


def described_vq(folder: Path, yaml: str) -> weights.Checkpoint:
    (folder / "model.yaml").write_text(yaml)
    return weights.load(builders.write(folder / "last.ckpt", builders.vq()))


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
