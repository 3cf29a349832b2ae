"""The command `generate`: options -> tools -> job -> codes -> PNG files."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from tqdm import tqdm

from .. import pipeline as toolbox
from ..generate import Result
from ..sampler import Trace
from . import batch as many
from . import options as optioned
from .output import write_pictures, write_tokens
from .requests import Job, job_of


def add_parser(commands: Any) -> None:
    """Adds `generate` to the command line."""
    parser = commands.add_parser("generate", help="make images", description=__doc__)
    optioned.add_files(parser)
    optioned.add_what(parser)
    optioned.add_how(parser)
    optioned.add_where(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Makes the images. Returns the exit status; errors are exceptions whose text is for the user."""
    optioned.check_outputs(options)
    if options.prompts is not None:
        return many.run(options)
    tools = toolbox.load(options)
    job = job_of(tools, options)
    with tqdm(total=job.num_steps, unit="step", disable=None, file=sys.stderr) as bar:
        result = job.run(tools, lambda trace: progress(bar, trace))
    codes_Bhw = result.codes_BL.unflatten(1, job.grid)
    write_pictures(options.out, tools.decode(codes_Bhw), job.about, job.graph)
    if options.save_tokens is not None:
        write_tokens(options.save_tokens, codes_Bhw)
    if options.json:
        print(json.dumps(report(job, result, job.operations(tools))))
    return 0


def progress(bar: Any, trace: Trace) -> None:
    """Moves the bar by one step."""
    bar.set_postfix_str("full pass" if trace.denoised.was_full else "shortcut", refresh=False)
    bar.update()


def report(job: Job, result: Result, operations: int) -> dict[str, Any]:
    """What the JSON line says."""
    seed = job.what["seed"]
    return {
        "seconds": round(result.seconds, 4),
        "steps": result.num_steps,
        "full_steps": result.num_full,
        "operations": operations,
        "seed": seed,
        "seeds": [[seed, index] for index in job.what["image_indices"]],
    }
