"""The node Accelerator: its choices make images of their own through the sampler, and say what they need and take."""

# ruff: noqa: E402, F811 - ComfyUI must be importable first; fixtures are imported by name

from __future__ import annotations

import logging

import comfy_stubs
import pytest
import torch

comfy_stubs.install()
import comfy.model_management as mm
from shortcut_pack.nodes import host
from shortcut_pack.nodes.accelerate import Accelerated, Accelerator
from shortcut_pack.nodes.train import SaveHead
from shortcut_pack.shortcut.accelerators.choice import NAMES
from text_nodes import conditioner, head, model, run  # noqa: F401 - fixtures

CHOICES = [name for name in NAMES if not name.endswith("+float8")]


def accelerator(name, head=None, keys_and_values="as computed"):
    return Accelerator.execute(name, keys_and_values, head).result[0]


def made(model, **sockets):
    return run(model, **sockets)["samples"]


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_makes_images_of_its_own_and_vanilla_where_all_steps_are_full(
    model, head, name
):
    given = accelerator(name, head if "head" in name else None)
    found, vanilla = made(model, head=given), made(model)
    assert found.shape == vanilla.shape
    assert not torch.equal(found, vanilla)
    assert torch.equal(made(model, head=given, full_steps=6), vanilla)


def test_the_head_through_the_node_is_the_head_alone(model, head):
    assert torch.equal(made(model, head=accelerator("head", head)), made(model, head=head))


def test_keys_and_values_in_float8_take_a_quarter_of_float32_and_change_little(model, monkeypatch):
    asked: list[float] = []
    load = mm.load_models_gpu

    def watched(models, memory_required):
        asked.append(memory_required)
        load(models, memory_required=memory_required)

    monkeypatch.setattr(mm, "load_models_gpu", watched)
    ways = [None, *(accelerator("partial", None, t) for t in ("as computed", "float8_e4m3fn"))]
    images = [made(model, head=way) for way in ways]
    none, whole, small = asked
    assert whole - none == pytest.approx(4 * (small - none)) and small > none
    assert not torch.equal(images[1], images[0])


def test_what_a_choice_does_not_use_is_said(head, caplog):
    caplog.set_level(logging.WARNING)
    assert accelerator("partial", head) == Accelerated("partial", None)
    assert "partial does not ask the connected head" in caplog.text
    assert accelerator("taylor", None, "float8_e4m3fn").name == "taylor"
    assert "keys_and_values has no effect" in caplog.text


def test_both_choices_without_effect_stay_on_the_node(head, monkeypatch):
    shown = []
    monkeypatch.setattr(host, "show_on_node", shown.append)
    accelerator("taylor", head, "float8_e4m3fn")
    assert "does not ask the connected head" in shown[-1] and "has no effect" in shown[-1]


def test_a_choice_that_needs_a_head_says_so():
    with pytest.raises(ValueError, match=r"partial.head needs a shortcut head. Connect Load"):
        accelerator("partial+head")


def test_an_accelerator_can_be_chosen_anew_and_one_without_a_head_is_not_saved(head):
    again = accelerator("partial+head", accelerator("head", head))
    assert again == Accelerated("partial+head", head)
    with pytest.raises(ValueError, match=r"an Accelerator without a head. Connect Train Shortcut"):
        SaveHead.execute(accelerator("partial"), "mine")
