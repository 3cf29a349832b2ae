"""Text files that people write: UTF-8 with or without a mark, or UTF-16 with one, as Windows' programs save them."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

# What a file begins with -> how it goes on. Longer marks first: that of UTF-32 begins as one of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "",
    codecs.BOM_UTF32_BE: "",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
ADVICE = "Save it as UTF-8."


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, without their ends.

    Not splitlines(): a JSON text may hold U+2028 and the like as they are.

    Raises:
        OSError: it cannot be read.
        ValueError: it is in another encoding.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there or is not a file. Give a text file.")
    content = path.read_bytes()
    mark, encoding = next(
        ((mark, name) for mark, name in MARKS.items() if content.startswith(mark)), (b"", "utf-8")
    )
    if not encoding:
        raise ValueError(f"{path}, line 1: it is in UTF-32. {ADVICE}")
    content = content[len(mark) :]
    if encoding == "utf-8" and (place := content.find(b"\0")) >= 0:
        number = _lines(content[:place].decode(errors="replace"))
        raise ValueError(
            f"{path}, line {number}: it holds a zero byte, as UTF-16 without a mark does. {ADVICE}"
        )
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.upper()[:6].rstrip("-")  # without the order of bytes
        number = _lines(content[: error.start].decode(encoding, "replace"))
        raise ValueError(
            f"{path}, line {number}: byte {content[error.start]:#04x} is not {name}. {ADVICE}"
        ) from error
    if "\0" in text:
        number = _lines(text[: text.index("\0")])
        raise ValueError(f"{path}, line {number}: it holds a zero character. Remove it.")
    return re.split("\r\n|\r|\n", text)


def _lines(text: str) -> int:
    return len(re.split("\r\n|\r|\n", text))
