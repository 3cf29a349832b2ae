"""What nodes say on themselves: what a run took compared with vanilla, what was loaded, how far a training is."""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first
# ruff: noqa: F811 - fixtures are imported and then named as arguments

from __future__ import annotations

import gc
import logging
import sys
import weakref
from types import SimpleNamespace

import comfy_stubs
import node_interface
import pytest
import torch

comfy_stubs.install()
import text_nodes
from shortcut_pack.nodes import host, progress
from shortcut_pack.nodes.condition import TextCondition
from shortcut_pack.nodes.load import LoadHead, LoadMIGM
from shortcut_pack.nodes.sample import MaskedSampler
from shortcut_pack.nodes.timing import Seen, Speed, StepClock, Work, speed_of
from shortcut_pack.shortcut import shipped
from test_nodes import cond, empty, files, head, model, run  # noqa: F401
from text_nodes import conditioner  # noqa: F401

WORK = Work(of_a_pass="8 x 8", num_steps=6, num_to_make=(16,))
CPU = torch.device("cpu")


class ScriptedClock(StepClock):
    """The first step takes 60 s, which loads weights; later full passes 4 s, predictions 1 s.

    It begins at 0: behind the real clock's fractions, whole seconds are not always exact.
    """

    def _mark(self):
        return 0.0

    def tick(self, was_full):
        seconds = (4.0 if self.was_full else 60.0) if was_full else 1.0
        self.marks.append(self.marks[-1] + seconds)
        self.was_full.append(was_full)


def clock(*steps, made=ScriptedClock):
    found = made(CPU)
    for was_full in steps:
        found.tick(was_full)
    return found


@pytest.fixture
def shown(monkeypatch):
    """What the running node says."""
    lines = []
    monkeypatch.setattr(host, "show_on_node", lines.append)
    return lines


def comfy_attention(attention, *args, **more):
    """An attention that a node puts in the place of ComfyUI's, which does the same."""
    more.pop("transformer_options", None)
    return attention(*args, **more)


@pytest.fixture
def text_model(conditioner):
    return text_nodes.build(conditioner)


# ------------------------------------------------------------------------------------------- compared with vanilla


def test_the_first_full_pass_counts_as_the_others_do():
    speed = speed_of(clock(True, False, True, False, False, False), WORK, Seen())
    assert speed == Speed(24 / 12, is_measured=False, seconds=12)


def test_without_a_full_pass_but_the_first_no_ratio_is_claimed():
    seen, short = Seen(), clock(True, False, False, False, False, False)
    assert speed_of(short, WORK, seen) is None
    speed_of(clock(True, True, False, False, False, False), WORK, seen)
    assert speed_of(short, WORK, seen) == Speed(24 / 9, is_measured=False, seconds=9)
    larger = WORK._replace(of_a_pass="16 x 16")
    assert speed_of(short, larger, seen) is None, "a full pass of another size says nothing"


class SlowClock(ScriptedClock):
    """As a vanilla run was seen to go: 5 s for each full pass."""

    def tick(self, was_full):
        self.marks.append(self.marks[-1] + 5.0)
        self.was_full.append(was_full)


def test_where_a_vanilla_run_was_seen_the_ratio_is_measured():
    seen, fast = Seen(), clock(True, False, True, False, False, False)
    assert speed_of(clock(*[True] * 6, made=SlowClock), WORK, seen) == Speed(1.0, True, 30)
    assert speed_of(fast, WORK, seen) == Speed(30 / 12, True, 12)
    for other in (WORK._replace(num_steps=8), WORK._replace(num_to_make=(16, 16))):
        assert speed_of(fast, other, seen) == Speed(2.0, False, 12)


def test_a_run_that_made_nothing_has_no_speed():
    assert speed_of(clock(), WORK, Seen()) is None


def test_the_clock_measures_from_step_to_step(monkeypatch):
    now = iter([100.0, 104.0, 105.0, 106.5])
    monkeypatch.setattr("shortcut_pack.nodes.timing.time.perf_counter", lambda: next(now))
    assert clock(True, False, False, made=StepClock).seconds() == ([4.0], [1.0, 1.5])


def test_times_of_a_model_hold_no_attention_of_another_node():
    """An attention may hold the model, which would then never be freed."""

    class Attention:
        pass

    attention = Attention()
    gone = weakref.ref(attention)
    options = {"transformer_options": {host.ATTENTION: attention}}
    changes = host.changes_of(SimpleNamespace(model_options=options))
    assert changes != host.changes_of(SimpleNamespace(model_options={}))
    del attention, options
    gc.collect()
    assert gone() is None and changes


# ------------------------------------------------------------------------------------------- on the node


def test_the_sampler_says_how_far_it_is_and_what_it_took(model, head, shown, caplog, monkeypatch):
    monkeypatch.setattr(progress, "StepClock", ScriptedClock)
    monkeypatch.setattr(progress, "TEXT_INTERVAL", 0)
    with caplog.at_level(logging.INFO):
        run(model, head=head, full_steps=3)
    assert shown[1].startswith("step 2 of 6, 1 full, ") and shown[1].endswith(" s")
    assert shown[-1].startswith("6 steps, 3 full, ") and shown[-1].endswith(
        " s, about 1.6x vanilla"
    )
    assert f"Shortcut Masked Sampler: {shown[-1]}" in caplog.messages
    run(model, full_steps=6)
    assert shown[-1].startswith("6 steps, 6 full, ") and shown[-1].endswith(" s (vanilla)")
    run(model, head=head, full_steps=3)
    assert shown[-1].endswith(" s, 1.6x vanilla"), "now a vanilla run was measured"
    run(model, empty(2), head=head, full_steps=3)
    assert "about" in shown[-1], "of another batch"
    model.model_options["transformer_options"][host.ATTENTION] = comfy_attention
    run(model, head=head, full_steps=3)
    assert "about" in shown[-1], "with another attention"


