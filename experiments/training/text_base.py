"""Train the shipped text model, a small Lumina-DiMOO, on the codes, the captions and the edits of scenes.

A sample is a sequence as at use: the prompt of one guidance branch, then the target image. Most are text to image, some
of them with a region to fill as in inpainting, the others edits with their source image (`scenes.edits`). Samples lie
side by side on one axis, each in its own length: measured on a CPU, that is as fast as one length for all, and nothing
has to be padded.

Source: Xin et al. 2025 (arXiv 2510.06308), Nie et al. 2025 (arXiv 2502.09992): cross-entropy of masked tokens, here of
the target's codes alone. Chang et al. 2022, equation 3: share of masked tokens. What a head needs in the last features
is learned as by the MaskGIT (`training.base`): which codes are known, and positions.

    B  samples    P  prompt tokens    L  image tokens    S  sequence    D  width    V  codebook size
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.judges.reader import TRAIN_FOLDER
from experiments.scenes.prompts import FIRST_PROMPT_SEED
from experiments.scenes.tokenizer import END_OF_TEXT_ID, NUM_TEXT_IDS
from experiments.training.base import RECIPE as BASE_RECIPE
from experiments.training.base import codes_loss, encode_all
from experiments.training.pictures import SCENES, Pictures
from experiments.training.readers import KINDS_WEIGHT, Readers
from shortcut.grid import Grid
from shortcut.models.lumina_dimoo.prompts import conditions
from shortcut.models.lumina_dimoo.transformer import Config, LuminaDiMOO
from shortcut.models.maskgit.vqgan import VQGAN
from shortcut.train.cpu import sdpa_float32
from shortcut.train.fit import MakeOptimizer, Recipe, fit

CONFIG = Config(
    width=192,
    depth=6,
    num_heads=3,
    num_kv_heads=3,
    mlp_width=512,
    num_text_ids=NUM_TEXT_IDS,
    num_codes=512,
    rope_theta=10_000.0,
    norm_eps=1e-5,
)
GRID = (12, 12)
EDITS_FOLDER = "text-edits"  # of pictures of the altered scenes 0, 1, 2 ...
SHARE_UNCONDITIONAL = 0.1  # of samples whose text is dropped, for guidance
SHARE_WITHOUT_SOURCE = 0.1  # of edits whose source image is dropped, for its guidance
SHARE_REGION = 0.25  # of pictures with a region to fill, whose other tokens are all known
SHARE_UNSURE, SHARE_UNKNOWN = 0.1, 0.15  # of prompts with unknown words; of the words in them


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the training; the next goes on with its averaged network."""

    name: str  # of its checkpoint
    recipe: Recipe
    num_pictures: int  # of a batch
    num_edits: int  # likewise; each takes twice the time of a picture
    kinds_weight: float = 0.0  # of the loss on the kinds of things


