"""Run one case in a forked child with limits of time and memory, and say what became of it.

An audit hook of the child records and stops what no file may make a program do: start others, connect, write outside
the case's folder, run code that is not installed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

CRASH, HANG, CODE, TRACEBACK, MEMORY, NAMELESS = (
    "crash",
    "hang",
    "code run",
    "traceback",
    "memory",
    "no file named",
)
FAULTS = (CRASH, HANG, CODE, TRACEBACK, MEMORY, NAMELESS)
ROOT = Path(__file__).resolve().parents[2]
GB = 10**9
# What C++, Rust and PyTorch say when an allocation fails.
EXHAUSTED = re.compile(
    r"MemoryError|bad_alloc|memory allocation of|allocate memory|device is out of memory"
)
STARTS = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "pty.spawn",
    "pickle.find_class",  # the unpickler that looks up anything
}
CONNECTS = {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto"}
# Event -> how many of its arguments are paths that it changes.
CHANGES = {
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.chmod": 1,
    "os.chown": 1,
    "os.truncate": 1,
    "os.utime": 1,
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True, slots=True)
class Limits:
    """What a case may take."""

    seconds: float = 20.0  # of computing; waiting is limited to three times as long
    gigabytes: float = 3.0  # of address space, beside what the program takes anyway


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a case."""

    fault: str  # one of FAULTS; "" = none
    status: int | None  # what the action returned: 0 accepted, 1 refused, 2 wrong usage
    message: str  # the end of what it said
    signature: str = ""  # equal for cases with the same cause


def run(action: Callable[[], int], folder: Path, names: Collection[str], limits: Limits) -> Verdict:
    """Run `action` in a child.

    Args:
        action: returns an exit status.
        folder: the only one that it may write to.
        names: a refusal must hold one of them; empty = none is needed.
    """
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as told:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _in_child(action, folder, limits, said.fileno(), told.fileno())
        is_late, code = _wait(child, limits.seconds * 3)
        said.seek(0)
        told.seek(0)
        text = said.read()[-100_000:].decode(errors="replace")
        return _judged(text, told.read(), is_late, code, names)


def _wait(child: int, seconds: float) -> tuple[bool, int]:
    """Return whether the child was killed for being late, and its exit code."""
    end, is_late, pause = time.monotonic() + seconds, False, 0.001
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return is_late, os.waitstatus_to_exitcode(status)
        if time.monotonic() > end and not is_late:
            is_late = True
            os.kill(child, signal.SIGKILL)
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def _judged(text: str, told: bytes, is_late: bool, code: int, names: Collection[str]) -> Verdict:
    report: dict[str, Any] = json.loads(told) if told else {}
    end = "\n".join(text.strip().splitlines()[-12:])[-2000:]
    if is_late or code == -signal.SIGXCPU:
        return Verdict(HANG, None, end, HANG)
    if events := report.get("events"):
        return Verdict(CODE, report.get("status"), f"{end}\n{events}", events[0].split(" ")[0])
    if not report:
        fault = MEMORY if EXHAUSTED.search(text) else CRASH
        name = f"signal {-code}" if code < 0 else f"status {code}"
        return Verdict(fault, None, f"{end}\n{name}", f"{name} {_shape(end)}")
    status, error = report["status"], report["error"]
    if EXHAUSTED.search(error or text):
        return Verdict(MEMORY, status, error or end, _frame(error) or _shape(end))
    if error:
        return Verdict(
            TRACEBACK, status, error, f"{error.strip().splitlines()[-1][:60]} {_frame(error)}"
        )
    if "Traceback (most recent call last)" in text:
        return Verdict(TRACEBACK, status, end, _frame(text))
    if status == 1 and names and not any(name in text for name in names):
        return Verdict(NAMELESS, status, end, _shape(end))
    return Verdict("", status, end)


def _shape(text: str) -> str:
    """Return the last line of a message without its numbers and quotes."""
    line = (text.splitlines() or [""])[-1]
    return re.sub(r"'[^']*'|\d+", "*", line)[:80]


def _frame(text: str) -> str:
    """Return the last line of this project in a traceback."""
    found = re.findall(rf'File "{re.escape(str(ROOT))}/([^"]+)", line (\d+)', text)
    own = [f"{path}:{line}" for path, line in found if not path.startswith("experiments/")]
    return own[-1] if own else ""


def _in_child(
    action: Callable[[], int], folder: Path, limits: Limits, said: int, told: int
) -> NoReturn:
    """Run the action and write what became of it. Ends the process."""
    events: list[str] = []
    report: dict[str, Any] = {"status": None, "error": "", "events": events}
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = _stream(1), _stream(2)
        sys.dont_write_bytecode = True
        # Where PyTorch's optimizers make a folder, and where temporary files go.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.tempdir = str(folder)
        _limit(limits)
        sys.addaudithook(_hook(folder, events))
        try:
            report["status"] = action()
        except SystemExit as error:
            report["status"] = error.code if isinstance(error.code, int) else 1
        except BaseException:  # a panic of Rust is no Exception
            report["error"] = traceback.format_exc()[-8000:]
        sys.stdout.flush()
        sys.stderr.flush()
        report["events"] = events[:20]
        os.write(told, json.dumps(report).encode())
        os._exit(0)
    finally:
        os._exit(99)


def _stream(descriptor: int) -> TextIO:
    return os.fdopen(descriptor, "w", 1, encoding="utf-8", errors="replace", closefd=False)


def _limit(limits: Limits) -> None:
    import resource  # not there on Windows, where the other commands run all the same

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = used + int(limits.gigabytes * GB)
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    spent = time.process_time()
    seconds = int(spent + limits.seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (GB, GB))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)


def _hook(folder: Path, events: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that records and stops what a file must not cause."""
    inside = os.path.realpath(folder)
    is_busy = False

    def is_outside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # a descriptor
        real = os.path.realpath(os.fsdecode(path))
        return real != os.devnull and os.path.commonpath([real, inside]) != inside

    def found(event: str, arguments: tuple[Any, ...]) -> bool:
        if event in STARTS or event in CONNECTS:
            return True
        if event == "open":
            return bool((arguments[2] or 0) & WRITING) and is_outside(arguments[0])
        if event in CHANGES:
            return any(map(is_outside, arguments[: CHANGES[event]]))
        if event == "exec":
            return not _is_installed(arguments[0].co_filename, inside)
        return event == "ctypes.dlopen" and str(arguments[0]).startswith(inside)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal is_busy
        if is_busy:
            return
        is_busy = True
        try:
            if found(event, arguments):
                events.append(f"{event} {str(arguments)[:300]}")
                raise PermissionError(f"{event} {str(arguments)[:100]} is not allowed")
        finally:
            is_busy = False

    return hook


def _is_installed(file: str, folder: str) -> bool:
    """Return whether code belongs to an installed module, or is what the standard library makes of one."""
    if not file.startswith("<"):
        return os.path.isabs(file) and not file.startswith(folder)
    frame, makers = sys._getframe(), ("dataclasses", "collections", "importlib._bootstrap", "attr")
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(makers):
            return True
        frame = frame.f_back
    return False
