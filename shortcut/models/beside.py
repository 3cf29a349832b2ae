"""The config.json beside a published file: what it says that no tensor shows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..guard import read_json, shown


def stated_beside(file: Path, name: str = "config.json") -> dict[str, Any]:
    """Return the contents of a JSON file, whose place is said from the published `file`; empty if there is none.

    Raises:
        ValueError: it cannot be read.
    """
    description = file.parent / name
    if not description.is_file():
        return {}
    try:
        stated = read_json(description)
    except ValueError as error:
        raise ValueError(
            f"{description} beside it cannot be used ({error}). Download it again."
        ) from error
    if not isinstance(stated, dict):
        raise ValueError(f"{description} beside it is no JSON object. Download it again.")
    return stated


def check_expected(
    file: Path,
    stated: Mapping[str, Any],
    expected: Mapping[str, Collection[Any]],
    what: str,
    advice: str,
) -> None:
    """Raise ValueError if something stated is not as expected; what is not stated is.

    Args:
        expected: name -> values, the first of them the usual one.
        what: the network that the values are of.
    """
    for name, values in expected.items():
        if name in stated and stated[name] not in values:
            raise ValueError(
                f"{file.with_name('config.json')} beside it says {name} = {shown(stated[name])}, expected "
                f"{next(iter(values))!r}: it is another network than {what}. {advice}"
            )
