"""`--compile`: the model's blocks go through torch.compile, and run as they are where that fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shortcut_pack.shortcut import Pipeline
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.compiled import Compiled
from torch import nn

WANTED: dict[str, Any] = {"label": "0", "steps": 1, "seed": 3}


def test_each_block_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    calls: list[nn.Module] = []

    def compile(block: nn.Module) -> Callable[..., Any]:
        compiled.append(block)

        def call(*inputs: Any) -> Any:
            calls.append(block)
            return block(*inputs)

        return call

    monkeypatch.setattr(torch, "compile", compile)
    plain, pipeline = Pipeline.load("scenes"), Pipeline.load("scenes", compiled=True)
    blocks: Any = pipeline.model.get_submodule("blocks")
    expected = plain.generate(**WANTED)[0].tobytes()
    assert not compiled, "only where it was asked for"
    for _ in range(2):
        assert pipeline.generate(**WANTED)[0].tobytes() == expected
    assert compiled == [*blocks]
    assert len(calls) == 2 * len(blocks)


def test_passes_that_keep_keys_and_values_go_through_the_compiler_whole(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch._dynamo.reset()
    pipeline = Pipeline.load("scenes", accelerator="partial")
    pipeline.model.in_order = Compiled(iter, {"backend": "eager", "fullgraph": True})
    for name in ("partial", "ml-cache"):
        pipeline.generate(label="0", steps=3, full_steps=2, accelerator=name)
    assert "torch.compile failed" not in caplog.text


def test_where_nothing_can_be_compiled_the_blocks_run_as_they_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    compiled, block = Compiled(iter, {"backend": "nowhere"}), nn.LayerNorm(2)
    (call,) = compiled(nn.ModuleList([block]))
    x = torch.ones(1, 2)
    assert torch.equal(call(x), block(x)) and torch.equal(call(x), block(x))
    assert caplog.text.count("torch.compile failed, the model runs as it is") == 1


def test_without_a_compiler_the_command_makes_the_same_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def compile(block: nn.Module) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            raise TorchDynamoException("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", compile)
    places = [tmp_path / "plain.png", tmp_path / "compiled.png"]
    for place, more in zip(places, ([], ["--compile"]), strict=True):
        assert main(["generate", "--class", "0", "--steps", "2", "--out", str(place), *more]) == 0
    assert places[0].read_bytes() == places[1].read_bytes()
    assert caplog.text.count("torch.compile failed") == 1 and "no C++ compiler" in caplog.text