# Words and what they stand for come together slowly: more and smaller batches teach more in the same time. So does
# naming the kinds of things.
_SMALL = replace(BASE_RECIPE, iterations=3500, seed=1, lr=1e-3, warmup=100)
STAGES = (
    Stage(
        name="text-base",
        recipe=replace(BASE_RECIPE, iterations=3000),
        num_pictures=54,
        num_edits=10,
    ),
    Stage(name="text-longer", recipe=_SMALL, num_pictures=27, num_edits=5),
    Stage(
        name="text-kinds",
        recipe=replace(_SMALL, iterations=12000, seed=2),
        num_pictures=13,
        num_edits=3,
        kinds_weight=KINDS_WEIGHT,
    ),
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples: the prompt of each, its picture, where that is masked, and what it shows where."""

    prompts: list[Tensor]  # (1, P) in lengths of their own
    codes_BL: Tensor
    is_masked_BL: Tensor
    kind_BL: Tensor  # numbers in `scenes.kinds.KINDS`


class _Sample(NamedTuple):
    prompt_1P: Tensor
    codes_L: Tensor
    scene: Any  # of the codes


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """Batches are drawn from it: codes (B, L) of the varied scenes 0, 1, 2 ..., and of the altered ones."""

    codes: Tensor
    altered: Tensor  # of the first scenes
    tokenizer: Any
    config: Config
    grid: Grid
    num_pictures: int  # of a batch
    num_edits: int  # likewise
    pictures: Pictures = SCENES

    def draw(self, generator: torch.Generator) -> Batch:
        """Draw a batch that follows from the generator alone."""
        rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
        samples = [self._picture(rng) for _ in range(self.num_pictures)]
        samples += [self._edit(rng) for _ in range(self.num_edits)]
        has_region = [rng.random() < SHARE_REGION for _ in range(self.num_pictures)]
        has_region_B = torch.tensor(has_region + [False] * self.num_edits)
        prompts = [
            with_unknown_words(sample.prompt_1P, self.config, generator) for sample in samples
        ]
        codes_BL = torch.stack([sample.codes_L for sample in samples]).long()
        kind_BL = torch.stack([self.pictures.labels(sample.scene, self.grid) for sample in samples])
        return Batch(prompts, codes_BL, draw_masks(has_region_B, self.grid, generator), kind_BL)

    def _picture(self, rng: random.Random) -> _Sample:
        """Draw a picture behind a caption or behind the unconditional prompt."""
        seed = rng.randrange(len(self.codes))
        scene = self.pictures.compose(seed)
        text = self.pictures.caption(scene, rng.randrange(FIRST_PROMPT_SEED))
        wanted, unwanted = conditions(self.tokenizer, self.config, "text_to_image", text)
        prompt_1P = unwanted if rng.random() < SHARE_UNCONDITIONAL else wanted
        return _Sample(prompt_1P, self.codes[seed], scene)

    def _edit(self, rng: random.Random) -> _Sample:
        """Draw a result behind an instruction and its source image, or without one of them."""
        seed = rng.randrange(len(self.altered))
        scenes = self.pictures.compose(seed), self.pictures.altered(seed)
        codes = self.codes[seed], self.altered[seed]
        before, after = rng.sample((0, 1), 2)
        facts = [self.pictures.facts(scene) for scene in scenes]
        asked = self.pictures.instruction(
            facts[before], facts[after], rng.randrange(FIRST_PROMPT_SEED)
        )
        source_1YX = codes[before].long().view(1, *self.grid)
        branches = conditions(
            self.tokenizer, self.config, "edit", asked.words.text, sources=[source_1YX]
        )
        shares = (1 - SHARE_UNCONDITIONAL - SHARE_WITHOUT_SOURCE, SHARE_UNCONDITIONAL)
        (prompt_1P,) = rng.choices(branches, (*shares, SHARE_WITHOUT_SOURCE))
        return _Sample(prompt_1P, codes[after], scenes[after])


def with_unknown_words(prompt_1P: Tensor, config: Config, generator: torch.Generator) -> Tensor:
    """Make some words of some prompts unknown, so that prompts with unknown words give pictures too."""
    share = SHARE_UNKNOWN * (torch.rand((), generator=generator) < SHARE_UNSURE)
    is_word_1P = prompt_1P < config.num_text_ids + END_OF_TEXT_ID
    is_unknown_1P = torch.rand(prompt_1P.shape, generator=generator) < share
    return prompt_1P.masked_fill(is_word_1P & is_unknown_1P, 0)  # UNKNOWN is the first id


def draw_masks(has_region_B: Tensor, grid: Grid, generator: torch.Generator) -> Tensor:
    """Return masks (B, L), True = masked, as a run has them at a random time; at least one token each.

    Args:
        has_region_B: True: masked tokens lie in a region only.
    """
    num_images = len(has_region_B)
    region_BL = draw_regions(num_images, grid, generator) | ~has_region_B.unsqueeze(1)
    share_B1 = (torch.rand(num_images, 1, generator=generator) * (math.pi / 2)).cos()
    count_B1 = (share_B1 * region_BL.sum(1, keepdim=True)).ceil().clamp(min=1)
    order_BL = torch.rand(region_BL.shape, generator=generator).masked_fill(~region_BL, 2.0)
    return order_BL.argsort(1).argsort(1) < count_B1


def draw_regions(num_images: int, grid: Grid, generator: torch.Generator) -> Tensor:
    """Return regions (B, L), True = inside: boxes, often up to edges, and blobs, or all around one. None is empty."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(num_images, *shape, generator=generator)

    low_B2, high_B2 = uniform(2, 2).sort(-1).values.unbind(-1)
    low_B2 = low_B2.masked_fill(uniform(2) < 0.3, 0.0)
    high_B2 = high_B2.masked_fill(uniform(2) < 0.3, 1.0)
    is_row_BY, is_column_BX = (
        _between(low_B, high_B, size)
        for low_B, high_B, size in zip(low_B2.T, high_B2.T, grid, strict=True)
    )
    box_BYX = is_row_BY.unsqueeze(2) & is_column_BX.unsqueeze(1)
    height_B1YX = torch.randn(num_images, 1, 4, 4, generator=generator)
    height_B1YX = F.interpolate(height_B1YX, size=grid, mode="bilinear")
    blob_BYX = height_B1YX.squeeze(1) > uniform(1, 1) - 0.5
    region_BL = torch.where(uniform(1, 1) < 0.5, box_BYX, blob_BYX).flatten(1)
    region_BL = region_BL ^ (uniform(1) < 0.3)
    return region_BL | ~region_BL.any(1, keepdim=True)


def _between(low_B: Tensor, high_B: Tensor, size: int) -> Tensor:
    """Return which of `size` rows or columns lie between two positions in [0, 1]."""
    place_N = (torch.arange(size) + 0.5) / size
    return (place_N >= low_B.unsqueeze(1)) & (place_N <= high_B.unsqueeze(1))


class Training(nn.Module):
    """The network in training, with readers of its last features, which are not kept."""

    def __init__(self, network: LuminaDiMOO, grid: Grid, num_kinds: int):
        super().__init__()
        self.network, self.grid = network, grid
        self.readers = Readers(network.config.width, grid, num_kinds)

    def image_features(self, batch: Batch) -> Tensor:
        """Return the last features (B, L, D) of the image tokens of all samples."""
        view = self.network.on_grid(*self.grid)
        target_BS = view.target_tokens(batch.codes_BL, batch.is_masked_BL)
        targets = target_BS.split(1)
        features = self.network(
            [torch.cat(pair, 1) for pair in zip(batch.prompts, targets, strict=True)]
        )
        target_BSD = torch.cat([f[:, -target_BS.shape[1] :] for f in features])
        index_L = torch.arange(view.num_tokens)
        return target_BSD[:, view.image_positions(index_L, target_BSD.shape[1])]


def loss_of(
    training: Training, batch: Batch, kinds_weight: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the cross-entropy of the masked codes and, weighted, of known codes, positions and kinds of things."""
    features_BLD = training.image_features(batch)
    logits_BLV = training.network.code_output(features_BLD)
    loss, figures = codes_loss(logits_BLV, batch.codes_BL, batch.is_masked_BL)
    read, read_figures = training.readers.loss(features_BLD, batch.kind_BL, kinds_weight)
    return loss + read, figures | read_figures


def initialised(
    config: Config, grid: Grid, seed: int, num_kinds: int = SCENES.num_labels
) -> Training:
    """Return a network with normal weights of deviation 0.02; the global random state is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = LuminaDiMOO(config, attention=sdpa_float32)
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
        return Training(network, grid, num_kinds)


def learn(
    data: TrainingData,
    recipe: Recipe,
    checkpoint: Path | None = None,
    start: Training | None = None,
    kinds_weight: float = 0.0,
    make_optimizer: MakeOptimizer | None = None,
) -> Training:
    """Train a network on `data`. Returns the averaged network.

    Args:
        start: network to go on with; None = a new one.
        kinds_weight: of the loss on the kinds of things.
        make_optimizer: as of `fit`.
    """
    training = start or initialised(data.config, data.grid, recipe.seed, data.pictures.num_labels)
    loss = partial(loss_of, kinds_weight=kinds_weight)
    return fit(
        training, data.draw, loss, recipe, checkpoint=checkpoint, make_optimizer=make_optimizer
    )


def train(directory: Path, vqgan: VQGAN, tokenizer: Any) -> LuminaDiMOO:
    """Train on the pictures in `directory`, with checkpoints there. Returns the averaged network."""
    codes, _ = encode_all(vqgan, directory / TRAIN_FOLDER)
    altered_codes, _ = encode_all(vqgan, directory / EDITS_FOLDER)
    training = initialised(CONFIG, GRID, STAGES[0].recipe.seed)
    for stage in STAGES:
        data = TrainingData(
            codes=codes,
            altered=altered_codes,
            tokenizer=tokenizer,
            config=CONFIG,
            grid=GRID,
            num_pictures=stage.num_pictures,
            num_edits=stage.num_edits,
        )
        checkpoint = directory / f"{stage.name}.ckpt"
        training = learn(data, stage.recipe, checkpoint, training.train(), stage.kinds_weight)
    return training.network
