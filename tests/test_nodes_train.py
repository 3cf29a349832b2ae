"""Train Shortcut Head and Save Shortcut Head, run as ComfyUI runs nodes: in inference mode.

They run on stand-ins for ComfyUI, and on the real one if COMFY_DIR names its folder (see comfy_stubs.py).
"""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first
# ruff: noqa: F811 - fixtures are imported and then named as arguments

from __future__ import annotations

import contextlib
import errno
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import builders
import comfy_stubs
import pytest
import torch

comfy_stubs.install()
import comfy.model_management as mm
import comfy.utils
import folder_paths
import text_nodes
from PIL import Image, ImageDraw
from shortcut_pack.nodes import folders, host, native, train
from shortcut_pack.nodes.load import LoadHead
from shortcut_pack.nodes.train import SaveHead, TrainHead
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import shipped
from shortcut_pack.shortcut.denoiser import Revealed
from shortcut_pack.shortcut.flops import LiveTensors, fused
from shortcut_pack.shortcut.models import lumina_dimoo
from shortcut_pack.shortcut.models.maskgit.classes import ClassConditioner
from shortcut_pack.shortcut.schedule import plan
from shortcut_pack.shortcut.train.learn import head_config
from shortcut_pack.shortcut.train.loss import Objective, Window, window_loss
from test_nodes import Bar, Interrupted, empty, run, show_previews
from text_nodes import conditioner, files  # noqa: F401

WIDGETS = {"iterations": 6, "teacher_steps": 3, "seed": 1, "checkpoint_name": "tiny"}
PROMPTS = "a red house\n\n  a hill under a full moon  \n"


