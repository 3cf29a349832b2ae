"""The loaders with a model of text: files and folders, float8, and the memory of a run.

They run on stand-ins for ComfyUI, and on the real one if COMFY_DIR names its folder (see comfy_stubs.py).
"""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first
# ruff: noqa: F811 - fixtures are imported and then named as arguments

from __future__ import annotations

import logging
import math
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import builders
import comfy_stubs
import lumina_folder
import pytest
import torch
from comfy_stubs import needs_comfy

comfy_stubs.install()
import comfy.model_management as mm
import comfy.utils
from shortcut_pack.nodes import clip, folders, host, load, native, progress
from shortcut_pack.nodes import run as runs
from shortcut_pack.nodes.load import LoadHead, LoadMIGM
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import quantized, shipped
from shortcut_pack.shortcut.accelerators.shortcut_head import ShortcutHead
from shortcut_pack.shortcut.checkpoint import cast
from shortcut_pack.shortcut.denoiser import Denoiser, Tokens, guided_logits
from shortcut_pack.shortcut.flops import LiveTensors, fused
from shortcut_pack.shortcut.models import lumina_dimoo
from shortcut_pack.shortcut.noise import Noise
from shortcut_pack.shortcut.pipeline import Pipeline
from shortcut_pack.shortcut.sampler import decide
from shortcut_pack.shortcut.schedule import plan
from test_nodes import partially_loaded
from text_nodes import (  # noqa: F401
    GRID,
    PIXELS,
    asked,
    build,
    conditioner,
    files,
    head,
    model,
    pixels,
    put,
    run,
    vae,
)

LUMINA = lumina_dimoo.ARCHITECTURE
PUBLISHED = LUMINA.sizes["lumina-dimoo"]

# ------------------------------------------------------------------------------------------- files


def test_a_model_in_several_files_is_one_choice(files):
    lumina_folder.write(files / "migm" / "Lumina-DiMOO", has_vq=True)
    assert folders.choices("migm")[2:] == [
        "Lumina-DiMOO",
        "Lumina-DiMOO/vqvae/diffusion_pytorch_model.safetensors",
    ]
    folder = folders.path_of("migm", "Lumina-DiMOO", "model")
    assert folder == files / "migm" / "Lumina-DiMOO"
    before = folders.stamp("migm", "Lumina-DiMOO", "model")
    lumina_folder.rewrite_json(folder / "config.json", n_layers=3)
    assert folders.stamp("migm", "Lumina-DiMOO", "model") != before


def test_whatever_file_a_loader_reads_is_read_again_once_replaced(files):
    file = put(files)
    choice = {"model_name": file.name, "vq_name": "auto", "clip_name": "words.safetensors"}
    words = files / clip.FOLDER / "words.safetensors"
    builders.write(words, builders.vq())
    for replaced in (file, files / "migm" / "vq" / "vq.safetensors", words):
        before = LoadMIGM.fingerprint_inputs(**choice)
        assert LoadMIGM.fingerprint_inputs(**choice) == before
        replaced.touch()
        assert LoadMIGM.fingerprint_inputs(**choice) != before, replaced


def test_what_cannot_be_read_yet_or_is_hidden_makes_no_loader_read_again(files):
    """ComfyUI never keeps what a node made whose fingerprint fails."""
    folder = lumina_folder.write(files / "migm" / "Lumina-DiMOO", has_vq=True)
    before = folders.stamp("migm", "Lumina-DiMOO", "model")
    (folder / "config-link.json").symlink_to(folder / "nowhere")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "model.safetensors.incomplete").touch()
    assert folders.stamp("migm", "Lumina-DiMOO", "model") == before


def test_a_part_of_a_bare_model_is_read_again_once_replaced(files):
    lumina_folder.write(files / "migm")
    index = "model.safetensors.index.json"
    before = folders.stamp("migm", index, "model")
    (files / "migm" / lumina_folder.SHARDS[0]).touch()
    assert folders.stamp("migm", index, "model") != before


def test_a_name_from_another_node_does_not_load_a_model_with_every_run():
    """ComfyUI gives None for it, and takes an error here for a change."""
    found = LoadMIGM.fingerprint_inputs(model_name=None, vq_name="auto", weight_dtype="default")
    assert found == LoadMIGM.fingerprint_inputs(None, "auto") == "linked linked"
    assert LoadHead.fingerprint_inputs(None, weight_dtype="default") == "linked"


def test_a_download_in_progress_is_no_choice(files):
    lumina_folder.write(files / "migm" / "Lumina-DiMOO" / ".download")
    assert folders.choices("migm") == [*shipped.CHOICES]


