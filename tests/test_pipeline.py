"""From settings to codes: what stays, what is made anew, and that images do not depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from fakes import varied
from shortcut_pack.shortcut import Pipeline, memory, pipeline, shipped
from shortcut_pack.shortcut.cli import contents
from shortcut_pack.shortcut.generate import generate, masked_at_start, needed_branches
from shortcut_pack.shortcut.models.architecture import VQNetwork
from shortcut_pack.shortcut.sampler import Trace
from shortcut_pack.shortcut.schedule import SamplerRules, Settings
from torch import Tensor

L, V = 36, 12
SETTINGS = Settings(num_steps=6, guidance=())


def make(num_images: int = 2, seed: int = 0, settings: Settings = SETTINGS, **options):
    """Codes of `num_images` images of a model with fixed random logits."""
    indices = options.pop("image_indices", range(num_images))
    conditions = (torch.zeros(num_images, dtype=torch.long),)
    model = varied(1, L, V)
    return generate(
        model,
        conditions,
        settings,
        SamplerRules(),
        seed=seed,
        image_indices=indices,
        num_tokens=L,
        **options,
    )


def known(num_images: int) -> torch.Tensor:
    return torch.full((num_images, L), V - 1) - torch.arange(L) % 3


def test_only_editable_tokens_change() -> None:
    is_editable_BL = torch.zeros(2, L, dtype=torch.bool)
    is_editable_BL[:, 10:20] = True
    codes_BL = make(known_codes_BL=known(2), is_editable_BL=is_editable_BL).codes_BL
    assert torch.equal(codes_BL[~is_editable_BL], known(2)[~is_editable_BL])
    assert not torch.equal(codes_BL[is_editable_BL], known(2)[is_editable_BL])


def test_each_image_may_have_its_own_mask() -> None:
    is_editable_BL = torch.zeros(3, L, dtype=torch.bool)
    is_editable_BL[0, :4], is_editable_BL[1, :30] = True, True
    together = make(3, known_codes_BL=known(3), is_editable_BL=is_editable_BL)
    for i in range(3):
        alone = make(
            1, image_indices=[i], known_codes_BL=known(1), is_editable_BL=is_editable_BL[i : i + 1]
        )
        assert torch.equal(together.codes_BL[i], alone.codes_BL[0])
    assert torch.equal(together.codes_BL[2], known(1)[0]), "nothing to make"
    assert together.num_steps == 6


def test_fewer_tokens_than_steps_take_fewer_steps() -> None:
    is_editable_BL = torch.zeros(1, L, dtype=torch.bool)
    is_editable_BL[:, :3] = True
    result = make(1, known_codes_BL=known(1), is_editable_BL=is_editable_BL)
    assert (result.num_steps, result.num_full) == (3, 3)


def test_denoise_remakes_its_share_of_the_editable_tokens() -> None:
    is_editable_BL = torch.arange(L).expand(2, L) < 20
    is_masked_BL = masked_at_start(4, [0, 1], L, known(2), is_editable_BL, 0.3)
    assert is_masked_BL.sum(1).tolist() == [6, 6]
    assert not (is_masked_BL & ~is_editable_BL).any()
    assert not torch.equal(is_masked_BL[0], is_masked_BL[1]), "each image has its own pick"
    assert torch.equal(is_masked_BL, masked_at_start(4, [0, 1], L, known(2), is_editable_BL, 0.3))


def test_place_in_the_batch_and_seed_decide() -> None:
    codes_BL = make(3).codes_BL
    assert torch.equal(make(1, image_indices=[2]).codes_BL[0], codes_BL[2])
    assert not torch.equal(make(3, seed=1).codes_BL, codes_BL)
    # Seed 1, image 0 is not seed 0, image 1: a batch made with the next seed shows nothing twice.
    assert not torch.equal(make(1, seed=1).codes_BL[0], codes_BL[1])


def test_a_batch_in_parts_is_the_same_batch() -> None:
    sizes: list[int] = []
    parts = make(5, images_at_once=2, on_step=lambda trace: sizes.append(len(trace.codes_BL)))
    assert torch.equal(parts.codes_BL, make(5).codes_BL)
    assert (set(sizes), sizes[0], sizes[-1]) == ({2, 1}, 2, 1)
    assert parts.num_steps == make(5).num_steps


def test_a_batch_larger_than_memory_is_made_in_parts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def needed(num_images: int) -> float:
        return 2.0 + 3 * num_images

    monkeypatch.setattr(memory, "memory_of", lambda device: (12, 20))
    caplog.set_level("INFO")
    assert memory.images_at_once(needed, 3, torch.device("cpu")) == 3
    assert not caplog.records
    assert memory.images_at_once(needed, 7, torch.device("cpu")) == 3
    assert "memory holds 3 of 7 images at a time" in caplog.text
    monkeypatch.setattr(memory, "memory_of", lambda device: (4, 4))
    with pytest.raises(ValueError, match=r"takes about .* has .* in all"):
        memory.images_at_once(needed, 7, torch.device("cpu"))


def test_a_pass_of_the_head_counts_in_what_a_run_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a large model it takes more than a pass of the model, which takes nothing here."""
    asked: list[float] = []

    def all_at_once(needed: Callable[[int], float], num_images: int, device: torch.device) -> int:
        asked.append(needed(num_images))
        return num_images

    with_head = Pipeline.load("scenes", accelerator="head")
    monkeypatch.setattr(pipeline, "images_at_once", all_at_once)
    monkeypatch.setattr(type(with_head.model), "activation_bytes", lambda *_: 0.0)
    for each in (with_head, replace(with_head, accelerator_name="reuse")):
        each.generate(label="0", steps=2, full_steps=1)
    assert asked[0] > asked[1] == 0


