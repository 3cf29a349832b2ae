"""Damage bytes, JSON values, pickles and archives at random.

Every function takes a `random.Random`, so that a number makes the same input again.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

CANARY = "canary"  # the file that hostile code would make
COMMAND = f"touch {CANARY}"
RAW = "@raw:"  # a text that becomes JSON as it stands
NUMBERS = (0, -1, 1, 2, 3, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64)
FLOATS = (0.5, -0.5, 1e-320, 1e38, 1e39, 1e308, -1e308)
HOSTILE: tuple[Any, ...] = (
    *NUMBERS,
    *FLOATS,
    -(2**63),
    10**7,
    10**9,
    10**12,
    10**400,
    RAW + "NaN",
    RAW + "Infinity",
    RAW + "-Infinity",
    RAW + "1e999",
    RAW + "9" * 5000,
    RAW + "[" * 100_000 + "]" * 100_000,
    RAW + '{"a":' * 3000 + "1" + "}" * 3000,
    RAW + '"\\ud800"',
    None,
    True,
    False,
    "",
    " ",
    "x",
    "\0",
    "\u202e\u2028\x1b[31m",
    "../../x",
    "/dev/zero",
    "x" * 100_000,
    "5",
    "nan",
    [],
    {},
    [[]],
    [None],
    [0],
    [-1],
    [10**9, 10**9],
    ["x"],
    [1] * 10_000,
    {"x": 1},
    {"": None},
)


def damaged_bytes(random: Random, data: bytes) -> bytes:
    """Return `data` with one to eight places changed, cut out, repeated or added."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        at = random.randrange(len(found) + 1)
        # Headers matter most, and they come first.
        at = min(at, random.choice((64, 1024, len(found))))
        size = random.choice((1, 1, 2, 4, 8, 64, 4096))
        how = random.randrange(7)
        if how == 0 and at < len(found):
            found[at] ^= 1 << random.randrange(8)
        elif how == 1:
            found[at : at + size] = random.randbytes(min(size, 64))
        elif how == 2:
            del found[at : at + size]
        elif how == 3:
            found[at:at] = found[at : at + size] * random.choice((1, 2, 100))
        elif how == 4:
            del found[at:]
        elif how == 5:
            found[at : at + size] = random.choice((b"\xff", b"\0")) * size
        else:
            number = random.choice(NUMBERS) % 2**64
            width = random.choice((1, 2, 4, 8))
            order = random.choice(("little", "big"))
            found[at : at + width] = (number % 256**width).to_bytes(width, order)
    return bytes(found)


def damaged_json(random: Random, value: Any) -> str:
    """Return JSON of `value` with one to three places changed, removed or added."""
    root = [copy.deepcopy(value)]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        parent, key = random.choice(_places(root))
        how = random.randrange(8)
        if isinstance(parent, dict) and how == 0:
            del parent[key]
        elif isinstance(parent, dict) and how == 1:
            parent[random.choice(("", "x", key + "x", key.upper(), "__class__"))] = parent.pop(key)
        elif how == 2 and len(places := _places(root)) > 1:
            other, other_key = random.choice(places)
            parent[key] = json.loads(json.dumps(other[other_key]))
        elif isinstance(parent[key], int | float) and how < 6:
            parent[key] = random.choice(NUMBERS + FLOATS + (parent[key] + 1, -parent[key]))
        else:
            parent[key] = copy.deepcopy(random.choice(HOSTILE))
    text = to_json(root[0])
    return text if random.random() > 0.1 else _damaged_text(random, text)


def to_json(value: Any) -> str:
    """Return JSON; texts that begin with RAW stand there as they are."""
    text = json.dumps(value)
    for raw in (item for item in HOSTILE if isinstance(item, str) and item.startswith(RAW)):
        text = text.replace(json.dumps(raw), raw.removeprefix(RAW))
    return text


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    """Return (container, key) of all values in nested containers."""
    found: list[tuple[Any, Any]] = []
    pending: list[Any] = [root]
    while pending:
        container = pending.pop()
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in items:
            found.append((container, key))
            if isinstance(value, dict | list):
                pending.append(value)
    return found


def _damaged_text(random: Random, text: str) -> str:
    return damaged_bytes(random, text.encode()).decode(errors="surrogateescape")


def write_text(text: str) -> bytes:
    """Return the bytes of a damaged text."""
    return text.encode(errors="surrogateescape")


