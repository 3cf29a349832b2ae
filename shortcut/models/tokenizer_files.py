"""Tokenizer files, checked before a library reads them; ids of tokens, checked before a network is given them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..guard import read_json, read_text, said, shown

NEEDED = "tokenizer.json"
MAX_BYTES = 2**26  # of each file; that of LLaDA has some 10 million
MAX_GROWTH = 64  # of a text in bytes, by all that is done before it is split into tokens
MAX_PARTS = 16  # normalizers, or pre-tokenizers
MAX_PATTERN = 1000  # characters
# Steps of the library and by how much each may make a text longer, in bytes. "Precompiled" may do anything.
NORMALIZERS = {
    "NFC": 3,
    "NFD": 4,
    "NFKC": 11,
    "NFKD": 11,
    "Lowercase": 2,
    "Strip": 1,
    "StripAccents": 1,
    "Nmt": 1,
    "BertNormalizer": 3,
    "ByteLevel": 2,
    "Replace": 1,
    "Prepend": 1,
}
PRE_TOKENIZERS = {
    "BertPreTokenizer": 1,
    "ByteLevel": 2,
    "CharDelimiterSplit": 1,
    "Digits": 1,
    "Metaspace": 3,
    "Punctuation": 1,
    "Split": 1,
    "UnicodeScripts": 1,
    "Whitespace": 1,
    "WhitespaceSplit": 1,
}
DESCRIPTIONS = (
    NEEDED,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
WORDS = ("vocab.json", "merges.txt")  # of tokenizers that have no tokenizer.json


def check_tokenizer_files(folder: Path) -> None:
    """Check, before a library reads them, that the tokenizer files in a folder are harmless.

    A text grows by a bounded factor, and a pattern takes at most quadratic time.

    Raises:
        OSError: one cannot be read.
        ValueError: one is too large, no JSON, or describes what may take any time or memory.
    """
    found: dict[str, Any] = {}
    for name in (*DESCRIPTIONS, *WORDS):
        if (folder / name).is_file():
            if name.endswith(".json"):
                found[name] = read_json(folder / name, MAX_BYTES)
            else:
                read_text(folder / name)
    if NEEDED not in found:
        return  # the library makes the steps itself, from the words alone
    described = found[NEEDED]
    try:
        if not isinstance(described, dict):
            raise ValueError("it is no JSON object")
        growth = math.prod(
            _growth(part, table)
            for name, table in (("normalizer", NORMALIZERS), ("pre_tokenizer", PRE_TOKENIZERS))
            for part in _parts(described.get(name))
        )
        if growth > MAX_GROWTH:
            raise ValueError(f"it may make a text more than {MAX_GROWTH} times as long")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"{folder / NEEDED} cannot be used ({said(error)}). Take the file that was published with the model."
        ) from error


def _parts(described: Any) -> list[Mapping[str, Any]]:
    """Return the normalizers or pre-tokenizers that run one after the other."""
    if described is None:
        return []
    if described["type"] != "Sequence":
        return [described]
    inner = described.get("normalizers") or described.get("pretokenizers") or []
    parts = [part for item in inner for part in _parts(item)]
    if len(parts) > MAX_PARTS:
        raise ValueError(f"it has {len(parts)} steps in a row, expected at most {MAX_PARTS}")
    return parts


def _growth(part: Mapping[str, Any], table: Mapping[str, int]) -> float:
    """Return by how much a step may make a text longer, in bytes."""
    kind = part["type"]
    if kind not in table:
        raise ValueError(f"it has a step of type {shown(kind)}, which is not known here")
    for pattern in _patterns(part):
        check_pattern(pattern)
    added = part.get("content") or part.get("prepend") or ""
    added_bytes = len(added.encode(errors="replace"))
    if kind == "Replace" and isinstance(part["pattern"], dict) and "String" in part["pattern"]:
        replaced = len(part["pattern"]["String"].encode(errors="replace"))
        return max(1, added_bytes / max(1, replaced))
    return table[kind] + added_bytes


def _patterns(part: Mapping[str, Any]) -> list[str]:
    pattern = part.get("pattern")
    return [pattern["Regex"]] if isinstance(pattern, dict) and "Regex" in pattern else []


def check_pattern(pattern: str) -> None:
    """Raise ValueError if a regular expression may take more than quadratic time.

    It repeats no group, and what stands between two `|` has few repetitions and choices.
    """
    plain = re.sub(r"\\[pP]\{\^?\w+\}|\\.", "x", pattern, flags=re.DOTALL)
    plain = re.sub(r"\[\^?\]?[^\]]*\]+", "x", plain)  # classes of characters
    plain = re.sub(r"\(\?(?:[=!>:]|<[=!]|[imsx]+:)", "(", plain)
    plain = re.sub(r"([*+?}])[+?]", r"\1", plain)  # possessive or lazy
    is_harmless = len(pattern) <= MAX_PATTERN and not re.search(r"\)[*+{]", plain)
    for part in _alternatives(plain):
        endless = re.findall(r"[*+]|\{\d*,\}|\{\d*,?\d\d+\}", part)
        all_repeated = re.findall(r"[*+?]|\{[\d,]*\}", part)
        choices = re.findall(r"\([^()]*\|", part)
        is_harmless &= len(endless) <= 2 and len(all_repeated) <= 4 and len(choices) <= 1
    if not is_harmless:
        raise ValueError(f"its pattern {shown(pattern)} may take any time")


def _alternatives(plain: str) -> list[str]:
    """Return what stands between the `|` of a pattern that are in no group."""
    found, depth = [""], 0
    for character in plain:
        depth += (character == "(") - (character == ")")
        if character == "|" and depth <= 0:
            found.append("")
        else:
            found[-1] += character
    return found


def check_ids(ids: Iterable[int], num_ids: int) -> None:
    """Raise ValueError if a tokenizer makes ids that a network with so many has not."""
    if (largest := max(ids, default=0)) >= num_ids:
        raise ValueError(f"it makes the id {largest}, but the model has {num_ids}")
