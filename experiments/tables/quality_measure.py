"""Sample the class model, draw fresh scenes, let the judge look at both.

B  images    C  channels    Y, X  pixel rows, columns    D  features
"""

from __future__ import annotations

from collections.abc import Iterator

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
NUM_CLASSES = len(CLASS_NAMES)
Judged = tuple[np.ndarray, dict[str, np.ndarray]]  # features (B, D), predicted values by attribute


def measure(row: Row, seed: int, num: int, subject: Subject, reference: Gaussian) -> Figures:
    """Return the seconds per image and the distance of `num` samples from `reference`, image i of class i mod 16."""
    sample_classes(subject, row, seed, range(min(num, 2)))  # warm-up, not timed
    parts, seconds = [], 0.0
    for images in batches(subject, num):
        codes_Bhw, taken = sample_classes(subject, row, seed, images)
        parts.append(judged(subject, subject.pipeline.decode(codes_Bhw))[0])
        seconds += taken
    made = Gaussian.of(np.concatenate(parts))
    return {"seconds": seconds / num, "distance": frechet_distance(made, reference)}


def sample_classes(subject: Subject, row: Row, seed: int, images: range) -> tuple[Tensor, float]:
    """Return codes (B, h, w) of the images with these numbers, and the seconds of sampling."""
    class_B = torch.tensor(images) % NUM_CLASSES
    return subject.sample(row, (class_B, torch.full_like(class_B, NUM_CLASSES)), seed, images)


def reference_of(subject: Subject, num: int) -> Gaussian:
    """Return what pictures are compared with: the features of `num` fresh scenes, scene i of class i mod 16."""
    shown = (scenes(subject, FIRST_REFERENCE_SEED, images) for images in batches(subject, num))
    return Gaussian.of(np.concatenate([judged(subject, part)[0] for part in shown]))


def through_vq(pipeline: Pipeline, pixels_BCYX: Tensor) -> Tensor:
    """Encode and decode pictures."""
    return pipeline.decode(pipeline.encode(pixels_BCYX).to(pipeline.device))


def scenes(subject: Subject, first_seed: int, images: range) -> Tensor:
    """Return pictures (B, 3, Y, X) of the fresh scenes with these numbers, scene i of class i mod 16."""
    pixels = np.stack([_scene(first_seed, i) for i in images])
    return to_network(torch.from_numpy(pixels)).to(subject.pipeline.device)


def _scene(first_seed: int, index: int) -> np.ndarray:
    time, biome = divmod(index % NUM_CLASSES, len(BIOMES))
    scene = compose(first_seed + index, time=TIMES[time], biome=BIOMES[biome])
    return np.asarray(draw(scene, SIZE))


def batches(subject: Subject, num: int) -> Iterator[range]:
    """Yield the numbers of `num` images, a batch at a time."""
    for start in range(0, num, subject.batch_size):
        yield range(start, min(start + subject.batch_size, num))


def judged(subject: Subject, pixels_BCYX: Tensor) -> Judged:
    """Return the judge's features of pictures and what it sees on them."""
    features_BD, predicted = attributes.judged(subject.judge, pixels_BCYX)
    return features_BD.cpu().numpy(), {n: value_B.cpu().numpy() for n, value_B in predicted.items()}
