"""The judge of the text model: a small network that reads from a picture what stands where.

A picture is read in columns: for each group of things and each of 24 columns, it says which kind has its centre there.
Counts, kinds, colours and positions follow, as `Facts`, on which the claims of a caption are checked.

    B  images    Y, X  pixel rows, columns    C  channels    K  nothing, then the kinds of a group    W  columns read
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.judges.attributes import FIRST_TEST_SEED, Level, degraded
from experiments.judges.file import JudgeFile, Widths
from experiments.scenes.captions import describe
from experiments.scenes.dataset import load as load_pictures
from experiments.scenes.dataset import render, to_network
from experiments.scenes.facts import GROUPS, Facts, Thing, facts_of, holds
from experiments.scenes.scene import BIOMES, TIMES, Scene, compose_varied
from shortcut.train.fit import Recipe, fit

logger = logging.getLogger(__name__)

TRAIN_FOLDER = "text-train"  # of pictures of the varied scenes 0, 1, 2 ...
WIDTHS = (24, 48, 64, 96, 96)
STRIDES = ((2, 2), (2, 2), (2, 1), (2, 1), (2, 1))  # 96 x 96 pixels -> 3 rows, 24 columns
NUM_FEATURES = 128
RECIPE = Recipe(
    iterations=1200, lr=2e-3, warmup=100, weight_decay=0.02, ema=0.995, checkpoint_every=250
)
BATCH_SIZE = 64
NUM_TEST = 2000
UNSURE = -100  # a column that may say nothing or the kind beside it


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What can be read from pictures of a kind."""

    classes: Mapping[str, tuple[str, ...]]  # field of `Facts` -> what it can be, of a whole picture
    groups: Mapping[str, tuple[str, ...]]  # as `facts.GROUPS`
    num_columns: int
    peak_window: int  # columns; two things of a group are farther apart than half of it


# Things of one group stand at least 4 columns apart (scenes._spread); sun, moon and clouds 5.
SCENES = Sight(
    classes={"time": TIMES, "biome": BIOMES}, groups=GROUPS, num_columns=24, peak_window=5
)


class Reader(nn.Module):
    """Pictures, a quarter as many columns -> logits of the classes and, for each group, of what stands where."""

    def __init__(self, widths: Widths = WIDTHS, sight: Sight = SCENES):
        super().__init__()
        self.widths = tuple(widths)
        steps = zip(pairwise((3, *widths)), STRIDES, strict=True)
        self.levels = nn.Sequential(*(Level(a, b, stride) for (a, b), stride in steps))
        self.columns = nn.Conv2d(widths[-1], NUM_FEATURES, (3, 5), padding=(0, 2))
        for name, values in sight.classes.items():
            self.add_module(name, nn.Linear(NUM_FEATURES, len(values)))
        self.classes = tuple(sight.classes)
        self.groups = nn.ModuleDict(
            {
                group: nn.Conv1d(NUM_FEATURES, 1 + len(kinds), 3, padding=1)
                for group, kinds in sight.groups.items()
            }
        )

    def forward(self, pixels_BCYX: Tensor) -> dict[str, Tensor]:
        """Return logits (B, K) of each class and (B, K, W) of each group, for RGB pixels in [-1, 1]."""
        x_BCW = self.seen(pixels_BCYX)
        pooled_BC = x_BCW.mean(-1)
        found = {name: self.get_submodule(name)(pooled_BC) for name in self.classes}
        return found | {group: head(x_BCW) for group, head in self.groups.items()}

    def seen(self, pixels_BCYX: Tensor) -> Tensor:
        """Return features (B, C, W) of the columns."""
        x = self.levels(pixels_BCYX.contiguous(memory_format=torch.channels_last))
        return F.gelu(self.columns(x)).mean(2)


FILE = JudgeFile("shortcut scene reader", "text-judge", "groups", GROUPS, Reader)


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures and what `Reader` should say of them."""

    pixels_BCYX: Tensor
    wanted: dict[str, Tensor]


def targets(facts: Iterable[Facts], sight: Sight = SCENES) -> dict[str, Tensor]:
    """Return what `Reader` should say: the number (B,) of each class, and of each group (B, W), or UNSURE."""
    facts, size = list(facts), sight.num_columns
    wanted = {
        name: torch.tensor([values.index(getattr(fact, name)) for fact in facts])
        for name, values in sight.classes.items()
    }
    for group, kinds in sight.groups.items():
        classes_BW = torch.zeros(len(facts), size, dtype=torch.long)
        for row_W, fact in zip(classes_BW, facts, strict=True):
            for thing in fact.things[group]:
                place = thing.x * size
                column = min(int(place), size - 1)
                # At the border of two columns nobody can tell them apart.
                beside = column + (1 if place - column > 0.5 else -1)
                if 0 <= beside < size:
                    row_W[beside] = UNSURE
                row_W[column] = 1 + kinds.index(thing.kind)
        wanted[group] = classes_BW
    return wanted


def loss_of(network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the cross-entropy summed over all that is read, and the share of pictures on which each is read right."""
    logits, loss, figures = network(batch.pixels_BCYX), torch.zeros(()), {}
    for name, wanted in batch.wanted.items():
        found = logits[name].float()
        loss = loss + F.cross_entropy(found, wanted, ignore_index=UNSURE, reduction="sum")
        is_right = (found.argmax(1) == wanted) | (wanted == UNSURE)
        figures[name] = (
            is_right.flatten(1).all(1).float().mean()
            if is_right.ndim > 1
            else (is_right.float().mean())
        )
    return loss / len(batch.pixels_BCYX), figures


