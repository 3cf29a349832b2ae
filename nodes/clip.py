"""The CLIP of Load MIGM: a model's own text encoder, for ComfyUI's CLIP Text Encode and what else takes a CLIP."""

from __future__ import annotations

import types
from functools import partial
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.utils
import folder_paths

from ..shortcut.checkpoint import Checkpoint
from ..shortcut.guard import guarded
from ..shortcut.models.clip_encoder import (
    AGAIN,
    TOKENIZER,
    check_widths,
    encoder_file,
    encoder_folder,
    stated_encoder,
)
from ..shortcut.models.tokenizer_files import check_ids, check_tokenizer_files

FOLDER = "text_encoders"  # of ComfyUI's models folder
NAME = "l"  # by which ComfyUI's tokens and embeddings call the encoder


class Tokenizer(comfy.sd1_clip.SDTokenizer):
    """ComfyUI's tokenizer of CLIP, padding as the model's own files say: the model sees what texts are padded with."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.pad_token = self.tokenizer.pad_token_id


def build_clip(checkpoint: Checkpoint, file: Path | None) -> Any:
    """Return the CLIP of a model, or None if its architecture has none.

    Args:
        file: of models/text_encoders; None = that in the model's folder.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is damaged, no text encoder of CLIP, or not as wide as the model needs.
    """
    widths = checkpoint.architecture.clip
    if widths is None:
        return None
    assert checkpoint.path is not None
    if file is None:
        try:
            file = encoder_file(encoder_folder(checkpoint.path))
        except FileNotFoundError as error:
            advice = f"Or choose a file of models/{FOLDER} as clip_name of Load MIGM."
            raise FileNotFoundError(f"{error} {advice}") from error
    with guarded(file, "is not read by ComfyUI", "Download or copy it again."):
        tensors = comfy.utils.load_torch_file(str(file))
    config = stated_encoder(file, tensors, checkpoint.folder)
    found = config["hidden_size"], config["projection_dim"]
    check_widths(found, checkpoint.config, file)
    words = checkpoint.folder / TOKENIZER
    embeddings = folder_paths.get_folder_paths("embeddings")
    check_tokenizer_files(words)
    with guarded(words, "holds a tokenizer that cannot be read", AGAIN):
        tokenizer = Tokenizer(
            tokenizer_path=str(words) if words.is_dir() else None,
            max_length=config["max_position_embeddings"],
            embedding_directory=embeddings,
            embedding_size=found[0],
        )
        check_ids(tokenizer.tokenizer.get_vocab().values(), config["vocab_size"])
    special = {name: getattr(tokenizer, f"{name}_token") for name in ("start", "end", "pad")}
    encoder = partial(
        comfy.sd1_clip.SDClipModel,
        layer="hidden",
        layer_idx=-2,
        layer_norm_hidden_state=False,
        textmodel_json_config=config,
        max_length=config["max_position_embeddings"],
        special_tokens=special,
    )
    target = types.SimpleNamespace(
        params={},
        clip=partial(comfy.sd1_clip.SD1ClipModel, clip_name=NAME, clip_model=encoder),
        tokenizer=partial(
            comfy.sd1_clip.SD1Tokenizer, clip_name=NAME, tokenizer=lambda **_: tokenizer
        ),
    )
    return comfy.sd.CLIP(
        target,
        embedding_directory=embeddings,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        state_dict=[tensors],
    )
