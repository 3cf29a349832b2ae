"""The alias under which tests import the pack, and what every test starts from."""

from __future__ import annotations

import os
import signal
import sys
import types
from pathlib import Path

import pytest
import torch

# Sums depend on the number of threads, and some tests compare with other processes bit for bit.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# A caller may ignore SIGINT, which processes inherit: tests of interrupts need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]

# The pack's own folder name is the user's; one fixed name keeps each module loaded once.
_pack = types.ModuleType("shortcut_pack")
_pack.__path__ = [str(ROOT)]
sys.modules.setdefault("shortcut_pack", _pack)


@pytest.fixture(autouse=True)
def untouched_global_state():
    """Fails a test that moved the global random state or the default dtype."""
    random_state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    yield
    assert torch.equal(torch.get_rng_state(), random_state), "the global random state was moved"
    assert torch.get_default_dtype() is dtype, "the default dtype was changed"
