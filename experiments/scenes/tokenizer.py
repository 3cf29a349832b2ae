"""Make the tokenizer of the shipped text model: the published layout, with the words of the scenes.

Words and the marks , . : are tokens, in lower case; other marks are left out, and a word that is not known is one
token, `<unk>`: any text has ids.
The special ids stand at the published offsets from the end of the text ids (`transformer.SPECIAL_IDS`), the system
prompts in free ids between them, each as one token: they stand in every prompt. What is left over is reserved.

The folder is one of transformers' fast tokenizers; reading it needs no code from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shortcut.models.lumina_dimoo.prompts import LEARNED_WORDS, TASKS
from shortcut.models.lumina_dimoo.transformer import SPECIAL_IDS
from shortcut.writing import written_whole

NUM_TEXT_IDS = 640
UNKNOWN, END_OF_TEXT, MASK = "<unk>", "<|endoftext|>", "<|mdm_mask|>"
WORD = r"\w+|[,.:]"
END_OF_TEXT_ID = -275  # counted from the end of the text ids, as SPECIAL_IDS
SYSTEM_PROMPTS = tuple(sorted({task.system for task in TASKS.values()}))
# Words of instructions about pictures, which no caption has.
INSTRUCTIONS = (
    *(task.user.replace("{text}", "left right back") for task in TASKS.values()),
    "add remove replace change make turn move put take delete paint keep swap set convert draw erase",
    "another more fewer both all every other that this it them its into onto from for as like of near beside behind "
    "next to then but not without there is are no background foreground colour color colours colors photo photograph "
    "painting style sky ground weather season summer spring autumn sunny cloudy clear bright dark moonlit light "
    "black brown pink purple grey gray gold golden big small large tall old new same different five six 0 5 6 "
    "ship hill hills mountain house tree bush flower lake river water sand ice road field grass rain fog",
)


def words_of(text: str) -> list[str]:
    """Return the words and marks that the tokenizer splits a text into."""
    return re.findall(WORD, text.lower())


def vocabulary(texts: Iterable[str]) -> dict[str, int]:
    """Return token -> id for all text ids: unknown first, then the words in alphabetical order.

    Raises:
        ValueError: there are more words than ids in front of the special ones.
    """
    words = sorted({word for text in texts for word in words_of(text)} - {UNKNOWN})
    special = {name: NUM_TEXT_IDS + offset for name, offset in _special_ids().items()}
    if len(words) >= min(special.values()):
        raise ValueError(
            f"{len(words)} words do not fit in front of id {min(special.values())}. Raise NUM_TEXT_IDS."
        )
    ids = {token: index for index, token in enumerate((UNKNOWN, *words))} | special
    free = iter(sorted(set(range(NUM_TEXT_IDS)) - set(ids.values()), reverse=True))
    ids |= dict(zip(SYSTEM_PROMPTS, free, strict=False))
    ids |= {f"<|reserved_token_{index}|>": index for index in free}
    return dict(sorted(ids.items(), key=lambda pair: pair[1]))


def build(texts: Iterable[str]) -> Any:
    """Build a `tokenizers.Tokenizer` that knows the words of `texts`."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(vocabulary(texts), unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in _special_ids()])
    tokenizer.add_tokens([AddedToken(prompt, normalized=False) for prompt in SYSTEM_PROMPTS])
    return tokenizer


def save(folder: Path, tokenizer: Any, learned: Iterable[str]) -> None:
    """Write the tokenizer into `folder`, as transformers reads it, with the words of the `learned` texts."""
    words = {word for text in learned for word in words_of(text) if word.isalnum()}
    special = {"unk_token": UNKNOWN, "eos_token": END_OF_TEXT, "mask_token": MASK}
    others = [token for token in _special_ids() if token not in special.values()]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "additional_special_tokens": others,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
        LEARNED_WORDS: " ".join(sorted(words)),
    }
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(config, indent=2),
        "special_tokens_map.json": json.dumps(
            {**special, "additional_special_tokens": others}, indent=2
        ),
    }
    for name, text in files.items():
        with written_whole(folder / name) as partial:
            partial.write_text(text + "\n", encoding="utf-8")


def _special_ids() -> dict[str, int]:
    """Return special token -> its id, counted from the end of the text ids."""
    named = {f"<{name}>": offset for name, offset in SPECIAL_IDS.items() if name != "mask"}
    return {END_OF_TEXT: END_OF_TEXT_ID, MASK: SPECIAL_IDS["mask"], **named}
