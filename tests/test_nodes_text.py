"""The nodes with a model whose conditions are text: any size, prompts, source images, presets.

They run on stand-ins for ComfyUI, and on the real one if COMFY_DIR names its folder (see comfy_stubs.py).
"""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first
# ruff: noqa: F811 - fixtures are imported and then named as arguments

from __future__ import annotations

import logging
import re
from dataclasses import replace
from types import SimpleNamespace

import builders
import comfy_stubs
import numpy as np
import pytest
import torch
from comfy_stubs import needs_comfy

comfy_stubs.install()
import comfy.model_management as mm
import comfy.utils
from shortcut_pack.nodes import condition, host, native
from shortcut_pack.nodes.condition import TextCondition
from shortcut_pack.nodes.widgets import preset_in_words, settings_of
from shortcut_pack.shortcut.accelerators.choice import named
from shortcut_pack.shortcut.generate import generate
from shortcut_pack.shortcut.models import lumina_dimoo
from shortcut_pack.shortcut.models.architecture import Request
from shortcut_pack.shortcut.models.lumina_dimoo import prompts
from shortcut_pack.shortcut.models.lumina_dimoo.conditioner import PROMPT
from shortcut_pack.shortcut.models.maskgit.classes import ClassConditioner
from shortcut_pack.shortcut.schedule import Settings
from test_nodes import Bar, Interrupted, codes, show_previews
from text_nodes import (  # noqa: F401
    GRID,
    PIXELS,
    TEXT,
    WIDGETS,
    asked,
    class_model,
    cond,
    conditioner,
    empty,
    head,
    image,
    model,
    pixels,
    run,
    vae,
)

A_CLASS = ClassConditioner(3, ()).to_conditioning([Request(label="1")])

# ------------------------------------------------------------------------------------------- text to image


def test_the_node_gives_what_the_pipeline_gives(model, head, conditioner):
    settings = Settings(
        num_steps=6,
        full_steps=2,
        guidance=(1.5,),
        guidance_ramp=False,
        schedule="lumina",
        choice_temperature=1.0,
    )
    expected = generate(
        model.model.diffusion_model.on_grid(*GRID),
        conditioner.conditions(Request(prompt=TEXT), 2),
        settings,
        lumina_dimoo.ARCHITECTURE.rules,
        seed=3,
        image_indices=range(2),
        num_tokens=15,
        accelerator=named("head", head.model),
    )
    found = run(model, empty(2), head)
    assert found["samples"].shape == (2, 1, *GRID)
    assert torch.equal(codes(found), expected.codes_BL)


@pytest.mark.parametrize("grid", [(1, 1), (2, 7), (6, 4)])
def test_any_size_is_made(model, head, grid):
    assert run(model, empty(grid=grid), head)["samples"].shape == (1, 1, *grid)


def test_an_empty_latent_off_the_grid_is_refused(model):
    latent = {"samples": torch.zeros(1, 4, 3, 5), "downscale_ratio_spacial": 3}
    nearest = r"codes of 2 x 2 pixels\. The nearest sizes are 14 or 16 wide and 8 or 10 high"
    with pytest.raises(ValueError, match=rf"an image of 15 x 9 pixels does not fit the {nearest}"):
        run(model, latent)


def test_the_prompt_matters_and_the_negative_too(model):
    plain = run(model)["samples"]
    assert not torch.equal(run(model, positive=cond(model, "a boat"))["samples"], plain)
    assert not torch.equal(run(model, negative=cond(model, "fog"))["samples"], plain)


def test_no_negative_is_uncondition_is_an_empty_text_is_zeroed_out(model):
    plain = run(model)["samples"]
    zeroed = [[torch.zeros_like(t), entries] for t, entries in cond(model, "fog")]
    for negative in (cond(model, ""), cond(model, "<uncondition>"), zeroed):
        assert torch.equal(run(model, negative=negative)["samples"], plain)


