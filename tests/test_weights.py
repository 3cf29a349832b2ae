"""Sound checkpoint files, published and ours; which head belongs to which model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import golden_sets
import lumina_folder
import pytest
import torch
from builders import KINDS, assert_same
from safetensors.torch import load_file, save_file
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import models
from shortcut_pack.shortcut.compatibility import check_head
from shortcut_pack.shortcut.denoiser import guided_logits
from shortcut_pack.shortcut.models.maskgit import head as head_file
from shortcut_pack.shortcut.models.maskgit import transformer as maskgit
from shortcut_pack.shortcut.models.maskgit import vqgan as maskgit_vqgan
from shortcut_pack.shortcut.schedule import Settings
from shortcut_pack.shortcut.settings import usual_settings


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


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
    network: Any = checkpoints.build(checkpoints.from_tensors(raw, kind="model", **known))
    codes_BL = golden["img_token"].flatten(1)
    class_B = golden["labels"].masked_fill(golden["drop_label"], sizes["nclass"])
    is_masked_BL = codes_BL == golden.info["token_ids"]["mask"]
    (features_BSD,) = network.features(codes_BL, is_masked_BL, [class_B])
    index_BL = torch.arange(codes_BL.shape[1]).expand_as(codes_BL)
    return guided_logits(network, (features_BSD,), (), index_BL), features_BSD


def test_a_published_model_computes_what_the_original_did() -> None:
    golden = golden_sets.load("maskgit_backbone")
    logits_BLV, features_BSD = backbone({"model_state_dict": golden.weights("vit"), "iter": 3})
    golden.assert_close(logits_BLV, "logits")
    golden.assert_close(features_BSD, "last_feat")


def test_control_exchanged_queries_and_keys_do_not_pass_for_the_model(monkeypatch) -> None:
    golden = golden_sets.load("maskgit_backbone")
    wrong = swapped(maskgit.LAYOUT, ".query.", ".key.")
    builders.with_layout(monkeypatch, wrong)
    with pytest.raises(AssertionError, match="logits"):
        golden.assert_close(backbone(golden.weights("vit"))[0], "logits")


@torch.no_grad()
def head_features(case: str) -> torch.Tensor:
    golden = golden_sets.load("maskgit_shortcut_head")
    model, _ = golden_sets.tiny_maskgit()
    num_heads = golden.args["cases"][0]["head"]["num_heads"]
    head: Any = checkpoints.build(
        checkpoints.from_tensors(golden.weights("head"), num_heads=num_heads)
    )
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
    wrong = swapped(head_file.LAYOUT, ".query.", ".key.")
    builders.with_layout(monkeypatch, wrong)
    with pytest.raises(AssertionError, match="feat"):
        golden.assert_close(head_features("head_0"), "head_0/feat")


@torch.no_grad()
def check_vqgan() -> None:
    golden = golden_sets.load("taming_vqgan")
    raw = {"epoch": 1, "state_dict": golden.weights("vq") | {"loss.steps": torch.tensor(3)}}
    checkpoint = checkpoints.from_tensors(raw, kind="vq")
    assert checkpoint.config.attention_levels == (2,)
    network: Any = checkpoints.build(checkpoint)
    golden.assert_close(network.decode(golden["codes"]), "decode")
    codes_Bhw = network.encode(golden["image"])
    assert torch.equal(codes_Bhw.flatten(), golden["indices"])
    golden.assert_close(network.decode(codes_Bhw), "recon")


def test_a_published_vqgan_computes_what_the_original_did() -> None:
    check_vqgan()


def test_control_exchanged_up_and_mid_blocks_do_not_pass_for_the_vqgan(monkeypatch) -> None:
    format = maskgit_vqgan.LAYOUT
    rows = {
        "decoder.mid.block_1.*": "decoder.mid.block_2.*",
        "decoder.mid.block_2.*": "decoder.mid.block_1.*",
    }
    wrong = replace(format, table=rows | dict(format.table))
    builders.with_layout(monkeypatch, wrong)
    with pytest.raises(AssertionError, match="decode"):
        check_vqgan()


def test_ours_to_published_gives_every_published_tensor_back() -> None:
    golden = golden_sets.load("maskgit_shortcut_head")
    for name, known in (("vit", {"num_codes": 32}), ("head", {})):
        raw = golden.weights(name)
        again = builders.published(checkpoints.from_tensors(raw, num_heads=4, **known))
        again = again.get("model_state_dict", again)
        assert again.keys() == raw.keys()
        assert all(torch.equal(again[key], raw[key]) for key in raw)


# Files of ours and in the published layout.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
def test_round_trip(kind: str, suffix: str, dtype: torch.dtype, tmp_path: Path) -> None:
    make, known = KINDS[kind]
    checkpoint = checkpoints.cast(make(), dtype)
    path = builders.write(tmp_path / f"a{suffix}", checkpoint)
    again = checkpoints.load(path, kind, **known)
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
    assert_same(checkpoints.load(tmp_path, **builders.HEAD_SIZES), checkpoint)
    has_projections = any(key.startswith("proj_in") for key in torch.load(path))
    assert has_projections == (checkpoint.config.width != checkpoint.config.model_width)


@pytest.mark.parametrize("attention_levels", [(), (0,), (0, 1)])
def test_the_levels_of_a_vqgan_are_read_from_its_keys(
    attention_levels: tuple[int, ...], tmp_path: Path
) -> None:
    config = replace(builders.VQ_CONFIG, attention_levels=attention_levels, blocks_per_level=2)
    path = builders.write(tmp_path / "last.ckpt", builders.vq(config))
    assert checkpoints.load(path).config == config


def test_heads_of_the_published_sizes_are_known() -> None:
    config = maskgit.Config(2, 768, 1, 16, 8, 1024, 1000)
    raw = builders.published(builders.model(config))
    assert checkpoints.from_tensors(raw).config == config
    head = head_file.Config(model_width=768, width=384, num_blocks=1, num_heads=16, has_time=True)
    assert checkpoints.from_tensors(builders.published(builders.head(head))).config == head


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    model = builders.model(title="T", class_names=("a", "b", "c"), defaults={"num_steps": 9})
    trained = {"steps": 10, "loss": [0.5, 0.25]}
    head = builders.head(model_fingerprint=model.fingerprint, trained=trained)
    for checkpoint in (model, head):
        found = checkpoints.load(builders.write(tmp_path / "a.safetensors", checkpoint)).metadata
        assert replace(found, config={}) == checkpoint.metadata
    assert checkpoints.load(tmp_path).metadata.config["width"] == head.config.width


def test_the_published_layout_has_what_its_loader_reads(tmp_path: Path) -> None:
    raw = torch.load(builders.write(tmp_path / "a.pth", builders.model()))
    assert raw["iter"] == raw["global_epoch"] == 0
    assert raw["model_state_dict"]["pos_emb"].shape == (1, 17, 32)
    assert raw["optimizer_state_dict"] == {}
    assert "state_dict" in torch.load(builders.write(tmp_path / "a.ckpt", builders.vq()))


def test_a_host_may_read_the_file_itself() -> None:
    model, vq = builders.model(), builders.vq()
    bare = builders.published(model)["model_state_dict"]
    assert_same(checkpoints.from_tensors(bare, **builders.MODEL_SIZES), model)
    assert_same(
        checkpoints.from_tensors(builders.published(vq)["state_dict"], {"format": "pt"}), vq
    )


def test_networks_are_ready_and_share_the_files_tensors(kind: str) -> None:
    checkpoint = KINDS[kind][0]()
    network = checkpoints.build(checkpoint)
    assert not network.training
    for name, parameter in network.named_parameters():
        assert not parameter.requires_grad
        assert parameter.data_ptr() == checkpoint.tensors[name].data_ptr()
    assert {p.dtype for p in checkpoints.build(checkpoint, dtype=torch.bfloat16).parameters()} == {
        torch.bfloat16
    }


def test_weights_and_activations_may_differ_in_type() -> None:
    network: Any = checkpoints.build(
        builders.model(), dtype=torch.float16, compute_dtype=torch.float32
    )
    assert (network.dtype, network.compute_dtype) == (torch.float16, torch.float32)


def test_what_was_trained_can_be_packed(tmp_path: Path) -> None:
    network = checkpoints.build(builders.head()).requires_grad_(True)
    packed = checkpoints.pack(network, head_file.LAYOUT, dtype=torch.float16, title="mine")
    again = checkpoints.load(builders.write(tmp_path / "a.safetensors", packed))
    assert_same(again, checkpoints.cast(builders.head(), torch.float16))
    assert again.metadata.title == "mine"


def test_sampler_settings_come_with_a_model() -> None:
    model = builders.model(defaults={"num_steps": 9, "guidance": [1.5], "schedule": "cosine"})
    found = usual_settings(model)
    assert (found.num_steps, found.guidance, found.schedule) == (9, (1.5,), "cosine")
    assert found.choice_temperature == usual_settings(builders.model()).choice_temperature == 7.0


def test_a_file_that_states_spread_of_earlier_versions_is_read_with_a_word(caplog) -> None:
    usual = usual_settings(builders.model())
    assert usual_settings(builders.model(defaults={"spread": 0})) == usual and not caplog.text
    assert usual_settings(builders.model(defaults={"spread": 1})) == usual
    assert "spread has no effect any more" in caplog.text


@pytest.mark.parametrize("defaults", [{"speed": 9}, {"num_steps": 0}, {"num_steps": "x"}])
def test_unusable_sampler_settings(defaults: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="unusable sampler settings"):
        usual_settings(builders.model(defaults=defaults))


# A published folder of many files.


def test_a_folder_of_shards_is_one_checkpoint(tmp_path: Path) -> None:
    folder = lumina_folder.write(tmp_path / "Lumina", has_vq=True)
    expected = checkpoints.from_tensors(lumina_folder.raw(), num_heads=4, **lumina_folder.SIZES)
    for path in (folder, folder / lumina_folder.INDEX):
        found = checkpoints.load(path, "model", **lumina_folder.SIZES)
        assert_same(found, expected)
        assert found.fingerprint == expected.fingerprint
    assert checkpoints.load(folder, "vq").layout.name == "lumina-vq"


def test_a_folder_with_one_file_is_one_checkpoint(tmp_path: Path) -> None:
    expected = checkpoints.load(lumina_folder.write(tmp_path / "a"), **lumina_folder.SIZES)
    single = lumina_folder.write(tmp_path / "b")
    for name in (lumina_folder.INDEX, *lumina_folder.SHARDS):
        (single / name).unlink()
    save_file(lumina_folder.raw(), single / "model.safetensors", {"format": "pt"})
    assert_same(checkpoints.load(single, **lumina_folder.SIZES), expected)


@pytest.mark.parametrize(
    ("theirs", "ours", "value"),
    [
        ("n_heads", "num_heads", 2),
        ("rope_theta", "rope_theta", 1e4),
        ("rms_norm_eps", "norm_eps", 1e-6),
    ],
)
def test_config_json_decides_what_no_tensor_shows(
    theirs: str, ours: str, value: float, tmp_path: Path
) -> None:
    folder = lumina_folder.write(tmp_path)
    usual = checkpoints.load(folder, **lumina_folder.SIZES).config
    lumina_folder.rewrite_json(folder / "config.json", **{theirs: value, "n_kv_heads": None})
    changed = checkpoints.load(folder, **lumina_folder.SIZES).config
    assert getattr(changed, ours) == value != getattr(usual, ours)


def test_the_output_rows_of_text_are_dropped_and_nothing_else(tmp_path: Path) -> None:
    found = checkpoints.load(lumina_folder.write(tmp_path), **lumina_folder.SIZES)
    published = lumina_folder.raw()["model.transformer.ff_out.weight"]
    assert torch.equal(found.tensors["code_output.weight"], published[300:])
    ours = checkpoints.load(builders.write(tmp_path / "a.safetensors", found))
    assert_same(ours, found)
    assert ours.fingerprint == found.fingerprint


# What a format may say of the files beside its own, and of what it drops.


def with_changes(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Changes what the layout of MaskGIT says."""
    builders.with_layout(monkeypatch, replace(maskgit.LAYOUT, **changes))


