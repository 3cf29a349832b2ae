"""Measure one row of the quality table: the judge looks at samples or scenes, evenly over the classes.

- seconds per image: the sampling loop alone, without decoding;
- Frechet distances in the judge's features, from fresh scenes and from the same scenes through the VQ;
- attribute accuracy: the share of pictures in which the judge sees the time and biome of their class.

    B  images    C  channels    Y, X  pixel rows, columns    h, w  rows, columns of codes    D  features
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.judges import attributes
from experiments.scenes.dataset import SIZE, to_network
from experiments.scenes.drawing import draw
from experiments.scenes.scene import BIOMES, TIMES, compose
from experiments.tables.frechet import Gaussian, frechet_distance
from experiments.tables.rows import Figures, Networks, Row
from shortcut.generate import generate
from shortcut.models.maskgit.classes import class_branches

FIRST_REFERENCE_SEED = 10_000_000
# Of the rows "real" and "vq", with a stride of REAL_STRIDE between runs.
FIRST_REAL_SEED, REAL_STRIDE = 20_000_000, 1_000_000
DECODE_BATCH = 8  # larger batches leave the cache of a CPU and are slower
NUM_CLASSES = len(TIMES) * len(BIOMES)
Judged = tuple[np.ndarray, dict[str, np.ndarray]]  # features (B, D), predicted values by attribute


def references(networks: Networks, num: int) -> dict[str, Gaussian]:
    """Return what pictures are compared with, by the name of the distance.

    distance: `num` fresh scenes. vq_distance: the same scenes through the VQ, the best that codes can show, so that
    the VQ's own error does not hide what the sampler does.
    """
    as_is, through = [], []
    for pixels_BCYX in _scenes(networks, FIRST_REFERENCE_SEED, num):
        as_is.append(_judge(networks, pixels_BCYX))
        through.append(_judge(networks, through_vq(networks.vq, pixels_BCYX)))
    judged = {"distance": as_is, "vq_distance": through}
    return {name: Gaussian.of(_joined(parts)[0]) for name, parts in judged.items()}


def measure(
    row: Row, seed: int, num: int, networks: Networks, compared_with: Mapping[str, Gaussian]
) -> Figures:
    """Return the figures of one row and seed: seconds per image, distances from `compared_with`, accuracies."""
    seconds = 0.0
    if row.is_sampled:
        features_BD, predicted, seconds = judge_samples(networks, row, seed, num)
    else:
        through = partial(through_vq, networks.vq) if row.kind == "vq" else None
        first = FIRST_REAL_SEED + REAL_STRIDE * seed
        features_BD, predicted = judge_scenes(networks, first, num, through)
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
    networks: Networks, row: Row, seed: int, num: int
) -> tuple[np.ndarray, dict[str, np.ndarray], float]:
    """Return features and attributes of `num` samples, image i of class i mod 16, and seconds of sampling."""
    sample = partial(sample_codes, networks, row, seed)
    sample(range(min(num, 2)))  # warm-up, not timed
    parts, seconds = [], 0.0
    for start in range(0, num, networks.batch_size):
        codes_Bhw, taken = sample(range(start, min(start + networks.batch_size, num)))
        parts.append(_judge(networks, decoded(networks.vq, codes_Bhw)))
        seconds += taken
    return *_joined(parts), seconds


def sample_codes(networks: Networks, row: Row, seed: int, images: range) -> tuple[Tensor, float]:
    """Return codes (B, h, w) of the images with these numbers, and the seconds of sampling."""
    config, settings = networks.model.config, networks.settings(row)
    class_B = torch.tensor(images) % NUM_CLASSES
    result = generate(
        networks.model,
        class_branches(class_B, config.num_classes, len(settings.guidance)),
        settings,
        seed=seed,
        image_indices=images,
        num_tokens=config.num_tokens,
        predictor=networks.predictor(row),
        device=networks.device,
    )
    return result.codes_BL.unflatten(1, (config.grid, -1)), result.seconds


def judge_scenes(
    networks: Networks,
    first_seed: int,
    num: int,
    through: Callable[[Tensor], Tensor] | None = None,
) -> Judged:
    """Return features and attributes of `num` fresh scenes, scene i of class i mod 16.

    Args:
        through: changes the pictures before they are judged.
    """
    pixels = _scenes(networks, first_seed, num)
    return _joined([_judge(networks, through(part) if through else part) for part in pixels])


def through_vq(vq: Any, pixels_BCYX: Tensor) -> Tensor:
    """Encode and decode pictures."""
    return decoded(vq, encoded(vq, pixels_BCYX))


@torch.no_grad()
def encoded(vq: Any, pixels_BCYX: Tensor) -> Tensor:
    """Return the codes (B, h, w) of pictures."""
    return torch.cat([vq.encode(part) for part in pixels_BCYX.split(DECODE_BATCH)])


@torch.no_grad()
def decoded(vq: Any, codes_Bhw: Tensor) -> Tensor:
    """Return the pictures (B, 3, Y, X) of codes."""
    return torch.cat([vq.decode(part) for part in codes_Bhw.split(DECODE_BATCH)])


def _scenes(networks: Networks, first_seed: int, num: int) -> Iterator[Tensor]:
    """Yield pictures (B, 3, Y, X) of fresh scenes, scene i of class i mod 16, a batch at a time."""
    for start in range(0, num, networks.batch_size):
        images = range(start, min(start + networks.batch_size, num))
        pixels = np.stack([_scene(first_seed, i) for i in images])
        yield to_network(torch.from_numpy(pixels)).to(networks.device)


def _scene(first_seed: int, index: int) -> np.ndarray:
    time, biome = divmod(index % NUM_CLASSES, len(BIOMES))
    scene = compose(first_seed + index, time=TIMES[time], biome=BIOMES[biome])
    return np.asarray(draw(scene, SIZE))


def _judge(networks: Networks, pixels_BCYX: Tensor) -> Judged:
    features_BD, predicted = attributes.judged(networks.judge, pixels_BCYX)
    return features_BD.cpu().numpy(), {n: value_B.cpu().numpy() for n, value_B in predicted.items()}


def _joined(parts: list[Judged]) -> Judged:
    predicted = {name: np.concatenate([p[name] for _, p in parts]) for name in parts[0][1]}
    return np.concatenate([features for features, _ in parts]), predicted