def hostile_pickle(random: Random) -> bytes:
    """Return a pickle that would run a command, fill the memory or go deep."""
    targets = (
        "os\nsystem",
        "posix\nsystem",
        "subprocess\ncall",
        "builtins\nexec",
        "builtins\neval",
    )
    kind = random.randrange(6)
    if kind < 2:
        target = random.choice(targets)
        text = f"__import__('os').system({COMMAND!r})" if "builtins" in target else COMMAND
        call = b"c" + target.encode() + b"\n(" + pickle.dumps(text, 2)[2:-1] + b"tR"
        return b"\x80\x02" + call + b"."
    if kind == 2:
        depth = random.choice((1000, 100_000, 1_000_000))
        return b"\x80\x02" + b"(" * depth + b"l" * depth + b"."
    if kind == 3:
        depth = random.choice((1000, 1_000_000))
        return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."
    if kind == 4:  # lists of lists, each twice as long
        return (
            b"\x80\x02]q\0"
            + b"".join(b"]q%c(h%ch%ce" % (i, i - 1, i - 1) for i in range(1, 60))
            + b"."
        )
    return b"\x80\x04\x8e" + (random.choice(NUMBERS) % 2**64).to_bytes(8, "little") + b"x."


def damaged_pickle(random: Random, data: bytes) -> bytes:
    """Return a pickle with opcodes removed, doubled, swapped or with other arguments."""
    if random.random() < 0.2:
        return hostile_pickle(random)
    if random.random() < 0.2:
        return damaged_bytes(random, data)
    try:
        places = [at for _, _, at in pickletools.genops(data) if at is not None] + [len(data)]
    except ValueError:
        return damaged_bytes(random, data)
    parts = [data[start:end] for start, end in pairwise(places)]
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(parts))
        how = random.randrange(6)
        if how == 0:
            del parts[at]
        elif how == 1:
            parts.insert(at, random.choice(parts))
        elif how == 2:
            parts[at] = random.choice(parts)
        elif how == 3:
            parts.insert(at, hostile_pickle(random)[2:-1])
        elif how == 4:
            ints = [i for i, part in enumerate(parts) if part[:1] in (b"K", b"M", b"J")]
            number = random.choice(NUMBERS)
            parts[random.choice(ints or [at])] = pickle.dumps(number, 2)[2:-1]
        else:
            value = random.choice([item for item in HOSTILE if item is not RAW])
            parts[at] = pickle.dumps(value, 2)[2:-1]
    return b"".join(parts)


def damaged_zip(random: Random, data: bytes) -> bytes:
    """Return a PyTorch archive with a damaged pickle, damaged members, or damaged as a whole."""
    if random.random() < 0.3:
        return damaged_bytes(random, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {item.filename: archive.read(item) for item in archive.infolist()}
    kind, compression = random.randrange(8), zipfile.ZIP_STORED
    names = list(members)
    pickled = next(name for name in names if name.endswith("data.pkl"))
    if kind < 4:
        members[pickled] = damaged_pickle(random, members[pickled])
    elif kind == 4:
        del members[random.choice(names)]
    elif kind == 5:
        name = random.choice(names)
        members[name] = damaged_bytes(random, members[name])
    elif kind == 6:  # much larger when read than in the file
        compression = zipfile.ZIP_DEFLATED
        members[random.choice(names)] = bytes(100_000_000)
    else:
        root = names[0].split("/")[0]
        members[random.choice(("/x", "../x", f"{root}/../../x", f"{root}/x.py"))] = b"x = 1"
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return written.getvalue()


def damaged_safetensors(random: Random, data: bytes) -> bytes:
    """Return a safetensors file with a damaged header, or damaged as a whole."""
    if random.random() < 0.3:
        return damaged_bytes(random, data)
    size = int.from_bytes(data[:8], "little")
    return with_header(data, damaged_json(random, json.loads(data[8 : 8 + size])))


def with_header(data: bytes, text: str) -> bytes:
    """Return a safetensors file with another header."""
    size = int.from_bytes(data[:8], "little")
    header = write_text(text)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def damaged_metadata(random: Random, data: bytes, entries: Callable[[str], bool]) -> bytes:
    """Return a safetensors file of ours with one entry of its metadata damaged, of those that `entries` takes."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = header["__metadata__"]
    name = random.choice([name for name in metadata if entries(name)])
    try:
        metadata[name] = damaged_json(random, json.loads(metadata[name]))
    except ValueError:  # the layout's name is plain text
        metadata[name] = random.choice(("", "x", "1", "maskgit-vqgan", "lumina-dimoo"))
    return with_header(data, json.dumps(header))
