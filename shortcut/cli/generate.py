"""The command `generate`: options -> pipeline and job -> codes -> PNG files."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from tqdm import tqdm

from ..generate import Result
from ..sampler import Trace
from . import answer, batch
from .options import (
    add_files,
    add_how,
    add_text,
    add_what,
    add_where,
    check_no_text,
    check_outputs,
)
from .output import paths_of, write_pictures, write_tokens
from .requests import Job, job_of, load_pipeline


def add_parser(commands: Any) -> None:
    """Add `generate` to the command line."""
    parser = commands.add_parser("generate", description="Makes pictures.")
    add_files(parser)
    add_what(parser)
    add_how(parser)
    add_text(parser)
    add_where(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make the pictures. Return the exit status; errors are exceptions whose text is for the user."""
    if options.task in answer.RUNS:
        return answer.RUNS[options.task](options)
    check_no_text(options)
    check_outputs(options)
    if options.prompts is not None:
        return batch.run(options)
    pipeline = load_pipeline(options)
    job = job_of(pipeline, options)
    with tqdm(total=job.num_steps, unit="step", disable=None, file=sys.stderr) as bar:
        result = job.run(lambda trace: progress(bar, trace))
    codes_Bhw = result.codes_BL.unflatten(1, job.grid)
    if options.save_tokens is not None:  # first: for the pictures there may be no memory
        write_tokens(options.save_tokens, codes_Bhw)
    paths = paths_of(options.out, job.num_images)
    write_pictures(paths, pipeline.decode(codes_Bhw), job.about, job.graph)
    if options.json:
        print(json.dumps(report(job, result)))
    return 0


def progress(bar: Any, trace: Trace) -> None:
    """Move the bar by one step. Of a batch in parts each part has the bar from its beginning."""
    if bar.n == bar.total:
        bar.reset()
    bar.set_postfix_str("full pass" if trace.denoised.was_full else "shortcut", refresh=False)
    bar.update()


def report(job: Job, result: Result) -> dict[str, Any]:
    """Return what the JSON line says."""
    seed = job.start["seed"]
    return {
        "seconds": round(result.seconds, 4),
        "steps": result.num_steps,
        "full_steps": result.num_full,
        "accelerator": job.pipeline.accelerator_name,
        "flops": job.flops(),
        "seed": seed,
        "seeds": [[seed, index] for index in job.start["image_indices"]],
    }
