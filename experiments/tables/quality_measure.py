"""Measure one row of the quality table: the judge looks at samples or scenes, evenly over the classes.

- seconds per image: the sampling loop alone, without decoding;
- Frechet distances in the judge's features, from fresh scenes and from the same scenes through the VQ;
- attribute accuracy: the share of pictures in which the judge sees the time and biome of their class.

    B  images    C  channels    Y, X  pixel rows, columns    D  features
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from experiments.judges import attributes
from experiments.scenes.dataset import SIZE, to_network
from experiments.scenes.drawing import draw
from experiments.scenes.scene import BIOMES, CLASS_NAMES, TIMES, compose
from experiments.tables.frechet import Gaussian, frechet_distance
from experiments.tables.rows import Figures, Row, Subject
from shortcut import Pipeline

FIRST_REFERENCE_SEED = 10_000_000
# Of the rows "real" and "vq", with a stride of REAL_STRIDE between runs.
FIRST_REAL_SEED, REAL_STRIDE = 20_000_000, 1_000_000
NUM_CLASSES = len(CLASS_NAMES)
Judged = tuple[np.ndarray, dict[str, np.ndarray]]  # features (B, D), predicted values by attribute


def references(subject: Subject, num: int) -> dict[str, Gaussian]:
    """Return what pictures are compared with, by the name of the distance.

    distance: `num` fresh scenes. vq_distance: the same scenes through the VQ, the best that codes can show, so that
    the VQ's own error does not hide what the sampler does.
    """
    as_is, through = [], []
    for pixels_BCYX in _scenes(subject, FIRST_REFERENCE_SEED, num):
        as_is.append(_judge(subject, pixels_BCYX))
        through.append(_judge(subject, through_vq(subject.pipeline, pixels_BCYX)))
    judged = {"distance": as_is, "vq_distance": through}
    return {name: Gaussian.of(_joined(parts)[0]) for name, parts in judged.items()}


def measure(
    row: Row, seed: int, num: int, subject: Subject, compared_with: Mapping[str, Gaussian]
) -> Figures:
    """Return the figures of one row and seed: seconds per image, distances from `compared_with`, accuracies."""
    seconds = 0.0
    if row.num_steps:
        features_BD, predicted, seconds = judge_samples(subject, row, seed, num)
    else:
        through = partial(through_vq, subject.pipeline) if row.kind == "vq" else None
        first = FIRST_REAL_SEED + REAL_STRIDE * seed
        features_BD, predicted = judge_scenes(subject, first, num, through)
    made, class_B = Gaussian.of(features_BD), np.arange(num) % NUM_CLASSES
    has_time = predicted["time"] == class_B // len(BIOMES)
    has_biome = predicted["biome"] == class_B % len(BIOMES)
    return {
        "seconds": seconds / num,
        **{name: frechet_distance(made, reference) for name, reference in compared_with.items()},
        "time": float(has_time.mean()),
        "biome": float(has_biome.mean()),
        "both": float((has_time & has_biome).mean()),
    }


def judge_samples(
    subject: Subject, row: Row, seed: int, num: int
) -> tuple[np.ndarray, dict[str, np.ndarray], float]:
    """Return features and attributes of `num` samples, image i of class i mod 16, and seconds of sampling."""
    sample_classes(subject, row, seed, range(min(num, 2)))  # warm-up, not timed
    parts, seconds = [], 0.0
    for images in _batches(subject, num):
        codes_Bhw, taken = sample_classes(subject, row, seed, images)
        parts.append(_judge(subject, subject.pipeline.decode(codes_Bhw)))
        seconds += taken
    return *_joined(parts), seconds


def sample_classes(subject: Subject, row: Row, seed: int, images: range) -> tuple[Tensor, float]:
    """Return codes (B, h, w) of the images with these numbers, and the seconds of sampling."""
    class_B = torch.tensor(images) % NUM_CLASSES
    return subject.sample(row, (class_B, torch.full_like(class_B, NUM_CLASSES)), seed, images)


def judge_scenes(
    subject: Subject, first_seed: int, num: int, through: Callable[[Tensor], Tensor] | None = None
) -> Judged:
    """Return features and attributes of `num` fresh scenes, scene i of class i mod 16.

    Args:
        through: changes the pictures before they are judged.
    """
    pixels = _scenes(subject, first_seed, num)
    return _joined([_judge(subject, through(part) if through else part) for part in pixels])


def through_vq(pipeline: Pipeline, pixels_BCYX: Tensor) -> Tensor:
    """Encode and decode pictures."""
    return pipeline.decode(pipeline.encode(pixels_BCYX).to(pipeline.device))


def _scenes(subject: Subject, first_seed: int, num: int) -> Iterator[Tensor]:
    """Yield pictures (B, 3, Y, X) of fresh scenes, scene i of class i mod 16, a batch at a time."""
    for images in _batches(subject, num):
        pixels = np.stack([_scene(first_seed, i) for i in images])
        yield to_network(torch.from_numpy(pixels)).to(subject.pipeline.device)


def _scene(first_seed: int, index: int) -> np.ndarray:
    time, biome = divmod(index % NUM_CLASSES, len(BIOMES))
    scene = compose(first_seed + index, time=TIMES[time], biome=BIOMES[biome])
    return np.asarray(draw(scene, SIZE))


def _batches(subject: Subject, num: int) -> Iterator[range]:
    for start in range(0, num, subject.batch_size):
        yield range(start, min(start + subject.batch_size, num))


def _judge(subject: Subject, pixels_BCYX: Tensor) -> Judged:
    features_BD, predicted = attributes.judged(subject.judge, pixels_BCYX)
    return features_BD.cpu().numpy(), {n: value_B.cpu().numpy() for n, value_B in predicted.items()}


def _joined(parts: list[Judged]) -> Judged:
    predicted = {name: np.concatenate([p[name] for _, p in parts]) for name in parts[0][1]}
    return np.concatenate([features for features, _ in parts]), predicted
