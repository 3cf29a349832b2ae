"""The nodes with a model whose conditions are text: any size, prompts, source images, presets, memory.

They run on stand-ins for ComfyUI, and on the real one if COMFY_DIR names its folder (see comfy_stubs.py).
"""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first

from __future__ import annotations

import logging
import re
from functools import partial
from types import SimpleNamespace

import builders
import comfy_stubs
import lumina_folder
import numpy as np
import pytest
import torch
from comfy_stubs import needs_comfy

comfy_stubs.install()
import comfy.model_management as mm
import comfy.utils
import folder_paths
from shortcut_pack.nodes import condition, folders, host, native, sample
from shortcut_pack.nodes.condition import TextCondition
from shortcut_pack.nodes.load import LoadHead, LoadMIGM
from shortcut_pack.nodes.sample import MaskedSampler
from shortcut_pack.nodes.widgets import settings_of
from shortcut_pack.shortcut import prompts, shipped, weights
from shortcut_pack.shortcut.checkpoint import cast
from shortcut_pack.shortcut.pipeline import generate
from shortcut_pack.shortcut.predictors.head import ShortcutPredictor
from shortcut_pack.shortcut.schedule import Settings
from shortcut_pack.shortcut.tokenizer_files import copy_tokenizer
from test_lumina_host import LIMITS, PROMPT_LENGTHS, REAL
from test_nodes import Bar, Interrupted, codes, partially_loaded

GRID = (3, 5)  # rows, columns
PIXELS = (6, 10)
NUM_CODES = 16
WIDGETS = {
    "seed": 3,
    "steps": 6,
    "full_steps": 2,
    "cfg": 1.5,
    "cfg_ramp": False,
    "schedule": "lumina",
    "temperature": 1.0,
    "choice_temperature": 1.0,
    "denoise": 1.0,
    "cfg_image": 2.0,
}
TEXT = "a red house under a full moon"


@pytest.fixture(scope="module")
def tokenizer():
    return prompts.load_tokenizer(shipped.TEXT_FOLDER, builders.TEXT_CONFIG)


@pytest.fixture
def model(tokenizer):
    return build(tokenizer)


def build(tokenizer, checkpoint=None, weight_dtype="float32"):
    colours_V3 = torch.linspace(-1, 1, NUM_CODES).unsqueeze(1).expand(-1, 3)
    latent_format = native.CodeIds(2, colours_V3)
    return native.build_model(
        checkpoint or builders.text_model(), weight_dtype, latent_format, tokenizer
    )


@pytest.fixture
def head(model):
    fingerprint = model.model.checkpoint.fingerprint
    return native.build_head(builders.text_head(model_fingerprint=fingerprint), "float32")


@pytest.fixture
def vae():
    return native.CodeVAE(builders.vq())


@pytest.fixture
def class_model():
    return native.build_model(
        builders.model(), "float32", native.CodeIds(2, torch.zeros(NUM_CODES, 3))
    )


@pytest.fixture
def files(tmp_path, monkeypatch):
    """ComfyUI's models folder in `tmp_path`, listed as ComfyUI does."""

    def names(category):
        root = tmp_path / category
        found = [path for path in root.rglob("*") if path.suffix in folders.EXTENSIONS]
        return sorted(str(path.relative_to(root)) for path in found)

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "get_filename_list", names)
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda c: [str(tmp_path / c)])
    monkeypatch.setattr(folder_paths, "get_full_path_or_raise", partial(existing, tmp_path))
    return tmp_path


def existing(models_dir, category, name):
    path = models_dir / category / name
    if not path.is_file():
        raise FileNotFoundError(name)
    return str(path)


def put(folder, *, vq=True, checkpoint=None, tokenizer=True):
    """Writes the tiny text model into models/migm as NAME.safetensors with what belongs beside it."""
    file = builders.write(folder / "migm" / "tiny.safetensors", checkpoint or builders.text_model())
    if tokenizer:
        copy_tokenizer(shipped.TEXT_FOLDER, file)
    if vq:
        builders.write(folder / "migm" / "vq" / "vq.safetensors", builders.vq())
    return file


