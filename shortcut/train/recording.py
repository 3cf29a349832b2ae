"""The story of a recording: how much it takes -> what is there already -> the runs that are missing, shared out.

Source: arXiv 2602.23996, whose authors record likewise: 8.9 TB of Lumina-DiMOO, about 2,000 images of 4.4 GB.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distributed import World
from ..schedule import Step, plan
from .dataset import (
    INDEX,
    Recording,
    in_gb,
    is_recorded,
    read_index,
    shard_path,
    write_index,
    write_shard,
)
from .teacher import RUNS, Teacher


@dataclass(frozen=True, slots=True)
class Survey:
    """What a recording takes and what of it is to be done."""

    num_bytes: int  # of all shards
    missing: list[int]  # numbers of the runs that are not there


def survey(folder: Path, teacher: Teacher, recording: Recording, limit: float | None) -> Survey:
    """Checks that `recording` can begin, or go on, in `folder`.

    Args:
        limit: bytes that it may take in all; None = what the disk has room for.

    Raises:
        ValueError: it takes more, or the folder holds another recording.
    """
    recording.check()
    _check_same(folder, recording)
    total = needed = 0
    missing = []
    for number in range(recording.num_runs):
        conditions, steps = _drawn(teacher, recording, number)
        size = num_bytes(teacher, conditions, len(steps))
        total += size
        path = shard_path(folder, number)
        if not is_recorded(path, recording.model_fingerprint, conditions, steps):
            missing.append(number)
            needed += size
    if limit is not None and total > limit:
        raise _too_large(recording, total, limit, f"the limit is {in_gb(limit)}")
    free, there = shutil.disk_usage(_existing(folder)).free, total - needed
    if needed > free:
        beside = f" beside the {in_gb(there)} recorded already" if there else ""
        room = f"the disk of {folder} has {in_gb(free)} free{beside}"
        raise _too_large(recording, total, free + there, room)
    return Survey(total, missing)


def make(
    folder: Path,
    teacher: Teacher,
    recording: Recording,
    *,
    limit: float | None = None,
    world: World = World(),  # noqa: B008 - frozen
    gather: Callable[[Any], list[Any]] = lambda mine: [mine],
    on_run: Callable[[int, int], None] | None = None,
) -> Survey:
    """Records the runs that are not in `folder` yet. Returns what was found there before.

    Args:
        limit: as for `survey`.
        gather: of `processes.meeting`, where `world` has several processes.
        on_run: called after each run of this process with the number of those done and to do.

    Raises:
        OSError: the disk is full, or cannot be written; nothing half written stays.
        FloatingPointError: features do not fit float16, or the model gives NaN.
        ValueError: as `survey`.
    """
    found = survey(folder, teacher, recording, limit)
    gather(None)  # nobody writes before all have looked
    if world.rank == 0:
        write_index(folder, recording)
    gather(None)
    mine = found.missing[world.rank :: world.size]
    for done, number in enumerate(mine, 1):
        run = teacher.run(
            recording.runs,
            recording.images_per_run,
            (recording.seed, RUNS, number),
            keep_on=torch.device("cpu"),
        )
        write_shard(shard_path(folder, number), run, recording.model_fingerprint)
        if on_run is not None:
            on_run(done, len(mine))
    gather(None)
    return found


def num_bytes(teacher: Teacher, conditions: tuple[Tensor, ...], num_steps: int) -> int:
    """What a run takes on disk: features in float16; conditions, codes and their order in 32 bits.

    Args:
        conditions: one for each guidance branch, rows = images.
    """
    length = sum(teacher.model.num_positions(branch) for branch in conditions)
    features = num_steps * length * teacher.model.config.width
    ids = 2 * teacher.num_tokens + sum(branch[0].numel() for branch in conditions)
    return len(conditions[0]) * (2 * features + 4 * ids)


def _drawn(
    teacher: Teacher, recording: Recording, number: int
) -> tuple[tuple[Tensor, ...], list[Step]]:
    """Conditions and steps of a run."""
    seed = (recording.seed, RUNS, number)
    settings, conditions, _ = teacher.draw(recording.runs, recording.images_per_run, seed)
    return conditions, plan(settings, teacher.num_tokens, teacher.num_tokens)


def _check_same(folder: Path, recording: Recording) -> None:
    """Raises ValueError if `folder` holds a recording that differs in more than the number of images."""
    found = read_index(folder)
    if found is None:
        return
    for item in fields(recording):
        before, now = getattr(found, item.name), getattr(recording, item.name)
        if item.name == "num_images" or before == now:
            continue
        what = f"another {item.name.replace('_', ' ')}: {before}, now {now}"
        if item.name == "runs":
            what = f"other steps or settings, which are in its {INDEX}"
        raise ValueError(
            f"{folder} holds a recording with {what}. Record with the options it was begun with, or into another "
            "folder."
        )


def _too_large(recording: Recording, total: int, allowed: float, why: str) -> ValueError:
    fit = int(max(allowed, 0) / total * recording.num_runs) * recording.images_per_run
    return ValueError(
        f"recording {recording.num_images} images takes {in_gb(total)}, and {why}. {fit} images fit; fewer steps take "
        "less; training without a dataset takes none."
    )


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
