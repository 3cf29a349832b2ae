"""Files written whole or not at all, places tried before the work, locks that end with their process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from shortcut_pack.shortcut import writing
from shortcut_pack.shortcut.writing import (
    HeldError,
    WriteError,
    check_name,
    check_writable,
    locked,
    written_whole,
)

ROOT = Path(__file__).resolve().parents[1]
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


def process(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs `code` after imports."""
    imports = "import os, signal, sys; from pathlib import Path; from shortcut.writing import *\n"
    command = [sys.executable, "-c", imports + code, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    "name",
    [
        *("..\\a", "C:x", "a:b", "con", "Con.png", "con .txt", "com1.png", "lpt9", "nul", "COM¹"),
        *("a.", "a ", "", ".", "..", "a/b", "a?b", "a\nb", "a\0", "\ud800", "é" * 128, "a" * 256),
    ],
)
def test_a_name_that_some_system_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="Give another name"):
        check_name(name)


@pytest.mark.parametrize(
    "name", ["a b", "cone", "00001.png", ".a", "Kopf-雪", "a" * 255, "com.png"]
)
def test_usual_names_are_taken(name: str) -> None:
    check_name(name)


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    for name in ("a" * 251 + ".png", "雪" * 83 + ".png"):
        path = tmp_path / name
        check_writable(path)
        with written_whole(path) as partial:
            partial.write_text("all")
        assert path.read_text() == "all"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_place_is_tried_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path / "new" / "newer" / "a.png")
    with pytest.raises(ValueError, match="device"):
        check_writable(tmp_path / "nul" / "a.png")

    def full(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WriteError, match=r"a\.png could not be written \(the disk is full\)"):
        check_writable(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_an_error_while_writing_names_the_file_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    for error in (OSError(errno.ENOSPC, "No space"), OSError("encoder error")):
        with (
            pytest.raises(WriteError, match=r"a\.txt could not be written \((the disk|encoder)"),
            written_whole(path) as partial,
        ):
            partial.write_text("half")
            raise error
    for told in (
        "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0",
        "IO (os error 28)",
    ):
        with pytest.raises(WriteError, match=r"a\.txt could not be written"), written_whole(path):
            raise RuntimeError(told)
    with pytest.raises(RuntimeError, match="another"), written_whole(path):
        raise RuntimeError("another")
    with pytest.raises(FileNotFoundError, match="other"), written_whole(path):
        (tmp_path / "other").read_text()
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_permissions_that_cannot_be_set_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    with written_whole(tmp_path / "a.txt") as partial:
        partial.write_text("all")
    assert (tmp_path / "a.txt").read_text() == "all"


@posix
def test_what_is_written_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("fsync") or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("replace") or replace(*paths))
    with written_whole(tmp_path / "a.txt") as partial:
        partial.write_text("all")
    assert calls == ["fsync", "replace", "fsync"]


@posix
def test_partial_files_of_processes_that_ended_are_removed_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    code = "with written_whole(Path(sys.argv[1])) as p:\n p.write_text('half'); print(1, flush=True); input()"
    killed, alive = process(code, path), process(code, path)
    for one in (killed, alive):
        assert one.stdout is not None and one.stdout.readline() == "1\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    others = [tmp_path / name for name in ("a.partial", ".a.txt.mine.partial", ".b.txt.1.partial")]
    for other in others:
        other.write_text("mine")
    assert (tmp_path / f".a.txt.{killed.pid}.partial").exists()
    with written_whole(path) as partial:
        partial.write_text("all")
    expected = {path, *others, tmp_path / f".a.txt.{alive.pid}.partial"}
    assert set(tmp_path.iterdir()) == expected
    alive.communicate("\n")
    assert path.read_text() == "half" and set(tmp_path.iterdir()) == {path, *others}


@posix
def test_a_partial_file_that_is_written_elsewhere_under_our_number_stays(tmp_path: Path) -> None:
    """As of a container, which numbers its processes anew, on the same disk."""
    import fcntl

    other = tmp_path / f".a.txt.{os.getpid()}.partial"
    with other.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with written_whole(tmp_path / "a.txt") as partial:
            partial.write_text("all")
        assert other.exists()


@posix
def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "n.ckpt"
    code = "with locked(Path(sys.argv[1]), 'a training'):\n print(1, flush=True); input()"
    holder = process(code, path)
    assert holder.stdout is not None and holder.stdout.readline() == "1\n"
    with (
        pytest.raises(HeldError, match=rf"n\.ckpt is in use: process {holder.pid} on "),
        locked(path, ""),
    ):
        pass
    holder.kill()
    holder.communicate()
    with locked(path, "a training"), locked(path, "its part"):
        assert [file.name for file in tmp_path.iterdir()] == [".n.ckpt.lock"]
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_lock_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / ".n.ckpt.lock").write_text("mine")
    with pytest.raises(HeldError, match="no lock"), locked(tmp_path / "n.ckpt", ""):
        pass
    assert (tmp_path / ".n.ckpt.lock").read_text() == "mine"


class Msvcrt:
    """Stands in for the module of Windows: one byte of an open file is locked, at the place where the file stands."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.locked: set[tuple[int, int]] = set()

    def locking(self, descriptor: int, mode: int, num_bytes: int) -> None:
        assert (mode, num_bytes) == (self.LK_NBLCK, 1)
        place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        if place in self.locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        self.locked.add(place)


def test_a_lock_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies far behind the text that says who holds it, which others can read so."""
    msvcrt = Msvcrt()
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    monkeypatch.setattr(writing, "fcntl", None)
    path = tmp_path / "n.ckpt"
    with locked(path, "a training"):
        assert [place for _, place in msvcrt.locked] == [2**30]
        monkeypatch.setattr(writing, "_held", set())  # as another process sees it
        with (
            pytest.raises(HeldError, match=rf"n.ckpt is in use: process {os.getpid()} on"),
            locked(path, "a training"),
        ):
            pytest.fail("it is held twice")
        with written_whole(path) as partial:
            partial.write_text("x")
    assert path.read_text() == "x"
