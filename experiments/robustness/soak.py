"""Run hundreds of prompts on one real ComfyUI server: python -m experiments soak COMFY_DIR

Several clients queue random graphs of this pack's nodes: pictures with heads switched, short trainings, wrong graphs;
they interrupt some and free memory in between. Reference pictures are made at the start, in the middle and at the end.
Memory and descriptors are read whenever all clients rest and the server has forgotten its models.
"""

from __future__ import annotations

import argparse
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from experiments.robustness import graphs
from experiments.robustness.server import (
    ERROR,
    INTERRUPTED,
    SUCCESS,
    Answer,
    Server,
    ServerError,
    serving,
)
from experiments.tables.report import table

ROUNDS = 10  # memory is read after each
WARM_UP = 3  # rounds that are not compared
MOST_GROWTH = 0.02
LONG = 256  # steps of what is interrupted
REST_SECONDS = 12.0  # in which the server collects garbage once
DONE, REFUSED, STOPPED, FAILED = "made", "refused as expected", "interrupted", "failed"
TOLD = ("ValueError", "OSError", "FileNotFoundError", "FloatingPointError", "RuntimeError")
SHARES = {"sound": 0.8, "interrupted": 0.1, "wrong": 0.07, "training": 0.03}
ABOUT = "run random prompts on a real ComfyUI server: a table, status 1 if something is not as it should be"


@dataclass(slots=True)
class Found:
    """What was found so far."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # bytes, after each round
    descriptors: list[int] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)  # of reference pictures
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: str, what: str = "") -> None:
        """Count a prompt."""
        with self.lock:
            self.counts[outcome] += 1
            if outcome == FAILED:
                self.failures.append(what)


def add_parser(steps: Any) -> None:
    """Add `soak` to the command line."""
    parser = steps.add_parser("soak", help=ABOUT, description=__doc__)
    parser.add_argument("comfy", type=Path, metavar="COMFY_DIR", help="folder of ComfyUI")
    parser.add_argument(
        "--python", default=sys.executable, help="that has what ComfyUI needs; default: this one"
    )
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=300.0, help="that a prompt may take")
    parser.add_argument("--out", type=Path, default=Path("output/soak"), help="folder for the log")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the prompts and print the table. Return 1 if a line is not as it should be, else 0."""
    options.out.mkdir(parents=True, exist_ok=True)
    found = Found()
    try:
        with serving(options.comfy, options.python, options.out / "server.log") as server:
            soak(server, options, found)
    except ServerError as error:
        found.add(FAILED, str(error))
    rows, is_right = judged(found, options.prompts)
    print(table(("", "found", "expected", "as it should be"), rows))
    (options.out / "failures.txt").write_text("\n\n".join(found.failures), encoding="utf-8")
    for failure in found.failures[:10]:
        print(failure[:1000], file=sys.stderr)
    return 0 if is_right else 1


