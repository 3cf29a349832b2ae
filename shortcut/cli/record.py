"""The command `record`: options -> teacher -> its runs on disk, for `train --data`."""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..distributed import World, meeting
from ..files import check_writable
from ..grid import usual_grid
from ..pipeline import advice_on_memory
from ..schedule import Settings
from ..train.dataset import (
    GB,
    INDEX,
    Recording,
    in_gb,
    read_index,
)
from ..train.progress import progress_bar
from ..train.recording import make, num_bytes
from ..train.teacher import RUNS, Teacher
from .train_options import (
    add_model,
    add_sampling,
    add_where,
    load_teacher,
    runs_of,
)

logger = logging.getLogger(__name__)

IMAGES_PER_RUN = 32
RUN_BYTES = 2 * GB  # that a run takes at most unless --batch-size says otherwise


def add_parser(commands: Any) -> None:
    """Adds `record` to the command line."""
    parser = commands.add_parser(
        "record",
        help="record what a shortcut head learns from",
        description=f"{__doc__} Run again, it goes on where it stopped; under torchrun the runs are shared out.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to fill")
    parser.add_argument(
        "--num",
        "--num-images",  # torchrun, which reads all options, takes --num for the begin of one of its own
        type=int,
        required=True,
        metavar="N",
        help="images in all; more than before adds the difference. Under torchrun --num-images",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        help=f"images in a run, which is a file; default: up to {IMAGES_PER_RUN} and {in_gb(RUN_BYTES)}, so that "
        "--num fills whole runs",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--size-limit",
        type=float,
        metavar="GB",
        help="refuse to begin what would take more; default: what the disk has room for",
    )
    add_model(parser)
    add_sampling(parser)
    add_where(parser)
    parser.add_argument(
        "--json", action="store_true", help="one JSON line last: images, files, bytes, seconds"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Records. Returns the exit status; errors are exceptions whose text is for the user."""
    check_writable(options.out / INDEX)
    world = World.here()
    limit = None if options.size_limit is None else options.size_limit * GB
    with meeting(world) as gather:
        teacher, model_file = load_teacher(options)
        recording = recording_of(options, teacher, model_file)
        begun = time.perf_counter()
        with progress_bar(is_shown=world.rank == 0, unit="run") as bar, advice_on_memory():
            found = make(
                options.out,
                teacher,
                recording,
                limit=limit,
                world=world,
                gather=gather,
                on_run=lambda done, num_mine: progress(bar, done, num_mine),
            )
    if world.rank == 0:
        report = {
            "images": recording.num_images,
            "files": recording.num_runs,
            "made": len(found.missing),
            "bytes": found.num_bytes,
            "seconds": round(time.perf_counter() - begun, 2),
        }
        print(json.dumps(report) if options.json else in_words(report, options.out))
    return 0


def recording_of(
    options: argparse.Namespace, teacher: Teacher, model_file: Checkpoint
) -> Recording:
    """What the options ask for.

    Raises:
        ValueError: the images do not fill whole runs, or a setting is out of range.
    """
    for option, least in (("num", 1), ("batch_size", 1), ("seed", 0)):
        value = getattr(options, option)
        if value is not None and value < least:
            raise ValueError(f"--{option.replace('_', '-')} must be at least {least}, got {value}.")
    runs = runs_of(options, teacher.settings)
    per_run = options.batch_size or usual_batch(options, teacher, runs)
    weights, products = teacher.model.dtype, teacher.autocast or teacher.model.dtype
    recording = Recording(
        model=model_file.name,
        model_fingerprint=model_file.fingerprint,
        grid=options.grid or usual_grid(model_file),
        runs=runs,
        seed=options.seed,
        num_images=options.num,
        images_per_run=per_run,
        arithmetic=f"{weights}, products in {products}".replace("torch.", ""),
    )
    recording.check()
    return recording


def usual_batch(options: argparse.Namespace, teacher: Teacher, runs: tuple[Settings, ...]) -> int:
    """Images in a run: as in the recording that is there, or else as many as fit and fill whole runs."""
    begun = read_index(options.out)
    if begun is not None:
        return begun.images_per_run
    _, conditions, _ = teacher.draw(runs, 1, (options.seed, RUNS))
    one = num_bytes(teacher, conditions, max(settings.num_steps for settings in runs))
    most = max(1, min(IMAGES_PER_RUN, options.num, RUN_BYTES // one))
    size = next(size for size in range(most, 0, -1) if options.num % size == 0)
    if size < most / 2:
        logger.warning(
            "%d images fill runs of %d only, which training then has at a time. --num %d fills runs of %d.",
            *(options.num, size, options.num + -options.num % most, most),
        )
    return size


def progress(bar: Any, done: int, num_mine: int) -> None:
    """Moves the bar to `done` of this process's runs."""
    bar.total = num_mine
    bar.update(done - bar.n)


def in_words(report: dict[str, Any], folder: Path) -> str:
    """What was done, for people."""
    return (
        f"{folder}: {report['images']} images in {report['files']} files, {in_gb(report['bytes'])}; "
        f"{report['made']} files made now, {report['seconds']} s"
    )