def train(
    directory: Path, recipe: Recipe = RECIPE, widths: Widths = WIDTHS, batch_size: int = BATCH_SIZE
) -> Reader:
    """Train on `directory`/TRAIN_FOLDER, with checkpoints in `directory`. Returns the averaged network."""
    pixels, _ = load_pictures(directory / TRAIN_FOLDER)
    wanted = targets(facts_of(compose_varied(seed)) for seed in range(len(pixels)))

    def draw_batch(generator: torch.Generator) -> Batch:
        index = torch.randint(len(pixels), (batch_size,), generator=generator)
        shown = degraded(to_network(pixels[index]), generator)
        return Batch(shown, {name: classes[index] for name, classes in wanted.items()})

    network = FILE.initialised(recipe.seed, widths)
    checkpoint = directory / "text-judge.ckpt"
    return fit(network, draw_batch, loss_of, recipe, checkpoint=checkpoint)


def make(directory: Path, path: Path, vq: Any) -> None:
    """Train in `directory` and write the judge to `path`, with its accuracy inside.

    Args:
        vq: the VQ model through which it will see pictures; it is measured on such too.
    """
    reader = train(directory)
    with torch.no_grad():
        figures = {
            "scenes": accuracy(reader),
            "scenes through the VQ model": accuracy(
                reader, through=lambda x: vq.decode(vq.encode(x))
            ),
        }
    logger.info("right on %d fresh scenes: %s", NUM_TEST, figures)
    trained = {"iterations": RECIPE.iterations, "seed": RECIPE.seed, "accuracy": figures}
    FILE.save(path, reader, trained)


@torch.no_grad()
def read(
    reader: Reader, pixels_BCYX: Tensor, batch_size: int = 50, sight: Sight = SCENES
) -> list[Facts]:
    """Return what pictures show, given RGB pixels in [-1, 1] of the size that the reader knows."""
    found: list[Facts] = []
    for part in pixels_BCYX.split(batch_size):
        logits = {name: values.float().cpu() for name, values in reader(part.clamp(-1, 1)).items()}
        classes = {
            name: [values[n] for n in logits[name].argmax(-1).tolist()]
            for name, values in sight.classes.items()
        }
        things = {group: _things(logits[group], group, sight) for group in sight.groups}
        found += [
            Facts(
                things={group: things[group][i] for group in sight.groups},
                **{name: values[i] for name, values in classes.items()},
            )
            for i in range(len(part))
        ]
    return found


def _things(logits_BKW: Tensor, group: str, sight: Sight) -> list[tuple[Thing, ...]]:
    """Return the things of one group on each picture, from left to right."""
    kinds, size, window = sight.groups[group], sight.num_columns, sight.peak_window
    # How much more likely something is than nothing; a thing is where that is highest.
    score_BW = logits_BKW[:, 1:].logsumexp(1) - logits_BKW[:, 0]
    highest_BW = F.max_pool1d(score_BW, window, stride=1, padding=window // 2)
    is_thing_BW = (score_BW > 0) & (score_BW == highest_BW)
    kind_BW = logits_BKW[:, 1:].argmax(1)
    # Its centre lies between columns that both see it.
    weight_BW = F.pad(score_BW.sigmoid(), (1, 1))
    left_BW, at_BW, right_BW = (weight_BW[:, i : i + size] for i in range(3))
    offset_BW = (right_BW - left_BW) / (left_BW + at_BW + right_BW)
    x_BW = (torch.arange(size) + 0.5 + offset_BW) / size
    return [
        tuple(Thing(kinds[kind], x) for is_thing, kind, x in zip(*row, strict=True) if is_thing)
        for row in zip(is_thing_BW.tolist(), kind_BW.tolist(), x_BW.tolist(), strict=True)
    ]


def accuracy(
    reader: Reader,
    seeds: range = range(FIRST_TEST_SEED, FIRST_TEST_SEED + NUM_TEST),
    *,
    through: Callable[[Tensor], Tensor] = lambda pixels_BCYX: pixels_BCYX,
    compose: Callable[[int], Scene] = compose_varied,
) -> dict[str, float]:
    """Return the share of fresh scenes on which each thing is read right, and of true claims that are confirmed.

    Args:
        through: what happens to the pixels first.
    """
    right: dict[str, list[bool]] = {name: [] for name in ("time", "biome", *GROUPS, "claims")}
    for start in range(seeds.start, seeds.stop, 100):
        part = range(start, min(start + 100, seeds.stop))
        scenes = [compose(seed) for seed in part]
        pixels = to_network(torch.from_numpy(render(part, compose=compose)[0]))
        for seed, scene, found in zip(part, scenes, read(reader, through(pixels)), strict=True):
            wanted = facts_of(scene)
            right["time"].append(found.time == wanted.time)
            right["biome"].append(found.biome == wanted.biome)
            for group in GROUPS:
                right[group].append(found.kinds(group) == wanted.kinds(group))
            right["claims"] += [holds(claim, found) for claim in describe(scene, seed).claims]
    return {name: round(sum(values) / len(values), 4) for name, values in right.items()}
