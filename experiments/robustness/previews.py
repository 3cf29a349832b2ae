"""Time runs with and without previews on a real ComfyUI server: python -m experiments previews COMFY_DIR

Both kinds take turns on one server, so that what else the machine does meets both. Seconds of the processor are those
of the whole server, with its encoding of the previews; they feel other work less than seconds of the clock do.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from experiments.robustness.graphs import CLASSES, Graph, Nodes
from experiments.robustness.server import SUCCESS, Answer, Server, ServerError, serving
from experiments.tables.report import table

METHODS = ("none", "latent2rgb")  # without previews, with
SECONDS = 300.0  # that a run may take
ABOUT = "time runs with and without previews on a real ComfyUI server: a table"


class Taken(NamedTuple):
    """Seconds that a run took."""

    clock: float
    processor: float


def add_parser(steps: Any) -> None:
    """Add `previews` to the command line."""
    parser = steps.add_parser("previews", help=ABOUT, description=__doc__)
    parser.add_argument("comfy", type=Path, metavar="COMFY_DIR", help="folder of ComfyUI")
    parser.add_argument(
        "--python", default=sys.executable, help="that has what ComfyUI needs; default: this one"
    )
    parser.add_argument("--runs", type=int, default=20, help="of each kind")
    parser.add_argument("--out", type=Path, default=Path("output/previews"), help="for the log")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Time the runs and print the table."""
    options.out.mkdir(parents=True, exist_ok=True)
    taken: dict[str, list[Taken]] = {method: [] for method in METHODS}
    with serving(options.comfy, options.python, options.out / "server.log") as server:
        for method in METHODS:
            timed(server, method, 0)  # loads the model
        for number in range(1, options.runs + 1):
            for method in METHODS if number % 2 else METHODS[::-1]:
                taken[method].append(timed(server, method, number))
    print(table(("previews", "runs", "seconds", "of the processor", "more"), rows(taken)))
    return 0


def timed(server: Server, method: str, seed: int) -> Taken:
    """Run a graph and return what it took. Raise ServerError if it does not end well."""
    begun, processor = time.perf_counter(), server.processor_seconds()
    # The other method's seeds are others too, or ComfyUI would not run the same graph again.
    graph = graph_of(2 * seed + METHODS.index(method))
    prompt = server.queue(graph, "previews", {"preview_method": method})
    answer = prompt if isinstance(prompt, Answer) else server.wait(prompt, SECONDS)
    if answer.end != SUCCESS:
        raise ServerError(f"a run ended with {answer.end}: {answer.message}")
    return Taken(time.perf_counter() - begun, server.processor_seconds() - processor)


def graph_of(seed: int) -> Graph:
    """Return a run of the shipped class model without a head: a picture, 32 full passes."""
    nodes = Nodes()
    model, vae = nodes.load(CLASSES)
    positive = nodes.condition(model, False, "dusk coast")
    more = {"seed": seed, "steps": 32, "full_steps": 32}
    latent = nodes.sample(model, positive, nodes.empty(), False, **more)
    nodes.save(nodes.decode(latent, vae), "previews")
    return nodes.graph


def rows(taken: dict[str, list[Taken]]) -> list[tuple[str, ...]]:
    """Return the lines of the table; the last figure is that of pairs, with its standard error."""
    without, with_ = (taken[method] for method in METHODS)
    pairs = zip(without, with_, strict=True)
    more = [100 * (b.processor / a.processor - 1) for a, b in pairs]
    error = stdev(more) / math.sqrt(len(more)) if len(more) > 1 else math.nan
    said = ("", f"{fmean(more):+.1f} ± {error:.1f} %")
    return [
        (
            method,
            str(len(runs)),
            f"{fmean(run.clock for run in runs):.2f}",
            f"{fmean(run.processor for run in runs):.2f}",
            last,
        )
        for (method, runs), last in zip(taken.items(), said, strict=True)
    ]