@pytest.fixture(autouse=True)
def inference_mode():
    """What ComfyUI runs every node in."""
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    """ComfyUI's output folder."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    return tmp_path / "output"


@pytest.fixture
def model():
    """MODEL of the tiny class model."""
    colours_V3 = torch.zeros(16, 3)
    latent_format = native.CodeIds(2, colours_V3)
    return native.build_model(builders.model(), "float32", latent_format, ClassConditioner(3, ()))


@pytest.fixture
def text_model(conditioner):
    return text_nodes.build(conditioner)


def train_head(model, **changes):
    """(SHORTCUT_HEAD, IMAGE)"""
    return TrainHead.execute(model=model, **(WIDGETS | changes)).result


def weights_of(head):
    return {name: tensor.clone() for name, tensor in head.model.state_dict().items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


# ------------------------------------------------------------------------------------------- training


def test_a_trained_head_goes_straight_into_the_sampler(model):
    head, chart = train_head(model, iterations=20, learning_rate=0.01)
    vanilla = run(model, empty(2))["samples"]
    found = run(model, empty(2), head)["samples"]
    assert found.shape == vanilla.shape and not torch.equal(found, vanilla)
    described = head.model.checkpoint
    assert described.metadata.model_fingerprint == model.model.checkpoint.fingerprint
    assert described.metadata.trained["recipe"]["lr"] == 0.01
    assert described.metadata.trained["rollouts"]["steps"] == [3]
    assert chart.ndim == 4 and chart.shape[0] == 1 and chart.shape[3] == 3
    assert chart.dtype == torch.float32 and 0 <= chart.min() < chart.max() <= 1


def test_training_makes_the_head_better_than_no_change(model):
    head, _ = train_head(model, iterations=30, learning_rate=0.01)
    last = head.model.checkpoint.metadata.trained["last"]
    assert last["mse"] < 0.9 * last["reuse"]


def test_the_model_is_only_read(model):
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    train_head(model)
    assert_equal(model.model.state_dict(), before)
    assert all(parameter.grad is None for parameter in model.model.parameters())
    assert model.model.attention.options == {}


def test_weights_that_loading_moves_serve_the_training_and_the_runs_after_it(model, monkeypatch):
    """On a GPU loading gives every parameter other data."""
    load = mm.load_models_gpu

    def moved(*args, **options):
        load(*args, **options)
        for parameter in model.model.parameters():
            parameter.data = parameter.data.clone()

    monkeypatch.setattr(mm, "load_models_gpu", moved)
    head, _ = train_head(model)
    run(model, empty(16), head=head)


def test_a_text_model_learns_from_prompts(text_model):
    head, _ = train_head(text_model, prompts=PROMPTS)
    assert text_nodes.run(text_model, head=head)["samples"].shape == (1, 1, *text_nodes.GRID)
    layer = text_model.model.diffusion_model.code_output
    assert not layer.weight_function, "the layer must be as it was"


def test_gradients_would_not_pass_weights_that_were_loaded_in_inference_mode(
    text_model, monkeypatch
):
    monkeypatch.setattr(train, "_gradients_pass", contextlib.nullcontext)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        train_head(text_model, prompts=PROMPTS)


def test_prompts_are_for_text_models_which_need_them(model, text_model):
    with pytest.raises(ValueError, match=r"needs prompts to show what it does\. Write some"):
        train_head(text_model, prompts=" \n")
    with pytest.raises(ValueError, match=r"prompts holds 2 lines, but .* learns from its classes"):
        train_head(model, prompts=PROMPTS)


def test_room_is_made_for_the_training_beside_the_model(model, monkeypatch):
    asked, load = [], mm.load_models_gpu

    def watched(models, memory_required):
        asked.append(memory_required)
        load(models, memory_required=memory_required)

    monkeypatch.setattr(mm, "load_models_gpu", watched)
    train_head(model)
    run(model, empty(16))
    learning, sampling = asked
    assert learning > sampling


@torch.inference_mode(False)
def test_the_room_asked_for_is_that_of_a_training():
    """Lumina-DiMOO as published at 512 x 512, without values."""
    architecture = lumina_dimoo.ARCHITECTURE
    published = architecture.sizes["lumina-dimoo"]
    model_file = SimpleNamespace(config=published.model, architecture=architecture)
    grid, lengths, on_meta = (32, 32), (60, 14), {"device": "meta", "attention": fused}
    network = architecture.model.network(published.model, **on_meta, dtype=torch.bfloat16)
    head = architecture.head.network(head_config(model_file), **on_meta)
    model = network.requires_grad_(False).on_grid(*grid)

    def ids(count):
        return torch.zeros(1, count, dtype=torch.long, device="meta")

    prompts, num_tokens = tuple(map(ids, lengths)), model.num_tokens
    sequences = [model.sequence_length(prompt) for prompt in prompts]
    with LiveTensors(network, head) as tensors:
        features, target = (
            tuple(torch.zeros(1, length, 4096, device="meta") for length in sequences)
            for _ in range(2)
        )
        revealed, masked = Revealed(ids(100), ids(100)), ids(num_tokens - 100)
        step = plan(architecture.settings, num_tokens, num_tokens, architecture.rules)[1]
        part = Window(prompts, features, [revealed], [step], [target], [masked])
        window_loss(head, model, part, Objective(mse=1.0, guided_kl=0.3))[0].backward()
    # Beside the gradients, which were measured: weights, two moments, average.
    measured = tensors.peak + 4 * 4 * sum(p.numel() for p in head.parameters())
    asked = train.training_memory(head, 1, 8192, num_tokens, sequences)
    assert measured < asked < 1.5 * measured


# ------------------------------------------------------------------------------------------- interrupt


def interrupt_at(patch, iteration):
    """Presses ComfyUI's Interrupt when the bar stands there."""
    pressed = []

    class Watched(Bar):
        def update_absolute(self, value, total, preview):
            if value == iteration:
                pressed.append(value)

    def check():
        if pressed:
            raise Interrupted

    patch.setattr(comfy.utils, "ProgressBar", Watched)
    patch.setattr(mm, "throw_exception_if_processing_interrupted", check)


def test_an_interrupted_training_goes_on_when_queued_again(model, monkeypatch, caplog):
    expected = weights_of(train_head(model, checkpoint_name="whole")[0])
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(Interrupted):
            train_head(model)
    assert model.model.attention.options == {}
    with caplog.at_level(logging.INFO):
        head, _ = train_head(model)
    assert "resumed at iteration 4" in caplog.text
    assert_equal(weights_of(head), expected)


