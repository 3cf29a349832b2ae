"""The nodes whose answer has a text, with tiny models.

They run on stand-ins for ComfyUI, and on the real one if COMFY_DIR names its folder (see comfy_stubs.py).
"""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first
# ruff: noqa: F811 - fixtures are imported and then named as arguments

from __future__ import annotations

from dataclasses import replace

import builders
import comfy_stubs
import pytest
import torch
from comfy_stubs import needs_comfy

comfy_stubs.install()
import comfy.model_management as mm
from shortcut_pack.nodes import folders, native
from shortcut_pack.nodes.answer import DescribeImage, ReasonedEdit
from shortcut_pack.shortcut import answers, shipped
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.models.architecture import Request
from shortcut_pack.shortcut.models.lumina_dimoo import transformer as lumina
from shortcut_pack.shortcut.models.lumina_dimoo.tokenizer import copy_tokenizer
from shortcut_pack.shortcut.pipeline import Pipeline, conditioner_of
from shortcut_pack.shortcut.text_schedule import ParallelSettings, TextSettings
from test_nodes import Interrupted
from text_nodes import (  # noqa: F401
    class_model,
    cond,
    conditioner,
    empty,
    pixels,
    vae,
)

ASK = {
    "question": "what is it",
    "seed": 3,
    "max_tokens": 12,
    "steps": 6,
    "block_length": 4,
    "temperature": 0.5,
}
EDIT = {
    "seed": 3,
    "steps": 8,
    "image_steps": 4,
    "max_tokens": 10,
    "cfg": 1.0,
    "cfg_image": 2.0,
    "temperature": 1.0,
    "text_temperature": 0.5,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of a MMaDA-Parallel-A, a Lumina-DiMOO that makes text, and their VQ model."""
    folder = tmp_path_factory.mktemp("answers")
    for name, checkpoint in (
        ("mmada", builders.answering_model()),
        ("lumina", builders.answering_model(lumina.LAYOUT)),
        ("bare", builders.text_model()),
    ):
        path = builders.write(folder / f"{name}.safetensors", checkpoint)
        copy_tokenizer(shipped.TEXT_FOLDER, path)
    builders.write(folder / "vq" / "vq.safetensors", builders.vq())
    return folder


def loaded(files, name="mmada", weight_dtype="float32"):
    """The MODEL of a file."""
    checkpoint = folders.load(files / f"{name}.safetensors", "model")
    latent_format = native.CodeIds(2, torch.zeros(16, 3))
    return native.build_model(checkpoint, weight_dtype, latent_format, conditioner_of(checkpoint))


@pytest.fixture
def model(files):
    return loaded(files)


def ask(model, vae, image=None, **changes):
    image = pixels() if image is None else image
    return DescribeImage.execute(model, vae, image, **(ASK | changes)).result[0]


def edit(model, vae, latent=None, positive=None, **changes):
    if positive is None:
        positive = cond(model, "make it night", "edit", vae=vae, image=pixels())
    latent = empty() if latent is None else latent
    return ReasonedEdit.execute(model, positive, latent, **(EDIT | changes)).result


def test_an_answer_is_what_the_pipeline_says(files, model, vae):
    pipeline = Pipeline.load(files / "mmada.safetensors", files / "vq")
    codes_1hw = vae.encode(pixels())[:, 0].long()
    request = Request(prompt=ASK["question"], task="understand", sources=(codes_1hw,))
    condition = pipeline.conditioner.conditions(request, 1)[0]
    settings = TextSettings(max_tokens=12, num_steps=6, block_length=4, temperature=0.5)
    expected = answers.describe(
        pipeline, answers.text_output(pipeline), condition, settings, seed=3
    )
    assert ask(model, vae) == expected and expected[0]


def test_an_edit_is_what_the_pipeline_makes(files, model, vae):
    pipeline = Pipeline.load(files / "mmada.safetensors", files / "vq")
    codes_1hw = vae.encode(pixels())[:, 0].long()
    request = Request(prompt="make it night", task="edit", sources=(codes_1hw,))
    settings = ParallelSettings(
        max_tokens=10,
        num_steps=8,
        text_temperature=0.5,
        image_steps=4,
        guidance=(1.0, 2.0),
        temperature=1.0,
    )
    conditions = pipeline.conditioner.conditions(request, 1)
    codes_1hw, texts = answers.edit(
        pipeline, answers.text_output(pipeline), conditions, settings, (3, 5), seed=3
    )
    latent, said = edit(model, vae)
    assert torch.equal(latent["samples"][:, 0].long(), codes_1hw)
    assert said == texts and texts[0]


def test_lumina_dimoo_answers_too_but_does_not_reason(files, vae):
    model = loaded(files, "lumina")
    assert ask(model, vae)[0]
    with pytest.raises(ValueError, match="Lumina-DiMOO transformer does not know the task 'reason"):
        edit(model, vae)


def test_a_batch_has_an_answer_for_each_image(model, vae):
    images = pixels(3)
    together = ask(model, vae, images)
    assert len(together) == 3 and ask(model, vae, images[:1]) == together[:1]
    latent, texts = edit(model, vae, empty(2))
    alone, text = edit(model, vae)
    assert len(texts) == 2 and texts[:1] == text
    assert torch.equal(latent["samples"][:1], alone["samples"])


def test_the_size_of_the_image_counts_and_the_sampler_takes_the_same_condition(model, vae):
    assert edit(model, vae, empty(1, (4, 2)))[0]["samples"].shape == (1, 1, 4, 2)


def test_an_edit_needs_an_image(model, vae):
    with pytest.raises(ValueError, match=r"no image to edit\. Choose the task edit"):
        edit(model, vae, positive=cond(model, "make it night"))


def test_texts_of_different_lengths_are_refused(model, vae):
    positive = cond(model, "fog\nat night", "edit", vae=vae, image=pixels(), prompt_per_line=True)
    with pytest.raises(ValueError, match=r"texts of different lengths.*prompt_per_line"):
        edit(model, vae, empty(2), positive)


@needs_comfy
def test_half_precision(files, vae):
    assert ask(loaded(files, weight_dtype="bfloat16"), vae, temperature=0.0)[0]


@needs_comfy
def test_float8_weights_are_text_too(files, vae):
    checkpoint = folders.load(files / "mmada.safetensors", "model")
    checkpoint = checkpoints.cast(checkpoint, torch.float8_e4m3fn)
    latent_format = native.CodeIds(2, torch.zeros(16, 3))
    model = native.build_model(checkpoint, "default", latent_format, conditioner_of(checkpoint))
    assert ask(model, vae)[0] and edit(model, vae)[1][0]


def test_each_pass_moves_the_bar_and_can_be_interrupted(model, vae, monkeypatch):
    for run in (ask, edit):
        calls = []

        def interrupt(calls=calls):
            calls.append(1)
            if len(calls) == 3:
                raise Interrupted

        with monkeypatch.context() as patch:
            patch.setattr(mm, "throw_exception_if_processing_interrupted", interrupt)
            with pytest.raises(Interrupted):
                run(model, vae)
        assert len(calls) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "  "}, "the question is empty"),
        ({"question": "house " * 1100}, "expected at most 1024"),
        ({"max_tokens": 0}, "max tokens must be"),
    ],
)
def test_a_question_that_cannot_be_answered(model, vae, changes, message):
    with pytest.raises(ValueError, match=message):
        ask(model, vae, **changes)


def test_what_does_not_make_text_says_so(files, vae, class_model):
    with pytest.raises(ValueError, match=r"bare.safetensors makes images only: the part of its"):
        ask(loaded(files, "bare"), vae)
    with pytest.raises(ValueError, match=r"makes images only\. Load Lumina-DiMOO or MMaDA"):
        ask(class_model, vae)
    with pytest.raises(ValueError, match="expected the vae of Load MIGM"):
        ask(loaded(files), None)


def test_a_vae_of_another_model(model):
    other = native.CodeVAE(builders.vq(replace(builders.VQ_CONFIG, num_codes=8)))
    with pytest.raises(ValueError, match="8 codes"):
        ask(model, other)


@pytest.mark.parametrize(
    ("latent", "changes", "message"),
    [
        ({"noise_mask": torch.ones(1, 3, 5)}, {}, "has a noise mask, but a reasoned edit makes"),
        ({}, {"image_steps": 9}, "image steps must be at most 8, got 9"),
    ],
)
def test_an_edit_that_cannot_be(model, vae, latent, changes, message):
    with pytest.raises(ValueError, match=message):
        edit(model, vae, empty() | latent, **changes)


def test_a_condition_of_another_kind(model, vae, class_model):
    from shortcut_pack.nodes.condition import ClassCondition

    with pytest.raises(ValueError, match="Use Text Condition with this model"):
        edit(model, vae, positive=ClassCondition.execute(class_model, "1").result[0])
