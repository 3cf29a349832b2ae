"""State dicts in the wrappings that people have them in: containers, prefixes, and our metadata as a tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import lumina_folder
import pytest
import torch
from builders import assert_same
from safetensors.torch import save_file
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.checkpoint import Checkpoint, metadata_of
from shortcut_pack.shortcut.companions import packed, placed
from shortcut_pack.shortcut.models import layouts
from shortcut_pack.shortcut.models.architecture import Request
from shortcut_pack.shortcut.models.layout import own_names
from shortcut_pack.shortcut.pipeline import conditioner_of
from shortcut_pack.shortcut.unwrap import SAVED, metadata_tensor

Raw = dict[str, Any]
SIZES = builders.MODEL_SIZES


def bare(checkpoint: Checkpoint) -> Raw:
    """The published tensors alone."""
    return builders.publish(checkpoint.layout.table, dict(checkpoint.tensors))


def prefixed(raw: Raw, prefix: str) -> Raw:
    return {prefix + key: value for key, value in raw.items()}


PREFIXES = [
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.diffusion_model.",
    "diffusion_model.",
    "model.",
    "ema_model.module.",
    "vq.",
    "first_stage_model.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", builders.KINDS)
def test_prefixes_of_wrappers(kind: str, prefix: str) -> None:
    make, sizes = builders.KINDS[kind]
    expected = make()
    raw = prefixed(bare(expected), prefix)
    assert_same(checkpoints.from_tensors(raw, **sizes), expected)
    kept = {expected.layout.container or "state_dict": raw, "step": 3}
    assert_same(checkpoints.from_tensors(kept, **sizes), expected)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_same_of_a_model_whose_own_keys_begin_with_model(prefix: str) -> None:
    sizes = {"num_heads": 4, **lumina_folder.SIZES}
    expected = checkpoints.from_tensors(lumina_folder.raw(), **sizes)
    raw = prefixed(lumina_folder.raw(), prefix)
    assert_same(checkpoints.from_tensors(raw, **sizes), expected)


def test_blocks_that_were_compiled_or_sharded_one_by_one() -> None:
    expected = builders.model()
    raw = {
        key.replace("layers.1.", "layers.1._orig_mod.").replace(
            "layers.0.", "layers.0._fsdp_wrapped_module.module."
        ): value
        for key, value in bare(expected).items()
    }
    assert_same(checkpoints.from_tensors(raw, **SIZES), expected)


@pytest.mark.parametrize(
    "name",
    ["state_dict", "model", "ema", "ema_state_dict", "model_state_dict", "net_g", "a.b"],
)
def test_containers(name: str) -> None:
    expected = builders.model()
    content: Raw = {"step": 3, "optimizer": {"state": {}}, name: bare(expected)}
    assert_same(checkpoints.from_tensors(content, **SIZES), expected)
    nested = {"checkpoint": {name: prefixed(bare(expected), "module.")}, "args": {"lr": 1e-4}}
    assert_same(checkpoints.from_tensors(nested, **SIZES), expected)


def test_of_averaged_and_last_weights_the_averaged_are_loaded_and_it_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    last, averaged = builders.model(), builders.model(seed=9)
    content = {"model": bare(last), "ema": bare(averaged)}
    assert_same(checkpoints.from_tensors(content, **SIZES), averaged)
    assert "those in 'ema' are loaded, and 'model' left aside" in caplog.text


def test_an_unknown_prefix_is_the_reason() -> None:
    raw = prefixed(bare(builders.model()), "generator.inner.")
    with pytest.raises(ValueError, match=r"its keys have the prefix 'generator.inner.', expected"):
        checkpoints.from_tensors(raw, **SIZES)


def test_a_key_with_and_without_a_wrapper_is_refused() -> None:
    raw = bare(builders.model())
    with pytest.raises(ValueError, match=r"holds '.*' twice, with and without the prefix"):
        checkpoints.from_tensors({**raw, **prefixed(raw, "module.")}, **SIZES)


def test_keys_beside_a_wrapper_are_unknown() -> None:
    raw = {**prefixed(bare(builders.model()), "model."), "scaler": torch.zeros(1)}
    with pytest.raises(ValueError, match="1 keys are not of a MaskGIT transformer: 'scaler'"):
        checkpoints.from_tensors(raw, **SIZES)


def test_a_model_and_its_vq_model_in_one_file_are_told_apart_by_kind() -> None:
    model, vq = builders.text_model(), builders.vq()
    raw = {
        **prefixed(dict(model.tensors), "model.diffusion_model."),
        f"model.diffusion_model.{SAVED}": metadata_tensor(metadata_of(model)),
        **prefixed(dict(vq.tensors), "first_stage_model.vq."),
        f"first_stage_model.vq.{SAVED}": metadata_tensor(metadata_of(vq)),
    }
    assert_same(checkpoints.from_tensors(raw, kind="model"), model)
    assert_same(checkpoints.from_tensors(raw, kind="vq"), vq)
    with pytest.raises(ValueError, match="expected a shortcut head"):
        checkpoints.from_tensors(raw, kind="head")


@pytest.mark.parametrize("make", [builders.model, builders.text_model, builders.head, builders.vq])
def test_our_names_without_metadata(make: Any) -> None:
    expected = make()
    missing = {
        name: getattr(expected.config, name)
        for name in ("num_heads", "num_codes", "rope_theta", "num_classes")
        if hasattr(expected.config, name) and expected.layout.kind != "vq"
    }
    raw = prefixed(dict(expected.tensors), "model.diffusion_model.")
    found = checkpoints.from_tensors(raw, kind=expected.layout.kind, **missing)
    assert_same(found, expected)


def test_our_names_and_published_ones_tell_layouts_apart() -> None:
    for kind in ("model", "vq", "head"):
        marks = [
            frozenset(m) for layout in layouts(kind) for m in (layout.marks, own_names(layout))
        ]
        for a in marks:
            assert sum(a == b for b in marks) in (1, 2) and not any(a < b for b in marks)


def test_the_metadata_of_a_saved_file_are_all_there() -> None:
    expected = builders.model(title="A title", class_names=("a", "b", "c"))
    raw = {**expected.tensors, SAVED: metadata_tensor(metadata_of(expected))}
    found = checkpoints.from_tensors(raw, {"prompt": "{}"})
    assert_same(found, expected)
    assert found.metadata.title == "A title" and found.metadata.class_names == ("a", "b", "c")
    assert SAVED not in found.tensors


@pytest.mark.parametrize("value", [3.0, torch.zeros(2, 2), torch.tensor([91]), torch.tensor([50])])
def test_metadata_that_are_none(value: Any) -> None:
    raw = {**builders.model().tensors, SAVED: value}
    with pytest.raises(ValueError, match=f"tensor '{SAVED}' does not hold metadata"):
        checkpoints.from_tensors(raw)


def test_wrapped_files_are_found_in_a_folder(tmp_path: Path) -> None:
    vq = builders.vq()
    raw = prefixed(dict(vq.tensors), "vq.")
    save_file(raw, tmp_path / "ComfyUI_vae_00001_.safetensors", metadata={"prompt": "{}"})
    builders.write(tmp_path / "model.safetensors", builders.model())
    assert_same(checkpoints.load(tmp_path, "vq"), vq)
    assert checkpoints.load(tmp_path, "model").layout.name == "maskgit"


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("../a", torch.zeros(3, dtype=torch.uint8), "has no name of a file"),
        (".a", torch.zeros(3, dtype=torch.uint8), "has no name of a file"),
        ("/a", torch.zeros(3, dtype=torch.uint8), "has no name of a file"),
        ("a/../b", torch.zeros(3, dtype=torch.uint8), "has no name of a file"),
        ("a", torch.zeros(3), "does not hold a file"),
        ("a", torch.zeros(1, dtype=torch.uint8).expand(2**40), "does not hold a file"),
    ],
)
def test_companions_that_are_none(name: str, value: Any, match: str) -> None:
    checkpoint = builders.model()
    raw = {**checkpoint.tensors, SAVED: metadata_tensor(metadata_of(checkpoint))}
    with pytest.raises(ValueError, match=match):
        checkpoints.from_tensors({**raw, f"shortcut.file.{name}": value})


def test_companions_lie_beside_a_model_as_long_as_they_are_asked_for(tmp_path: Path) -> None:
    folder = builders.write_text(tmp_path / "a")
    checkpoint = checkpoints.load(folder / "model.safetensors")
    raw = {
        **checkpoint.tensors,
        SAVED: metadata_tensor(metadata_of(checkpoint)),
        **packed(checkpoint),
    }
    save_file(prefixed(raw, "model.diffusion_model."), tmp_path / "moved.safetensors")
    found = checkpoints.load(tmp_path / "moved.safetensors")
    assert_same(found, checkpoint)
    assert packed(found).keys() == packed(checkpoint).keys() != set()
    with placed(found) as path:
        assert path is not None and path.parent != tmp_path
        assert (path.with_suffix(".tokenizer") / "tokenizer.json").is_file()
    assert not path.parent.exists()
    said = conditioner_of(found).described(Request(prompt="a lake"))
    assert said == conditioner_of(checkpoint).described(Request(prompt="a lake"))
    assert main(["convert", str(found.path), str(tmp_path / "b.safetensors")]) == 0
    assert (tmp_path / "b.tokenizer" / "tokenizer.json").is_file()
