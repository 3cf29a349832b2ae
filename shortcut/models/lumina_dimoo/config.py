"""The published files of Lumina-DiMOO: the config.json beside them, and how many rows they have.

Source: Alpha-VLLM/Lumina-DiMOO model/configuration_llada.py; what each entry means in model/modeling_llada.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...guard import read_text, shown
from ..beside import check_expected, stated_beside
from ..layout import TEXT_PREFIX, Tensors

# Their name -> the field of our Config. What is null there follows from other entries.
FIELDS = {
    "d_model": "width",
    "n_layers": "depth",
    "n_heads": "num_heads",
    "n_kv_heads": "num_kv_heads",
    "mlp_hidden_size": "mlp_width",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "norm_eps",
}
# What the published class takes where config.json does not state them.
DEFAULTS = {"rope_theta": 10_000.0, "rms_norm_eps": 1e-5}
# What the network is built for: other values would mean other arithmetic with the same tensors.
EXPECTED = {
    "model_type": ("llada",),
    "block_type": ("llama",),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "rope": (True,),
    "alibi": (False,),
    "scale_logits": (False,),
    "input_emb_norm": (False,),
    "weight_tying": (False,),
}


# MMaDA-Parallel-A has the same tensors, sizes, config.json and tokenizer. Its model card names it.
CARD, CARD_NAMES = "README.md", "MMaDA-Parallel"


def denies(file: Path) -> str | None:
    """Return why a file beside the published `file` says that it is not Lumina-DiMOO, or None."""
    if has_card(file):
        return f"{file.with_name(CARD)} beside it says that it is {CARD_NAMES}, not Lumina-DiMOO."
    return denies_network(file)


def has_card(file: Path) -> bool:
    """Return whether the model card beside the published `file` is that of MMaDA-Parallel-A."""
    try:
        return CARD_NAMES in read_text(file.with_name(CARD))
    except (OSError, ValueError):  # there is none, or it is somebody's notes
        return False


def denies_network(file: Path) -> str | None:
    """Return why the config.json beside the published `file` says that it is another network, or None.

    Other models, such as MMaDA, have tensors of the same names.
    """
    stated, advice = stated_beside(file), "Choose the folder of Lumina-DiMOO."
    try:
        check_expected(file, stated, EXPECTED, "Lumina-DiMOO", advice)
    except ValueError as error:
        return str(error)
    return None


def read_beside(file: Path) -> dict[str, Any]:
    """Return the sizes that the config.json beside the published `file` states; empty if there is none.

    Raises:
        ValueError: it cannot be read.
    """
    stated = stated_beside(file)
    if not stated:
        return {}
    for name in DEFAULTS:
        if stated.get(name, DEFAULTS[name]) is None:
            raise ValueError(
                f"{file.with_name('config.json')} beside it says {name} = null, expected a number. Download it again."
            )
    stated = {**DEFAULTS, **stated}
    found = {ours: stated.get(theirs) for theirs, ours in FIELDS.items()}
    found["vocabulary"] = stated.get("embedding_size") or stated.get("vocab_size")
    return {name: value for name, value in found.items() if value is not None}


def check_vocabulary(num_rows: int, known: Mapping[str, Any]) -> None:
    """Raise ValueError if the embedding does not have the rows that config.json states."""
    expected = known.get("vocabulary", num_rows)
    if num_rows != expected:
        raise ValueError(
            f"its embedding has {num_rows} rows, but config.json beside it says that the vocabulary has "
            f"{shown(expected)}. The files are of different models: download them again into an empty folder."
        )


def split_output(tensors: Tensors, config: Any) -> Tensors:
    """Return the tensors with the output matrix cut in two: the rows of text ids, and those of codes, its last."""
    output_VD = tensors["code_output.weight"]
    if len(output_VD) != config.vocabulary:
        raise ValueError(
            f"its output matrix has {len(output_VD)} rows, expected those of its embedding, {config.vocabulary}. The "
            "files are of different models: download them again into an empty folder."
        )
    return {
        **tensors,
        f"{TEXT_PREFIX}output.weight": output_VD[: -config.num_codes],
        "code_output.weight": output_VD[-config.num_codes :],
    }
