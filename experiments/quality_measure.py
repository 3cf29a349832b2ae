"""The figures of one row of the quality table: samples or scenes, looked at by the judge.

A row samples as many pictures of every class, decodes them and lets the judge look at them:
- seconds per image: the sampling loop alone, without decoding;
- Frechet distances in the judge's features, from fresh scenes and from these through the VQ;
- attribute accuracy: the share of pictures in which the judge sees the time and biome asked for.

    B  images    C  channels    Y, X  pixel rows, columns    h, w  rows, columns of codes
    D  features
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shortcut.generate import generate
from shortcut.models.maskgit.classes import class_branches

from . import classifier
from .data import SIZE, to_network
from .frechet import Gaussian, frechet_distance
from .quality_rows import Kit, Row
from .scene_drawing import draw
from .scenes import BIOMES, TIMES, compose

FIRST_REFERENCE_SEED = 10_000_000
FIRST_REAL_SEED = (
    20_000_000  # of the rows "real" and "vq", with a stride of REAL_STRIDE between runs
)
REAL_STRIDE = 1_000_000
DECODE_BATCH = 8  # larger batches leave the cache of a CPU and are slower
NUM_CLASSES = len(TIMES) * len(BIOMES)
Judged = tuple[np.ndarray, dict[str, np.ndarray]]  # features (B, D), predicted values by attribute


def references(kit: Kit, num: int) -> dict[str, Gaussian]:
    """What pictures are compared with, by the name of the distance from it.

    distance: `num` fresh scenes. vq_distance: the same through the VQ, the best that codes can show, so that what
    the VQ loses of every picture does not hide what the sampler does.
    """
    as_is, through = [], []
    for pixels_BCYX in _scenes(kit, FIRST_REFERENCE_SEED, num):
        as_is.append(_judge(kit, pixels_BCYX))
        through.append(_judge(kit, through_vq(kit.vq, pixels_BCYX)))
    judged = {"distance": as_is, "vq_distance": through}
    return {name: Gaussian.of(_joined(parts)[0]) for name, parts in judged.items()}


def measure(
    row: Row, seed: int, num: int, kit: Kit, compared_with: Mapping[str, Gaussian]
) -> dict[str, float]:
    """The figures of one row and seed: seconds per image, Frechet distances from `references`, accuracies."""
    seconds = 0.0
    if row.is_sampled:
        features_BD, predicted, seconds = judge_samples(kit, row, seed, num)
    else:
        through = partial(through_vq, kit.vq) if row.kind == "vq" else None
        features_BD, predicted = judge_scenes(
            kit, FIRST_REAL_SEED + REAL_STRIDE * seed, num, through
        )
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
    kit: Kit, row: Row, seed: int, num: int
) -> tuple[np.ndarray, dict[str, np.ndarray], float]:
    """Features and attributes of `num` samples, image i of class i mod 16; seconds of sampling."""
    sample = partial(sample_codes, kit, row, seed)
    sample(range(min(num, 2)))  # the first call of a kernel is slower; it is not in the figures
    parts, seconds = [], 0.0
    for start in range(0, num, kit.batch_size):
        codes_Bhw, taken = sample(range(start, min(start + kit.batch_size, num)))
        parts.append(_judge(kit, decoded(kit.vq, codes_Bhw)))
        seconds += taken
    return *_joined(parts), seconds


def sample_codes(kit: Kit, row: Row, seed: int, images: range) -> tuple[Tensor, float]:
    """Codes (B, h, w) of the images numbered `images`, and the seconds that they took."""
    config, settings = kit.model.config, kit.settings(row)
    class_B = torch.tensor(images) % NUM_CLASSES
    result = generate(
        kit.model,
        class_branches(class_B, config.num_classes, len(settings.guidance)),
        settings,
        seed=seed,
        image_indices=images,
        num_tokens=config.num_tokens,
        predictor=kit.predictor(row),
        device=kit.device,
    )
    return result.codes_BL.unflatten(1, (config.grid, -1)), result.seconds


def judge_scenes(
    kit: Kit, first_seed: int, num: int, through: Callable[[Tensor], Tensor] | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features and attributes of `num` fresh scenes, scene i of class i mod 16.

    `through` changes the pictures before they are judged.
    """
    pixels = _scenes(kit, first_seed, num)
    return _joined([_judge(kit, through(part) if through else part) for part in pixels])


def through_vq(vq: Any, pixels_BCYX: Tensor) -> Tensor:
    """Pictures after encoding and decoding."""
    return decoded(vq, encoded(vq, pixels_BCYX))


@torch.no_grad()
def encoded(vq: Any, pixels_BCYX: Tensor) -> Tensor:
    """Codes (B, h, w) of pictures."""
    return torch.cat([vq.encode(part) for part in pixels_BCYX.split(DECODE_BATCH)])


@torch.no_grad()
def decoded(vq: Any, codes_Bhw: Tensor) -> Tensor:
    """Pictures (B, 3, Y, X) of codes."""
    return torch.cat([vq.decode(part) for part in codes_Bhw.split(DECODE_BATCH)])


def _scenes(kit: Kit, first_seed: int, num: int) -> Iterator[Tensor]:
    """Pictures (B, 3, Y, X) of fresh scenes, scene i of class i mod 16, a batch at a time."""
    for start in range(0, num, kit.batch_size):
        images = range(start, min(start + kit.batch_size, num))
        pixels = np.stack([_scene(first_seed, i) for i in images])
        yield to_network(torch.from_numpy(pixels)).to(kit.device)


def _scene(first_seed: int, index: int) -> np.ndarray:
    time, biome = divmod(index % NUM_CLASSES, len(BIOMES))
    return np.asarray(
        draw(compose(first_seed + index, time=TIMES[time], biome=BIOMES[biome]), SIZE)
    )


def _judge(kit: Kit, pixels_BCYX: Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    features_BD, predicted = classifier.judged(kit.judge, pixels_BCYX)
    return features_BD.cpu().numpy(), {
        name: value_B.cpu().numpy() for name, value_B in predicted.items()
    }


def _joined(
    parts: list[tuple[np.ndarray, dict[str, np.ndarray]]],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    predicted = {name: np.concatenate([p[name] for _, p in parts]) for name in parts[0][1]}
    return np.concatenate([features for features, _ in parts]), predicted
