"""What a file makes a library raise becomes one error that names the file; numbers and texts of files have bounds.

Everything that reads a file calls its library inside `guarded` or `naming`, so callers meet ValueError and OSError
alone. KeyboardInterrupt, SystemExit and a host's interrupt, which are no `Exception`, pass; the panics of libraries in
Rust are none either, and are caught.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_STEPS = 10_000  # of a run
MAX_SIDE = 1024  # rows or columns of codes
MAX_IMAGES = 4096  # of a run
MAX_DRAWS = 2**30  # random numbers of a run: steps x tokens x images
MAX_SEED = 2**64 - 1
MAX_ITERATIONS = 10**9  # of a training
MAX_WEIGHT = 1e6  # of guidance, and of temperatures
MIN_TEMPERATURE = 1e-6  # above 0: logits divided by less are no numbers any more
MAX_PIXELS = 2**26  # of a picture: 8192 x 8192
MAX_DIGITS = 20  # of a whole number in a file: 2**64 has so many
MAX_NESTING = 32  # of lists and objects in each other
MAX_YAML = 2**16  # bytes of a YAML file, whose reader is slow
MAX_TEXT = 2**20  # bytes of a description
PANIC = "PanicException"  # of pyo3: the class cannot be imported
SHOWN = 200  # characters of what a file holds
MAX_MESSAGE = 1500  # characters of an error as a command shows it


@contextmanager
def guarded(path: str | Path, what: str, advice: str) -> Iterator[None]:
    """Turn any error of a library that reads `path` into one that says "PATH WHAT (error). ADVICE".

    Raises:
        OSError: the system refuses something, such as memory or access: `path` is not to blame.
        ValueError: anything else.
    """
    try:
        yield
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{path!s} has a name that is not UTF-8, which a library cannot open. Rename it."
        ) from error
    except BaseException as error:
        if not _is_caught(error):
            raise
        if isinstance(error, OSError) and error.errno is not None:  # else a library's own
            raise named(error, path) from error
        raise ValueError(f"{path} {what} ({said(error)}). {advice}") from error


@contextmanager
def naming(path: str | Path | None) -> Iterator[None]:
    """Put the file in front of an error's text. What only damaged content can cause becomes a ValueError."""
    name = path or "this checkpoint"
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(f"{name}") else f"{name}: {text}") from error
    except (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"{name}: it is damaged ({said(error)}). Download or copy it again."
        ) from error


def named(error: OSError, path: str | Path) -> OSError:
    """Return the error with the file's name in it."""
    if str(path) in str(error):
        return error
    if error.errno is None:
        return OSError(f"{path}: {said(error)}")
    return OSError(error.errno, error.strerror, str(path))  # which makes the right subclass


def _is_caught(error: BaseException) -> bool:
    return isinstance(error, Exception) or type(error).__name__ == PANIC


def said(error: BaseException) -> str:
    """Return the first line of an error, with its type where the text alone may say little."""
    try:
        lines = str(error).strip().splitlines()
    except ValueError:  # a number that is too long to print
        lines = []
    first = lines[0][:SHOWN] if lines else ""
    name = type(error).__name__
    if not first:
        return name
    return first if type(error) is ValueError else f"{name}: {first}"


def shown(value: Any) -> str:
    """Return a value of a file for a message, however large it is."""
    try:
        text = reprlib.repr(value)
    except Exception:  # such as a number that is too long to print
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def message_of(error: object, limit: int = MAX_MESSAGE) -> str:
    """Return a text for people: without what would steer a terminal, its middle left out if it is long."""
    text = "".join(c if c.isprintable() or c == "\n" else f"{c!r}"[1:-1] for c in str(error))
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}"


def read_text(path: Path, limit: int = MAX_TEXT) -> str:
    """Return the text of a small file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file, is larger than `limit` bytes, or is not UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file.")
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise named(error, path) from error
    if len(content) > limit:
        raise ValueError(f"{path} has more than {limit} bytes, the most that such a file may have.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}).") from error


def read_json(path: Path, limit: int = MAX_TEXT) -> Any:
    """Return the JSON in a small file.

    Raises:
        OSError, ValueError: as `read_text` and `parse_json`.
    """
    text = read_text(path, limit)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_yaml(path: Path) -> Any:
    """Return the YAML in a small file, which may have no aliases: a few can stand for any amount of data.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file.
    """
    text = read_text(path, MAX_YAML)
    import yaml  # only published VQGANs need it

    depth = 0
    with guarded(path, "is not usable YAML", "Download it again."):
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"it has the alias *{event.anchor[:40]}")
            if depth > MAX_NESTING:
                raise ValueError(f"it is nested more than {MAX_NESTING} levels deep")
        return yaml.safe_load(text)


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is none, nests deeper than MAX_NESTING, or has a number that no one means.
    """
    try:
        value = json.loads(text, parse_int=_whole, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply.") from error
    except ValueError as error:
        raise ValueError(f"it is not JSON ({said(error)}).") from error
    check_nesting(value)
    return value


def check_nesting(value: Any) -> None:
    """Raise ValueError if lists and mappings in `value` nest deeper than MAX_NESTING."""
    level = [value]
    for _ in range(MAX_NESTING + 1):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise ValueError(f"it is nested too deeply: more than {MAX_NESTING} levels.")


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"the number {digits[:9]}... has {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    """Raise ValueError if `value` is no whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {shown(value)}.")
    if value > high:
        raise ValueError(f"{name} must be at most {high}, got {shown(value)}.")


def check_temperature(name: str, value: Any) -> None:
    """Raise ValueError if `value` is no temperature that logits can be divided by, nor 0."""
    check_number(name, value, 0, MAX_WEIGHT)
    if 0 < value < MIN_TEMPERATURE:
        raise ValueError(
            f"{name} must be 0, which takes the most likely, or at least {MIN_TEMPERATURE:g}, got {shown(value)}."
        )


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raise ValueError if `value` is no number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {shown(value)}.")
    if not low <= value < math.inf:
        raise ValueError(f"{name} must be a finite number of at least {low:g}, got {shown(value)}.")
    if value > high:
        raise ValueError(f"{name} must be at most {high:g}, got {shown(value)}.")
