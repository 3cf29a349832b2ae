"""Networks and sequences of the golden sets of Lumina-DiMOO."""

from __future__ import annotations

from functools import cache
from typing import Any

from golden_sets import GoldenSet, load
from shortcut_pack.shortcut import checkpoint as checkpoints


@cache
def network(set_name: str) -> Any:
    """The network of a set. Shared between tests: copy what is to be changed."""
    golden = load(set_name)
    num_rows = stated_sizes(golden)["vocab_size"]
    num_codes = num_rows - special_ids(set_name)["text_vocab_size"]
    raw = golden.weights("backbone")
    return checkpoints.build(checkpoints.from_tensors(raw, num_codes=num_codes, **known(set_name)))


def known(set_name: str) -> dict[str, Any]:
    """What the tensors of a published file do not show of the sizes."""
    sizes = stated_sizes(load(set_name))
    return {
        "num_heads": sizes["n_heads"],
        "rope_theta": sizes["rope_theta"],
        "norm_eps": sizes["rms_norm_eps"],
    }


def stated_sizes(golden: GoldenSet) -> dict[str, Any]:
    """The original's configuration of its network."""
    return golden.info["config"]["backbone"]


def special_ids(set_name: str) -> dict[str, int]:
    """The original's special tokens by their names there."""
    info = load(set_name).info
    return info.get("special_ids") or info["args"]["special_ids"]


@cache
def head(set_name: str) -> Any:
    """The shortcut head of a set, shared like `network`; None if its run had none."""
    golden = load(set_name)
    if "head" not in golden.info["weights"]:
        return None
    raw = golden.weights("head")
    return checkpoints.build(checkpoints.from_tensors(raw, kind="head", **known(set_name)))
