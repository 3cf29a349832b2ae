"""The story of a judgement: heads and numbers of full passes -> runs on the same images -> how they do, what they take.

Each batch of images gives two views: how the heads follow a recorded run of the model (`evaluate.compared`), and how
they decide in runs of their own (`evaluate.Oversight`).

    B  images    L  image tokens    C  numbers of steps in a row
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from ..accelerators.reuse import Reuse
from ..accelerators.shortcut_head import ShortcutPredictor
from ..checkpoint import Checkpoint
from ..distributed import ALONE, World
from ..flops import count_operations
from ..generate import PredictorOf, generate
from ..grid import Grid
from ..models.layout import Bare
from ..noise import Noise
from ..schedule import Settings, plan
from .evaluate import (
    HELD_OUT,
    Keeps,
    Oversight,
    by_chain,
    compared,
)
from .teacher import Teacher

CPU = torch.device("cpu")
VANILLA, REUSE = "vanilla", "features reused, no head"
# (conditions of a batch, its codes (B, L)) -> sum of the pictures' scores
Score = Callable[[Sequence[Tensor], Tensor], float]
Tally = dict[str, float]  # figures of runs, all of them sums


@dataclass(frozen=True, slots=True)
class Batch:
    """Images that are made together; those of other batches have other conditions and noise."""

    seed: int
    number: int  # within the seed
    num_images: int

    @property
    def stream(self) -> tuple[int, ...]:
        """What decides the images; no head was trained on such."""
        return self.seed, HELD_OUT, self.number


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What heads are asked to do."""

    settings: Settings  # of the model alone: all steps are full passes
    full_steps: tuple[int, ...]  # numbers of full passes
    num_images: int  # of each seed
    batch_size: int  # images at a time; of a text model they have prompts of one length
    seeds: tuple[int, ...]

    def check(self) -> None:
        """Raises ValueError for the first figure that is out of range."""
        for name, value in (("images", self.num_images), ("batch size", self.batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(f"seeds must be at least 0, got {list(self.seeds)}.")
        num_steps = self.settings.num_steps
        for num_full in self.full_steps:
            if not 1 <= num_full < num_steps:
                raise ValueError(
                    f"full steps must be between 1 and {num_steps - 1}, so that a head has a part in the {num_steps} "
                    f"steps, got {num_full}."
                )

    def batches(self) -> list[Batch]:
        """All batches, those of a seed one after the other."""
        starts = range(0, self.num_images, self.batch_size)
        return [
            Batch(seed, number, min(self.batch_size, self.num_images - start))
            for seed in self.seeds
            for number, start in enumerate(starts)
        ]

    @property
    def max_chain(self) -> int:
        """The longest stretch of steps that are no full passes."""
        num_steps = self.settings.num_steps
        stretches = [
            after - before - 1
            for num_full in self.full_steps
            for before, after in pairwise(
                [*sorted(self.with_full(num_full).full_indices(num_steps)), num_steps]
            )
        ]
        return max(stretches)

    def with_full(self, num_full: int) -> Settings:
        """The settings with `num_full` full passes."""
        return replace(self.settings, full_steps=num_full)


@dataclass(frozen=True, slots=True)
class Entry:
    """A way to sample."""

    name: str  # VANILLA, REUSE or a head's
    settings: Settings
    head: Any | None
    predictor: PredictorOf | None  # None = vanilla


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """How an entry does, and what it takes for an image. Means over the seeds; shares in [0, 1]."""

    name: str
    num_steps: int
    num_full: int
    operations: int
    seconds: float
    same: float  # of all tokens: decided as the model alone decides in the same state
    same_of_seeds: list[float]
    # Likewise, of the tokens of steps that are no full passes; None: there are no such steps.
    same_of_predicted: float | None
    # Of the predicted features with the model's in the same state, mean over such steps.
    cosine: float | None
    divergence: float | None  # of the guided codes from the model's, mean over those revealed then
    score: float | None = None
    score_of_seeds: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found."""

    rows: list[Row]
    chains: dict[str, list[dict[str, float]]]  # as `evaluate.evaluate`, of each head and of REUSE


@dataclass(frozen=True, slots=True)
class Found:
    """What one batch showed."""

    chains: dict[str, Tensor]  # sums (C, 6) of `evaluate.compared`, by name
    tallies: list[Tally]  # of each entry


def judge(
    teacher: Teacher,
    model_file: Checkpoint,
    heads: Mapping[str, Any],
    trial: Trial,
    grid: Grid,
    *,
    score: Score | None = None,
    world: World = ALONE,
    gather: Callable[[Any], list[Any]] = lambda mine: [mine],
    on_run: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Runs vanilla, reuse and every head, with every number of full passes, on the same images.

    Args:
        model_file: what the teacher was built from; its tensors are not needed.
        heads: networks by name, checked to fit the model, on the teacher's device.
        grid: rows and columns of the images' codes.
        score: the quality of pictures, if it is to be measured.
        world: the batches are shared out among its processes; all get the whole verdict.
        gather: of `processes.meeting`, where `world` has several processes.
        on_run: called after each run of this process with the number of those done and to do.

    Raises:
        ValueError: the trial is out of range.
    """
    trial.check()
    entries, batches = _entries(heads, trial), trial.batches()
    mine = range(world.rank, len(batches), world.size)
    num_runs, found = len(mine) * (1 + len(entries)), dict[int, Found]()
    for place, index in enumerate(mine):
        batch, before = batches[index], place * (1 + len(entries))
        if place == 0:  # the first call of a kernel is slower
            _tally(teacher, entries[-1], replace(batch, num_images=1), None)
        chains = _chains(teacher, heads, trial, batch)
        tallies = []
        for number, entry in enumerate(entries):
            tallies.append(_tally(teacher, entry, batch, score))
            if on_run is not None:
                on_run(before + number + 2, num_runs)
        found[index] = Found(chains, tallies)
    everywhere = {index: part for parts in gather(found) for index, part in parts.items()}
    in_order = [everywhere[index] for index in range(len(batches))]
    _, conditions, _ = teacher.draw((trial.settings,), 1, batches[0].stream)
    rows = []
    for number, entry in enumerate(entries):
        of_seeds = [
            _sum(
                part.tallies[number]
                for batch, part in zip(batches, in_order, strict=True)
                if batch.seed == seed
            )
            for seed in trial.seeds
        ]
        rows.append(_row(entry, of_seeds, _operations(entry, model_file, conditions, grid)))
    return Verdict(
        rows,
        {
            name: by_chain(torch.stack([part.chains[name] for part in in_order]).sum(0))
            for name in in_order[0].chains
        },
    )


def _entries(heads: Mapping[str, Any], trial: Trial) -> list[Entry]:
    """Vanilla, then each number of full passes: reuse, and every head."""
    reuse: PredictorOf = lambda model, conditions: Reuse()  # noqa: E731
    found = [Entry(VANILLA, trial.settings, None, None)]
    for num_full in trial.full_steps:
        settings = trial.with_full(num_full)
        found.append(Entry(REUSE, settings, None, reuse))
        found += [
            Entry(name, settings, head, partial(ShortcutPredictor, head))
            for name, head in heads.items()
        ]
    return found


def _chains(
    teacher: Teacher, heads: Mapping[str, Any], trial: Trial, batch: Batch
) -> dict[str, Tensor]:
    """How the heads follow a run of the model."""
    run = teacher.run((trial.settings,), batch.num_images, batch.stream, keep_on=CPU)
    return {
        name: compared(head, teacher.model, run, trial.max_chain, device=teacher.device)
        for name, head in {REUSE: Keeps(), **heads}.items()
    }


def _tally(teacher: Teacher, entry: Entry, batch: Batch, score: Score | None) -> Tally:
    """Runs an entry, by itself for the time that it takes, then under oversight. All figures are sums."""
    settings, conditions, seed = teacher.draw((entry.settings,), batch.num_images, batch.stream)
    images, num_tokens, device = range(batch.num_images), teacher.num_tokens, teacher.device
    conditions = [c.to(device) for c in conditions]
    run = partial(
        generate,
        teacher.model,
        conditions,
        settings,
        seed=seed,
        image_indices=images,
        num_tokens=num_tokens,
        predictor=entry.predictor,
        device=device,
    )
    with torch.autocast(device.type, teacher.autocast, enabled=teacher.autocast is not None):
        result = run()
        tally: Tally = {
            "images": len(images),
            "tokens": len(images) * num_tokens,
            "seconds": result.seconds,
        }
        if entry.predictor is not None:
            num_steps = len(plan(settings, num_tokens, num_tokens))
            noise = Noise.draw(seed, images, num_steps, num_tokens, device)
            seen = Oversight(teacher.model, conditions, noise)
            run(on_step=seen)
            tally |= {
                "predicted": seen.num_predicted,
                "same": seen.num_same,
                "steps": seen.num_steps,
                "cosine": seen.cosine,
                "divergence": seen.divergence,
            }
    if score is not None:
        tally["score"] = score(conditions, result.codes_BL)
    return tally


def _row(entry: Entry, of_seeds: Sequence[Tally], operations: int) -> Row:
    """A row of the tallies of each seed."""
    has_score = "score" in of_seeds[0]

    def predicted(part: str, whole: str) -> float | None:
        if entry.predictor is None:
            return None
        return mean(_share(t, part, whole) for t in of_seeds)

    # What full passes decide is what the model decides.
    same = [1 - (t.get("predicted", 0) - t.get("same", 0)) / t["tokens"] for t in of_seeds]
    scores = [_share(t, "score", "images") for t in of_seeds] if has_score else None
    return Row(
        name=entry.name,
        num_steps=entry.settings.num_steps,
        num_full=len(entry.settings.full_indices(entry.settings.num_steps)),
        operations=operations,
        seconds=mean(_share(t, "seconds", "images") for t in of_seeds),
        same=mean(same),
        same_of_seeds=same,
        same_of_predicted=predicted("same", "predicted"),
        cosine=predicted("cosine", "steps"),
        divergence=predicted("divergence", "predicted"),
        score=mean(scores) if scores else None,
        score_of_seeds=scores,
    )


def _sum(tallies: Iterable[Tally]) -> Tally:
    first, *others = tallies
    return {name: sum((t[name] for t in others), value) for name, value in first.items()}


def _share(tally: Tally, part: str, whole: str) -> float:
    return tally[part] / max(1, tally[whole])


def _operations(
    entry: Entry, model_file: Checkpoint, conditions: Sequence[Tensor], grid: Grid
) -> int:
    """What an image takes."""
    network = model_file.format.network(model_file.config, device="meta", operations=Bare)
    return count_operations(
        network, entry.head, entry.settings, conditions, grid, predictor=entry.predictor
    ).total
