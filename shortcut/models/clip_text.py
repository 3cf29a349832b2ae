"""From requests and ComfyUI's CONDITIONING to conditions by a text encoder of CLIP.

Its CONDITIONING is the native one of ComfyUI: CLIP Text Encode makes it, with the CLIP of Load MIGM. Here, on the
command line, the transformers library encodes texts with what lies in the model's folder.

Source: Radford et al. 2021 (CLIP); facts of the text encoders in golden2/README.md.

    B  images    P  text tokens, padding included    C  width of the encoder
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..containers import INDEX_SUFFIX
from ..guard import check_number
from .architecture import LOADED_CLIP, Branches, Conditioning, GraphNode, Request
from .beside import stated_beside
from .conditioning import only_row
from .layout import count
from .uvit_parts import AESTHETIC, TextCondition, micro_conditions

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
MAX_MICRO = 16_384.0  # pixels
# Entries of a CONDITIONING that are micro-conditions, as CLIPTextEncodeSDXLRefiner and CLIPTextEncodeSDXL name them,
# and the largest values that they may have.
MICRO = {
    "width": MAX_MICRO,
    "height": MAX_MICRO,
    "crop_w": MAX_MICRO,
    "crop_h": MAX_MICRO,
    "aesthetic_score": 10.0,
}
# What CLIPTextEncodeSDXL writes besides, which these models have no input for: the size of the image says it.
UNUSED = ("target_width", "target_height")


class Widths(Protocol):
    """What the configuration of a model states of its text encoder."""

    @property
    def text_width(self) -> int: ...
    @property
    def pooled_width(self) -> int: ...


@dataclass(frozen=True)
class ClipConditioner:
    """Turns texts into `TextCondition`s, guided away from a text, which may be empty."""

    config: Widths
    path: Path | None  # of the model's file
    negative: str = ""  # what to guide away from, where nothing is said

    def conditions(self, request: Request, num_images: int) -> Branches:
        """Return the encoded prompt, and what to guide away from.

        Raises:
            FileNotFoundError, ValueError: the text encoder is missing, or not that of the model; there is no prompt.
        """
        if request.prompt is None:
            raise ValueError("a text model needs --prompt TEXT; '' stands for anything.")
        rows = torch.zeros(num_images, dtype=torch.long)
        wanted, unwanted = (self.encoder(text) for text in self._texts(request))
        return wanted[rows], unwanted[rows]

    def draw(self, requests: Sequence[Request]) -> Callable[[int, torch.Generator], Branches]:
        """Return a function that draws random prompts, each as likely as the others.

        Raises:
            FileNotFoundError, ValueError: there is no prompt; as `conditions`.
        """
        if not requests:
            raise ValueError(
                "a text model needs prompts to show what it does: give --prompts FILE with one prompt a line."
            )
        _, unwanted = self._texts(requests[0])
        unwanted_condition = self.encoder(unwanted)

        def draw(num_images: int, generator: torch.Generator) -> Branches:
            index = torch.randint(len(requests), (num_images,), generator=generator).tolist()
            wanted = [self.encoder(self._texts(requests[i])[0]) for i in index]
            rows = torch.zeros(num_images, dtype=torch.long)
            return TextCondition.joined(wanted), unwanted_condition[rows]

        return draw

    def unknown_words(self, request: Request) -> tuple[str, ...]:
        """Return nothing: CLIP saw more texts than can be told."""
        return ()

    def described(self, request: Request) -> dict[str, Any]:
        """Return the texts as a picture's settings name them."""
        prompt, negative = self._texts(request)
        return {"prompt": prompt, "negative": negative}

    def graph_nodes(self, request: Request) -> Sequence[GraphNode]:
        """Return ComfyUI's nodes of the prompt and of what to guide away from."""
        return [
            ("CLIPTextEncode", {"clip": LOADED_CLIP, "text": text}) for text in self._texts(request)
        ]

    def to_conditioning(self, request: Request) -> Conditioning:
        """Raise ValueError: ComfyUI's own node makes it."""
        raise ValueError(
            "this model reads text through CLIP. Use CLIP Text Encode, with the clip of Load MIGM, in place of Text "
            "Condition."
        )

    def from_conditioning(
        self, positive: Conditioning, negative: Conditioning | None, num_images: int
    ) -> Branches:
        """Return the conditions that two CONDITIONINGs hold.

        Raises:
            ValueError: there is no negative one, or one is of another text encoder, or a micro-condition is out of
                range.
        """
        if negative is None:
            raise ValueError(
                "negative is not connected, and this model is guided away from a text: wire a CLIP Text Encode, empty "
                "for nothing in particular."
            )
        rows = torch.zeros(num_images, dtype=torch.long)
        return (
            self._read(positive, "positive")[rows],
            self._read(negative, "negative")[rows],
        )

    @cached_property
    def encoder(self) -> ClipTextEncoder:
        """The text encoder in the model's folder, loaded on first use."""
        if self.path is None:
            raise ValueError("a model without a file has no text encoder. Load it from its file.")
        return ClipTextEncoder.of(self.path, self.config)

    def _texts(self, request: Request) -> tuple[str, str]:
        negative = self.negative if request.negative is None else request.negative
        return request.prompt or "", negative

    def _read(self, conditioning: Conditioning, name: str) -> TextCondition:
        states_1PC, entries = only_row(conditioning, name, reads=(*MICRO, *UNUSED))
        pooled_1C = entries.get("pooled_output")
        widths = (self.config.text_width, self.config.pooled_width)
        found = (states_1PC.shape[-1], None if pooled_1C is None else pooled_1C.shape[-1])
        if states_1PC.ndim != 3 or found != widths:
            raise ValueError(
                f"{name} is {found[0]} wide with {found[1] or 'no'} pooled values, expected {widths[0]} with "
                f"{widths[1]}: it is of another text encoder. Wire CLIP Text Encode with the clip of this Load MIGM."
            )
        assert isinstance(pooled_1C, Tensor)
        micro = {entry: entries[entry] for entry in MICRO if entry in entries}
        for entry, value in micro.items():
            check_number(f"{entry} of {name}", value, 0, MICRO[entry])
        values = {**dict.fromkeys(MICRO, 0.0), "aesthetic_score": AESTHETIC, **micro}
        micro_15 = torch.tensor([[float(values[entry]) for entry in MICRO]])
        return TextCondition(states_1PC.float().cpu(), pooled_1C.float().cpu(), micro_15)


