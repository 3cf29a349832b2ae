"""Many pictures from a file of prompts: resumed where it stopped, shared out among processes.

A process takes every WORLD_SIZE-th line, beginning with its own RANK, as torchrun's environment says. The processes
wait for each other once, at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from ..distributed import Ranks, process_group
from ..guard import MAX_IMAGES, check_whole, message_of
from ..pipeline import Pipeline
from ..writing import check_writable
from . import texts
from .options import with_line
from .output import are_finished, paths_of, write_pictures
from .requests import job_of, load_pipeline

# What a picture is expected to fail with: bad input, files, logits that are not finite, the device.
FAILURES = (ValueError, OSError, FloatingPointError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of lines, by their numbers in the file, from 1."""

    made: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)  # they were there already
    failed: dict[int, str] = field(default_factory=dict)  # and why


# The options of a line, or what is wrong with it.
Line = argparse.Namespace | str


def run(options: argparse.Namespace) -> int:
    """Make the pictures of all lines. Return 1 if one failed, else 0."""
    ranks = Ranks.here()
    lines = read_lines(options)
    with process_group(ranks) as gather:
        pipeline = load_pipeline(options)
        mine = dict(list(lines.items())[ranks.rank :: ranks.world_size])
        outcome = merged(gather(make(pipeline, mine, options.out_dir, is_shown=ranks.rank == 0)))
    if ranks.rank == 0:
        report(outcome, is_json=options.json)
    return 1 if outcome.failed else 0


def read_lines(options: argparse.Namespace) -> dict[int, Line]:
    """Return the lines of the file of prompts by their numbers, without those that are blank.

    Raises:
        OSError, ValueError: the file cannot be read, or says nothing.
    """
    lines: dict[int, Line] = {}
    taken: set[str] = set()  # names of files, as a system knows them that does not tell A from a
    for number, text in enumerate(texts.read_lines(options.prompts), 1):
        if not text.strip():
            continue
        try:
            line = with_line(options, text)
            line.name = line.name or f"{number:05}"
            check_whole("batch size", line.batch_size, 1, MAX_IMAGES)
            files = {_folded(path.name) for path in line_paths(options.out_dir, line)}
            if files & taken:
                raise ValueError(
                    f"a line above it has the name {line.name!r} too, or one that some systems do not tell from it."
                )
            taken |= files
            lines[number] = line
        except ValueError as error:
            lines[number] = str(error)
    if not lines:
        raise ValueError(
            f"{options.prompts} has no lines. Write a JSON object with a prompt in each."
        )
    return lines


def make(pipeline: Pipeline, lines: Mapping[int, Line], folder: Path, *, is_shown: bool) -> Outcome:
    """Make the pictures of `lines` one after the other, whatever becomes of each."""
    outcome = Outcome()
    hidden = None if is_shown else True  # None: shown on a terminal
    for number, line in tqdm(lines.items(), unit="prompt", disable=hidden, file=sys.stderr):
        try:
            if isinstance(line, str):
                raise ValueError(line)
            job = job_of(pipeline, line)
            out, *more = line_paths(folder, line)
            if are_finished([out, *more], job.about):
                outcome.skipped.append(number)
                continue
            check_writable(out)  # a disk that has filled up costs no more pictures
            codes_Bhw = job.run().codes_BL.unflatten(1, job.grid)
            write_pictures([out, *more], pipeline.decode(codes_Bhw), job.about, job.graph)
            outcome.made.append(number)
        except FAILURES as error:
            outcome.failed[number] = message_of(error)
        except Exception as error:  # our mistake, but no reason to lose the other lines
            outcome.failed[number] = message_of(f"{type(error).__name__}: {error}")
    return outcome


def line_paths(folder: Path, line: argparse.Namespace) -> list[Path]:
    """Return where the pictures of a line go."""
    return paths_of(folder / f"{line.name}.png", line.batch_size)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def merged(outcomes: Iterable[Outcome]) -> Outcome:
    """Return one outcome, in the order of the lines."""
    outcomes = list(outcomes)
    return Outcome(
        sorted(number for outcome in outcomes for number in outcome.made),
        sorted(number for outcome in outcomes for number in outcome.skipped),
        dict(sorted(item for outcome in outcomes for item in outcome.failed.items())),
    )


def report(outcome: Outcome, *, is_json: bool) -> None:
    """Say on stderr what failed, and as JSON on stdout what became of each line."""
    num_lines = len(outcome.made) + len(outcome.skipped) + len(outcome.failed)
    for number, why in outcome.failed.items():
        print(f"line {number}: {why}", file=sys.stderr)
    if outcome.failed:
        print(
            f"error: {len(outcome.failed)} of {num_lines} lines failed. The same command tries them again.",
            file=sys.stderr,
        )
    if is_json:
        print(json.dumps(asdict(outcome)))