@pytest.mark.parametrize("step", [1, 4])
def test_an_interrupt_ends_the_runs_before_the_first_iteration_within_a_step(
    model, monkeypatch, step, output
):
    """Of a large model they take minutes."""
    expected, checks = weights_of(train_head(model, checkpoint_name="whole")[0]), []

    def check():
        if Bar.last.calls:  # the first iteration is about to begin
            checks.append(1)
        if len(checks) == step:
            raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(comfy.utils, "ProgressBar", Bar)
        patch.setattr(Bar, "last", Bar(0), raising=False)
        patch.setattr(mm, "throw_exception_if_processing_interrupted", check)
        train_head(model)
    assert len(checks) == step
    assert not (output / "shortcut_training" / "tiny.ckpt").exists()
    assert_equal(weights_of(train_head(model)[0]), expected)


def test_another_seed_gives_another_head(model):
    head, other = (weights_of(train_head(model, seed=s, checkpoint_name=f"{s}")[0]) for s in (1, 2))
    assert any(not torch.equal(head[name], other[name]) for name in head)


def test_a_finished_training_is_not_repeated(model, monkeypatch):
    head, chart = train_head(model)
    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    again, same_chart = train_head(model)
    assert Bar.last.calls == []
    assert_equal(weights_of(again), weights_of(head))
    assert torch.equal(same_chart, chart)


def test_other_settings_need_another_name(model):
    train_head(model)
    with pytest.raises(ValueError, match=r"tiny\.ckpt was made by another recipe \(.*iterations 6"):
        train_head(model, iterations=7)
    train_head(model, iterations=7, checkpoint_name="tinier")


def test_a_training_goes_on_with_the_lora_that_it_was_begun_with(model):
    """The MODEL of a LoRA loader is of the same file, and its head another."""
    weight = "diffusion_model.blocks.0.attention.out.weight"

    def changed(strength, seed):
        change = torch.randn(32, 32, generator=torch.Generator().manual_seed(seed))
        model.patches = {weight: [(strength, ("diff", (change,)), 1.0, None, None)]}
        return model

    head, _ = train_head(changed(0.5, seed=0))
    assert_equal(weights_of(train_head(changed(0.5, seed=0))[0]), weights_of(head))
    for strength, seed in ((0.6, 0), (0.5, 1)):
        with pytest.raises(ValueError, match=r"made by another recipe \(changes of weights"):
            train_head(changed(strength, seed))
    model.patches = {}
    with pytest.raises(ValueError, match="now None"):
        train_head(model)


def test_without_a_log_the_chart_shows_what_was_just_learned(model, monkeypatch):
    expected = train_head(model)[1]
    monkeypatch.setattr(train, "read_log", lambda kept: [])
    assert torch.equal(train_head(model, checkpoint_name="full")[1], expected)


def test_a_trained_head_is_given_also_where_its_log_is_gone(model, output):
    expected, _ = train_head(model)
    (log,) = output.rglob("*.jsonl")
    log.unlink()
    head, chart = train_head(model)
    assert_equal(weights_of(head), weights_of(expected))
    assert chart.min() < 0.1, "it says that there is no log"


def test_a_training_is_kept_where_a_restart_finds_it_and_no_list_shows_it(model, files, output):
    train_head(model, checkpoint_name="mine/first")
    assert (output / "shortcut_training" / "mine" / "first.ckpt").is_file()
    assert folders.choices("migm_heads") == [*shipped.CHOICES]


