"""Check how processes share out work and exchange values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from shortcut_pack.shortcut.distributed import (
    ALONE,
    Ranks,
    from_first,
    process_group,
)

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from shortcut.distributed import Ranks, from_first, process_group
ranks = Ranks.here()
with process_group(ranks) as gather:
    told = gather((ranks.rank, from_first(ranks, lambda: f"by {ranks.rank}")))
if ranks.rank == 1:
    print(json.dumps(told))
"""


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_shares_are_even_and_make_up_the_whole(size: int) -> None:
    rows = list(range(6))
    shares = [rows[Ranks(rank, size).share(6)] for rank in range(size)]
    assert [row for share in shares for row in share] == rows
    assert {len(share) for share in shares} == {6 // size}


def test_rows_that_cannot_be_shared_out_are_an_error_that_says_what_to_change() -> None:
    with pytest.raises(ValueError, match=r"6 images .* among 4 processes\. Use .* divides 6"):
        Ranks(0, 4).share(6, "images")


def test_torchrun_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Ranks.here() == ALONE == Ranks(0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Ranks.here() == Ranks(3, 4)


def test_a_process_alone_meets_itself() -> None:
    with process_group(ALONE) as gather:
        assert gather("a") == ["a"]
        assert from_first(ALONE, lambda: 7) == 7


def test_two_processes_exchange_what_they_have(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(tmp_path / "program.py"), str(ROOT)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert json.loads(done.stdout) == [[0, "by 0"], [1, "by 0"]]
