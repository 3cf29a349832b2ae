"""Measure the pictures of one row and seed, picture by picture, so that rows can be paired and pieces pooled.

- seconds: CPU time of the sampling loop per image, which other processes do not change much;
- features: the judge's, for Frechet distances;
- surprise, of samples: -log p of half of the finished picture's codes given the other half and vice versa, by the
  model without guidance, in nats a code. The halves are the same in every row;
- things: how many of each kind the judge sees; right: it sees the time and biome of the picture's class.

    B  images    L  image tokens    h, w  rows, columns of codes    V  codebook size    D  features
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from experiments.scenes.scene import BIOMES
from experiments.tables.frechet import Gaussian, frechet_distance
from experiments.tables.quality_measure import (
    NUM_CLASSES,
    batches,
    judged,
    sample_classes,
    scenes,
)
from experiments.tables.rows import Figures, Row, Subject
from shortcut.denoiser import guided_logits, positions
from shortcut.noise import seeded
from shortcut.schedule import plan

THINGS = ("trees", "houses", "boats", "clouds")
NUM_GROUPS = 16  # of a jackknife
# Of the row of fresh scenes, with a stride between its pieces; no network was trained on them.
FIRST_SCENE_SEED, SCENE_STRIDE = 10_000_000, 100_000
HALVES_SEED = 2  # of the stream that picks the halves
Estimate = tuple[float, float]  # with its standard error


def measure(row: Row, seed: int, num: int, subject: Subject) -> Figures:
    """Return the figures of `num` pictures: a list of a value each."""
    found: dict[str, list[np.ndarray]] = {}
    if row.num_steps:
        sample_classes(subject, row, seed, range(min(num, 2)))  # warm-up, not timed
    for images in batches(subject, num):
        begun = time.process_time()
        if row.num_steps:
            codes_Bhw, _ = sample_classes(subject, row, seed, images)
        else:
            codes_Bhw = subject.pipeline.encode(
                scenes(subject, FIRST_SCENE_SEED + SCENE_STRIDE * seed, images)
            )
        seconds = (time.process_time() - begun) / len(images)
        features_BD, predicted = judged(subject, subject.pipeline.decode(codes_Bhw))
        class_B = np.array(images) % NUM_CLASSES
        is_right_B = (predicted["time"] == class_B // len(BIOMES)) & (
            predicted["biome"] == class_B % len(BIOMES)
        )
        figures = {
            "seconds": np.full(len(images), seconds),
            "features": features_BD,
            **{name: predicted[name] for name in THINGS},
            "right": is_right_B.astype(int),
        }
        if row.num_steps:
            figures["surprise"] = surprise(subject, codes_Bhw, images)
        for name, values in figures.items():
            found.setdefault(name, []).append(values)
    return {n: np.concatenate(parts).round(4).tolist() for n, parts in found.items()}


@torch.no_grad()
def surprise(subject: Subject, codes_Bhw: Tensor, images: range) -> np.ndarray:
    """Return the mean -log p (B,) of each half of the codes given the other half."""
    codes_BL = codes_Bhw.flatten(1)
    class_B = torch.tensor(images, device=codes_BL.device) % NUM_CLASSES
    num_tokens = codes_BL.shape[1]
    order_BL = torch.stack(
        [torch.randperm(num_tokens, generator=seeded(i, HALVES_SEED)) for i in images]
    )
    first_BL = (order_BL < num_tokens // 2).to(codes_BL.device)
    model = subject.pipeline.model.on_grid(*subject.grid)
    nats_B = torch.zeros(len(images), device=codes_BL.device)
    for is_masked_BL in (first_BL, ~first_BL):
        count = int(is_masked_BL[0].sum())
        index_BN = positions(is_masked_BL, count)
        step, *_ = plan(replace(subject.settings, num_steps=1), count, num_tokens)
        features = model.features(codes_BL, is_masked_BL, (class_B,), step)
        logp_BNV = guided_logits(model, features, (), index_BN).log_softmax(-1)
        wanted_BN1 = codes_BL.gather(1, index_BN).unsqueeze(-1)
        nats_B -= logp_BNV.gather(-1, wanted_BN1).squeeze(-1).sum(1)
    return (nats_B / num_tokens).cpu().numpy()


def distance(features_BD: np.ndarray, reference: Gaussian) -> float:
    """Return the Frechet distance that infinitely many pictures would have; it can be below 0.

    The distance of few pictures is too large by an amount that falls as 1 / their number, so the distance of all and
    the mean of two halves' tell it. Both have all classes.

    Source: Chong and Forsyth 2020, section 4.
    """
    index_B = np.arange(len(features_BD))
    half_B = (index_B + index_B // NUM_CLASSES) % 2
    halves = [frechet_distance(Gaussian.of(features_BD[half_B == i]), reference) for i in (0, 1)]
    return 2 * frechet_distance(Gaussian.of(features_BD), reference) - sum(halves) / 2


def jackknifed(estimate: Callable[[np.ndarray], float], num: int) -> Estimate:
    """Return `estimate` of all of `num` pictures and its standard error.

    Args:
        estimate: a function of which pictures count, (`num`,) bool.
    """
    group_B = np.arange(num) // NUM_CLASSES % NUM_GROUPS
    kept = [group_B != group for group in np.unique(group_B)]
    without = np.array([estimate(is_kept_B) for is_kept_B in kept])
    variance = (len(kept) - 1) * without.var()
    return estimate(np.ones(num, dtype=bool)), float(variance**0.5)
