"""Time runs with and without previews on a real ComfyUI server: python -m experiments previews COMFY_DIR

Both kinds take turns on one server, so that what else the machine does meets both. Seconds of the processor are those
of the whole server, with its encoding of the previews. Previews may take a share of the clock, so the machine should do
nothing else.
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
    columns = ("previews", "runs", "seconds", "more", "of the processor", "more")
    print(table(columns, rows(taken)))
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
    """Return a run of the shipped class model without a head: 6 pictures, 32 full passes; long enough for previews."""
    nodes = Nodes()
    model, vae = nodes.load(CLASSES)
    positive = nodes.condition(model, False, "dusk coast")
    more = {"seed": seed, "steps": 32, "full_steps": 32}
    latent = nodes.sample(model, positive, nodes.empty(batch_size=6), False, **more)
    nodes.save(nodes.decode(latent, vae), "previews")
    return nodes.graph


def rows(taken: dict[str, list[Taken]]) -> list[tuple[str, ...]]:
    """Return the lines of the table; `more` is the mean of pairs of runs, with its standard error."""
    found = []
    for method, runs in taken.items():
        row = [method, str(len(runs))]
        for kind in range(len(Taken._fields)):
            seconds, without = ([run[kind] for run in taken[m]] for m in (method, METHODS[0]))
            more = [100 * (a / b - 1) for a, b in zip(seconds, without, strict=True)]
            error = stdev(more) / math.sqrt(len(more)) if len(more) > 1 else math.nan
            said = "" if method == METHODS[0] else f"{fmean(more):+.1f} ± {error:.1f} %"
            row += [f"{fmean(seconds):.2f}", said]
        found.append(tuple(row))
    return found
