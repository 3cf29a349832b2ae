"""A head takes from its model what its own file does not state: heads, rotary base, norms."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import builders
import lumina_folder
import pytest
import torch
from golden_sets import load as golden
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.checkpoint import Checkpoint
from shortcut_pack.shortcut.compatibility import check_head
from shortcut_pack.shortcut.files import Metadata
from shortcut_pack.shortcut.pipeline import Pipeline

OTHER = {"rope_theta": 12_345.0, "norm_eps": 1e-3}


def lumina(tmp_path: Path, **stated: Any) -> Checkpoint:
    folder = lumina_folder.write(tmp_path / "Lumina-DiMOO")
    lumina_folder.rewrite_json(folder / "config.json", **stated)
    return checkpoints.load(folder, **lumina_folder.SIZES)


def published_head(tmp_path: Path) -> Path:
    path = tmp_path / "dimoo-shortcut.pth"
    torch.save(golden("dimoo_shortcut_head").weights("head"), path)
    return path


def test_a_published_head_has_what_its_models_config_says(tmp_path: Path) -> None:
    model = lumina(tmp_path, rope_theta=12_345.0, rms_norm_eps=1e-3)
    head = checkpoints.load(published_head(tmp_path), "head", model=model)
    assert (head.config.rope_theta, head.config.norm_eps) == (12_345.0, 1e-3)
    assert head.config.num_heads == model.config.num_heads == 4
    assert not head.assumed
    assert check_head(head, model) is not None, "it still does not say which model it is for"


def test_what_was_assumed_without_the_model_is_refused_with_another(tmp_path: Path) -> None:
    head = checkpoints.load(published_head(tmp_path), "head", num_heads=4)
    assert head.assumed == {"rope_theta", "norm_eps"}
    with pytest.raises(ValueError, match=r"was read with rope_theta = 500000.0, not 12345.0"):
        check_head(head, lumina(tmp_path, rope_theta=12_345.0))


@pytest.mark.parametrize("name", ["rope_theta", "norm_eps", "num_heads"])
def test_a_head_that_states_otherwise_is_refused(name: str) -> None:
    model = builders.text_model()
    value = 2 if name == "num_heads" else 0.5
    others = {"num_kv_heads": 2} if name == "num_heads" else {}
    head = builders.text_head(replace(builders.TEXT_HEAD_CONFIG, **{name: value}, **others))
    with pytest.raises(ValueError, match=rf"states {name} = {value}, not .*Pick the head"):
        check_head(head, model)
    ours = replace(head, metadata=Metadata(model_fingerprint=model.fingerprint))
    if name == "num_heads":
        assert check_head(ours, model) is None, "a head that was trained here has its own"
    else:
        with pytest.raises(ValueError, match=f"states {name}"):
            check_head(ours, model)


def test_a_stated_value_is_not_replaced_by_the_models(tmp_path: Path) -> None:
    head = builders.text_head(replace(builders.TEXT_HEAD_CONFIG, rope_theta=77.0))
    path = builders.write(tmp_path / "head.safetensors", head)
    found = checkpoints.load(path, "head", model=builders.text_model())
    assert found.config.rope_theta == 77.0


def test_a_head_of_maskgit_has_the_heads_of_its_model(tmp_path: Path) -> None:
    path = builders.write(tmp_path / "head.pth", builders.head())
    found = checkpoints.load(path, "head", model=builders.model())
    assert asdict(found.config) == asdict(builders.HEAD_CONFIG)


def test_a_head_of_another_architecture_takes_nothing(tmp_path: Path) -> None:
    path = builders.write(tmp_path / "head.pth", builders.text_head())
    with pytest.raises(ValueError, match="num_heads cannot be read"):
        checkpoints.load(path, "head", model=builders.model())


def test_pictures_of_a_published_head_are_those_of_one_that_states_it(tmp_path: Path) -> None:
    config = replace(builders.TEXT_CONFIG, **OTHER)
    folder = builders.write_text(tmp_path)
    base = builders.text_model(config)
    checkpoints.save(folder / "model.safetensors", base)
    stating = builders.text_head(
        replace(builders.TEXT_HEAD_CONFIG, **OTHER), model_fingerprint=base.fingerprint
    )
    checkpoints.save(folder / "head.safetensors", stating)
    silent = builders.write(tmp_path / "dimoo-shortcut.pth", builders.text_head())
    made = []
    for head in (folder / "head.safetensors", silent):
        pipeline = Pipeline.load(folder / "model.safetensors", folder / "vq.safetensors", head)
        assert pipeline.head is not None
        made.append(pipeline.head.config)
    assert made[0] == made[1]


def test_convert_writes_what_the_model_says(tmp_path: Path) -> None:
    base = builders.text_model(replace(builders.TEXT_CONFIG, **OTHER))
    model = builders.write(tmp_path / "model.safetensors", base)
    head = builders.write(tmp_path / "dimoo-shortcut.pth", builders.text_head())
    out = tmp_path / "head.safetensors"
    assert main(["convert", str(head), str(out), "--model", str(model)]) == 0
    found = checkpoints.load(out)
    assert found.config.rope_theta == 12_345.0
    assert check_head(found, base) is None


def test_a_config_without_a_rotary_base_means_that_of_the_published_class(tmp_path: Path) -> None:
    model = lumina(tmp_path, rope_theta=None, rms_norm_eps=None)
    assert (model.config.rope_theta, model.config.norm_eps) == (10_000.0, 1e-5)


def test_a_rotary_base_of_null_is_refused(tmp_path: Path) -> None:
    folder = lumina_folder.write(tmp_path / "a")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_theta": None}))
    with pytest.raises(ValueError, match=r"config.json beside it says rope_theta = null"):
        checkpoints.load(folder, **lumina_folder.SIZES)