def test_only_what_the_mask_covers_changes(model, head):
    latent = image(2)
    pixel_mask = torch.zeros(1, 1, *PIXELS)
    pixel_mask[..., :5] = 1  # two code columns, and half of the third
    found = run(model, latent | {"noise_mask": pixel_mask}, head)["samples"]
    assert torch.equal(found[..., 2:], latent["samples"][..., 2:])
    assert not torch.equal(found[..., :2], latent["samples"][..., :2])


def test_progress_counts_every_step_and_previews_have_the_shape_of_the_image(
    model, head, monkeypatch
):
    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    show_previews(monkeypatch)
    run(model, head=head, steps=20)  # more than tokens: those that reveal nothing are left out
    total = Bar.last.total
    assert total <= 15 and [value for value, _, _ in Bar.last.calls] == list(range(1, total + 1))
    pictures = [preview[1] for _, _, preview in Bar.last.calls]
    assert {picture.size for picture in pictures} == {(510, 306)}
    first = np.asarray(pictures[0].resize(GRID[::-1], 0))
    assert (first == 128).all(-1).mean() > 0.8


def test_steps_that_reveal_nothing_are_not_counted(model, caplog):
    with caplog.at_level(logging.INFO):
        run(model, steps=20)
    (line,) = [m for m in caplog.messages if m.startswith("Shortcut Masked Sampler")]
    found = re.search(r": (\d+) steps, (\d+) full, .*\(vanilla\)$", line)
    assert found and found[1] == found[2] and int(found[1]) <= 15


def test_nothing_is_left_of_a_run_in_those_after_it(model, head, vae):
    """Other sizes, batches, prompts, heads and source images in between change nothing."""

    def first():
        return [run(model, empty(2), None)["samples"], run(model, empty(2), head)["samples"]]

    fits = {"model_fingerprint": model.model.checkpoint.fingerprint}
    other_head = native.build_head(builders.text_head(seed=1, **fits), "float32")
    expected = first()
    run(model, empty(grid=(6, 4)), head)
    assert not torch.equal(run(model, empty(2), other_head)["samples"], expected[1])
    run(model, empty(grid=(2, 7)), positive=cond(model, "a boat"))
    run(model, positive=cond(model, "fog", "edit", vae=vae, image=pixels()), head=head)
    assert all(torch.equal(now, before) for now, before in zip(first(), expected, strict=True))


# ------------------------------------------------------------------------------------------- a prompt for each image

LINES = ["fog", TEXT, "a boat by the sea"]  # in tokens: short, long, between


@pytest.mark.parametrize("lines", [LINES, ["a red house", "a red moon"]])
def test_a_prompt_for_each_image(model, head, lines, monkeypatch):
    """An image is the same whether the others of its batch have its prompt or not."""
    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    wanted = cond(model, "\n\n".join(lines), prompt_per_line=True)
    unwanted = cond(model, "snow\nnight and fog\n", prompt_per_line=True)
    found = run(model, empty(4), head, wanted, negative=unwanted)["samples"]
    assert Bar.last.calls[-1][0] == Bar.last.total
    for i in range(4):
        alike = {"positive": cond(model, lines[i % len(lines)])}
        alike["negative"] = cond(model, ["snow", "night and fog"][i % 2])
        assert torch.equal(found[i], run(model, empty(4), head, **alike)["samples"][i])


def test_a_prompt_and_a_source_image_for_each_image(model, vae):
    both = pixels(2)
    positive = cond(model, "fog\nat night", "edit", vae=vae, image=both, prompt_per_line=True)
    found = run(model, empty(2), positive=positive)["samples"]
    for i, text in enumerate(["fog", "at night"]):
        alike = cond(model, text, "edit", vae=vae, image=both)
        assert torch.equal(found[i], run(model, empty(2), positive=alike)["samples"][i])


def test_prompts_of_different_lengths_go_with_a_mask(model):
    latent = image(3)
    mask = torch.zeros(3, 1, *PIXELS)
    mask[0, ..., :4], mask[1:, ..., 4:] = 1, 1
    positive = cond(model, "\n".join(LINES), prompt_per_line=True)
    found = run(model, latent | {"noise_mask": mask}, positive=positive)["samples"]
    assert torch.equal(found[0, ..., 2:], latent["samples"][0, ..., 2:])
    assert torch.equal(found[1:, ..., :2], latent["samples"][1:, ..., :2])
    assert not torch.equal(found[1:, ..., 2:], latent["samples"][1:, ..., 2:])


