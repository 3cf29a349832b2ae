"""Teacher runs on disk: what a head learns from, recorded once.

A folder holds `index.json`, which says what is recorded, and one safetensors file ("shard") for each run of the
teacher. The index is written before the first shard and a shard says itself what it is, so whatever happens, the
folder holds whole shards of one recording; the same command makes those that are missing, in any number of processes.

    shard-00007.safetensors
        features/BRANCH/STEP     (B, S, D) float16  that the step decided by
        conditions/BRANCH        (B, ...)  int32
        order                    (B, L)    int32    the step that revealed each token
        codes                    (B, L)    int32    at the end
        metadata                 model_fingerprint, steps (as JSON), checksum

Source of what is kept: MIGM-Shortcut, `feat.pth`, `generation_order.pth` and `teacher_vq_ids.pth` of its makedata.py.

    B  images    S  sequence of one guidance branch    D  width    L  image tokens
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import Checkpoint
from ..denoiser import Revealed
from ..files import (
    read,
    read_metadata,
    write_safetensors,
    written_whole,
)
from ..grid import Grid
from ..sampler import positions
from ..schedule import Settings, Step
from .record import Trajectories, generation_order

logger = logging.getLogger(__name__)

INDEX, FORMAT, VERSION = "index.json", "shortcut-trajectories", 1
GB = 10**9
SAME_COMMAND = "The same `record` command makes only what is missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What a dataset holds, as its index says."""

    model: str  # name of its file
    model_fingerprint: str
    grid: Grid
    runs: tuple[Settings, ...]  # each run has one of these
    seed: int  # run n is drawn by (seed, RUNS, n), as in training without a dataset
    num_images: int
    images_per_run: int
    arithmetic: str  # types of the model's weights and of its products

    @property
    def num_runs(self) -> int:
        """Runs, which is shards."""
        return self.num_images // self.images_per_run

    def check(self) -> None:
        """Raises ValueError if the images do not fill whole runs."""
        if self.num_images < 1 or self.images_per_run < 1:
            raise ValueError(
                f"a recording needs at least one image in all and in each run, got {self.num_images} and "
                f"{self.images_per_run}."
            )
        if self.num_images % self.images_per_run:
            below = self.num_images // self.images_per_run * self.images_per_run
            raise ValueError(
                f"{self.num_images} images do not fill whole runs of {self.images_per_run}. Record "
                f"{below or self.images_per_run} or {below + self.images_per_run}, or give another --batch-size."
            )

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def parse(cls, found: Any) -> Recording:
        """The inverse of `dump`. Raises ValueError if it is none."""
        if not isinstance(found, Mapping) or found.get("format") != FORMAT:
            raise ValueError(
                f"it is not the index of a dataset of ours: its format is not {FORMAT!r}."
            )
        if found.get("version") != VERSION:
            raise ValueError(
                f"it has version {found.get('version')}, expected {VERSION}. If a newer version of this project "
                "wrote it, update."
            )
        try:
            values = {item.name: found[item.name] for item in fields(cls)}
            values["grid"] = tuple(values["grid"])
            values["runs"] = tuple(Settings(**_with_tuples(run)) for run in values["runs"])
            recording = cls(**values)
            recording.check()
        except (KeyError, TypeError) as error:
            raise ValueError(f"it is damaged ({type(error).__name__}: {error}).") from error
        return recording


