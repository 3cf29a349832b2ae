"""MMaDA-Parallel-A: told apart from Lumina-DiMOO, its tasks, and the part of its weights that makes text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lumina_folder
import pytest
import torch
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.cli.files import describe
from shortcut_pack.shortcut.models import lumina_dimoo
from shortcut_pack.shortcut.models.architecture import Request
from shortcut_pack.shortcut.models.lumina_dimoo.mmada import laid_over

CARD = (
    "---\nlicense: mit\n---\n# MMaDA-Parallel-A\nBased on Amused-VQ, trained from Lumina-DiMOO.\n"
)
SIZES = lumina_folder.SIZES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny MMaDA-Parallel-A as published."""
    folder = lumina_folder.write(tmp_path / "MMaDA")
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def lumina(tmp_path: Path) -> Path:
    return lumina_folder.write(tmp_path / "Lumina")


def test_the_model_card_tells_the_two_apart(folder: Path, lumina: Path) -> None:
    found, other = checkpoints.load(folder, "model", **SIZES), checkpoints.load(lumina, **SIZES)
    assert found.architecture is lumina_dimoo.MMADA_PARALLEL_A
    assert other.architecture is lumina_dimoo.ARCHITECTURE
    assert found.config == other.config and found.fingerprint == other.fingerprint
    assert "format       MMaDA-Parallel-A transformer (mmada-parallel-a), published" in describe(
        found
    )


@pytest.mark.parametrize("card", [b"# Lumina-DiMOO\n", b"\xff\xfe", b"x" * 2**21])
def test_a_card_of_another_kind_says_nothing(lumina: Path, card: bytes) -> None:
    (lumina / "README.md").write_bytes(card)
    assert checkpoints.load(lumina, **SIZES).architecture is lumina_dimoo.ARCHITECTURE


def test_a_converted_file_says_what_it_is_and_keeps_what_makes_text(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small.safetensors"
    command = ["convert", str(folder), str(out), "--num-codes", "64"]
    assert main([*command, "--dtype", "float8_e4m3fn"]) == 0
    source, found = checkpoints.load(folder, **SIZES), checkpoints.load(out)
    assert found.architecture is lumina_dimoo.MMADA_PARALLEL_A and found.quantized
    assert found.fingerprint == source.fingerprint
    whole = lumina_folder.raw()["model.transformer.ff_out.weight"]
    assert torch.equal(source.text["output.weight"], whole[:300])
    assert torch.equal(found.text["output.weight"], whole[:300])
    assert checkpoints.build(found.text_part()).state_dict().keys() == {"output.weight"}


def test_another_network_is_neither(folder: Path) -> None:
    lumina_folder.rewrite_json(folder / "config.json", model_type="mmada")
    with pytest.raises(ValueError, match=r"model.safetensors.index.json"):
        checkpoints.load(folder, "model", **SIZES)


def test_it_takes_the_tasks_that_it_was_trained_for() -> None:
    architecture = lumina_dimoo.MMADA_PARALLEL_A
    architecture.check(Request(prompt="a", task="edit"))
    with pytest.raises(
        ValueError, match=r"does not know the task .style.\. It knows text_to_image, "
    ):
        architecture.check(Request(prompt="a", task="style"))
    with pytest.raises(ValueError, match="Lumina-DiMOO transformer does not know the task 're"):
        lumina_dimoo.ARCHITECTURE.check(Request(prompt="a", task="reasoned_edit"))


def test_a_file_without_what_makes_text_says_so(lumina: Path, tmp_path: Path) -> None:
    found = checkpoints.load(lumina, **SIZES)
    bare = tmp_path / "bare.safetensors"
    checkpoints.save(bare, replace(found, text={}))
    with pytest.raises(
        ValueError, match=r"bare.safetensors makes images only: .* convert it again"
    ):
        checkpoints.load(bare).text_part()


def test_prompts_lie_over_the_first_one() -> None:
    first, other = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[9, 8]])
    laid = laid_over((first, other))
    assert [branch.tolist() for branch in laid] == [[[1, 2, 3, 4]], [[9, 8, 3, 4]]]
    assert first.tolist() == [[1, 2, 3, 4]]
