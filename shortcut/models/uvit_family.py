"""What the files of aMUSEd and Meissonic share: the published folder, sizes, keys, and the architecture they describe.

Source: facts of the published files (docs/models.md).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..guard import check_whole
from ..schedule import AMUSED, AMUSED_LINEAR, SamplerRules, Settings
from . import amused_vq, token_head
from .architecture import Architecture, Branches, Download, PublishedSize
from .beside import check_expected, stated_beside
from .clip_encoder import encoder_or_advice
from .clip_text import ClipConditioner
from .key_table import Unbatched
from .layout import Layout, Tensors, check_heads, count, given, sizes
from .uvit_parts import DOWNSCALE, NUM_MICRO, shapes_of_text

NUM_TEXT_TOKENS = 77
DIFFUSERS_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/*",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vqvae/config.json",
    "vqvae/diffusion_pytorch_model.safetensors",
)
MICRO_WIDTH = 256  # waves of each micro-condition in the published models


@dataclass(frozen=True, slots=True, kw_only=True)
class UVitConfig:
    """Sizes that both networks have. All but the number of heads can be read from the tensors."""

    width: int  # of embeddings and features
    depth: int  # blocks of the trunk
    num_heads: int  # of the trunk
    num_codes: int
    vocabulary: int
    text_width: int
    pooled_width: int
    downsamples: bool  # True: the trunk has half the rows and columns

    @property
    def mask_id(self) -> int:
        return self.vocabulary - 1


def shared_sizes(
    tensors: Tensors, known: Mapping[str, Any], num_heads: Mapping[int, int], micro_width: int
) -> dict[str, Any]:
    """Return the fields of `UVitConfig` by our tensors.

    Args:
        known: fields that no tensor shows.
        num_heads: of the published models by the trunk's width, where `known` has none.

    Raises:
        ValueError: there are no more ids than codes, or no place for a pooled text.
    """
    vocabulary, width = sizes(tensors, "embed.embeddings.weight", 2)
    trunk_width, text_width = sizes(tensors, "text_in.weight", 2)
    _, num_in = sizes(tensors, "micro.linear_1.weight", 2)
    num_codes, _ = sizes(tensors, "output.conv2.weight", 2)
    check_whole("micro_width", micro_width, 2, num_in)
    if micro_width % 2:
        raise ValueError(
            f"micro_width is {micro_width}, expected an even number: sines and cosines."
        )
    pooled_width = num_in - NUM_MICRO * micro_width
    if num_codes >= vocabulary or pooled_width < 1:
        raise ValueError(
            f"it has {vocabulary} token ids for {num_codes} codes, and {num_in} values of pooled text and "
            f"micro-conditions, expected more ids than codes and more than {NUM_MICRO} x {micro_width} values."
        )
    return {
        "width": width,
        "depth": count(tensors, "blocks."),
        "num_heads": check_heads(given(known, "num_heads", num_heads, trunk_width), trunk_width),
        "num_codes": num_codes,
        "vocabulary": vocabulary,
        "text_width": text_width,
        "pooled_width": pooled_width,
        "downsamples": "downsample.norm.weight" in tensors,
    }


STATED = {  # config.json -> our config
    "num_attention_heads": "num_heads",
    "vocab_size": "vocabulary",
    "codebook_size": "num_codes",
    "downsample": "downsamples",
    "upsample": "downsamples",
}


def stated_in_folder(
    file: Path, names: Mapping[str, str], expected: Mapping[str, Collection[Any]], what: str
) -> dict[str, Any]:
    """Return the config fields that the files beside the published `file` state; empty if there are none.

    Args:
        names: config.json -> our config, beside `STATED`.
        expected: what the network is built for; what is not stated is so.
        what: the family.

    Raises:
        ValueError: one cannot be read, or describes another network than this one.
    """
    stated = stated_beside(file)
    same = {"upsample": (stated.get("downsample", False),)}
    check_expected(file, stated, {**expected, **same}, what, f"Choose the folder of {what}.")
    scheduler = stated_beside(file, "../scheduler/scheduler_config.json")
    found = [
        {ours: said[theirs] for theirs, ours in table.items() if theirs in said}
        for said, table in (
            (stated, {**STATED, **names}),
            (scheduler, {"mask_token_id": "mask_id"}),
        )
    ]
    return found[0] | found[1]


# Rows of key tables.
INPUT_TABLE = {
    "embed.conv.weight": Unbatched("embed.conv.weight", (2, 3)),
    "embed.*": "embed.*",
    "cond_embed.*": "micro.*",
    "encoder_proj_layer_norm.*": "text_norm.*",
    "project_to_hidden_norm.*": "to_trunk_norm.*",
    "project_to_hidden.*": "to_trunk.*",
    "project_from_hidden_norm.*": "from_trunk_norm.*",
    "project_from_hidden.*": "from_trunk.*",
    "mlm_layer.conv1.weight": Unbatched("output.conv1.weight", (2, 3)),
    "mlm_layer.conv2.weight": Unbatched("output.conv2.weight", (2, 3)),
    "mlm_layer.layer_norm.*": "output.layer_norm.*",
}


def architecture(
    layout: Layout,
    models: Mapping[int, UVitConfig],
    repositories: Mapping[str, str],
    settings: tuple[int, float],
    *,
    negative: str = "",
    **others: Any,
) -> Architecture:
    """Return the architecture of a family.

    Args:
        models: side of an image in pixels -> sizes of the published network.
        repositories: name of a download -> repository on huggingface.co.
        settings: steps, and guidance as the original counts it, which is one more than here.
        negative: what to guide away from, where nothing is said.
        others: further fields.
    """
    title = layout.title.removesuffix(" transformer")

    def conditioner(config: Any, names: Sequence[str], path: Path | None) -> ClipConditioner:
        return ClipConditioner(config, path, negative)

    return Architecture(
        title=layout.title,
        model=layout,
        vqs=(amused_vq.LAYOUT,),
        # None is published: each was trained here.
        head=token_head.layout_of(f"{layout.name}-head", f"{title} shortcut head"),
        settings=Settings(
            num_steps=settings[0],
            guidance=(settings[1] - 1,),
            guidance_ramp=False,
            schedule=AMUSED,
            temperature=1.0,
            choice_temperature=2.0,
        ),
        rules=SamplerRules(score_temperature=1.0),
        inpaint_schedule=AMUSED_LINEAR,
        sizes={f"{layout.name}-{side}": _published(side, model) for side, model in models.items()},
        downloads={
            name: Download(
                repository, DIFFUSERS_FILES, f"migm/{repository.split('/')[1]}", is_tree=True
            )
            for name, repository in repositories.items()
        },
        takes=frozenset({"prompt", "negative"}),
        conditioner=conditioner,
        num_heads=lambda config: config.num_heads,
        new_head=token_head.new_head,
        guided_kl=token_head.guided_kl,
        clip=lambda config: (config.text_width, config.pooled_width),
        companions=encoder_or_advice,
        **others,
    )


def _published(side: int, model: UVitConfig) -> PublishedSize:
    """Return the networks of a published model, with a head as ours are."""
    width = model.width
    head = token_head.Config(
        model_width=width,
        width=width // 2,
        num_blocks=1,
        num_heads=model.num_heads,
        has_time=True,
        kernel=token_head.KERNEL,
        attends=False,
    )

    def conditions(num_prompt_tokens: int) -> Branches:
        """Return two texts of the length that any has, on the meta device."""
        return (shapes_of_text(NUM_TEXT_TOKENS, model.text_width, model.pooled_width),) * 2

    grid = (side // DOWNSCALE, side // DOWNSCALE)
    return PublishedSize(model, head, amused_vq.PUBLISHED, grid, conditions)