def test_parts_that_lie_bare_are_one_choice(files):
    lumina_folder.write(files / "migm")
    index = "model.safetensors.index.json"
    assert folders.choices("migm")[2:] == [index]
    assert folders.path_of("migm", index, "model").is_file()


def test_no_choice_leads_out_of_the_folder(files):
    (files / "secret").mkdir()
    with pytest.raises(FileNotFoundError):
        folders.path_of("migm", "../secret", "model")


def test_a_published_folder_is_read_as_comfyui_reads(files, monkeypatch):
    folder = lumina_folder.write(files / "migm" / "Lumina-DiMOO")
    for name in ("load", "from_tensors"):
        sized = partial(getattr(checkpoints, name), **lumina_folder.SIZES)
        monkeypatch.setattr(checkpoints, name, sized)
    read = []
    load = comfy.utils.load_torch_file
    monkeypatch.setattr(
        comfy.utils, "load_torch_file", lambda path: read.append(path) or load(path)
    )
    found = folders.load(folder, "model")
    assert [path.rpartition("/")[2] for path in read] == list(lumina_folder.SHARDS)
    builders.assert_same(found, checkpoints.load(folder))
    assert found.name == "Lumina-DiMOO"


def test_load_migm_brings_the_tokenizer_and_a_vae_that_fits(files):
    put(files)
    model, vae, _ = LoadMIGM.execute("tiny.safetensors", "auto", "float32").result
    picture = vae.decode(run(model)["samples"])
    assert picture.shape == (1, *PIXELS, 3)


def test_a_model_without_its_tokenizer_is_refused_by_the_loader(files):
    put(files, tokenizer=False)
    with pytest.raises(FileNotFoundError, match=r"tiny\.safetensors has no tokenizer"):
        LoadMIGM.execute("tiny.safetensors", "auto", "float32")


@pytest.mark.parametrize(
    ("category", "name", "what"),
    [
        (
            "migm",
            "Lumina-DiMOO",
            r"press R: python -m shortcut download lumina-dimoo --models-dir \"\S+\"$",
        ),
        ("migm_heads", "dimoo-shortcut.pth", "python -m shortcut download dimoo-head --models-dir"),
        ("migm", "other.safetensors", "Choose a file that is there"),
    ],
)
def test_a_file_that_is_not_there_is_asked_for_by_name(files, category, name, what):
    node, kind = {"migm": (LoadMIGM, "model"), "migm_heads": (LoadHead, "head")}[category]
    given = {"model_name": name, "vq_name": "auto"} if kind == "model" else {"head_name": name}
    assert node.validate_inputs(**given) is True, "the page would escape what is said there"
    assert {*node.fingerprint_inputs(**given).split()} == {"missing"}
    with pytest.raises(FileNotFoundError) as raised:
        node.execute(**given, weight_dtype="default")
    message = str(raised.value)
    assert message.startswith(f"models/{category} holds no {name}.") and "\n" not in message
    assert re.search(what, message)


# ------------------------------------------------------------------------------------------- float8


def test_float8_is_made_on_loading_or_taken_from_a_file(files):
    put(files)
    chosen = LoadMIGM.execute("tiny.safetensors", "auto", "float8_e4m3fn").result[0]
    float8 = builders.text_model()
    checkpoints.save(files / "migm" / "tiny.safetensors", float8, dtype=torch.float8_e4m3fn)
    for choice in ("default", "float8_e4m3fn"):
        read = LoadMIGM.execute("tiny.safetensors", "auto", choice).result[0]
        assert torch.equal(run(read)["samples"], run(chosen)["samples"])
    block = chosen.model.diffusion_model.blocks[0]
    stored = getattr(block.query.weight, "_qdata", block.query.weight)
    assert stored.dtype == torch.float8_e4m3fn
    assert chosen.model.diffusion_model.token.weight.dtype == torch.float32


def test_float8_computes_what_the_command_line_computes(model, conditioner):
    codes_BL, prompt = torch.arange(15).unsqueeze(0), [torch.arange(7).unsqueeze(0)]
    found = []
    with torch.inference_mode():
        for network in (
            checkpoints.build(float8_model()),
            build(conditioner, float8_model()).model.diffusion_model,
            model.model.diffusion_model,
        ):
            view = network.on_grid(*GRID)
            features = view.features(codes_BL, codes_BL > 6, prompt)
            found.append(guided_logits(view, features[:1], (), codes_BL))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    assert (found[0] - found[2]).abs().max() > 0.01, "float32 would have passed as well"