def test_prompts_without_an_image_are_not_dropped(model):
    positive = cond(model, "\n".join(LINES), prompt_per_line=True)
    with pytest.raises(
        ValueError, match=r"positive holds 3 conditions.*latent_image holds 2\. Set"
    ):
        run(model, empty(2), positive=positive)


def test_every_line_is_looked_at(model):
    with pytest.raises(ValueError, match=r"holds the weight \(moon:1\.5\)"):
        cond(model, "fog\na (moon:1.5)", prompt_per_line=True)


def test_a_text_of_lines_is_one_prompt_and_no_line_is_an_empty_one(model):
    assert len(cond(model, "fog\nat night")[0][0]) == 1
    nothing = cond(model, " \n", prompt_per_line=True)
    assert torch.equal(nothing[0][0], cond(model, "")[0][0])


# ------------------------------------------------------------------------------------------- source images


def test_a_source_image_makes_a_third_branch(model, vae, conditioner, asked):
    positive = cond(model, "at night", "edit", vae=vae, image=pixels(size=(9, 8)))
    run(model, empty(2), positive=positive, negative=cond(model, "fog"))
    source_BYX = positive[0][1][PROMPT].sources[0]
    assert source_BYX.shape == (1, 4, 4), "an image of 9 pixels is cropped to 8"
    expected = prompts.conditions(
        conditioner.tokenizer,
        builders.TEXT_CONFIG,
        "edit",
        "at night",
        negative="fog",
        sources=[source_BYX],
        num_images=2,
    )
    (call,) = asked
    assert len(call.conditions) == 3 and call.settings.guidance == (1.5, 2.0)
    assert all(torch.equal(a, b) for a, b in zip(call.conditions, expected, strict=True))


@pytest.mark.parametrize(
    ("cfg", "cfg_image", "kept"),
    [(1.5, 2.0, [0, 1, 2]), (1.5, 0.0, [0, 1]), (0.0, 2.0, [0, 2]), (0.0, 0.0, [0])],
)
def test_guidance_of_0_saves_its_branch(model, vae, asked, cfg, cfg_image, kept):
    positive = cond(model, "at night", "edit", vae=vae, image=pixels())
    for weights_ in ({}, {"cfg": cfg, "cfg_image": cfg_image}):
        run(model, positive=positive, **weights_)
    every, some = asked
    assert [len(c) for c in some.conditions] == [len(every.conditions[i]) for i in kept]
    for index, found in zip(kept, some.conditions, strict=True):
        assert torch.equal(found, every.conditions[index])
    assert some.settings.guidance == tuple(w for w in (cfg, cfg_image) if w)


def test_editing_and_style_run_with_a_head(model, head, vae):
    edit = cond(model, "at night", "edit", vae=vae, image=pixels(2))
    style = cond(model, "", "style", vae=vae, image=pixels(), style_image=pixels(seed=1))
    found = [run(model, empty(2), head, positive)["samples"] for positive in (edit, style)]
    assert found[0].shape == (2, 1, *GRID) and not torch.equal(*found)


@pytest.mark.parametrize(
    ("task", "images", "message"),
    [
        ("edit", {}, "task edit needs image, which is not connected"),
        ("style", {"image": pixels()}, "task style needs style_image"),
        ("text_to_image", {"image": pixels()}, "takes no image. Disconnect it, or choose the task"),
        ("edit", {"image": pixels(), "style_image": pixels()}, "takes no style_image.* style"),
    ],
)
def test_images_that_do_not_go_with_the_task_are_refused(model, vae, task, images, message):
    with pytest.raises(ValueError, match=message):
        cond(model, "at night", task, vae=vae, **images)


@pytest.mark.parametrize(("vae", "found"), [(None, "not connected"), (object(), "a object")])
def test_an_image_needs_the_vae_of_the_model(model, vae, found):
    with pytest.raises(ValueError, match=f"vae is {found}, expected the vae of Load MIGM"):
        cond(model, "at night", "edit", vae=vae, image=pixels())


