"""The measurement of memory: its synthetic checkpoint and its watch."""

from __future__ import annotations

import mmap
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import load_memory
from shortcut import weights

CONFIG = replace(load_memory.REAL, width=16, depth=2, num_heads=2, num_kv_heads=2, mlp_width=24)


def test_the_synthetic_checkpoint_has_the_real_layout(tmp_path: Path) -> None:
    largest = load_memory.write_folder(tmp_path, CONFIG)
    shards = [path.stat().st_size for path in tmp_path.glob("model-*-of-00003.safetensors")]
    assert len(shards) == 3 and max(shards) == largest
    found = weights.load(tmp_path)
    assert (found.config, found.dtype) == (CONFIG, torch.bfloat16)
    assert sum(tensor.nbytes for tensor in found.tensors.values()) == load_memory.nbytes(
        CONFIG, torch.bfloat16
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_anonymous_memory_is_seen() -> None:
    def work() -> None:
        # Fresh pages, whatever the allocator kept of other tests; held until the watch has looked.
        size, flags = 30_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        with mmap.mmap(-1, size, flags=flags) as pages:
            pages.write(b"x" * size)
            time.sleep(5 * load_memory.INTERVAL)

    anonymous, _, seconds = load_memory.measured(work)
    assert 25e6 < anonymous < 100e6 and seconds > 0
