"""Measure the pictures of one row and seed, picture by picture, so that rows can be paired and pieces pooled.

- seconds: CPU time of the sampling loop per image, which other processes do not change much;
- features: the judge's, for Frechet distances;
- surprise, of samples: -log p of half of the finished picture's codes given the other half and vice versa, by the
  model without guidance, in nats a code. The halves are the same in every row;
- things: how many the judge sees; met: it sees all that was asked for.

Without a judge, seconds and surprise alone.

    B  images    L  image tokens    h, w  rows, columns of codes    V  codebook size    D  features
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from experiments.judge import reader
from experiments.scenes.drawing import pixels_of
from experiments.tables.cases import Case, batched, batches
from experiments.tables.frechet import Gaussian, frechet_distance
from experiments.tables.rows import Figures, Row, Subject
from shortcut.denoiser import Conditions, guided_logits, positions
from shortcut.noise import seeded
from shortcut.schedule import plan

NUM_GROUPS = 16  # of a jackknife
HALVES_SEED = 2  # of the stream that picks the halves
Estimate = tuple[float, float]  # with its standard error


def measure(row: Row, seed: int, cases: Sequence[Case], subject: Subject) -> Figures:
    """Return the figures of a picture of each case: lists of a value each."""
    groups = batches(cases, subject.batch_size)
    found: dict[str, list[np.ndarray]] = {}
    if row.num_steps:  # warm-up, not timed
        subject.sample(row, batched(cases, groups[0][:2]), seed, groups[0][:2])
    for numbers in groups:
        begun = time.process_time()
        if row.num_steps:
            codes_Bhw, _ = subject.sample(row, batched(cases, numbers), seed, numbers)
        else:
            codes_Bhw = subject.pipeline.encode(pixels_of(cases[n].scene for n in numbers))
        seconds = (time.process_time() - begun) / len(numbers)
        figures = {"seconds": np.full(len(numbers), seconds)}
        if subject.judge is not None:
            figures |= _judged(subject, codes_Bhw, [cases[number] for number in numbers])
        if row.num_steps:
            figures["surprise"] = surprise(subject, codes_Bhw, batched(cases, numbers), numbers)
        for name, values in figures.items():
            found.setdefault(name, []).append(values)
    order = np.argsort(np.concatenate([np.array(numbers) for numbers in groups]))
    return {n: np.concatenate(of)[order].astype(float).round(4).tolist() for n, of in found.items()}


def _judged(subject: Subject, codes_Bhw: Tensor, cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """Return what the judge sees in the pictures."""
    pixels_BCYX = subject.pipeline.decode(codes_Bhw).to(subject.pipeline.device)
    facts = reader.read(subject.judge, pixels_BCYX)
    return {
        "features": reader.features(subject.judge, pixels_BCYX),
        "things": np.array([sum(map(len, fact.things.values())) for fact in facts]),
        "met": np.array([case.is_met(fact) for case, fact in zip(cases, facts, strict=True)]),
    }


@torch.no_grad()
def surprise(
    subject: Subject, codes_Bhw: Tensor, conditions: Sequence[Conditions], images: Sequence[int]
) -> np.ndarray:
    """Return the mean -log p (B,) of each half of the codes given the other half.

    Args:
        images: their numbers, by which the halves are drawn.
    """
    codes_BL = codes_Bhw.flatten(1)
    num_tokens = codes_BL.shape[1]
    order_BL = torch.stack(
        [torch.randperm(num_tokens, generator=seeded(i, HALVES_SEED)) for i in images]
    )
    first_BL = (order_BL < num_tokens // 2).to(codes_BL.device)
    wanted = [branch.to(codes_BL.device) for branch in conditions[:1]]
    model = subject.pipeline.model.on_grid(*subject.grid)
    nats_B = torch.zeros(len(images), device=codes_BL.device)
    for is_masked_BL in (first_BL, ~first_BL):
        count = int(is_masked_BL[0].sum())
        index_BN = positions(is_masked_BL, count)
        step, *_ = plan(replace(subject.settings, num_steps=1), count, num_tokens)
        features = model.features(codes_BL, is_masked_BL, wanted, step)
        logp_BNV = guided_logits(model, features, (), index_BN).log_softmax(-1)
        wanted_BN1 = codes_BL.gather(1, index_BN).unsqueeze(-1)
        nats_B -= logp_BNV.gather(-1, wanted_BN1).squeeze(-1).sum(1)
    return (nats_B / num_tokens).cpu().numpy()


def distance(features_BD: np.ndarray, reference: Gaussian) -> float:
    """Return the Frechet distance that infinitely many pictures would have; it can be below 0.

    The distance of few pictures is too large by an amount that falls as 1 / their number, so the distance of all and
    the mean of two halves' tell it.

    Source: Chong and Forsyth 2020, section 4.
    """
    halves = [frechet_distance(Gaussian.of(features_BD[i::2]), reference) for i in (0, 1)]
    return 2 * frechet_distance(Gaussian.of(features_BD), reference) - sum(halves) / 2


def jackknifed(estimate: Callable[[np.ndarray], float], num: int) -> Estimate:
    """Return `estimate` of all of `num` pictures and its standard error.

    Args:
        estimate: a function of which pictures count, (`num`,) bool.
    """
    group_B = np.arange(num) // 2 % NUM_GROUPS  # each half of `distance` has its share
    kept = [group_B != group for group in np.unique(group_B)]
    without = np.array([estimate(is_kept_B) for is_kept_B in kept])
    variance = (len(kept) - 1) * without.var()
    return estimate(np.ones(num, dtype=bool)), float(variance**0.5)
