"""Put the repository's root on the path: these tests import `shortcut` and `experiments` by name.

Run them in a process of their own (python -m pytest experiments/tests): the tests of the pack import it under an alias.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
# Sums depend on the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def untouched_random_state():
    """Fail a test that moved the global random state."""
    state = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), state), "the global random state was moved"