def test_a_disk_without_room_is_told_before_the_training(model, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(train, "learn", lambda *args, **options: pytest.fail("it was begun"))
    with pytest.raises(OSError, match=r"tiny\.ckpt could not be written \(the disk is full\)"):
        train_head(model)


def test_a_training_that_goes_on_is_told_of_a_full_disk_too(model, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(Interrupted):
            train_head(model)
    tried = []
    monkeypatch.setattr(train, "check_writable", tried.append)
    train_head(model)
    assert tried == [folders.training_file("tiny")]


def test_a_finished_training_in_a_folder_without_room_is_read(model, monkeypatch):
    expected = weights_of(train_head(model)[0])
    monkeypatch.setattr(train, "check_writable", lambda path: pytest.fail("it was tried"))
    assert_equal(weights_of(train_head(model)[0]), expected)


def test_progress_and_the_live_chart(model, monkeypatch, caplog):
    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    show_previews(monkeypatch)
    with caplog.at_level(logging.INFO):
        train_head(model)
    values = [value for value, _, _ in Bar.last.calls]
    assert sorted(values) == values and {*values} == {*range(7)}
    assert {total for _, total, _ in Bar.last.calls} == {6}
    pictures = [preview for _, _, preview in Bar.last.calls if preview is not None]
    assert pictures
    for kind, picture, size in pictures:
        assert kind == "JPEG" and isinstance(picture, Image.Image) and size == 512
    before = [preview for value, _, preview in Bar.last.calls if value == 0 and preview is not None]
    assert before and before[0][1].size == (512, 512), "before the first loss a picture is shown"
    assert before[0][1].size != pictures[-1][1].size
    assert "6/6  loss" in caplog.text and "0 s left" in caplog.text


def test_the_live_chart_says_the_time_left_and_the_last_one_does_not(model, monkeypatch):
    captions, write = [], ImageDraw.ImageDraw.text

    def text(self, place, said, *arguments, **options):
        if "iterations" in said:
            captions.append(said)
        return write(self, place, said, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    train_head(model)
    *live, last = captions
    assert [caption.partition(", ")[0] for caption in live] == [
        f"{n} of 6 iterations" for n in range(1, 7)
    ]
    assert all(caption.endswith(" s left") for caption in live) and last == "6 iterations"


def test_the_node_says_how_far_the_training_is(model, monkeypatch):
    shown = []
    monkeypatch.setattr(host, "show_on_node", shown.append)
    train_head(model)
    first, second = shown[0], shown[-1]
    assert "Interrupted before the first iteration, nothing is kept" in first
    assert re.fullmatch(r"iteration 6 of 6, loss 0\.\d+, 0 s left", second)


# ------------------------------------------------------------------------------------------- files


def test_a_saved_head_is_in_the_list_and_is_the_same(model, files):
    head, _ = train_head(model)
    SaveHead.execute(head, "mine/night")
    name = "mine/night_00001_.safetensors"
    assert folders.choices("migm_heads") == [*shipped.CHOICES, name]
    loaded = LoadHead.execute(name, "default").result[0]
    assert_equal(weights_of(loaded), weights_of(head))
    said = loaded.model.checkpoint.metadata.dump()
    for field, text in head.model.checkpoint.metadata.dump().items():
        assert said[field] == text
    latent = run(model, empty(2), head)["samples"]
    assert torch.equal(run(model, empty(2), loaded)["samples"], latent)


def test_nothing_is_overwritten(model, files):
    head, _ = train_head(model)
    SaveHead.execute(head, "mine")
    path = files / "migm_heads" / "mine_00001_.safetensors"
    before = path.read_bytes()
    other, _ = train_head(model, seed=2, checkpoint_name="other")
    SaveHead.execute(other, "mine")
    assert path.read_bytes() == before
    assert (files / "migm_heads" / "mine_00002_.safetensors").read_bytes() != before


def test_a_head_is_saved_in_the_type_it_was_made_in_whatever_it_is_in_memory(model, files):
    head, _ = train_head(model)
    SaveHead.execute(head, "mine")
    file = files / "migm_heads" / "mine_00001_.safetensors"
    assert checkpoints.load(file, "head").dtype == torch.float16
    SaveHead.execute(LoadHead.execute(file.name, "float32").result[0], "mine")
    again = checkpoints.load(files / "migm_heads" / "mine_00002_.safetensors", "head")
    builders.assert_same(again, checkpoints.load(file, "head"))


@pytest.mark.parametrize(
    "name", ["", "  ", ".", "..", "../out", "a/../../out", "/tmp/out", "C:out"]
)
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_no_name_leads_out_of_the_folder(model, files, output, name, slash):
    name = name.replace("/", slash)
    with pytest.raises(ValueError, match="is no name for a file"):
        train_head(model, checkpoint_name=name)
    message = SaveHead.validate_inputs(name)
    assert isinstance(message, str) and "is no name for a file" in message
    assert not {*message} & {*"'\"&<>/"}, "the page would escape them, three times"
    with pytest.raises(ValueError, match="is no name for a file"):
        SaveHead.execute(None, name)
    assert not output.exists()
    assert SaveHead.validate_inputs("heads/mine") is True


def test_the_name_of_a_file_may_come_from_another_node():
    """ComfyUI checks a linked input as None, and an error there refuses the whole workflow."""
    assert SaveHead.validate_inputs(None) is SaveHead.validate_inputs() is True
