"""Files written whole or not at all, places tried before the work, and locks that end with their process.

A file is written beside its place as .NAME.PID.partial, on which a lock is held, and then takes its place. Partial
files of processes that ended are removed by the next one that writes the same file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LONGEST = 255  # bytes, or UTF-16 units, of a name on the usual file systems
PROBE = b"\0" * 4096  # is written and removed to see whether there is room
FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
# Source: learn.microsoft.com/windows/win32/fileio/naming-a-file.
RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.I)
# Of a file system that does not know a request, rather than of one that fails.
UNKNOWN = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EPERM}
# In what torch and safetensors raise where a file cannot be written, which are no OSErrors.
LIBRARIES = re.compile(r"unexpected pos \d|PytorchStreamWriter|\bos error \d")
LOCK_START = '{"pid":'
BUSY = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}


class WriteError(OSError):
    """A file cannot be written; `reason` says why without naming it."""

    def __init__(self, path: Path, reason: str):
        super().__init__(
            f"{path} could not be written ({reason}). Free some room there, or allow writing."
        )
        self.reason = reason


class HeldError(OSError):
    """Another process holds a lock."""


def check_name(name: str) -> None:
    """Raise ValueError if some file system cannot hold a file of that name: the rules are the same on every system."""
    problem = None
    if name in ("", ".", ".."):
        problem = "is no name of a file"
    elif found := FORBIDDEN.search(name):
        problem = f"has {found.group()!r}"
    elif RESERVED.fullmatch(name):
        problem = "is the name of a device on Windows"
    elif name[-1] in ". ":
        problem = "ends with a dot or a space, which Windows drops"
    elif re.search("[\ud800-\udfff]", name):
        problem = "has half of a character"
    elif max(len(name.encode()), len(name.encode("utf-16-le")) // 2) > LONGEST:
        problem = f"has {len(name.encode())} bytes, more than {LONGEST}"
    if problem:
        raise ValueError(
            f"the name {name[:80]!r} {problem}: not every system can hold such a file. Give another name."
        )


def check_writable(path: Path) -> None:
    """Try whether a file can be written to `path`, its folders made if need be. Nothing is left behind.

    Raises:
        ValueError: no file can have that name on every system.
        OSError: nothing can be written there.
    """
    there = path.absolute().parent
    new = [path.name]  # names that do not exist yet
    while not os.path.lexists(there) and there != there.parent:
        if there.name != "..":
            new.append(there.name)
        there = there.parent
    for name in new:
        check_name(name)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Give the name of a file in it.")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is a device or a pipe, not a file. Give another name.")
    if not there.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {there} is a file, not a folder.")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"{path} cannot be written: {there} does not allow it.")
    probe = there / _partial_name(path.name, "try")
    try:
        for name in new:
            with contextlib.suppress(
                FileNotFoundError
            ):  # other errors: the file system takes no such name
                os.lstat(there / name)
        try:
            probe.write_bytes(PROBE)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(path, _reason(error)) from error


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to.

    It takes the place of `path` when the block ends, and vanishes when it ends by an error.

    Raises:
        WriteError: it cannot be written, such as on a full disk.
    """
    path = Path(path)
    partial = path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_partials(path)
        partial = _new_partial(path)
        try:
            with partial.open("xb") as held:
                mode = partial.stat().st_mode
                with contextlib.suppress(OSError):
                    _lock(held)
                yield partial
                _to_disk(partial)
            with contextlib.suppress(OSError):
                partial.chmod(mode)  # some writers make files that only their owner can read
            os.replace(partial, path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        if os.name == "posix":
            _to_disk(path.parent)
    except OSError as error:
        if isinstance(error, WriteError) or not _is_of(error, partial, path):
            raise  # it is about another file, such as one that is read meanwhile
        raise WriteError(path, _reason(error)) from error
    except Exception as error:
        if LIBRARIES.search(str(error)):
            raise WriteError(path, str(error).splitlines()[0]) from error
        raise


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock on `path`, by a file beside it, until the block or the process ends, however that ends.

    A block inside another of the same process holds it too. Where no file can be locked, nothing is.

    Args:
        what: is done with it, for the message of another process.

    Raises:
        HeldError: another process holds it.
    """
    path = Path(os.path.realpath(path))
    if path in _held:
        yield
        return
    file_path = path.with_name(f".{_fitting(path.name, 16)}.lock")
    if (file := _locked_file(file_path, path, what)) is None:
        yield
        return
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        with contextlib.suppress(OSError):
            if (
                os.name == "posix"
            ):  # before it is free: else another process may hold what is removed
                file_path.unlink(missing_ok=True)
        file.close()
        if os.name != "posix":
            with contextlib.suppress(OSError):
                file_path.unlink(missing_ok=True)


_held: set[Path] = set()  # by this process


def _locked_file(file_path: Path, path: Path, what: str) -> IO[Any] | None:
    """Return an open file with a lock; None where none can be made."""
    while True:
        try:
            file_path.parent.mkdir(parents=True, exist_ok=True)
            file = open(file_path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
        except OSError:
            return None  # what cannot be written here fails with its own message
        try:
            _lock(file)
        except OSError as error:
            if error.errno not in BUSY:
                file.close()
                return None
            holder = _holder(file)
            file.close()
            raise HeldError(
                f"{path} is in use: {holder} is at work on it ({what}). Wait until it has ended, end it, or give "
                "another name."
            ) from error
        try:
            is_there = os.name != "posix" or os.path.samestat(
                os.fstat(file.fileno()), file_path.stat()
            )
        except OSError:
            is_there = False
        file.seek(0)
        if (start := file.read(len(LOCK_START))) not in ("", LOCK_START):
            file.close()
            raise HeldError(
                f"{file_path} is no lock of a training, but {start!r}... . Give another name."
            )
        if not is_there:  # the one before removed it as we came
            file.close()
            continue
        with contextlib.suppress(OSError):
            file.truncate(0)
            about = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": time.strftime("%F %T"),
            }
            file.write(json.dumps(about))
            file.flush()
        return file


def _holder(file: IO[str]) -> str:
    try:
        file.seek(0)
        about = json.loads(file.read(1000))
        return f"process {about['pid']} on {about['host']}, since {about['since']},"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"


def _lock(file: IO[Any]) -> None:
    """Lock an open file. Raises OSError of `BUSY` if another process has."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    position = file.tell()
    file.seek(2**30)  # far behind what is written: such a lock keeps others from the bytes
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    finally:
        file.seek(position)


def _partial_name(name: str, process: str) -> str:
    return f".{_fitting(name, len(process) + len('...partial'))}.{process}.partial"


def _fitting(name: str, more: int) -> str:
    """Return `name`; where it would be too long with `more` bytes around it, its beginning and a digest."""
    encoded = os.fsencode(name)
    if len(encoded) + max(more, 24) <= LONGEST:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    return f"{encoded[:100].decode(errors='ignore')}-{digest}"


def _remove_partials(path: Path) -> None:
    """Remove partial files of `path` whose processes ended."""
    before, after = _partial_name(path.name, "\0").split("\0")
    try:
        names = os.listdir(path.parent)
    except OSError:  # a folder that can be written to, but not read
        return
    for name in names:
        if not (name.startswith(before) and name.endswith(after)):
            continue
        process = name[len(before) : len(name) - len(after)]
        partial = path.with_name(name)
        if process.isdecimal() and not _is_in_use(partial, int(process)):
            with contextlib.suppress(OSError):  # on Windows, one that is open
                partial.unlink(missing_ok=True)


def _new_partial(path: Path) -> Path:
    """Return the place of a partial file that is not there yet."""
    number = os.getpid()
    while (partial := path.with_name(_partial_name(path.name, str(number)))).exists():
        number += (
            2**22
        )  # above the numbers of processes: of a process of this number elsewhere, on a shared disk
    return partial


def _is_of(error: OSError, *paths: Path) -> bool:
    """Return whether an error is about one of the files, or does not say about which."""
    return error.filename is None or str(error.filename) in map(str, paths)


def _is_in_use(partial: Path, process: int) -> bool:
    if fcntl is None:
        return False
    if process != os.getpid():
        try:
            os.kill(process, 0)
            return True
        except (ProcessLookupError, OverflowError):
            pass
        except OSError:
            return True  # another user's
    try:
        with partial.open("rb") as file:
            _lock(file)
    except OSError as error:  # a process elsewhere, on a shared disk
        return error.errno in BUSY
    return False


def _to_disk(path: Path) -> None:
    """Have what is written of a file or folder on the disk, not only in memory."""
    try:
        file = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        if path.is_dir() or error.errno in UNKNOWN:
            return
        raise


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
