"""Where the tokenizer files of a text model lie: beside its weights.

Of a published folder they are in the folder itself. One of our files X.safetensors has them in the folder X.tokenizer
beside it: they sort next to each other, so that who moves one sees the other, and two models in one folder cannot take
each other's. The file's own folder is the second place to look.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ...containers import INDEX_SUFFIX
from ...writing import written_whole
from ..tokenizer_files import DESCRIPTIONS, NEEDED


def tokenizer_folder(checkpoint: Path) -> Path:
    """Return the folder with the tokenizer of a checkpoint file.

    Raises:
        FileNotFoundError: there is none.
    """
    folders = list(dict.fromkeys((own_folder(checkpoint), checkpoint.parent)))
    for folder in folders:
        if (folder / NEEDED).is_file():
            return folder
    raise FileNotFoundError(
        f"{checkpoint} has no tokenizer: there is no {NEEDED} in {' or in '.join(map(str, folders))}. Copy "
        f"{', '.join(DESCRIPTIONS[:3])} from the published folder of the model to {folders[0]}; if you moved or "
        "renamed the weights, do the same with that folder."
    )


def own_folder(checkpoint: Path) -> Path:
    """Return where the tokenizer of a checkpoint file belongs."""
    if checkpoint.name.endswith(INDEX_SUFFIX):
        return checkpoint.parent
    return checkpoint.with_suffix(".tokenizer")


def copy_tokenizer(source: Path, checkpoint: Path) -> None:
    """Copy the tokenizer files in the folder `source` to the own folder of `checkpoint`.

    What of another tokenizer is there already goes. Only data is copied, never code.
    """
    for name in DESCRIPTIONS:
        copy = own_folder(checkpoint) / name
        if not (source / name).is_file():
            copy.unlink(missing_ok=True)
        elif not (copy.is_file() and copy.samefile(source / name)):
            with written_whole(copy) as partial:
                shutil.copyfile(source / name, partial)


def copy_tokenizer_of(model: Path, copy: Path) -> None:
    """Copy the tokenizer of the model file `model` for its copy.

    Raises:
        FileNotFoundError: it has none.
    """
    copy_tokenizer(tokenizer_folder(model), copy)


def tokenizer_or_advice(model: Path) -> dict[str, str]:
    """Return where the tokenizer of a model file is, or where it belongs."""
    try:
        return {"tokenizer": str(tokenizer_folder(model))}
    except FileNotFoundError:
        return {"tokenizer": f"missing; it belongs into {own_folder(model)}"}
