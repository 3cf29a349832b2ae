"""Pickles of PyTorch files, looked at before they are read: what one stands for may not be much more than the file.

A pickle is a program for a stack machine with a memo. A few bytes of it can stand for lists that hold each other a
trillion times, whose hash or text has no end, or ask for memory that the file does not fill. The machine is followed
here with sizes in place of values, as far as torch's own reader of weights goes.

Source: the opcodes of Python's pickletools, and torch/_weights_only_unpickler.py, which refuses all others.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from enum import Enum, auto
from typing import Any, BinaryIO, NamedTuple, cast

from .guard import MAX_NESTING, shown

MAX_SIZE = 2**26  # items and characters that a pickle stands for, by using some more than once
MAX_OPERATIONS = 2**19  # Lumina-DiMOO's head takes 5 thousand
IN_LEGACY = (
    5  # pickles in a file that is no archive: marks, the object itself, keys of its storages
)

LENGTHS = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Sort(Enum):
    """What may be done with a value."""

    FIXED = auto()
    MUTABLE = auto()  # it may grow after it was used
    MAKER = auto()  # a class whose values are mutable


class TooLong(Exception):
    """A text or a number is said to be longer than the file."""


class Value(NamedTuple):
    """What a value on the stack amounts to."""

    size: int = 1
    depth: int = 0  # of containers in it
    number: int = 0  # the largest in it, without its sign
    sort: Sort = Sort.FIXED


def check(file: BinaryIO, num_bytes: int, num_pickles: int = 1) -> None:
    """Check the pickles that begin where `file` stands. What torch refuses anyway is left to it.

    Args:
        num_bytes: of the whole file.

    Raises:
        ValueError: one stands for too much.
    """
    for _ in range(num_pickles):
        machine = Machine(num_bytes)
        try:
            for number, (name, argument) in enumerate(_operations(file, num_bytes)):
                if number == MAX_OPERATIONS:
                    raise ValueError(f"it has more than {MAX_OPERATIONS} operations")
                machine.run(name, argument)
        except LookupError:  # an empty stack, or another operation
            return
        except TooLong as error:
            raise ValueError("it asks for more than the file has bytes") from error


class _Within:
    """A file that is not asked for more than it has: the memory for that would be taken first."""

    def __init__(self, file: BinaryIO, num_bytes: int):
        self.file, self.num_bytes, self.readline = file, num_bytes, file.readline

    def read(self, count: int) -> bytes:
        if count > self.num_bytes:
            raise TooLong
        return self.file.read(count)


def _operations(file: BinaryIO, num_bytes: int) -> Iterator[tuple[str, Any]]:
    try:
        for operation, argument, _ in pickletools.genops(cast(Any, _Within(file, num_bytes))):
            yield operation.name, argument
    except (ValueError, RecursionError) as error:
        raise LookupError from error


class Machine:
    """Follow a pickle."""

    def __init__(self, num_bytes: int):
        self.num_bytes, self.total = num_bytes, 0
        self.stack: list[Value] = []
        self.outer: list[list[Value]] = []  # stacks below the marks
        self.memo: dict[int, Value] = {}

    def run(self, name: str, argument: Any) -> None:
        """Do one operation.

        Raises:
            ValueError: it goes too far.
            LookupError: torch knows no such operation, or the stack is empty.
        """
        stack = self.stack
        match name:
            case "PROTO" | "STOP":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "BINFLOAT":
                stack.append(Value())
            case "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(Value(number=abs(argument)))
            case "BINUNICODE" | "SHORT_BINSTRING":
                stack.append(Value(size=1 + len(argument)))
            case "GLOBAL":
                stack.append(Value(sort=Sort.FIXED if argument.startswith("torch") else Sort.MAKER))
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                stack.append(Value(sort=Sort.MUTABLE))
            case "MARK":
                self.outer.append(stack)
                self.stack = []
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._hold(Value(), self._pop(LENGTHS[name]))
            case "TUPLE":
                self._hold(Value(), self._pop_mark())
            case "APPEND" | "BUILD" | "SETITEM":
                items = self._pop(2 if name == "SETITEM" else 1)
                self._hold(self.stack.pop()._replace(sort=Sort.MUTABLE), items)
            case "APPENDS" | "SETITEMS":
                items = self._pop_mark()
                self._hold(self.stack.pop()._replace(sort=Sort.MUTABLE), items)
            case "REDUCE" | "NEWOBJ":
                maker, arguments = self._pop(2)
                self._check_number(arguments)
                is_mutable = maker.sort is not Sort.FIXED
                self.stack.append(
                    arguments._replace(sort=Sort.MUTABLE if is_mutable else Sort.FIXED)
                )
            case "BINPERSID":
                self._check_number(stack[-1])
                stack[-1] = Value()
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                self._get(self.memo[argument])
            case _:
                raise LookupError(name)

    def _get(self, value: Value) -> None:
        """Put a value of the memo on the stack."""
        self.total += value.size
        if value.sort is Sort.MUTABLE:
            raise ValueError("it uses a list or a dict more than once")
        if self.total > MAX_SIZE:
            raise ValueError(f"it stands for more than {MAX_SIZE} values")
        self.stack.append(value)

    def _pop(self, count: int) -> list[Value]:
        if len(self.stack) < count:
            raise LookupError("the stack is empty")
        at = len(self.stack) - count
        items, self.stack[at:] = self.stack[at:], []
        return items

    def _pop_mark(self) -> list[Value]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _hold(self, container: Value, items: list[Value]) -> None:
        """Put a container that holds the items too on the stack."""
        depth = max([container.depth, *(1 + item.depth for item in items)])
        if depth > MAX_NESTING:
            raise ValueError(f"it is nested more than {MAX_NESTING} levels deep")
        is_mutable = any(item.sort is Sort.MUTABLE for item in items)
        self.stack.append(
            Value(
                size=container.size + sum(item.size for item in items),
                depth=depth,
                number=max([container.number, *(item.number for item in items)]),
                sort=Sort.MUTABLE if is_mutable else container.sort,
            )
        )

    def _check_number(self, value: Value) -> None:
        """Raise ValueError if what is asked for would be larger than the file."""
        if value.number > self.num_bytes:
            raise ValueError(
                f"it asks for {shown(value.number)} values, more than the file has bytes"
            )
