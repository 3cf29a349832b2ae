"""Train the shipped text model, a small Lumina-DiMOO, on the codes, the captions and the edits of scenes.

A sample is a sequence as at use: the prompt of one guidance branch, then the target image. Most are text to image, some
of them with a region to fill as in inpainting, the others edits with their source image (`scenes.edits`). Samples lie
side by side on one axis, each in its own length: measured on a CPU, that is as fast as one length for all, and nothing
has to be padded.

Source: Xin et al. 2025 (arXiv 2510.06308), Nie et al. 2025 (arXiv 2502.09992): cross-entropy of masked tokens, here of
the target's codes alone. Chang et al. 2022, equation 3: share of masked tokens. What a head needs in the last features
is learned as by the MaskGIT (`class_model`): which codes are known, and positions.

    B  samples    P  prompt tokens    L  image tokens    S  sequence    D  width    V  codebook size
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.scenes.captions import caption
from experiments.scenes.edits import altered, instruction
from experiments.scenes.facts import facts_of, labels_of
from experiments.scenes.scene import Scene, compose
from experiments.scenes.tokenizer import END_OF_TEXT_ID, NUM_TEXT_IDS
from experiments.training import class_model
from experiments.training.class_model import OPTIMIZER, codes_loss
from experiments.training.codes import GRID, load_codes
from experiments.training.readers import Readers
from shortcut.grid import Grid
from shortcut.models.lumina_dimoo.prompts import conditions
from shortcut.models.lumina_dimoo.transformer import Config, LuminaDiMOO
from shortcut.train.cpu import sdpa_float32
from shortcut.train.fit import Recipe, fit

CONFIG = Config(
    width=256,
    depth=7,
    num_heads=4,
    num_kv_heads=4,
    mlp_width=688,
    num_text_ids=NUM_TEXT_IDS,
    num_codes=class_model.CONFIG.num_codes,
    rope_theta=10_000.0,
    norm_eps=1e-5,
)
RECIPE = replace(class_model.RECIPE, iterations=5300)
NUM_PICTURES, NUM_EDITS = 13, 3  # of a batch; an edit takes twice the time of a picture
FIRST_FRESH_WORDING = 40_000_000  # seeds of wordings of captions that are not learned from
SHARE_UNCONDITIONAL = 0.1  # of samples whose text is dropped, for guidance
SHARE_WITHOUT_SOURCE = 0.1  # of edits whose source image is dropped, for its guidance
SHARE_REGION = 0.25  # of pictures with a region to fill, whose other tokens are all known
SHARE_UNSURE, SHARE_UNKNOWN = 0.1, 0.15  # of prompts with unknown words; of the words in them


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples: the prompt of each, its picture, where that is masked, and what it shows where."""

    prompts: list[Tensor]  # (1, P) in lengths of their own
    codes_BL: Tensor
    is_masked_BL: Tensor
    label_BL: Tensor  # numbers in `facts.LABELS`


class _Sample(NamedTuple):
    prompt_1P: Tensor
    codes_L: Tensor
    scene: Scene  # of the codes


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """Batches are drawn from it: codes (B, L) of the scenes 0, 1, 2 ..., and of the altered ones."""

    codes: Tensor
    altered: Tensor  # of the first scenes
    tokenizer: Any
    config: Config
    grid: Grid
    num_pictures: int = NUM_PICTURES  # of a batch
    num_edits: int = NUM_EDITS  # likewise

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
        label_BL = torch.stack([labels_of(sample.scene, self.grid) for sample in samples])
        return Batch(prompts, codes_BL, draw_masks(has_region_B, self.grid, generator), label_BL)

    def _picture(self, rng: random.Random) -> _Sample:
        """Draw a picture behind a caption or behind the unconditional prompt."""
        seed = rng.randrange(len(self.codes))
        scene = compose(seed)
        text = caption(scene, rng.randrange(FIRST_FRESH_WORDING))
        wanted, unwanted = conditions(self.tokenizer, self.config, "text_to_image", text)
        prompt_1P = unwanted if rng.random() < SHARE_UNCONDITIONAL else wanted
        return _Sample(prompt_1P, self.codes[seed], scene)

    def _edit(self, rng: random.Random) -> _Sample:
        """Draw a result behind an instruction and its source image, or without one of them."""
        seed = rng.randrange(len(self.altered))
        scenes = compose(seed), altered(seed)
        codes = self.codes[seed], self.altered[seed]
        before, after = rng.sample((0, 1), 2)
        facts = [facts_of(scene) for scene in scenes]
        asked = instruction(facts[before], facts[after], rng.randrange(FIRST_FRESH_WORDING))
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

    def __init__(self, network: LuminaDiMOO, grid: Grid):
        super().__init__()
        self.network, self.grid = network, grid
        self.readers = Readers(network.config.width, grid)

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


def loss_of(training: Training, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the cross-entropy of the masked codes and, weighted, of known codes, positions and labels."""
    features_BLD = training.image_features(batch)
    logits_BLV = training.network.code_output(features_BLD)
    loss, figures = codes_loss(logits_BLV, batch.codes_BL, batch.is_masked_BL)
    read, read_figures = training.readers.loss(features_BLD, batch.label_BL)
    return loss + read, figures | read_figures


def initialised(config: Config, grid: Grid, seed: int) -> Training:
    """Return a network with normal weights of deviation 0.02; the global random state is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = LuminaDiMOO(config, attention=sdpa_float32)
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
        return Training(network, grid)


def learn(data: TrainingData, recipe: Recipe, checkpoint: Path | None = None) -> Training:
    """Train a network on `data`. Returns the averaged network."""
    training = initialised(data.config, data.grid, recipe.seed)
    return fit(
        training, data.draw, loss_of, recipe, checkpoint=checkpoint, make_optimizer=OPTIMIZER
    )


def train(directory: Path, tokenizer: Any) -> LuminaDiMOO:
    """Train on the codes of `directory`, with checkpoints there. Returns the averaged network."""
    data = TrainingData(
        codes=load_codes(directory, "pictures"),
        altered=load_codes(directory, "edits"),
        tokenizer=tokenizer,
        config=CONFIG,
        grid=GRID,
    )
    return learn(data, RECIPE, directory / "text-model.ckpt").network
