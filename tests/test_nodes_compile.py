"""TorchCompileModel of ComfyUI in front of the sampler: blocks are compiled, few times, and never a failure."""

# ruff: noqa: E402, F811 - ComfyUI must be importable first; fixtures are imported by name

from __future__ import annotations

import logging

import comfy_stubs
import pytest
import torch
from comfy_stubs import COMFY_DIR, needs_comfy

comfy_stubs.install()
from shortcut_pack.nodes import host, patches
from shortcut_pack.nodes.accelerate import Accelerator
from shortcut_pack.nodes.load import LoadMIGM
from text_nodes import cond, conditioner, files, head, model, put, run  # noqa: F401 - fixtures


@pytest.fixture
def compiler():
    """A compiler that changes nothing, and the graphs that it was given."""
    graphs = []

    def compile(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    yield compile, graphs
    torch._dynamo.reset()


def samples(model, **sockets):
    return run(model, **sockets)["samples"]


def test_blocks_are_compiled_a_few_times_for_all_kinds_of_passes(model, head, compiler):
    compile, graphs = compiler
    heads = (None, head, Accelerator.execute("partial", "as computed", None).result[0])
    expected = [samples(model, head=head) for head in heads]
    model.wrappers = {"apply_model": {"torch.compile": [print]}}
    model.model_options[host.COMPILE] = {"backend": compile, "fullgraph": not COMFY_DIR}
    assert patches.without_effect(model) == []
    for head, wanted in zip(heads, expected, strict=True):
        assert torch.equal(samples(model, head=head), wanted)
    samples(model, head=heads[2], positive=cond(model, "a shorter one"))
    num_graphs = len(graphs)
    assert 0 < num_graphs <= (20 if COMFY_DIR else 7), "ComfyUI's layers break a block in pieces"
    longer = cond(model, "a red house under a full moon and a blue boat")
    samples(model, head=heads[2], positive=longer)
    assert len(graphs) == num_graphs, "lengths are dynamic by now"
    assert model.model.diffusion_model.in_order is iter, "for runs in ComfyUI alone"


def test_what_cannot_be_compiled_runs_as_it_is(model, compiler, caplog):
    def broken(graph, inputs):
        raise RuntimeError("no compiler is installed")

    expected = samples(model)
    model.model_options[host.COMPILE] = {"backend": broken}
    caplog.set_level(logging.WARNING)
    assert torch.equal(samples(model), expected)
    (line,) = [m for m in caplog.messages if "torch.compile" in m]
    assert "no compiler is installed" in line


def test_an_error_of_the_block_itself_is_no_failure_of_the_compiler(model, compiler):
    def failing(graph, inputs):
        def call(*inputs):
            raise torch.OutOfMemoryError("full")

        return call

    model.model_options[host.COMPILE] = {"backend": failing}
    with pytest.raises(torch.OutOfMemoryError):
        samples(model)


@needs_comfy
def test_comfyuis_node_compiles_a_model_that_it_loads_dynamically(files, compiler):
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    compile, graphs = compiler
    put(files)
    found = LoadMIGM.execute("tiny.safetensors", "auto", "nvfp4").result[0]
    expected = samples(found)
    found.is_dynamic = lambda: True
    compiled = TorchCompileModel.execute(found, "inductor").result[0]
    assert compiled.model is not found.model, "it asks the loader for one without dynamic loading"
    assert patches.without_effect(compiled) == []
    compiled.model_options[host.COMPILE] |= {"backend": compile, "options": None}
    assert torch.equal(samples(compiled), expected)
    assert graphs