class OnFullCard:
    """A VQ model on a card (here: the meta device) that has no room to decode."""

    def __init__(self, vq: VQNetwork, error: str):
        self.vq, self.place, self.error = vq, "meta", error

    def parameters(self) -> Iterator[Tensor]:
        yield torch.empty(0, device=self.place)

    def cpu(self) -> None:
        self.place = "cpu"

    def decode(self, codes_Bhw: Tensor) -> Tensor:
        if self.place == "meta":
            raise RuntimeError(self.error)
        return self.vq.decode(codes_Bhw)


@pytest.mark.parametrize(
    "error",
    [
        "CUDA out of memory. Tried to allocate 2 GiB",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_pictures_are_decoded_on_the_cpu_where_a_card_has_no_room(
    error: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain, codes_Bhw = Pipeline.load("scenes"), torch.arange(512).view(2, 16, 16)
    full: Any = OnFullCard(plain.vq, error)
    found = replace(plain, vq=full).decode(codes_Bhw)
    assert torch.equal(found, plain.decode(codes_Bhw))
    assert "meta has no room for the VQ model's work" in caplog.text
    full.place, full.error = "meta", "another one"
    with pytest.raises(RuntimeError, match="another one"):
        replace(plain, vq=full).decode(codes_Bhw)


@pytest.mark.parametrize("denoise", [0.0, -0.1, 1.5])
def test_denoise_out_of_range_is_an_error(denoise: float) -> None:
    with pytest.raises(ValueError, match="denoise must be above 0 and at most 1"):
        make(known_codes_BL=known(2), denoise=denoise)


def test_tensors_of_another_size_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"known codes must have shape .*\(2, 36\)"):
        make(known_codes_BL=known(2)[:, :-1])


def test_given_codes_are_not_changed_in_place() -> None:
    given = known(2)
    make(known_codes_BL=given)
    assert torch.equal(given, known(2))


def test_a_branch_of_weight_0_is_left_out() -> None:
    wanted, text, image = (torch.tensor([i]) for i in range(3))
    assert needed_branches((wanted, text, image), (2.5, 4.0)) == ((wanted, text, image), (2.5, 4.0))
    assert needed_branches((wanted, text, image), (0.0, 4.0)) == ((wanted, image), (4.0,))
    assert needed_branches((wanted, text), (0.0,)) == ((wanted,), ())
    with pytest.raises(ValueError, match="2 conditions need 1 guidance weights, got 0"):
        needed_branches((wanted, text), ())


def test_a_setting_of_none_is_not_given(tmp_path: Path) -> None:
    """A preset or full steps of None choose no accelerator, as on the command line."""
    builders.write(tmp_path / "model.safetensors", builders.model())
    builders.write(tmp_path / "vq.safetensors", builders.vq())
    loaded, num_full = Pipeline.load(tmp_path), []
    for given in ({}, {"preset": None}, {"full_steps": None}, {"full_steps": 2}):

        def count(trace: Trace) -> None:
            num_full[-1] += trace.denoised.was_full

        num_full.append(0)
        loaded.generate(label="0", steps=6, on_step=count, **given)
    assert num_full == [6, 6, 6, 2]


WRONG = (
    ({"steps": 10**12}, "steps must be at most 10000, got 1000000000000"),
    ({"steps": 2.0}, "steps must be a whole number"),
    ({"width": 128.0}, "width must be a whole number"),
    ({"height": "128"}, "height must be a whole number"),
    ({"full_steps": True}, "full steps must be a whole number or a tuple of steps"),
    ({"full_steps": (0, 1.5)}, "full steps must be a whole number or a tuple of steps"),
    ({"num_guided": 2}, "settings are preset, steps.*; got num_guided"),
    ({"has_mask": True}, "settings are preset, steps.*; got has_mask"),
    ({"prompt": 5}, "prompt must be a text, got 5"),
    ({"accelerator": "ml-cache", "steps": 10**12}, "steps must be at most"),
)


@pytest.mark.parametrize(("given", "message"), WRONG, ids=str)
def test_in_python_too_a_wrong_input_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scenes().generate(**{"label": "night snow", "steps": 2, **given})


@cache
def scenes() -> Pipeline:
    return Pipeline.load("scenes")


def test_in_python_too_a_size_far_from_training_and_unknown_words_are_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("transformers")
    of_text = Pipeline.load("scenes text")
    of_text.generate("two red houses", steps=1)
    assert not caplog.text
    of_text.generate("a purple dragon", steps=1, width=320, height=96)
    assert "320 x 96 pixels is far from the 96 x 96" in caplog.text
    assert "never saw these words" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"accelerator": "partly"}, "accelerator must be one of"),
        ({"accelerator": "head", "head": "none"}, "needs a shortcut head"),
    ],
)
def test_an_accelerator_that_cannot_be_is_said_before_anything_is_built(
    given: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.checkpoints, "build", None)
    with pytest.raises(ValueError, match=message):
        Pipeline.load("scenes", **given)


def test_a_shipped_file_is_the_same_model_however_its_path_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(shipped.FOLDER)
    by_path = Pipeline.load(shipped.MODEL.name, shipped.VQ.name)
    assert contents.of_networks(by_path) == contents.of_networks(
        Pipeline.load("scenes", head="none", accelerator="partial")
    )
