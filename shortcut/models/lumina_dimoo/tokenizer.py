"""The tokenizer files of a text model, which lie beside its weights.

Of a published folder they are in the folder itself. One of our files X.safetensors has them in the folder X.tokenizer
beside it: they sort next to each other, so that who moves one sees the other, and two models in one folder cannot take
each other's. The file's own folder is the second place to look.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ...files import written_whole
from ...shards import INDEX_SUFFIX

NEEDED = "tokenizer.json"
NAMES = (
    NEEDED,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def tokenizer_folder(checkpoint: Path) -> Path:
    """The folder with the tokenizer of a checkpoint file.

    Raises:
        FileNotFoundError: there is none.
    """
    places = list(dict.fromkeys((own_folder(checkpoint), checkpoint.parent)))
    for folder in places:
        if (folder / NEEDED).is_file():
            return folder
    raise FileNotFoundError(
        f"{checkpoint} has no tokenizer: there is no {NEEDED} in {' or in '.join(map(str, places))}. Copy "
        f"{', '.join(NAMES[:3])} from the published folder of the model to {places[0]}; if you moved or renamed the "
        "weights, do the same with that folder."
    )


def own_folder(checkpoint: Path) -> Path:
    """Where the tokenizer of a checkpoint file belongs."""
    if checkpoint.name.endswith(INDEX_SUFFIX):
        return checkpoint.parent
    return checkpoint.with_suffix(".tokenizer")


def copy_tokenizer(source: Path, checkpoint: Path) -> None:
    """Copies the tokenizer files in the folder `source` to the own folder of `checkpoint`.

    What of another tokenizer is there already goes. Only data is copied, never code.
    """
    for name in NAMES:
        copy = own_folder(checkpoint) / name
        if not (source / name).is_file():
            copy.unlink(missing_ok=True)
        elif not (copy.is_file() and copy.samefile(source / name)):
            with written_whole(copy) as partial:
                shutil.copyfile(source / name, partial)