def test_a_file_in_float8_loads_on_a_device_that_has_no_float8(files, monkeypatch, caplog):
    """Widen the weights, as for Apple's devices of before late in 2026. The shipped class model is such a file."""

    def refuse(device, tensors):
        is_float8 = any(tensor.dtype == torch.float8_e4m3fn for tensor in tensors)
        return "no such type here" if is_float8 else None

    for module in (quantized, load, host):
        monkeypatch.setattr(module, "why_not_held", refuse)
    file = put(files)
    for content in (builders.text_model(), float8_model()):
        checkpoints.save(file, content)
        with pytest.raises(
            ValueError, match=r"which cpu cannot hold .*Choose another weight_dtype"
        ):
            LoadMIGM.execute(file.name, "auto", "float8_e4m3fn")
    assert not caplog.text
    for name, said in ((shipped.NAME, 0), ("tiny.safetensors", 1)):
        for choice in ("default", "bfloat16"):
            caplog.clear()
            found = LoadMIGM.execute(name, "auto", choice).result[0].model
            assert found.checkpoint.quantized == {}
            assert not any(t.dtype in quantized.FLOAT8 for t in found.state_dict().values())
            line = "has float8 weights, which cpu cannot hold (no such type here)"
            assert caplog.text.count(line) == said


def test_the_shipped_models_weights_are_widened_once_and_not_in_each_pass(
    files, caplog, monkeypatch
):
    """Its file is in float8 to be small. It stays the model that its head was trained for."""
    assert checkpoints.load(shipped.MODEL).quantized
    for choice in ("default", "bfloat16"):
        found = LoadMIGM.execute(shipped.NAME, "auto", choice).result[0].model
        assert found.checkpoint.quantized == {}
        assert found.checkpoint.fingerprint == checkpoints.load(shipped.MODEL).fingerprint
    narrow = LoadMIGM.execute(shipped.NAME, "auto", "float8_e4m3fn").result[0].model
    assert narrow.checkpoint.quantized, "who asks for float8 gets it"
    assert "is not read" not in caplog.text
    shown = []
    monkeypatch.setattr(host, "show_on_node", shown.append)
    LoadMIGM.execute(shipped.NAME, "auto", "nvfp4")
    loaded, _, unread = shown[-1].split("\n")
    assert "MaskGIT transformer" in loaded
    assert "weight_dtype nvfp4 is not read: scenes-maskgit.safetensors is quantized" in unread
    network = Pipeline.load("scenes").model
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}


