"""A text encoder of CLIP as published beside a model: folders `text_encoder` and `tokenizer`.

The transformers library computes it. What sizes its layers is read from its tensors, not from config.json.

Source: Radford et al. 2021 (CLIP); facts of the text encoders in tests/golden/UVIT.md.

    P  text tokens, padding included    C  width of the encoder
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..containers import INDEX_SUFFIX, read_safetensors
from ..guard import check_whole, guarded, naming
from .beside import check_expected, stated_beside
from .layout import count
from .tokenizer_files import check_ids, check_tokenizer_files
from .uvit_parts import TextCondition, micro_conditions

logger = logging.getLogger(__name__)

ENCODER, TOKENIZER = "text_encoder", "tokenizer"  # folders of a published model
WEIGHTS, HALF = "model.safetensors", "model.fp16.safetensors"
EMBEDDING = "text_model.embeddings.token_embedding.weight"
POSITIONS = "text_model.embeddings.position_embedding.weight"
LAYERS = "text_model.encoder.layers."
NEEDED = {  # folder -> files
    ENCODER: ("config.json", WEIGHTS),
    TOKENIZER: ("vocab.json", "merges.txt", "tokenizer_config.json"),
}
# By which function a text encoder of CLIP computes: OpenAI's, and those of OpenCLIP.
ACTIVATIONS = ("quick_gelu", "gelu")
MAX_ID = 2**20  # of a token
AGAIN = "Download it again from the published model."


class Widths(Protocol):
    """What the configuration of a model states of its text encoder."""

    @property
    def text_width(self) -> int: ...
    @property
    def pooled_width(self) -> int: ...


@dataclass(frozen=True)
class ClipTextEncoder:
    """A text encoder and its tokenizer, on the CPU in float32."""

    network: Any
    tokenizer: Any
    folder: Path  # of the tokenizer
    file: Path  # of the weights

    @classmethod
    def of(cls, path: Path, config: Widths) -> ClipTextEncoder:
        """Load what lies in the folder of a model's file.

        Raises:
            FileNotFoundError: a file is missing.
            OSError: the system refuses to read one.
            ValueError: a file is damaged, or the encoder is of another width than the model needs.
        """
        folder = encoder_folder(path)
        file, words = encoder_file(folder), folder / TOKENIZER
        tensors = read_safetensors(file)[0]
        stated = stated_encoder(file, tensors, folder)
        check_widths((stated["hidden_size"], stated["projection_dim"]), config, file)
        check_tokenizer_files(words)
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

        with guarded(words, "holds a tokenizer that cannot be read", AGAIN):
            tokenizer = CLIPTokenizer.from_pretrained(str(words), local_files_only=True)
            check_ids(tokenizer.get_vocab().values(), stated["vocab_size"])
        with guarded(file, "is no text encoder of CLIP that can be used", AGAIN), _no_bars():
            loaded: Any = CLIPTextModelWithProjection.from_pretrained(
                None,
                config=CLIPTextConfig(**stated, bos_token_id=None),
                state_dict=dict(tensors),
                output_loading_info=True,
            )
            network, told = loaded
            if absent := sorted(told["missing_keys"]):
                raise ValueError(f"it has no {absent[0]}")
        return cls(network.float().eval(), tokenizer, words, file)

    @torch.no_grad()
    def __call__(self, text: str) -> TextCondition:
        """Encode a text. Its states are padded with what the tokenizer pads with, which the model sees."""
        with guarded(self.folder, "fails at a text", AGAIN):
            length = min(
                self.tokenizer.model_max_length, self.network.config.max_position_embeddings
            )
            ids = self.tokenizer(
                text,
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
                return_overflowing_tokens=False,
            ).input_ids
            num_words = len(self.tokenizer(text, truncation=False, verbose=False).input_ids)
        if num_words > length:
            logger.warning(
                "The prompt has %d tokens; the text encoder reads %d and ignores the rest.",
                num_words,
                length,
            )
        found = self.network(ids, output_hidden_states=True)
        condition = TextCondition(found.hidden_states[-2], found.text_embeds, micro_conditions())
        if not condition.is_finite:
            raise ValueError(
                f"{self.file} gives numbers for a text that are not finite: its weights are damaged. {AGAIN}"
            )
        return condition


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep the library from showing a bar of its own."""
    from transformers.utils import logging as progress

    had_bars = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    try:
        yield
    finally:
        if had_bars:
            progress.enable_progress_bar()