def test_custom_with_another_schedule_is_doubted_on_the_node(text_model, shown):
    text_nodes.run(text_model)
    assert not any("schedule is" in line for line in shown)
    text_nodes.run(text_model, schedule="arccos")
    assert "schedule is arccos, but" in shown[-1] and "was made with" in shown[-1]
    shown.clear()
    text_nodes.run(text_model, preset="fast", schedule="arccos")  # the preset decides
    assert not any("schedule is" in line for line in shown)


def test_full_steps_without_an_accelerator_are_not_ignored_without_a_word(model, head, shown):
    run(model, full_steps=3)
    assert "full_steps is not read: nothing is wired to head" in shown[-1]
    for wired in ({"full_steps": 6}, {"full_steps": 3, "head": head}):
        shown.clear()
        run(model, **wired)
        assert not any("not read" in line for line in shown)


def test_a_preset_says_what_it_set_in_place_of_the_widgets(model, head, shown):
    run(model, head=head, preset="fast", steps=5, cfg=0.5)
    assert shown[0].startswith("preset fast has set steps 32, full_steps 8, cfg 2.8, cfg_ramp on, ")
    assert shown[0].endswith("the widgets of these names are not read")
    assert all(line.endswith(f"\n{shown[0]}") for line in shown[1:]), "what changes comes first"


def test_custom_says_what_no_widget_set_and_nothing_if_widgets_set_all(model, shown):
    sampler = node_interface.frozen()["ShortcutSampler"]["inputs"]
    (preset,) = (item for item in sampler if item["id"] == "preset")
    given = {item["id"]: item["default"] for item in preset["options"]["custom"]}
    given["full_steps"] = given["steps"]
    sockets = {"model": model, "positive": cond(), "latent_image": empty()}
    MaskedSampler.execute(**sockets, seed=1, denoise=1.0, preset={"preset": "custom", **given})
    assert not any("preset" in line for line in shown)
    shown.clear()
    del given["order"]
    MaskedSampler.execute(**sockets, seed=1, denoise=1.0, preset={"preset": "custom", **given})
    said = "preset custom has set order confidence, as usual for the model"
    assert shown[0] == said
    shown.clear()
    given["order"] = None  # as ComfyUI passes what a graph in the API format leaves out
    MaskedSampler.execute(**sockets, seed=1, denoise=1.0, preset={"preset": "custom", **given})
    assert shown[0] == said


def test_a_linked_preset_is_read_without_widgets_of_its_own(model, shown):
    sockets = {"model": model, "positive": cond(), "latent_image": empty()}
    given = {"seed": 1, "denoise": 1.0}
    linked = MaskedSampler.execute(**sockets, **given, preset="fast").result[0]
    chosen = MaskedSampler.execute(**sockets, **given, preset={"preset": "fast"}).result[0]
    assert torch.equal(linked["samples"], chosen["samples"])
    with pytest.raises(ValueError, match="has no preset 'faster'"):
        MaskedSampler.execute(**sockets, **given, preset="faster")


def test_a_size_far_from_the_models_own_is_said_before_the_run(text_model, shown, caplog):
    text_nodes.run(text_model, text_nodes.empty())
    assert not any("far from" in line for line in shown)
    shown.clear()
    text_nodes.run(text_model, {"samples": torch.zeros(1, 1, 20, 20)}, steps=1, full_steps=1)
    assert shown[0].startswith("40 x 40 pixels is far from the 8 x 8 that ")
    assert "25 times as many tokens" in shown[0] and shown[0] in caplog.text
    shown.clear()
    text_nodes.run(text_model, {"samples": torch.zeros(1, 1, 20, 20)}, preset="fast", steps=1)
    assert [line.split()[0] for line in shown[1].splitlines()] == ["40", "preset"]


def test_words_that_the_model_never_saw_are_named(text_model, shown, monkeypatch):
    asked = text_model.model.conditioner
    monkeypatch.setattr(type(asked), "unknown_words", lambda self, request: ("cat", "chair"))
    TextCondition.execute(text_model, "a cat on a chair", "text_to_image")
    assert shown[0].endswith("never saw these words, which say nothing to it: cat, chair")


@pytest.mark.parametrize("text", ["a (red:1.5) house", "(a red house: .8)", "a (moon:-1) house"])
def test_weights_of_words_are_refused_not_read_as_text(text_model, text):
    with pytest.raises(ValueError, match=r"text holds the weight \(.*Write the words alone"):
        TextCondition.execute(text_model, text, "text_to_image")
    for plain in (
        "a house (red: and blue) at 12:30",
        "a forest (16:9, at 10:30)",
        "a face (hint: 3)",
    ):
        TextCondition.execute(text_model, plain, "text_to_image")


def test_the_loaders_say_what_they_loaded(files, shown):
    LoadMIGM.execute(shipped.NAME, "auto", "float32")
    LoadHead.execute(shipped.NAME, "float32")
    models, head_line = shown
    model_line, vq_line = models.split("\n")
    for line, title in ((model_line, "MaskGIT transformer"), (head_line, "head")):
        assert title in line and " million parameters, float32, 0.00 GB" in line
    assert "VQ" in vq_line


def test_the_node_that_runs_shows_a_text(monkeypatch):
    sent = []
    server = SimpleNamespace(send_progress_text=lambda *text: sent.append(text))
    monkeypatch.setitem(
        sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server))
    )
    host.show_on_node("nobody sees it")
    monkeypatch.setattr(host, "get_executing_context", lambda: SimpleNamespace(node_id="7"))
    host.show_on_node("it has no effect")
    assert sent == [("it has no effect", "7")]