def test_an_image_needs_the_vae_of_this_model(model):
    other = native.CodeVAE(builders.vq(replace(builders.VQ_CONFIG, num_codes=8)))
    with pytest.raises(ValueError, match=r"has 8 codes, and .* makes 16"):
        cond(model, "at night", "edit", vae=other, image=pixels())


def test_an_image_smaller_than_a_code_is_refused(vae):
    with pytest.raises(ValueError, match=r"an image of 4 x 1 pixels is .* at least 2 x 2\. Scale"):
        vae.encode(torch.zeros(1, 1, 4, 3))


def test_as_many_source_images_as_images_or_one(model, vae):
    positive = cond(model, "at night", "edit", vae=vae, image=pixels(3))
    with pytest.raises(ValueError, match="positive has 3 source images, but latent_image 2"):
        run(model, empty(2), positive=positive)


# ------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize(("preset", "num_full"), [("quality", 14), ("balanced", 11), ("fast", 9)])
def test_a_preset_sets_all_that_suits_the_model(model, head, asked, preset, num_full):
    wrong = {"steps": 3, "cfg": 9.0, "cfg_ramp": True, "schedule": "root"}
    run(model, head=head, preset=preset, **wrong, temperature=0.0, choice_temperature=70.0)
    run(model, preset=preset)
    shortcut, vanilla = (call.settings for call in asked)
    assert (shortcut.num_steps, shortcut.full_steps) == (64, num_full)
    assert (shortcut.guidance, shortcut.guidance_ramp) == ((4.0,), False)
    assert (shortcut.schedule, shortcut.temperature) == ("lumina", 1.0)
    assert shortcut.choice_temperature == 1.0
    assert {call.rules for call in asked} == {lumina_dimoo.ARCHITECTURE.rules}
    assert (vanilla.num_steps, vanilla.full_steps) == (64, None)


def test_presets_of_editing_have_its_guidance(model, vae, asked):
    run(model, positive=cond(model, "fog", "edit", vae=vae, image=pixels()), preset="fast")
    assert asked[0].settings.guidance == (2.5, 4.0)


def test_presets_of_a_model_of_classes_are_its_own(class_model):
    settings = settings_of(class_model.model.checkpoint, 1, True, False, {"preset": "balanced"})
    assert (settings.num_steps, settings.full_steps) == (32, 9)
    assert (settings.guidance, settings.guidance_ramp) == ((2.8,), True)
    assert settings.schedule == "arccos"


def test_spread_of_saved_workflows_is_said_to_have_no_effect():
    settings, widgets = Settings(), {**WIDGETS, "preset": "custom"}
    assert not any("spread" in line for line in preset_in_words(widgets, settings))
    *_, line = preset_in_words({**widgets, "spread": 1}, settings)
    assert "spread has no effect any more" in line


def test_a_schedule_that_is_not_the_models_is_said(model, caplog):
    run(model)
    assert "schedule is" not in caplog.text
    run(model, schedule="arccos")
    assert "schedule is arccos, but" in caplog.text and "preset" in caplog.text


@pytest.mark.parametrize("is_dynamic", [True, False])
def test_blocks_are_fetched_ahead_by_comfyuis_queue(model, head, monkeypatch, is_dynamic):
    """Where its dynamic loading is at work; the codes are the same."""
    expected, asked = run(model, head=head)["samples"], []

    def make(blocks, device, options):
        assert (device, options) == (model.load_device, {"prefetch_dynamic_vbars": True})
        return [*blocks]

    def pop(queue, device, module):
        assert queue.pop(0) is module if module is not None else not queue
        asked.append(module)

    prefetch = SimpleNamespace(make_prefetch_queue=make, prefetch_queue_pop=pop)
    monkeypatch.setattr(host, "model_prefetch", prefetch)
    monkeypatch.setattr(model, "is_dynamic", lambda: is_dynamic)
    assert torch.equal(run(model, head=head)["samples"], expected)
    num_full, blocks = WIDGETS["full_steps"], list(model.model.diffusion_model.blocks)
    assert asked == [*blocks, None] * num_full * is_dynamic
    assert model.model.diffusion_model.in_order is iter, "the queue is for runs in ComfyUI alone"