def test_sampler_settings_of_a_formats_original(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(num_steps=64, schedule="cosine")
    changed = [replace(a, settings=settings) for a in models.ARCHITECTURES]
    monkeypatch.setattr(models, "ARCHITECTURES", changed)
    raw = builders.published(builders.model())
    found = usual_settings(checkpoints.from_tensors(raw, **builders.MODEL_SIZES))
    assert found == settings
    assert usual_settings(builders.model(defaults={"num_steps": 9})).num_steps == 9


def test_sizes_stated_beside_a_published_file(monkeypatch, tmp_path: Path) -> None:
    stated = {"num_heads": 8, "num_codes": 16}
    with_changes(monkeypatch, read_beside=lambda path: stated if path.exists() else {})
    path = builders.write(tmp_path / "a.pth", builders.model())
    assert checkpoints.load(path).config == replace(builders.MODEL_CONFIG, num_heads=8)
    with pytest.raises(ValueError, match="num_heads is 8, but you gave 4"):
        checkpoints.load(path, num_heads=4)
    stated["depth"] = 5
    with pytest.raises(ValueError, match=r"a.pth: depth is 2, but the files beside it say 5"):
        checkpoints.load(path)
    ours = builders.write(tmp_path / "a.safetensors", builders.model())
    assert checkpoints.load(ours).config == builders.MODEL_CONFIG


def test_what_a_format_drops_is_neither_checked_nor_written(monkeypatch, tmp_path: Path) -> None:
    published = builders.published(builders.model())["model_state_dict"]
    published["pos_emb"] = torch.cat([published["pos_emb"], torch.full((1, 3, 32), torch.nan)], 1)

    def narrow(tensors: Mapping[str, Any], config: Any) -> dict[str, Any]:
        rows = config.num_tokens + 1
        return {**tensors, "position.weight": tensors["position.weight"][:rows]}

    def read_config(tensors: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
        return builders.MODEL_CONFIG

    with_changes(monkeypatch, read_config=read_config, narrow=narrow)
    found = checkpoints.from_tensors(published)
    assert_same(replace(found, layout=maskgit.LAYOUT), builders.model())
    kept = found.tensors["position.weight"]
    assert kept.data_ptr() == published["pos_emb"].data_ptr()
    ours = checkpoints.load(builders.write(tmp_path / "a.safetensors", found))
    assert_same(replace(ours, layout=maskgit.LAYOUT), builders.model())
    assert os.listdir(tmp_path) == ["a.safetensors"]


# Fingerprints, and which head belongs to which model.


def test_a_fingerprint_tells_weights_apart_but_not_types() -> None:
    model = builders.model()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert checkpoints.fingerprint(checkpoints.cast(model, dtype).tensors) == model.fingerprint
    generator = torch.Generator().manual_seed(1)
    tuned = {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.tensors.items()
    }
    assert checkpoints.fingerprint(tuned) != model.fingerprint
    assert builders.model(seed=5).fingerprint != model.fingerprint


def test_a_fingerprint_is_forever() -> None:
    head = golden_sets.load("maskgit_shortcut_head").weights("head")
    assert checkpoints.from_tensors(head, num_heads=4).fingerprint == "978d4e19c49a20ca"


def test_a_head_of_its_model_is_verified() -> None:
    model = builders.model()
    head = builders.head(model_fingerprint=model.fingerprint)
    assert check_head(head, model) is None
    assert check_head(head.without_tensors(), model.without_tensors()) is None


def test_a_published_head_is_verified_by_its_width_only() -> None:
    said = check_head(builders.head(), builders.model())
    assert said is not None and "width 32 fits" in said and "could be verified" in said


def test_a_head_of_other_weights() -> None:
    head = builders.head(model_fingerprint=builders.model().fingerprint)
    with pytest.raises(
        ValueError, match=r"was trained for the model [0-9a-f]{16}, not [0-9a-f]{16}"
    ):
        check_head(head, builders.model(seed=5))


def test_a_head_of_another_width() -> None:
    model = builders.model(replace(builders.MODEL_CONFIG, width=64))
    with pytest.raises(ValueError, match=r"is for a width of 32, not 64 .* Pick the head"):
        check_head(builders.head(), model)


def test_what_is_no_head_at_all() -> None:
    with pytest.raises(ValueError, match="VQGAN of MaskGIT, which does not go with"):
        check_head(builders.vq(), builders.model())


@pytest.mark.parametrize("is_lumina", [True, False])
def test_a_head_of_the_other_kind_of_model(is_lumina: bool) -> None:
    lumina = checkpoints.from_tensors(lumina_folder.raw(), num_heads=4, **lumina_folder.SIZES)
    tensors = golden_sets.load("dimoo_shortcut_head").weights("head")
    lumina_head = checkpoints.from_tensors(tensors, kind="head", num_heads=4)
    assert "could be verified" in str(check_head(lumina_head, lumina))
    if is_lumina:
        head, model, match = (
            builders.head(),
            lumina,
            "MaskGIT shortcut head, which .* Lumina-DiMOO t",
        )
    else:
        head, model, match = (
            lumina_head,
            builders.model(),
            "DiMOO shortcut head, which .* MaskGIT t",
        )
    with pytest.raises(ValueError, match=f"{match}.*Pick the head that was trained for this model"):
        check_head(head, model)


# Writing.


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    def fail(partial: Path, *_: Any) -> None:
        partial.write_bytes(b"half")
        raise OSError("no space left on device")

    path = builders.write(tmp_path / "a.safetensors", builders.head())
    before = path.read_bytes()
    monkeypatch.setattr(checkpoints, "write_safetensors", fail)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(path, builders.head(seed=9))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_an_output_of_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"suffix '.bin', expected .safetensors"):
        checkpoints.save(tmp_path / "a.bin", builders.head())
    assert not os.listdir(tmp_path)


def test_files_of_ours_are_ordinary_safetensors(tmp_path: Path) -> None:
    checkpoint = builders.vq()
    path = builders.write(tmp_path / "new" / "a.safetensors", checkpoint)
    assert load_file(path).keys() == checkpoint.tensors.keys()
    if os.name == "posix":
        (tmp_path / "plain").touch()
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