def soak(server: Server, options: argparse.Namespace, found: Found) -> None:
    """Run all rounds.

    Raises:
        ServerError: the server ended or hangs.
    """
    first = pictures_of(server, options.seconds)
    numbers = list(range(options.prompts))
    for index in range(ROUNDS):
        part = numbers[index * len(numbers) // ROUNDS : (index + 1) * len(numbers) // ROUNDS]
        run_round(server, options, found, part)
        rest(server)
        found.memory.append(server.memory())
        found.descriptors.append(server.descriptors())
        logging.info(
            "%d of %d prompts, %.0f MB, %d descriptors, %d failed",
            part[-1] + 1 if part else 0,
            len(numbers),
            found.memory[-1] / 1e6,
            found.descriptors[-1],
            found.counts[FAILED],
        )
        if index in (ROUNDS // 2 - 1, ROUNDS - 1):
            again = pictures_of(server, options.seconds)
            found.same += [a == b for a, b in zip(first, again, strict=True)]


def run_round(
    server: Server, options: argparse.Namespace, found: Found, numbers: Sequence[int]
) -> None:
    """Let each client queue its share of the prompts, one after the other."""
    errors: list[ServerError] = []

    def work(client: int) -> None:
        try:
            for number in numbers[client :: options.clients]:
                one_prompt(server, options, found, number, f"client{client}")
        except ServerError as error:
            errors.append(error)

    clients = [threading.Thread(target=work, args=(i,)) for i in range(options.clients)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    if errors:
        raise errors[0]


def one_prompt(
    server: Server, options: argparse.Namespace, found: Found, number: int, client: str
) -> None:
    """Queue the prompt of that number, wait for its end and count it."""
    random = Random(f"{options.seed} {number}")
    kind = random.choices(list(SHARES), list(SHARES.values()))[0]
    if kind == "wrong":
        graph = graphs.wrong(random)
    elif kind == "training":
        graph = graphs.training(random, f"soak/{options.seed}_{number}")
    else:
        graph = graphs.sound(random, LONG if kind == "interrupted" else 8)
    queued = server.queue(graph, client)
    if isinstance(queued, str) and kind == "interrupted":
        server.wait_running(queued, options.seconds)
        time.sleep(random.random())
        server.ask("/interrupt", {"prompt_id": queued})
    if random.random() < 0.05:
        server.ask("/free", {"unload_models": True, "free_memory": random.random() < 0.5})
    answer = queued if isinstance(queued, Answer) else server.wait(queued, options.seconds)
    outcome = outcome_of(kind, answer)
    words = f"prompt {number} ({kind}): {answer.end} {answer.exception} {answer.message}"
    found.add(outcome, f"{words}\n{graph}")


def outcome_of(kind: str, answer: Answer) -> str:
    """Return how a prompt counts."""
    if kind == "wrong":
        is_told = answer.exception in ("refused", *TOLD)
        return REFUSED if answer.end == ERROR and is_told else FAILED
    if answer.end == INTERRUPTED and kind == "interrupted":
        return STOPPED
    return DONE if answer.end == SUCCESS else FAILED


def rest(server: Server) -> None:
    """Wait until the server is empty and has given back what it can."""
    server.free()
    time.sleep(REST_SECONDS)
    server.free()
    time.sleep(REST_SECONDS / 4)


def pictures_of(server: Server, seconds: float) -> list[Any]:
    """Return the reference pictures, made anew.

    Raises:
        ServerError: there are none.
    """
    made = []
    for graph in graphs.references():
        server.free()  # or they would be those of before
        queued = server.queue(graph, "references")
        answer = queued if isinstance(queued, Answer) else server.wait(queued, seconds)
        pictures = server.pictures(answer)
        if not pictures:
            raise ServerError(f"no reference picture: {answer.exception} {answer.message}")
        made.append(pictures)
    return made


def judged(found: Found, num_prompts: int) -> tuple[list[tuple[str, ...]], bool]:
    """Return the rows of the table, and whether all is as it should be."""
    counts = found.counts
    num_ended = sum(counts.values())
    memory, descriptors = growth(found.memory), change(found.descriptors)
    num_same = sum(found.same)
    lines = (
        ("prompts ended", f"{num_ended}", f"{num_prompts}", num_ended == num_prompts),
        ("pictures or heads made", f"{counts[DONE]}", "", True),
        ("interrupted", f"{counts[STOPPED]}", "", True),
        ("wrong graphs refused in words", f"{counts[REFUSED]}", "", True),
        ("failed", f"{counts[FAILED]}", "0", counts[FAILED] == 0),
        (
            "references as at the start",
            f"{num_same} of {len(found.same)}",
            "all, in the middle and at the end",
            len(found.same) > 0 and all(found.same),
        ),
        ("memory growth after warm-up", memory_text(found.memory, memory), f"below {MOST_GROWTH:.0%}",
         memory is not None and memory < MOST_GROWTH),
        ("descriptors more after warm-up", "none read" if descriptors is None else f"{descriptors}",
         "0", descriptors is not None and descriptors <= 0),
    )  # fmt: skip
    rows = [(what, is_now, expected, "yes" if ok else "NO") for what, is_now, expected, ok in lines]
    return rows, all(ok for *_, ok in lines)


def growth(memory: Sequence[int]) -> float | None:
    """Return by which share memory grew between the first and the last rounds after the warm-up."""
    after = memory[WARM_UP:]
    if len(after) < 4:
        return None
    part = len(after) // 2
    return median(after[-part:]) / median(after[:part]) - 1


def memory_text(memory: Sequence[int], share: float | None) -> str:
    """Return memory growth in words."""
    if share is None:
        return "none read"
    return f"{share:+.1%} ({memory[WARM_UP] / 1e6:.0f} MB to {memory[-1] / 1e6:.0f} MB)"


def change(descriptors: Sequence[int]) -> int | None:
    """Return how many more descriptors there are at the end than after the warm-up."""
    after = descriptors[WARM_UP:]
    return after[-1] - after[0] if len(after) > 1 else None