def check_widths(found: tuple[int | None, int | None], config: Widths, place: Path | str) -> None:
    """Raise ValueError if a text encoder (width, width of the projection) is not of the widths that a model needs."""
    wanted = (config.text_width, config.pooled_width)
    if found != wanted:
        raise ValueError(
            f"{place} is a text encoder of width {found[0]} with {found[1]} projected values, but this model needs "
            f"{wanted[0]} with {wanted[1]}. Give the text encoder of the same model."
        )


def encoder_folder(path: Path) -> Path:
    """Return the folder of a model's file that holds its text encoder: the file's own, or the one above.

    Raises:
        FileNotFoundError: there is none, or a file of it is missing.
    """
    folders = (path.parent, path.parent.parent)
    folder = next((f for f in folders if (f / ENCODER).is_dir()), None)
    if folder is None:
        name = path.parent.name if path.name.endswith(INDEX_SUFFIX) else path.name
        places = " or ".join(str(f) for f in folders)
        files = ", ".join(f"{part}/{file}" for part, names in NEEDED.items() for file in names)
        raise FileNotFoundError(
            f"{name} has no text encoder: put {files} of the published model into {places}."
        )
    for part, names in NEEDED.items():
        for name in names:
            file = folder / part / name
            if not (encoder_file(folder) if name == WEIGHTS else file).is_file():
                raise FileNotFoundError(
                    f"{file} is missing. Download it from the published model into that folder."
                )
    return folder


def encoder_file(folder: Path) -> Path:
    """Return the weights of the text encoder in the folder of a model: in half precision where there are no others."""
    file = folder / ENCODER / WEIGHTS
    half = file.with_name(HALF)
    return half if half.is_file() and not file.is_file() else file


def stated_encoder(file: Path, tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Any]:
    """Return the configuration of the text encoder in a file, as a config.json of transformers says it.

    Sizes are those of the tensors. What these do not show is in the config.json beside the file, or in the one of the
    model's `folder`; without any it is as of OpenAI's encoder, which is said.

    Raises:
        ValueError: it is no text encoder of CLIP, or has no projection.
    """
    embedding, projection = tensors.get(EMBEDDING), tensors.get("text_projection.weight")
    if embedding is None or embedding.ndim != 2:
        raise ValueError(
            f"{file} is no text encoder of CLIP: it has no {EMBEDDING}. Choose another."
        )
    if projection is None or projection.ndim != 2:
        raise ValueError(
            f"{file} has no text_projection.weight, which this model needs. Choose the text encoder of the model's own "
            "folder."
        )
    width = embedding.shape[1]
    stated, beside = stated_beside(file), file
    if "hidden_act" not in stated:
        beside = folder / ENCODER / WEIGHTS
        stated = stated_beside(beside)
    if "hidden_act" not in stated:
        logger.warning(
            "%s comes without config.json: it is taken to compute as OpenAI's encoder does (quick_gelu, heads of 64).",
            file.name,
        )
    check_expected(
        beside, stated, {"hidden_act": ACTIVATIONS, "layer_norm_eps": (1e-5,)}, "CLIP", AGAIN
    )
    num_heads = stated.get("num_attention_heads", max(1, width // 64))
    end = stated.get("eos_token_id", 49_407)
    with naming(beside.with_name("config.json")):
        check_whole("num_attention_heads", num_heads, 1, width)
        if width % num_heads:
            raise ValueError(f"its {num_heads} heads do not divide its width {width}. {AGAIN}")
        check_whole("eos_token_id", end, 0, MAX_ID)
    with naming(file):
        return {
            "hidden_act": stated.get("hidden_act", ACTIVATIONS[0]),
            "num_attention_heads": num_heads,
            "eos_token_id": end,
            "vocab_size": embedding.shape[0],
            "hidden_size": width,
            "projection_dim": projection.shape[0],
            "intermediate_size": tensors[f"{LAYERS}0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": count(tensors, LAYERS),
            "max_position_embeddings": tensors[POSITIONS].shape[0],
        }


def encoder_or_advice(path: Path) -> dict[str, str]:
    """Return where the text encoder of a model's file is, or what is missing."""
    try:
        return {"text encoder": str(encoder_folder(path) / ENCODER)}
    except FileNotFoundError as error:
        return {"text encoder": str(error)}
