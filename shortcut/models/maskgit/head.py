"""The published shortcut head of MaskGIT.

Source: arXiv 2602.23996; MIGM-Shortcut MaskGIT-Shortcut/Network/shortcut_model.py; facts in
tests/golden/README.md section 6.
"""

from __future__ import annotations

from functools import partial

from ..layout import Layout
from ..token_head import Config, TokenHead, read_config
from .transformer import NUM_HEADS


def _half(theirs: str, ours: str) -> dict[str, str | tuple[str, ...]]:
    """Return rows of the key table for one half of a block: attention and feed-forward."""
    packed = [f"blocks.{{}}.{ours}_attention.{part}" for part in ("query", "key", "value")]
    return {
        f"blocks.{{}}.{theirs}.norm.*": f"blocks.{{}}.{ours}_norm.*",
        f"blocks.{{}}.{theirs}.fn.mha.in_proj_weight": tuple(f"{part}.weight" for part in packed),
        f"blocks.{{}}.{theirs}.fn.mha.in_proj_bias": tuple(f"{part}.bias" for part in packed),
        f"blocks.{{}}.{theirs}.fn.mha.out_proj.*": f"blocks.{{}}.{ours}_attention.out.*",
        f"blocks.{{}}.{theirs}_ff.norm.*": f"blocks.{{}}.{ours}_ff_norm.*",
        f"blocks.{{}}.{theirs}_ff.fn.net.0.*": f"blocks.{{}}.{ours}_ff.up.*",
        f"blocks.{{}}.{theirs}_ff.fn.net.3.*": f"blocks.{{}}.{ours}_ff.down.*",
    }


TABLE = {
    "proj_in.*": "proj_in.*",
    "proj_out.*": "proj_out.*",
    "new_token_proj_in.*": "new_token_proj_in.*",
    **_half("cross_attn", "cross"),
    **_half("self_attn", "self"),
    "last_layer.*": "last_layer.*",
    "time_embedder.mlp.0.*": "time.time_in.*",
    "time_embedder.mlp.2.*": "time.time_out.*",
    "adaLN_modulation.*": "time.modulation.*",
}

LAYOUT = Layout(
    name="maskgit-head",
    kind="head",
    title="MaskGIT shortcut head",
    filenames=("maskgit-shortcut.pth",),
    marks=("blocks.0.cross_attn.fn.mha.in_proj_weight", "last_layer.0.weight"),
    table=TABLE,
    config=Config,
    read_config=partial(read_config, num_heads=NUM_HEADS),
    network=TokenHead,
    from_model=("num_heads",),
)
