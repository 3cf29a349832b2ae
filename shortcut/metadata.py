"""What one of our files says about itself, in the metadata of its safetensors.

Each field is one entry "shortcut.FIELD" in JSON; beside them stand "shortcut.format" and
"shortcut.version", plain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

PREFIX = "shortcut."
FORMAT, VERSION = PREFIX + "format", PREFIX + "version"


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a file says besides its tensors. A published file says nothing: all empty."""

    config: Mapping[str, Any] = field(default_factory=dict)  # of the network
    title: str = ""
    class_names: tuple[str, ...] = ()  # of a class-conditional model, in the order of the ids
    defaults: Mapping[str, Any] = field(default_factory=dict)  # sampler settings that suit a model
    grid: tuple[int, ...] = ()  # of a model of any size: rows and columns that it was trained on
    model_fingerprint: str = ""  # of the model that a head belongs to
    code_colours: str = ""  # of a VQ model, for previews: six hex digits for each code, RRGGBB
    trained: Mapping[str, Any] = field(default_factory=dict)  # how: steps, schedule, data, figures

    @classmethod
    def parse(cls, strings: Mapping[str, str]) -> Metadata:
        """From a file's metadata. Raises ValueError if an entry does not hold what it should."""
        names = [item.name for item in fields(cls) if PREFIX + item.name in strings]
        return cls(**{name: _parse(name, strings[PREFIX + name]) for name in names})

    def dump(self) -> dict[str, str]:
        """The inverse of `parse`."""
        return {PREFIX + k: json.dumps(v, sort_keys=True) for k, v in asdict(self).items() if v}


STRINGS = ("title", "model_fingerprint", "code_colours")
ITEMS = {"class_names": str, "grid": int}  # of lists
TYPES = {**dict.fromkeys(STRINGS, str), **dict.fromkeys(ITEMS, list)}  # the others: dict


def _parse(name: str, text: str) -> Any:
    expected = TYPES.get(name, dict)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its metadata {PREFIX}{name} are not JSON ({error}).") from error
    is_right = isinstance(value, expected)
    if expected is list:
        is_right = is_right and all(isinstance(item, ITEMS[name]) for item in value)
    if not is_right:
        raise ValueError(
            f"its metadata {PREFIX}{name} are {text[:80]}, expected a {expected.__name__}."
        )
    return tuple(value) if expected is list else value
