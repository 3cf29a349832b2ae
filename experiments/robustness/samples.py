"""Write small sound inputs of every kind that a loader takes, in folders; cases damage copies of them.

classes/     model, vq, head of a class model as our files; the state of a training
text/        the same of a text model, with its tokenizer
published/   the class model's files as their authors publish them, in zip archives and in legacy pickles
shards/      a text model as its authors publish it: an index, two shards, config.json, vqvae/
clip/        an aMUSEd as its authors publish it: transformer/, vqvae/, text_encoder/, tokenizer/, scheduler/
pictures are in classes/ and text/: picture.png, picture.jpg, mask.png
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from shortcut import checkpoint as checkpoints
from shortcut import shipped
from shortcut.checkpoint import Checkpoint
from shortcut.files import Metadata
from shortcut.models import amused_vq as lumina_vq
from shortcut.models.amused import transformer as amused
from shortcut.models.layers import Bare
from shortcut.models.layout import Layout
from shortcut.models.lumina_dimoo import head as lumina_head
from shortcut.models.lumina_dimoo import transformer as lumina
from shortcut.models.lumina_dimoo.tokenizer import copy_tokenizer
from shortcut.models.maskgit import head as maskgit_head
from shortcut.models.maskgit import transformer as maskgit
from shortcut.models.maskgit import vqgan
from shortcut.published import publish
from shortcut.published import published as published_content
from shortcut.quantized import Target

SIZE = 32  # pixels of the pictures along one side: 4 x 4 codes
MODEL = maskgit.Config(
    grid=4, width=32, depth=2, num_heads=4, mlp_width=48, num_codes=16, num_classes=3
)
HEAD = maskgit_head.Config(model_width=32, width=16, num_blocks=1, num_heads=4, has_time=True)
VQ = vqgan.Config(
    channels=32,
    multipliers=(1, 1, 1, 1),
    blocks_per_level=1,
    attention_levels=(3,),
    latent_channels=8,
    code_width=8,
    num_codes=16,
)
_ROPE: dict[str, Any] = {"mlp_width": 48, "rope_theta": 10_000.0, "norm_eps": 1e-5}
_HEADS: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 4}
TEXT_MODEL = lumina.Config(width=32, depth=2, num_text_ids=640, num_codes=16, **_HEADS, **_ROPE)
TEXT_HEAD = lumina_head.Config(
    model_width=32, width=16, num_blocks=1, has_time=True, sees_new=True, **_HEADS, **_ROPE
)
SHARDED = lumina.Config(
    width=8, depth=1, num_text_ids=126_356, num_codes=8192, **_HEADS, **(_ROPE | {"mlp_width": 8})
)
SHARDED_VQ = lumina_vq.Config(
    widths=(32, 32), blocks_per_level=1, latent_channels=8, num_codes=8192, num_groups=8
)
QUANTIZED: dict[str, Target] = {  # file -> type of its weights
    "float8.safetensors": torch.float8_e4m3fn,
    "int8.safetensors": "int8_convrot",
    "nvfp4.safetensors": "nvfp4",
    "asym.safetensors": "asym_w4a8",
}
CLIP_WIDTH, CLIP_LENGTH = 16, 12  # of the text encoder; tokens of a text
CLIP_MODEL = amused.Config(
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
    text_width=CLIP_WIDTH,
    pooled_width=CLIP_WIDTH,
    micro_width=8,
    downsamples=True,
)
CLIP_VQ = lumina_vq.Config(
    widths=(16, 16), blocks_per_level=1, latent_channels=8, num_codes=56, num_groups=8
)
START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_WORDS = (START, END, *ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase))
TRAIN: str = (
    "train --model model.safetensors --out h.safetensors --iterations 2 --batch-size 1 --steps 3 "
    "--rollout 1 --lr 0.001 --json"
)


def write(folder: Path, names: Collection[str]) -> None:
    """Write the samples of these names, each to its folder in `folder`."""
    makers = {
        "classes": classes,
        "text": text,
        "published": published,
        "shards": shards,
        "clip": clip,
    }
    for name in names:
        (folder / name).mkdir(parents=True)
        makers[name](folder / name)


def classes(folder: Path) -> None:
    """Write a class model with all that belongs to it."""
    defaults = {"guidance": [2.0], "num_steps": 3, "temperature": 0.9, "schedule": "cosine"}
    model = checkpoint(
        maskgit.LAYOUT, MODEL, 0, class_names=("a", "b", "c"), defaults=defaults, title="Tiny"
    )
    mark = {"model_fingerprint": model.fingerprint}
    checkpoints.save(folder / "model.safetensors", model)
    checkpoints.save(folder / "head.safetensors", checkpoint(maskgit_head.LAYOUT, HEAD, 1, **mark))
    colours = "".join(f"{i * 16:02x}8040" for i in range(VQ.num_codes))
    vq = checkpoint(vqgan.LAYOUT, VQ, 2, code_colours=colours)
    checkpoints.save(folder / "vq.safetensors", vq)
    for name, dtype in QUANTIZED.items():
        checkpoints.save(folder / name, model, dtype=dtype)
    pictures(folder)
    (folder / "lines.jsonl").write_text(
        '{"class": "a", "seed": 1, "name": "x"}\n{"class": 2, "steps": 2, "cfg": 1.5}\n'
    )
    (folder / "lines.txt").write_text("a\nb\n")


def text(folder: Path) -> None:
    """Write a text model with all that belongs to it."""
    model = checkpoint(lumina.LAYOUT, TEXT_MODEL, 3, grid=(4, 4), defaults={"num_steps": 3})
    checkpoints.save(folder / "model.safetensors", model)
    copy_tokenizer(shipped.TEXT_FOLDER, folder / "model.safetensors")
    mark = {"model_fingerprint": model.fingerprint}
    checkpoints.save(
        folder / "head.safetensors", checkpoint(lumina_head.LAYOUT, TEXT_HEAD, 4, **mark)
    )
    checkpoints.save(folder / "vq.safetensors", checkpoint(vqgan.LAYOUT, VQ, 2))
    pictures(folder)
    (folder / "lines.jsonl").write_text(
        '{"prompt": "a tree", "seed": 1}\n'
        '{"prompt": "snow", "task": "edit", "image": "picture.png", "negative": "x"}\n'
    )
    (folder / "lines.txt").write_text("a tree\nsnow at night\n")


def published(folder: Path) -> None:
    """Write a class model, its head and its VQGAN as their authors do."""
    for name, layout, config in (
        ("model", maskgit.LAYOUT, MODEL),
        ("head", maskgit_head.LAYOUT, HEAD),
        ("vq", vqgan.LAYOUT, VQ),
    ):
        content = published_content(checkpoint(layout, config, 5))
        torch.save(content, folder / f"{name}.pth")
        torch.save(content, folder / f"{name}.ckpt", _use_new_zipfile_serialization=False)
    levels = {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [4]}
    levels |= {"z_channels": 8, "resolution": SIZE, "in_channels": 3, "out_ch": 3}
    params = {"n_embed": VQ.num_codes, "embed_dim": VQ.code_width, "ddconfig": levels}
    (folder / "model.yaml").write_text(json.dumps({"model": {"params": params}}, indent=1))


def shards(folder: Path) -> None:
    """Write a text model and its VQ model as their authors do."""
    tensors = publish(lumina.LAYOUT.table, checkpoint(lumina.LAYOUT, SHARDED, 6).tensors)
    output, embedding = "model.transformer.ff_out.weight", "model.transformer.wte.weight"
    text_rows = torch.zeros(SHARDED.num_text_ids, SHARDED.width)
    tensors[output] = torch.cat([text_rows, tensors[output]])
    parts = {
        f"model-0000{i}-of-00002.safetensors": {
            name: value.half() for name, value in tensors.items() if (name == embedding) == (i == 1)
        }
        for i in (1, 2)
    }
    for name, part in parts.items():
        save_file(part, folder / name, {"format": "pt"})
    places = {key: name for name, part in parts.items() for key in part}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    stated = {"model_type": "llada", "n_heads": 4, "n_kv_heads": 4, "rope_theta": 1e4, "d_model": 8}
    stated |= {"rms_norm_eps": 1e-5, "n_layers": 1, "embedding_size": 134_548, "rope": True}
    (folder / "config.json").write_text(json.dumps(stated))
    copy_tokenizer(shipped.TEXT_FOLDER, folder / "model.safetensors.index.json")
    diffusers_vq(folder / "vqvae", SHARDED_VQ)


def diffusers_vq(folder: Path, config: lumina_vq.Config) -> None:
    """Write a VQ model as diffusers does."""
    described = {
        "_class_name": "VQModel",
        "block_out_channels": config.widths,
        "layers_per_block": config.blocks_per_level,
        "latent_channels": config.latent_channels,
        "num_vq_embeddings": config.num_codes,
        "norm_num_groups": config.num_groups,
    }
    diffusers_part(folder, lumina_vq.LAYOUT, config, described, 7)


def diffusers_part(
    folder: Path, layout: Layout, config: Any, described: Mapping[str, Any], seed: int
) -> None:
    """Write one network of random weights as diffusers does."""
    folder.mkdir()
    tensors = publish(layout.table, checkpoint(layout, config, seed).tensors)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(described))


def clip(folder: Path) -> None:
    """Write a text model that reads text through CLIP as its authors do."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    heads = {"num_attention_heads": 2, "block_num_heads": 2, "micro_cond_encode_dim": 8}
    diffusers_part(folder / "transformer", amused.LAYOUT, CLIP_MODEL, heads, 8)
    diffusers_vq(folder / "vqvae", CLIP_VQ)
    sizes = CLIPTextConfig(
        hidden_size=CLIP_WIDTH,
        intermediate_size=2 * CLIP_WIDTH,
        num_attention_heads=2,
        num_hidden_layers=3,
        projection_dim=CLIP_WIDTH,
        vocab_size=len(CLIP_WORDS),
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=0,
        eos_token_id=1,
    )
    CLIPTextModelWithProjection(sizes).save_pretrained(folder / "text_encoder")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    for name, content in {
        "tokenizer/vocab.json": {word: i for i, word in enumerate(CLIP_WORDS)},
        "tokenizer/tokenizer_config.json": {"model_max_length": CLIP_LENGTH, **special},
        "scheduler/scheduler_config.json": {"mask_token_id": CLIP_MODEL.vocabulary - 1},
        "model_index.json": {"_class_name": "AmusedPipeline"},
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")


def pictures(folder: Path) -> None:
    """Write a picture as PNG and JPEG, and a mask."""
    picture = Image.linear_gradient("L").resize((SIZE, SIZE)).convert("RGB")
    picture.save(folder / "picture.png")
    picture.save(
        folder / "picture.jpg",
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    )
    mask = Image.new("L", (SIZE, SIZE))
    mask.paste(255, (0, 0, SIZE, SIZE // 2))
    mask.save(folder / "mask.png")


def checkpoint(layout: Layout, config: Any, seed: int, **metadata: Any) -> Checkpoint:
    """Return random weights by the seed; scales of norms lie around 1."""
    generator = torch.Generator().manual_seed(seed)
    shapes = layout.network(config, device="meta", operations=Bare).state_dict()
    tensors = {
        name: torch.randn(tensor.shape, generator=generator) * 0.2
        + (tensor.ndim == 1 and name.endswith("weight"))
        for name, tensor in shapes.items()
    }
    mark = checkpoints.fingerprint(tensors)
    return Checkpoint(layout, config, tensors, mark, Metadata(**metadata))