@dataclass(frozen=True)
class ClipTextEncoder:
    """A text encoder and its tokenizer, on the CPU in float32."""

    network: Any
    tokenizer: Any

    @classmethod
    def of(cls, path: Path, config: Widths) -> ClipTextEncoder:
        """Load what lies in the folder of a model's file.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or the encoder is of another width than the model needs.
        """
        folder = encoder_folder(path)
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer
        from transformers.utils import logging as progress

        place = folder / ENCODER
        variant = None if encoder_file(folder).name == WEIGHTS else "fp16"
        had_bars = progress.is_progress_bar_enabled()
        progress.disable_progress_bar()
        try:
            tokenizer = CLIPTokenizer.from_pretrained(
                str(folder / TOKENIZER), local_files_only=True
            )
            network = CLIPTextModelWithProjection.from_pretrained(
                str(place), variant=variant, local_files_only=True, use_safetensors=True
            )
        except Exception as error:  # the library's errors have no common class
            raise ValueError(
                f"{place} or the {TOKENIZER} beside it cannot be used ({type(error).__name__}: {error}). Download both "
                "again."
            ) from error
        finally:
            if had_bars:
                progress.enable_progress_bar()
        stated = network.config
        found = (stated.hidden_size, stated.projection_dim)
        check_widths(found, config, place)
        return cls(network.float().eval(), tokenizer)

    @torch.no_grad()
    def __call__(self, text: str) -> TextCondition:
        """Encode a text. Its states are padded with what the tokenizer pads with, which the model sees."""
        length = min(self.tokenizer.model_max_length, 77)
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
        return TextCondition(found.hidden_states[-2], found.text_embeds, micro_conditions())


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
    stated = stated_beside(file)
    if "hidden_act" not in stated:
        stated = stated_beside(folder / ENCODER / WEIGHTS)
    if "hidden_act" not in stated:
        logger.warning(
            "%s comes without config.json: it is taken to compute as OpenAI's encoder does (quick_gelu, heads of 64).",
            file.name,
        )
    return {
        "hidden_act": stated.get("hidden_act", "quick_gelu"),
        "num_attention_heads": stated.get("num_attention_heads", max(1, width // 64)),
        "eos_token_id": stated.get("eos_token_id", 49_407),
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