@dataclass(frozen=True, slots=True)
class Dataset:
    """A finished recording."""

    folder: Path
    recording: Recording
    checked: set[int] = field(default_factory=set)  # runs whose checksum was found right

    @classmethod
    def open(cls, folder: Path, model_file: Checkpoint, grid: Grid) -> Dataset:
        """The dataset in `folder`, checked to be of this model and grid, and complete.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, not finished, or of another model or grid.
        """
        recording = read_index(folder)
        if recording is None:
            raise FileNotFoundError(
                f"{folder} holds no {INDEX}. Give the folder that `record` wrote, or leave the data out to train "
                "while the model runs."
            )
        fingerprint = model_file.fingerprint
        if recording.model_fingerprint != fingerprint:
            same = recording.model == model_file.name
            what = (
                f"{model_file.name}, whose weights have changed since (fingerprint {recording.model_fingerprint} "
                f"then, {fingerprint} now)"
                if same
                else f"{recording.model} ({recording.model_fingerprint}), not of {model_file.name} ({fingerprint})"
            )
            raise ValueError(f"{folder} was recorded of {what}. Record it anew with this model.")
        if recording.grid != grid:
            raise ValueError(
                f"{folder} was recorded on a grid of {_by(recording.grid)} codes, expected {_by(grid)}. Train on "
                "that grid, or record another dataset."
            )
        missing = [n for n in range(recording.num_runs) if not shard_path(folder, n).exists()]
        if missing:
            raise ValueError(
                f"{folder} is not finished: {len(missing)} of {recording.num_runs} shards are missing, the first is "
                f"{shard_path(folder, missing[0]).name}. {SAME_COMMAND}."
            )
        return cls(folder, recording)

    def described(self) -> str:
        """What it holds, in words; another recording has others.

        Raises:
            ValueError: a shard is missing or damaged.
        """
        value = zlib.crc32(json.dumps(self.recording.dump(), sort_keys=True).encode())
        for number in range(self.recording.num_runs):
            path = shard_path(self.folder, number)
            checksum = read_metadata(path).get("checksum")
            if checksum is None:
                raise _unusable(path)
            value = zlib.crc32(checksum.encode(), value)
        return f"{self.recording.num_images} images recorded, checksum {value:08x}"

    def run(self, number: int, images: slice = slice(None)) -> Trajectories:
        """The rows `images` of run `number`, on the CPU, mapped from disk. After the last comes the first again.

        Raises:
            ValueError: the shard is missing or damaged.
        """
        number %= self.recording.num_runs
        path = shard_path(self.folder, number)
        try:
            tensors, metadata = read(path)
        except (FileNotFoundError, ValueError) as error:
            raise _unusable(path) from error
        if number not in self.checked:
            _check(tensors, metadata, path)
            self.checked.add(number)
        return _trajectories(tensors, json.loads(metadata["steps"]), images)


def read_index(folder: Path) -> Recording | None:
    """What the dataset in `folder` holds or will hold; None = there is none.

    Raises:
        ValueError: its index is damaged.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Recording.parse(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error} Record into another folder.") from error


def write_index(folder: Path, recording: Recording) -> None:
    """Writes the index, and removes what a recording that was killed left half written.

    One process does this, before any writes a shard.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for partial in folder.glob(".shard-*.partial"):
        partial.unlink(missing_ok=True)
    with written_whole(folder / INDEX) as partial:
        partial.write_text(json.dumps(recording.dump(), indent=1) + "\n", encoding="utf-8")


def shard_path(folder: Path, number: int) -> Path:
    """Where run `number` of the dataset in `folder` is."""
    return folder / f"shard-{number:05d}.safetensors"


def is_recorded(
    path: Path, model_fingerprint: str, conditions: Sequence[Tensor], steps: Sequence[Step]
) -> bool:
    """Whether a shard is there. One that was cut off counts as missing; values are not looked at.

    Raises:
        ValueError: it is one of another recording.
    """
    if not path.exists():
        return False
    try:
        tensors, metadata = read(path)
        found = [tensors[f"conditions/{branch}"] for branch in _branches(tensors)]
        has_same_steps = json.loads(metadata["steps"]) == _as_json(steps)
    except (ValueError, KeyError) as error:
        logger.warning("%s is damaged and will be made again (%s)", path.name, error)
        return False
    if (
        metadata.get("model_fingerprint") != model_fingerprint
        or not has_same_steps
        or len(found) != len(conditions)
        or not all(torch.equal(f.long(), c) for f, c in zip(found, conditions, strict=True))
    ):
        raise ValueError(
            f"{path} is of another recording: of another model, seed, prompts, classes or settings. Record with the "
            "options it was begun with, or into another folder."
        )
    return True