# ------------------------------------------------------------------------------------------- what does not fit


def test_a_class_is_no_prompt_and_a_prompt_no_class(model, class_model):
    a_class = A_CLASS
    with pytest.raises(ValueError, match=r"positive holds no prompt.* Use Text Condition"):
        run(model, positive=a_class)
    with pytest.raises(ValueError, match=r"negative holds no prompt"):
        run(model, negative=a_class)
    square = empty(grid=(4, 4))
    with pytest.raises(ValueError, match=r"it is text.* Use Class Condition"):
        run(class_model, square, positive=cond(model), schedule="arccos")


def test_each_condition_node_names_the_other(model, class_model):
    with pytest.raises(
        ValueError, match=r"Lumina-DiMOO.*Use Text Condition in place of Class Condition"
    ):
        condition.ClassCondition.execute(model, "1")
    with pytest.raises(
        ValueError, match=r"MaskGIT.*Use Class Condition in place of Text Condition"
    ):
        TextCondition.execute(class_model, TEXT, "text_to_image")


def test_a_head_of_the_other_kind_of_model_is_refused(model, head, class_model):
    class_head = native.build_head(builders.head(), "float32")
    with pytest.raises(ValueError, match="does not go with a Lumina-DiMOO"):
        run(model, head=class_head)
    with pytest.raises(ValueError, match="does not go with a MaskGIT"):
        run(class_model, empty(grid=(4, 4)), head, A_CLASS)


@pytest.mark.parametrize("mixed", ["concat", "average"])
def test_mixed_prompts_are_refused(model, mixed):
    (one, entries), (two, _) = cond(model)[0], cond(model, "a blue house under a full moon")[0]
    row = torch.cat([one, two], 1) if mixed == "concat" else (one + two) / 2
    with pytest.raises(ValueError, match="does not hold the tokens of its text"):
        run(model, positive=[[row, entries]])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"mask": torch.ones(1, 6, 10)}, r"mask of Conditioning \(Set Mask\)"),
        ({"start_percent": 0.2}, "start_percent of ConditioningSetTimestepRange"),
        ({"guidance": 3.5}, "guidance of FluxGuidance"),
    ],
)
def test_what_other_nodes_add_to_a_prompt_is_refused_by_name(model, entries, message):
    (row, own) = cond(model)[0]
    for side in ("positive", "negative"):
        with pytest.raises(ValueError, match=f"^{side} carries {message}"):
            run(model, **{side: [[row, own | entries]]})


def test_a_multiplied_prompt_is_refused(model):
    row, entries = cond(model)[0]
    with pytest.raises(ValueError, match="ConditioningMultiply changed it"):
        run(model, positive=[[row * 2, entries]])


def test_combined_prompts_are_refused(model):
    with pytest.raises(ValueError, match="positive combines 2 conditions, expected one"):
        run(model, positive=cond(model) + cond(model))


def test_a_prompt_that_is_too_long_is_refused_by_its_node(model):
    with pytest.raises(ValueError, match="expected at most 1024"):
        cond(model, "house " * 1100)


# ------------------------------------------------------------------------------------------- real ComfyUI


@needs_comfy
@pytest.mark.parametrize("after", [5, 40])
def test_an_interrupt_ends_a_full_pass_in_its_middle(model, head, monkeypatch, after):
    expected, calls = run(model, head=head)["samples"], []

    def interrupt():
        calls.append(1)
        if len(calls) > after:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(mm, "throw_exception_if_processing_interrupted", interrupt)
        with pytest.raises(Interrupted):
            run(model, head=head)
    assert len(calls) == after + 1
    assert torch.equal(run(model, head=head)["samples"], expected)


@needs_comfy
@pytest.mark.parametrize("more", [{"downscale_ratio_spacial": 8}, {}])  # Rebatch Latents drops it
def test_a_native_empty_latent_of_any_size_fits(model, more):
    latent = {"samples": torch.zeros(1, 4, 2, 3), **more}
    assert run(model, latent)["samples"].shape == (1, 1, 8, 12)
