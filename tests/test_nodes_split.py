"""MultiGPU CFG Split of ComfyUI in front of the sampler: guidance branches run on the model's copies."""

# ruff: noqa: E402, F811 - ComfyUI must be importable first; fixtures are imported by name

from __future__ import annotations

import comfy_stubs
import pytest
import torch
from comfy_stubs import COMFY_DIR

comfy_stubs.install()
from shortcut_pack.nodes import host, patches
from shortcut_pack.nodes import run as runs
from shortcut_pack.nodes.accelerate import Accelerator
from shortcut_pack.nodes.load import LoadMIGM
from text_nodes import build, conditioner, files, head, model, put, run  # noqa: F401 - fixtures


@pytest.fixture
def copied(model, conditioner):
    """A MODEL with a copy of it, as MultiGPU CFG Split makes one for each further device; and the copy."""
    if COMFY_DIR and not hasattr(model, "deepclone_multigpu"):
        pytest.skip("this ComfyUI has no MultiGPU CFG Split")
    with_copy, copy = build(conditioner), build(conditioner)
    with_copy.set_additional_models(host.MULTIGPU, [copy])
    with_copy.model_options["multigpu_options"] = {torch.device("cpu"): {"relative_speed": 1.0}}
    return with_copy, copy


def watched(patcher) -> list[int]:
    """Return where the passes of a MODEL will be noted: the guidance branches of each."""
    passes: list[int] = []
    network = patcher.model.diffusion_model
    network.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    return passes


@pytest.mark.parametrize("way", ["none", "head", "partial"])
def test_a_copy_runs_a_branch_and_the_picture_is_the_same(model, head, copied, way):
    chosen = {"none": None, "head": head}.get(way)
    if way == "partial":
        chosen = Accelerator.execute("partial", "as computed", None).result[0]
    with_copy, copy = copied
    expected = run(model, head=chosen)["samples"]
    passes = watched(with_copy), watched(copy)
    assert torch.equal(run(with_copy, head=chosen)["samples"], expected)
    num_full = 6 if way == "none" else 2
    assert passes[1] == num_full * [1]
    # Partial passes have one branch, and run where the first one does.
    assert passes[0] == (2 if way == "head" else 6) * [1]
    assert patches.without_effect(with_copy) == []


def test_without_cfg_the_node_says_that_the_copy_is_idle(model, copied, monkeypatch):
    shown: list[str] = []
    monkeypatch.setattr(host, "show_on_node", shown.append)
    with_copy, copy = copied
    passes = watched(copy)
    run(with_copy, cfg=0)
    assert passes == []
    assert "one device does all: without cfg there is one guidance branch" in shown[-1]
    run(model, cfg=0)
    assert "one device" not in shown[-1]


def test_a_run_on_one_device_is_no_measure_for_one_on_two(model, monkeypatch, copied):
    works: list[object] = []
    monkeypatch.setattr(runs, "speed_of", lambda clock, work, seen: works.append(work))
    with_copy, _ = copied
    for patcher in (model, with_copy):
        run(patcher)
    assert works[0].of_a_pass != works[1].of_a_pass


def test_a_model_that_was_put_on_another_device_than_the_head_is_refused(model, head):
    head.load_device = torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"MODEL runs on cpu and the head on cuda:1.*Select Model"):
        run(model, head=head)


@pytest.mark.skipif(not COMFY_DIR, reason="COMFY_DIR names no ComfyUI folder")
def test_comfyuis_own_copies_have_the_patches_of_the_model(files):
    put(files)
    found = LoadMIGM.execute("tiny.safetensors", "auto", "float32").result[0]
    if not hasattr(found, "deepclone_multigpu"):
        pytest.skip("this ComfyUI has no MultiGPU CFG Split")
    copy = found.deepclone_multigpu(new_load_device=torch.device("cpu"))
    copy.is_multigpu_base_clone = True
    with_copy = found.clone()
    with_copy.set_additional_models(host.MULTIGPU, [copy])
    key = "diffusion_model.blocks.0.query.weight"
    shape, generator = found.model.state_dict()[key].shape, torch.Generator().manual_seed(1)
    patch = {key: ("diff", (torch.randn(shape, generator=generator),))}
    plain = run(found)["samples"]
    assert torch.equal(run(with_copy)["samples"], plain)
    for patcher in (found, with_copy):
        patcher.add_patches(patch)
    patched = run(found)["samples"]
    assert not torch.equal(patched, plain)
    passes = watched(copy)
    assert torch.equal(run(with_copy)["samples"], patched)
    assert passes