def write_shard(path: Path, run: Trajectories, model_fingerprint: str) -> None:
    """Writes a shard, whole or not at all.

    Raises:
        FloatingPointError: features do not fit float16.
        OSError: the disk is full, or the shard cannot be written.
    """
    tensors = _tensors(run)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FloatingPointError(
                f"{name} of {path.name} are too large for float16, or not numbers. Check the model's weights."
            )
    metadata = {
        "format": FORMAT,
        "model_fingerprint": model_fingerprint,
        "steps": json.dumps(_as_json(run.steps)),
    }
    metadata["checksum"] = _checksum(tensors, metadata)
    size = sum(tensor.nbytes for tensor in tensors.values())
    try:
        with written_whole(path) as partial:
            write_safetensors(partial, tensors, tensors.items(), metadata)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            f"the disk is full: {path} needs {in_gb(size)} and {in_gb(free)} are free. The other shards are whole. "
            f"Free some room. {SAME_COMMAND}."
        ) from error


def _tensors(run: Trajectories) -> dict[str, Tensor]:
    """A run as a shard holds it."""
    tensors = {
        f"features/{branch}/{step:03d}": features_BSD
        for step, features in enumerate(run.features)
        for branch, features_BSD in enumerate(features)
    }
    tensors |= {f"conditions/{branch}": c.int() for branch, c in enumerate(run.conditions)}
    return tensors | {"order": generation_order(run).int(), "codes": run.codes_BL.int()}


def _trajectories(
    tensors: Mapping[str, Tensor], steps: Sequence[Mapping[str, Any]], images: slice
) -> Trajectories:
    """The inverse of `_tensors`, of some images."""
    branches = _branches(tensors)
    order_BL, codes_BL = tensors["order"][images], tensors["codes"][images].long()
    plan = [Step(**_with_tuples(step)) for step in steps]
    index = [positions(order_BL == step.index, step.num_revealed) for step in plan]
    return Trajectories(
        tuple(tensors[f"conditions/{branch}"][images].long() for branch in branches),
        plan,
        [tuple(tensors[f"features/{b}/{s.index:03d}"][images] for b in branches) for s in plan],
        [Revealed(codes_BL.gather(1, index_BK), index_BK) for index_BK in index],
        [positions(order_BL > step.index, step.num_masked_after) for step in plan],
        codes_BL,
    )


def _branches(tensors: Mapping[str, Any]) -> range:
    return range(sum(name.startswith("conditions/") for name in tensors))


def _unusable(path: Path) -> ValueError:
    """Of a shard that cannot be read."""
    if not path.exists():
        return ValueError(f"{path} is missing. {SAME_COMMAND}.")
    if not os.access(path, os.R_OK):
        return ValueError(f"{path} may not be read. Change its permissions.")
    what = "damaged or cut off" if path.stat().st_size else "empty"
    return ValueError(f"{path} is {what}. Delete it. {SAME_COMMAND}.")


def _check(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Raises ValueError if a shard is not as it was written."""
    stated = metadata.get("checksum")
    found = _checksum(tensors, metadata)
    if found != stated:
        raise ValueError(
            f"{path} is damaged: its checksum is {found}, expected {stated}. Delete it. {SAME_COMMAND}."
        )


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of all that a shard holds but the checksum itself."""
    value = zlib.crc32(json.dumps({**metadata, "checksum": ""}, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _as_json(steps: Sequence[Step]) -> list[dict[str, Any]]:
    return [{**asdict(step), "guidance": list(step.guidance)} for step in steps]


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields from JSON, which knows no tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _by(grid: Grid) -> str:
    return f"{grid[0]} x {grid[1]}"


def in_gb(size: float) -> str:
    """A number of bytes, for messages."""
    return f"{size / GB:,.0f} GB" if size >= 100 * GB else f"{size / GB:.3g} GB"