def empty(num_images=1, grid=GRID):
    return {"samples": torch.zeros(num_images, 1, *grid)}


def image(num_images=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randint(NUM_CODES, (num_images, 1, *GRID), generator=generator)
    return {"samples": samples.float()}


def pixels(num_images=1, size=PIXELS, seed=0):
    return torch.rand(num_images, *size, 3, generator=torch.Generator().manual_seed(seed))


def cond(model, text=TEXT, task="text_to_image", **images):
    return TextCondition.execute(model, text, task, **images).result[0]


def run(model, latent=None, head=None, positive=None, **changes):
    sockets = {"model": model, "latent_image": empty() if latent is None else latent}
    sockets["positive"] = cond(model) if positive is None else positive
    if head is not None:
        sockets["head"] = head
    return MaskedSampler.execute(**sockets, **(WIDGETS | changes)).result[0]


@pytest.fixture
def asked(monkeypatch):
    """What the sampler hands to the pipeline; nothing is made."""
    calls = []

    def record(network, conditions, settings, **what):
        calls.append(SimpleNamespace(network=network, conditions=conditions, settings=settings))
        shape = (len(conditions[0]), what["num_tokens"])
        return SimpleNamespace(codes_BL=torch.zeros(shape, dtype=torch.long), num_steps=0)

    monkeypatch.setattr(sample, "generate", record)
    return calls


# ------------------------------------------------------------------------------------------- text to image


def test_the_node_gives_what_the_pipeline_gives(model, head, tokenizer):
    settings = Settings(
        num_steps=6,
        full_steps=2,
        guidance=(1.5,),
        guidance_ramp=False,
        schedule="lumina",
        choice_temperature=1.0,
        choice_ramp=False,
        score_temperature=1.0,
        ratio_of_made=True,
    )
    config = builders.TEXT_CONFIG
    expected = generate(
        model.model.diffusion_model.on_grid(*GRID),
        prompts.conditions(tokenizer, config, "text_to_image", TEXT, num_images=2),
        settings,
        seed=3,
        image_indices=range(2),
        num_tokens=15,
        predictor=partial(ShortcutPredictor, head.model),
    )
    found = run(model, empty(2), head)
    assert found["samples"].shape == (2, 1, *GRID)
    assert torch.equal(codes(found), expected.codes_BL)


@pytest.mark.parametrize("grid", [(1, 1), (2, 7), (6, 4)])
def test_any_size_is_made(model, head, grid):
    assert run(model, empty(grid=grid), head)["samples"].shape == (1, 1, *grid)


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
    monkeypatch.setattr(host, "PREVIEW_INTERVAL", 0)
    run(model, head=head, steps=20)  # more steps than tokens: some reveal nothing
    assert [value for value, _, _ in Bar.last.calls] == list(range(1, 21)) and Bar.last.total == 20
    pictures = [preview[1] for _, _, preview in Bar.last.calls]
    assert {picture.size for picture in pictures} == {(510, 306)}
    first = np.asarray(pictures[0].resize(GRID[::-1], 0))
    assert (first == 128).all(-1).mean() > 0.8


# ------------------------------------------------------------------------------------------- source images


def test_a_source_image_makes_a_third_branch(model, vae, tokenizer, asked):
    positive = cond(model, "at night", "edit", vae=vae, image=pixels(size=(9, 8)))
    run(model, empty(2), positive=positive, negative=cond(model, "fog"))
    source_BYX = positive[0][1][condition.PROMPT].sources[0]
    assert source_BYX.shape == (1, 4, 4), "an image of 9 pixels is cropped to 8"
    expected = prompts.conditions(
        tokenizer,
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
    assert (shortcut.choice_temperature, shortcut.choice_ramp) == (1.0, False)
    assert (vanilla.num_steps, vanilla.full_steps) == (64, None)


def test_presets_of_editing_have_its_guidance(model, vae, asked):
    run(model, positive=cond(model, "fog", "edit", vae=vae, image=pixels()), preset="fast")
    assert asked[0].settings.guidance == (2.5, 4.0)


def test_presets_of_a_model_of_classes_are_its_own(class_model):
    settings = settings_of(class_model.model.checkpoint, 2, True, {"preset": "balanced"})
    assert (settings.num_steps, settings.full_steps) == (32, 9)
    assert (settings.guidance, settings.guidance_ramp) == ((2.8,), True)
    assert settings.schedule == "arccos"


def test_a_schedule_that_is_not_the_models_is_said(model, caplog):
    run(model)
    assert "schedule is" not in caplog.text
    run(model, schedule="arccos")
    assert "schedule is arccos, but" in caplog.text and "preset" in caplog.text


# ------------------------------------------------------------------------------------------- what does not fit


def test_a_class_is_no_prompt_and_a_prompt_no_class(model, class_model):
    a_class = condition.to_conditioning(1, 3)
    with pytest.raises(ValueError, match=r"positive holds no prompt.* Use Text Condition"):
        run(model, positive=a_class)
    with pytest.raises(ValueError, match=r"negative holds no prompt"):
        run(model, negative=a_class)
    square = empty(grid=(4, 4))
    with pytest.raises(ValueError, match=r"it is text.* Use Class Condition"):
        run(class_model, square, positive=cond(model), schedule="arccos")


def test_each_condition_node_names_the_other(model, class_model):
    with pytest.raises(ValueError, match=r"are text, not class. Use Text Condition in place"):
        condition.ClassCondition.execute(model, "1")
    with pytest.raises(ValueError, match=r"are class, not text. Use Class Condition in place"):
        TextCondition.execute(class_model, TEXT, "text_to_image")


def test_a_head_of_the_other_kind_of_model_is_refused(model, head, class_model):
    class_head = native.build_head(builders.head(), "float32")
    with pytest.raises(ValueError, match="does not go with a Lumina-DiMOO"):
        run(model, head=class_head)
    with pytest.raises(ValueError, match="does not go with a MaskGIT"):
        run(class_model, empty(grid=(4, 4)), head, condition.to_conditioning(1, 3))


@pytest.mark.parametrize("mixed", ["concat", "average"])
def test_mixed_prompts_are_refused(model, mixed):
    (one, entries), (two, _) = cond(model)[0], cond(model, "a blue house under a full moon")[0]
    row = torch.cat([one, two], 1) if mixed == "concat" else (one + two) / 2
    with pytest.raises(ValueError, match="does not hold the tokens of its text"):
        run(model, positive=[[row, entries]])


def test_combined_prompts_are_refused(model):
    with pytest.raises(ValueError, match="positive combines 2 conditions, expected one"):
        run(model, positive=cond(model) + cond(model))


def test_a_prompt_that_is_too_long_is_refused_by_its_node(model):
    with pytest.raises(ValueError, match="expected at most 1024"):
        cond(model, "house " * 1100)


# ------------------------------------------------------------------------------------------- files


def test_a_model_in_several_files_is_one_choice(files):
    lumina_folder.write(files / "migm" / "Lumina-DiMOO", has_vq=True)
    assert folders.choices("migm")[2:] == [
        "Lumina-DiMOO",
        "Lumina-DiMOO/vqvae/diffusion_pytorch_model.safetensors",
    ]
    folder = folders.path_of("migm", "Lumina-DiMOO", "model")
    assert folder == files / "migm" / "Lumina-DiMOO"
    before = folders.stamp(folder)
    lumina_folder.rewrite_json(folder / "config.json", n_layers=3)
    assert folders.stamp(folder) != before


def test_parts_that_lie_bare_are_one_choice(files):
    lumina_folder.write(files / "migm")
    assert folders.choices("migm")[2:] == [folders.INDEX]
    assert folders.path_of("migm", folders.INDEX, "model").is_file()


def test_no_choice_leads_out_of_the_folder(files):
    (files / "secret").mkdir()
    with pytest.raises(FileNotFoundError):
        folders.path_of("migm", "../secret", "model")


def test_a_published_folder_is_read_as_comfyui_reads(files, monkeypatch):
    folder = lumina_folder.write(files / "migm" / "Lumina-DiMOO")
    monkeypatch.setattr(weights, "load", partial(weights.load, **lumina_folder.SIZES), raising=True)
    monkeypatch.setattr(
        weights, "from_tensors", partial(weights.from_tensors, **lumina_folder.SIZES)
    )
    read = []
    load = comfy.utils.load_torch_file
    monkeypatch.setattr(
        comfy.utils, "load_torch_file", lambda path: read.append(path) or load(path)
    )
    found = folders.load(folder, "model")
    assert [path.rpartition("/")[2] for path in read] == list(lumina_folder.SHARDS)
    builders.assert_same(found, weights.load(folder))


def test_load_migm_brings_the_tokenizer_and_a_vae_that_fits(files):
    put(files)
    model, vae = LoadMIGM.execute("tiny.safetensors", "auto", "float32").result
    picture = vae.decode(run(model)["samples"])
    assert picture.shape == (1, *PIXELS, 3)


def test_a_model_without_its_tokenizer_is_refused_by_the_loader(files):
    put(files, tokenizer=False)
    with pytest.raises(FileNotFoundError, match=r"tiny\.safetensors has no tokenizer"):
        LoadMIGM.execute("tiny.safetensors", "auto", "float32")


@pytest.mark.parametrize(
    ("category", "name", "what"),
    [
        ("migm", "Lumina-DiMOO", "download lumina-dimoo .*Alpha-VLLM/Lumina-DiMOO into"),
        ("migm_heads", "dimoo-shortcut.pth", "download dimoo-head .*Kaiwen-Zhu/MIGM-Shortcut"),
        ("migm", "other.safetensors", "Choose a file that is there"),
    ],
)
def test_a_file_that_is_not_there_is_asked_for_by_name(files, category, name, what):
    node, kind = {"migm": (LoadMIGM, "model"), "migm_heads": (LoadHead, "head")}[category]
    given = {"model_name": name, "vq_name": "auto"} if kind == "model" else {"head_name": name}
    message = node.validate_inputs(**given)
    assert isinstance(message, str) and message.startswith(f"models/{category} holds no {name}.")
    assert re.search(what, message)


def test_files_that_are_there_pass(files):
    put(files)
    assert LoadMIGM.validate_inputs("tiny.safetensors", "auto") is True
    assert LoadHead.validate_inputs(folders.SHIPPED) is True


# ------------------------------------------------------------------------------------------- float8


def test_float8_is_made_on_loading_or_taken_from_a_file(files):
    put(files)
    chosen = LoadMIGM.execute("tiny.safetensors", "auto", "float8_e4m3fn").result[0]
    float8 = builders.text_model()
    weights.save(files / "migm" / "tiny.safetensors", float8, dtype=torch.float8_e4m3fn)
    for choice in ("default", "float8_e4m3fn"):
        read = LoadMIGM.execute("tiny.safetensors", "auto", choice).result[0]
        assert torch.equal(run(read)["samples"], run(chosen)["samples"])
    block = chosen.model.diffusion_model.blocks[0]
    stored = getattr(block.query.weight, "_qdata", block.query.weight)
    assert stored.dtype == torch.float8_e4m3fn
    assert chosen.model.diffusion_model.token.weight.dtype == torch.float32


def test_float8_computes_what_the_command_line_computes(model, tokenizer):
    codes_BL, prompt = torch.arange(15).unsqueeze(0), [torch.arange(7).unsqueeze(0)]
    found = []
    with torch.inference_mode():
        for network in (
            weights.build(float8_model()),
            build(tokenizer, float8_model()).model.diffusion_model,
            model.model.diffusion_model,
        ):
            view = network.on_grid(*GRID)
            features = view.features(codes_BL, codes_BL > 6, prompt)
            found.append(view.logits(features[0], codes_BL))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    assert (found[0] - found[2]).abs().max() > 0.01, "float32 would have passed as well"


def float8_model():
    return cast(builders.text_model(), torch.float8_e4m3fn)


# ------------------------------------------------------------------------------------------- memory


def test_branches_take_turns_when_memory_is_short(model, head, monkeypatch, asked, caplog):
    for free in (2.0**40, 1.0):
        monkeypatch.setattr(type(model), "get_free_memory", lambda *_, free=free: free)
        with caplog.at_level(logging.INFO):
            run(model, head=head)
    assert [call.network.is_sequential for call in asked] == [False, True]
    assert caplog.text.count("one guidance branch at a time") == 1


def test_branches_in_turns_give_the_same_image(model, head, monkeypatch):
    together = run(model, head=head, temperature=0.0, choice_temperature=0.0)["samples"]
    monkeypatch.setattr(type(model), "get_free_memory", lambda *_: 1.0)
    in_turns = run(model, head=head, temperature=0.0, choice_temperature=0.0)["samples"]
    assert torch.equal(in_turns, together)


@pytest.mark.parametrize("is_sequential", LIMITS)
def test_the_memory_asked_for_is_that_of_a_run(is_sequential):
    stand_in = SimpleNamespace(
        checkpoint=SimpleNamespace(config=REAL),
        diffusion_model=SimpleNamespace(compute_dtype=torch.bfloat16),
    )
    asked_for = native.MaskedImageModel.activations(
        stand_in, 1, (64, 64), PROMPT_LENGTHS, is_sequential=is_sequential
    )
    measured = LIMITS[is_sequential]["run"] * 1e6
    assert measured < asked_for < 1.5 * measured


def test_memory_advice_names_what_helps(model, monkeypatch):
    def fail(*args, **kwargs):
        raise mm.OOM_EXCEPTION("tried to allocate 9 GiB")

    monkeypatch.setattr(sample, "generate", fail)
    with pytest.raises(mm.OOM_EXCEPTION, match=r"scale source images down.*float8.*9 GiB"):
        run(model)


# ------------------------------------------------------------------------------------------- real ComfyUI


@needs_comfy
@pytest.mark.parametrize("part", ["model", "head", "float8", "vae"])
def test_what_stays_behind_under_partial_offload_is_moved_on_use(part, model, head, vae, tokenizer):
    module = {
        "model": model.model.diffusion_model,
        "head": head.model,
        "float8": build(tokenizer, float8_model()).model.diffusion_model,
        "vae": vae.first_stage_model,
    }[part]
    left = 0
    for name, child in partially_loaded(module).named_modules():
        tensors = [*child.parameters(recurse=False), *child.buffers(recurse=False)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            left += 1
            assert hasattr(child, "comfy_cast_weights"), f"{part}: {name} would crash on a GPU"
    assert left > 0


@needs_comfy
def test_float8_layers_are_comfyuis(tokenizer):
    from comfy.quant_ops import QuantizedTensor

    network = build(tokenizer, float8_model(), "default").model.diffusion_model
    assert isinstance(network.blocks[1].feed_forward.up.weight, QuantizedTensor)
    assert not isinstance(network.code_output.weight, QuantizedTensor)


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
def test_vae_encode_does_not_blend_ids_when_memory_runs_out(vae, monkeypatch):
    def fail(_):
        raise mm.OOM_EXCEPTION("tried to allocate 9 GiB")

    monkeypatch.setattr(vae.first_stage_model, "encode", fail)
    with pytest.raises(mm.OOM_EXCEPTION, match="An image of 10 x 6 pixels is too large"):
        vae.encode(pixels())


@needs_comfy
def test_a_native_empty_latent_of_any_size_fits(model):
    latent = {"samples": torch.zeros(1, 4, 2, 3), "downscale_ratio_spacial": 8}
    assert run(model, latent)["samples"].shape == (1, 1, 8, 12)
