"""A tiny aMUSEd or Meissonic as published: folders for transformer, VQ model, text encoder, tokenizer, scheduler.

write(folder, golden)   -> folder; the transformer is that of a golden set, text encoder and tokenizer know letters
write_small(folder)     -> folder; a smaller aMUSEd of random weights
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase

import builders
import golden_sets
import torch
from safetensors.torch import save_file
from shortcut_pack.shortcut.models.amused import transformer
from shortcut_pack.shortcut.models.meissonic import transformer as meissonic
from torch import Tensor

START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY = [START, END, *ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase)]
LENGTH = 12  # tokens of a text
VQ_SET = "amused_img2img"


def write(
    folder: Path, name: str = "amused_sampling_cfg", *, shards: int = 1, has_text: bool = True
) -> Path:
    golden = golden_sets.load(name)
    stated = golden.info["config"]["transformer"]
    write_weights(folder / "transformer", golden.weights("transformer"), shards)
    write_json(folder / "transformer" / "config.json", stated)
    mask = {"mask_token_id": stated["vocab_size"] - 1}
    write_json(folder / "scheduler" / "scheduler_config.json", mask)
    write_json(folder / "model_index.json", {"_class_name": "AmusedPipeline"})
    vq = golden_sets.load(VQ_SET)
    write_weights(folder / "vqvae", vq.weights("vqvae"), 1)
    write_json(folder / "vqvae" / "config.json", vq.info["config"]["vqvae"])
    if has_text:
        width = stated.get("encoder_hidden_size") or stated["joint_attention_dim"]
        pooled = stated.get("cond_embed_dim") or stated["pooled_projection_dim"]
        write_text_encoder(folder, width, pooled)
    return folder


SMALL = {
    "amused": transformer.Config(
        width=16,
        channels=16,
        blocks_per_stage=1,
        stage_heads=2,
        trunk_width=24,
        depth=1,
        num_heads=2,
        mlp_width=32,
        num_codes=56,
        vocabulary=64,
        text_width=16,
        pooled_width=16,
        micro_width=8,
        downsamples=True,
    ),
    "meissonic": meissonic.Config(
        width=24,
        depth=1,
        single_depth=1,
        num_heads=2,
        rope_axes=(4, 4, 4),
        num_codes=56,
        vocabulary=64,
        text_width=16,
        pooled_width=16,
        downsamples=True,
    ),
}
STATED = {
    "amused": {"num_attention_heads": 2, "block_num_heads": 2, "micro_cond_encode_dim": 8},
    "meissonic": {"num_attention_heads": 2, "axes_dims_rope": [4, 4, 4]},
}


def write_small(folder: Path, text_width: int = 16, family: str = "amused") -> Path:
    """A model that is smaller still, of random weights, with codes of 4 x 4 pixels."""
    write(folder, has_text=False)
    config = replace(SMALL[family], text_width=text_width, pooled_width=text_width)
    layout = transformer.LAYOUT if family == "amused" else meissonic.LAYOUT
    model = builders.random_checkpoint(layout, config, seed=0)
    write_weights(folder / "transformer", builders.published(model), 1)
    write_json(folder / "transformer" / "config.json", STATED[family])
    write_text_encoder(folder, text_width, text_width)
    return folder


def write_weights(folder: Path, tensors: dict[str, Tensor], shards: int) -> None:
    """Writes one file, or as many with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "diffusion_pytorch_model"
    if shards == 1:
        save_file(tensors, folder / f"{stem}.safetensors", {"format": "pt"})
        return
    files = [f"{stem}-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    weight_map = {key: files[i % shards] for i, key in enumerate(sorted(tensors))}
    for file in files:
        part = {key: tensors[key] for key, place in weight_map.items() if place == file}
        save_file(part, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    write_json(folder / f"{stem}.safetensors.index.json", index)


def write_text_encoder(
    folder: Path,
    width: int,
    pooled: int,
    *,
    vocabulary: int = len(VOCABULARY),
    length: int = LENGTH,
) -> None:
    """Writes a random text encoder, and a tokenizer of letters."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=2,
        num_hidden_layers=3,
        projection_dim=pooled,
        vocab_size=vocabulary,
        max_position_embeddings=length,
        bos_token_id=0,
        eos_token_id=1,
        hidden_act="quick_gelu",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPTextModelWithProjection(config).save_pretrained(folder / "text_encoder")
    tokenizer = folder / "tokenizer"
    write_json(tokenizer / "vocab.json", {word: i for i, word in enumerate(VOCABULARY)})
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    stated = {"model_max_length": length, "tokenizer_class": "CLIPTokenizer", **special}
    write_json(tokenizer / "tokenizer_config.json", stated)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