def test_making_other_weights_is_seen_on_the_node_and_can_be_interrupted(files, monkeypatch):
    put(files)
    seen = []

    class Bar:
        def __init__(self, total):
            self.total = total

        def update_absolute(self, value, total):
            seen.append((value, self.total))

    monkeypatch.setattr(progress.comfy.utils, "ProgressBar", Bar)
    LoadMIGM.execute("tiny.safetensors", "auto", "float8_e4m3fn")
    assert [value for value, _ in seen] == list(range(1, seen[0][1] + 1))
    monkeypatch.setattr(progress.mm, "throw_exception_if_processing_interrupted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        LoadMIGM.execute("tiny.safetensors", "auto", "float8_e4m3fn")


def interrupted():
    raise KeyboardInterrupt


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


def test_a_batch_larger_than_the_card_is_made_in_parts(model, head, monkeypatch, caplog):
    batch = {"samples": torch.zeros(5, 1, 8, 8)}
    together = run(model, batch, head)["samples"]
    weights = sum(m.model_size() for m in (model, head))
    two = native.model_of(model).run_bytes((8, 8), 2, [None, None])
    monkeypatch.setattr(mm, "get_total_memory", lambda _: weights + 1.3 * two)
    with caplog.at_level(logging.INFO):
        in_parts = run(model, batch, head)["samples"]
    assert torch.equal(in_parts, together)
    assert "memory holds 2 of 5 images at a time" in caplog.text


def test_a_pass_of_the_head_counts_in_what_a_run_needs(model, head, monkeypatch):
    """In a large model it takes more than a pass of the model, which takes nothing here."""
    monkeypatch.setattr(native.MaskedImageModel, "run_bytes", lambda *_, **__: 0.0)
    asked = []
    monkeypatch.setattr(
        runs.mm, "load_models_gpu", lambda _, memory_required: asked.append(memory_required)
    )
    for accelerator in (head, None):
        run(model, head=accelerator)
    assert asked[0] > asked[1] == 0


def test_branches_in_turns_give_the_same_image(model, head, monkeypatch):
    together = run(model, head=head, temperature=0.0, choice_temperature=0.0)["samples"]
    monkeypatch.setattr(type(model), "get_free_memory", lambda *_: 1.0)
    in_turns = run(model, head=head, temperature=0.0, choice_temperature=0.0)["samples"]
    assert torch.equal(in_turns, together)


def on_meta(layout, config, dtype=torch.bfloat16):
    """A network that has shapes but no values, with attention that keeps no scores."""
    network = layout.network(config, dtype=dtype, device="meta", attention=fused)
    return network.requires_grad_(False)


def ids(*shape):
    return torch.zeros(*shape, dtype=torch.long, device="meta")


@pytest.mark.parametrize("is_sequential", [False, True])
@torch.no_grad()
def test_the_memory_asked_for_is_that_of_a_run(is_sequential):
    # Blocks come one after the other: more of them need no more memory at a time.
    network = on_meta(LUMINA.model, replace(PUBLISHED.model, depth=2))
    head, num_tokens = on_meta(LUMINA.head, PUBLISHED.head), math.prod(PUBLISHED.grid)
    prompts, codes_BL = [ids(1, 60), ids(1, 14)], ids(1, num_tokens)
    asked_for = native.MaskedImageModel.run_bytes(
        SimpleNamespace(network=network), PUBLISHED.grid, 1, prompts, is_sequential=is_sequential
    )
    model = network.on_grid(*PUBLISHED.grid, is_sequential=is_sequential)
    settings = replace(LUMINA.settings, full_steps=(0, 2))
    steps = plan(settings, num_tokens, num_tokens, LUMINA.rules)[:3]
    noise = Noise(*torch.zeros(2, len(steps), 1, num_tokens, device="meta").unbind())
    with LiveTensors(network, head) as tensors:
        denoiser = Denoiser(model, prompts, ShortcutHead(head, model, prompts))
        for step in steps:
            tokens = Tokens(codes_BL, codes_BL.bool(), ids(1, step.num_masked))
            decide(denoiser(step, tokens), step, tokens.index_BN, noise)
    assert tensors.peak < asked_for < 1.4 * tensors.peak


@torch.no_grad()
def test_the_memory_asked_for_is_that_of_the_vq_model():
    config, grid = PUBLISHED.vq, PUBLISHED.grid
    vq = on_meta(LUMINA.vqs[0], config, torch.float32)
    pixels_BCYX = torch.zeros(1, 3, *(config.downscale * side for side in grid), device="meta")
    for_encode, for_decode = native.vq_memory(config)
    with LiveTensors(vq) as encoding:
        vq.encode(pixels_BCYX)
    with LiveTensors(vq) as decoding:
        vq.decode(ids(1, *grid))
    assert encoding.peak < for_encode(pixels_BCYX.shape, None) < 2 * encoding.peak
    assert decoding.peak < for_decode((1, 1, *grid), None) < 2 * decoding.peak


def test_latents_that_the_model_does_not_make_need_no_memory(model):
    """ComfyUI asks before its samplers run, whose error says what to do."""
    assert model.model.memory_required((1, 1, 3, 5)) > 0
    class_model = builders.model()
    network = checkpoints.build(class_model)
    stand_in = SimpleNamespace(network=network)
    stand_in.run_bytes = partial(native.MaskedImageModel.run_bytes, stand_in)
    assert native.MaskedImageModel.memory_required(stand_in, (1, 1, 4, 4)) > 0
    for shape in ((1, 1, 5, 4), (1, 16, 1, 4, 4)):
        assert native.MaskedImageModel.memory_required(stand_in, shape) == 0


def test_memory_advice_names_what_helps(model, monkeypatch):
    def fail(*args, **kwargs):
        raise mm.OOM_EXCEPTION("tried to allocate 9 GiB")

    monkeypatch.setattr(runs, "generate", fail)
    with pytest.raises(mm.OOM_EXCEPTION, match=r"scale source images down.*float8.*9 GiB"):
        run(model)


# ------------------------------------------------------------------------------------------- real ComfyUI


@needs_comfy
@pytest.mark.parametrize("part", ["model", "head", "float8", "vae"])
def test_what_stays_behind_under_partial_offload_is_moved_on_use(
    part, model, head, vae, conditioner
):
    module = {
        "model": model.model.diffusion_model,
        "head": head.model,
        "float8": build(conditioner, float8_model()).model.diffusion_model,
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
def test_float8_layers_are_comfyuis(conditioner):
    from comfy.quant_ops import QuantizedTensor

    network = build(conditioner, float8_model(), "default").model.diffusion_model
    assert isinstance(network.blocks[1].feed_forward.up.weight, QuantizedTensor)
    assert not isinstance(network.code_output.weight, QuantizedTensor)


@needs_comfy
def test_vae_encode_does_not_blend_ids_when_memory_runs_out(vae, monkeypatch):
    def fail(_):
        raise mm.OOM_EXCEPTION("tried to allocate 9 GiB")

    monkeypatch.setattr(vae.first_stage_model, "encode", fail)
    with pytest.raises(mm.OOM_EXCEPTION, match="An image of 10 x 6 pixels is too large"):
        vae.encode(pixels())
