"""Feed damaged and hostile inputs to everything that reads one: python -m experiments fuzz

Each case runs in a forked child with limits of time and memory and with hooks for what no file may cause. A
number makes the same case again: --kind KIND --first N --cases 1. What fails keeps its folder, with a command.txt.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from tqdm import tqdm

from experiments.robustness import guard, samples
from experiments.robustness.guard import FAULTS, NAMELESS, Limits, Verdict
from experiments.robustness.kinds import Case, Kind, kinds
from experiments.robustness.mutations import CANARY
from experiments.tables.report import table
from shortcut.__main__ import main

KEPT = 2  # reproducers of faults with the same signature
COLUMNS = ("input", "cases", "accepted", "refused", *FAULTS)
ABOUT = "feed damaged inputs to everything that reads one: a table, status 1 if there is a fault"


def add_parser(steps: Any) -> None:
    """Add `fuzz` to the command line."""
    parser = steps.add_parser("fuzz", help=ABOUT, description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="all kinds together")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--kind", choices=[kind.name for kind in kinds()], help="only this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds", type=float, default=Limits().seconds, help="of computing, in a case"
    )
    parser.add_argument(
        "--gigabytes", type=float, default=Limits().gigabytes, help="of memory, in a case"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("output/fuzz"), help="folder for reproducers"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the cases and print the table. Return 1 if there was a fault, else 0."""
    torch.set_num_threads(1)
    chosen = [kind for kind in kinds() if options.kind in (None, kind.name)]
    limits = Limits(options.seconds, options.gigabytes)
    counts: dict[str, Counter[str]] = {kind.name: Counter() for kind in chosen}
    causes: Counter[tuple[str, str, str]] = Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as work:
        made = Path(work, "samples")
        prepare(made, chosen, limits)
        for number in tqdm(range(options.first, options.first + options.cases), disable=None):
            kind = chosen[number % len(chosen)]
            folder = Path(work, "case", f"{number}")
            case, verdict = run_case(kind, number, options.seed, made, folder, limits)
            counts[kind.name].update(columns_of(verdict))
            if verdict.fault:
                cause = (kind.name, verdict.fault, verdict.signature)
                causes[cause] += 1
                if causes[cause] <= KEPT:
                    keep(options.out, kind, number, folder, case, verdict)
            shutil.rmtree(folder, ignore_errors=True)
    print(summary(counts))
    for (name, fault, signature), count in causes.most_common():
        print(f"{count:5} x {name}: {fault}: {signature}", file=sys.stderr)
    if causes:
        print(f"reproducers are in {options.out}", file=sys.stderr)
    return 1 if causes else 0


def prepare(made: Path, chosen: Sequence[Kind], limits: Limits) -> None:
    """Write the samples, and check that all of them are accepted as long as nothing is damaged.

    What a command imports is then there, so that a case is the work on its input alone.
    """
    names = {kind.sample for kind in chosen}
    samples.write(made, names)
    if any(file.startswith("h.") for kind in chosen for file in kind.files):
        words = samples.TRAIN.split()
        trained = guard.run(lambda: main(words), made / "classes", (), limits)
        if trained.fault or trained.status:
            raise RuntimeError(f"the training of the samples ended: {trained}")
    before = Path.cwd()
    for kind in chosen:
        for number, case in enumerate(kind.sound()):
            folder = made.with_name("sound") / kind.sample
            if not folder.exists():
                shutil.copytree(made / kind.sample, folder)
            if "train" not in case.words:  # after a backward pass, a child could do none
                os.chdir(folder)
                try:
                    with contextlib.redirect_stdout(io.StringIO()):
                        status = case.action()
                finally:
                    os.chdir(before)
                if status:
                    raise RuntimeError(f"{kind.name}: {' '.join(case.words)} ended with {status}.")
            verdict = guard.run(case.action, folder, case.names, limits)
            if verdict.fault or verdict.status:
                raise RuntimeError(f"{kind.name}, undamaged case {number}: {verdict}")


def run_case(
    kind: Kind, number: int, seed: int, made: Path, folder: Path, limits: Limits
) -> tuple[Case, Verdict]:
    """Run the case of that number in an empty folder."""
    folder.mkdir(parents=True)
    case = kind.prepare(made, folder, Random(f"{seed} {kind.name} {number}"))
    verdict = guard.run(case.action, folder, case.names, limits)
    if (folder / CANARY).exists():
        verdict = Verdict(guard.CODE, verdict.status, verdict.message, CANARY)
    return case, verdict


def columns_of(verdict: Verdict) -> tuple[str, ...]:
    """Return the columns in which a case counts."""
    counted = ["cases"]
    if verdict.fault in ("", NAMELESS):
        counted.append("refused" if verdict.status else "accepted")
    return (*counted, verdict.fault) if verdict.fault else tuple(counted)


def keep(out: Path, kind: Kind, number: int, folder: Path, case: Case, verdict: Verdict) -> None:
    """Copy the folder of a fault to `out`, with its command and what happened."""
    name = f"{verdict.fault} {kind.name} {number}".replace(" ", "-").replace("/", "-")
    target = out / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target, symlinks=True)
    again = f"python -m experiments fuzz --kind {kind.name!r} --first {number} --cases 1"
    text = f"{' '.join(case.words)}\n\n{verdict.fault}: {verdict.signature}\n\n{verdict.message}\n\n{again}\n"
    (target / "command.txt").write_text(text, encoding="utf-8", errors="backslashreplace")


def summary(counts: dict[str, Counter[str]]) -> str:
    """Return the table: a row for each kind, and all together."""
    total = sum(counts.values(), Counter())
    rows = [(name, found) for name, found in counts.items()] + [("all", total)]
    return table(COLUMNS, [(name, *(str(found[c]) for c in COLUMNS[1:])) for name, found in rows])
