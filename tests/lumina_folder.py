"""A tiny Lumina-DiMOO as its publishers lay it out: shards, index, config.json, tokenizer files, vqvae/.

write(folder)            -> folder; weights are those of the golden set dimoo_backbone
raw()                    -> all published tensors
SIZES                    -> what neither tensors nor config.json show, for load(path, **SIZES)
rewrite_json(path, ...)  -> nothing; changes entries of a JSON file, None removes one
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden_sets
from safetensors.torch import save_file
from torch import Tensor

SET = "dimoo_backbone"
SIZES = {"num_codes": 64}
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
TOKENIZER = {
    "tokenizer.json": '{"version": "1.0"}',
    "tokenizer_config.json": "{}",
    "special_tokens_map.json": "{}",
}


def raw() -> dict[str, Tensor]:
    return golden_sets.load(SET).weights("backbone")


def write(folder: Path, *, has_tokenizer: bool = True, has_vq: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = raw()
    names = sorted(tensors)
    weight_map = {name: SHARDS[i >= len(names) // 2] for i, name in enumerate(names)}
    for shard in SHARDS:
        save_file(
            {name: tensors[name] for name in names if weight_map[name] == shard},
            folder / shard,
            {"format": "pt"},
        )
    (folder / INDEX).write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}, indent=2)
    )
    stated = {"model_type": "llada", **golden_sets.load(SET).info["config"]["backbone"]}
    (folder / "config.json").write_text(json.dumps(stated))
    if has_tokenizer:
        for name, text in TOKENIZER.items():
            (folder / name).write_text(text)
    if has_vq:
        golden = golden_sets.load("lumina_vq")
        (folder / "vqvae").mkdir()
        (folder / "vqvae" / "config.json").write_text(json.dumps(golden.info["config"]["vq"]))
        save_file(golden.weights("vq"), folder / "vqvae" / "diffusion_pytorch_model.safetensors")
    return folder


def rewrite_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
