"""The tasks of `generate` whose answer has a text: questions about a picture, and edits with the model's reasoning."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from tqdm import tqdm

from ..answers import describe, edit, text_output
from ..models.text_rules import REASONED_EDIT, UNDERSTAND
from ..pipeline import Pipeline
from ..text_schedule import ParallelSettings, TextSettings, text_plan
from . import contents
from .options import check_effect, check_outputs, check_taken
from .output import paths_of, write_pictures, write_tokens
from .requests import about_of, check_numbers, hashes_of, load_pipeline, request_of

# Options that have an effect.
OF_BOTH = {"model", "vq", "task", "prompt", "image", "seed"}
OF_BOTH |= {"device", "dtype", "sequential", "compile", "json"}
OF_BOTH |= {"max_tokens", "text_steps", "text_temperature"}
OF_QUESTIONS = OF_BOTH | {"block_length"}
OF_EDITS = OF_BOTH | {"out", "save_tokens", "batch_size", "width", "height"}
OF_EDITS |= {"steps", "cfg", "cfg_image", "temperature"}


def run_question(options: argparse.Namespace) -> int:
    """Answer a question about a picture on stdout. Return the exit status."""
    check_effect(options, OF_QUESTIONS, f"--task {UNDERSTAND}")
    names = {"max_tokens": "max_tokens", "text_steps": "num_steps", "block_length": "block_length"}
    settings = _given(TextSettings(), options, {**names, "text_temperature": "temperature"})
    num_passes = sum(len(block.steps) for block in text_plan(settings))
    pipeline = _loaded(options)
    _, request = request_of(pipeline, options)
    condition = pipeline.conditions(request, 1)[0]
    output, begun, num_done = text_output(pipeline), time.perf_counter(), 0
    with tqdm(total=num_passes, unit="pass", disable=None, file=sys.stderr) as bar:

        def passed() -> None:
            nonlocal num_done
            num_done += 1
            bar.update()

        texts = describe(pipeline, output, condition, settings, seed=options.seed, on_pass=passed)
    _say(texts, options, seconds=time.perf_counter() - begun, steps=num_done)
    return 0


def run_edit(options: argparse.Namespace) -> int:
    """Edit a picture, and print the model's reasoning. Return the exit status."""
    check_effect(options, OF_EDITS, f"--task {REASONED_EDIT}")
    check_outputs(options)
    names = {"max_tokens": "max_tokens", "text_steps": "num_steps", "steps": "image_steps"}
    names |= {"text_temperature": "text_temperature", "temperature": "temperature"}
    settings = _given(ParallelSettings(), options, names)
    given = (options.cfg, options.cfg_image)
    guidance = [
        default if weight is None else weight
        for default, weight in zip(settings.guidance, given, strict=True)
    ]
    settings = replace(settings, guidance=tuple(guidance))
    settings.check()
    pipeline = _loaded(options)
    hashes = hashes_of(options)
    begin, request = request_of(pipeline, options)
    conditions = pipeline.conditions(request, options.batch_size)
    output, begun = text_output(pipeline), time.perf_counter()
    with tqdm(total=settings.num_steps, unit="step", disable=None, file=sys.stderr) as bar:
        codes_Bhw, texts = edit(
            pipeline,
            output,
            conditions,
            settings,
            begin.grid,
            seed=options.seed,
            on_pass=lambda image: bar.update(),
        )
    seconds = time.perf_counter() - begun
    about = {
        **about_of(pipeline, options, request, begin.grid),
        **asdict(settings),
        "conditions": contents.of_conditions(conditions),
        **hashes,
        "texts": texts,
    }
    if options.save_tokens is not None:  # first: for the pictures there may be no memory
        write_tokens(options.save_tokens, codes_Bhw)
    paths = paths_of(options.out, options.batch_size)
    write_pictures(paths, pipeline.decode(codes_Bhw), about, None)
    _say(texts, options, seconds=seconds, steps=settings.num_steps)
    return 0


# Task -> what runs it.
RUNS: dict[str, Callable[[argparse.Namespace], int]] = {
    UNDERSTAND: run_question,
    REASONED_EDIT: run_edit,
}


def _given(settings: Any, options: argparse.Namespace, names: dict[str, str]) -> Any:
    """Return `settings` with the options that were given in their place; `names` = {option: field}."""
    found = {field: getattr(options, option) for option, field in names.items()}
    return replace(settings, **{k: value for k, value in found.items() if value is not None})


def _loaded(options: argparse.Namespace) -> Pipeline:
    """Load the pipeline, and check what needs no picture."""
    check_numbers(options)
    pipeline = load_pipeline(options)
    check_taken(options, pipeline.architecture)
    return pipeline


def _say(texts: list[str], options: argparse.Namespace, *, seconds: float, steps: int) -> None:
    """Print the texts, or the JSON line."""
    if options.json:
        told = {"texts": texts, "seconds": round(seconds, 4), "steps": steps, "seed": options.seed}
        print(json.dumps(told))
    else:
        print("\n\n".join(texts))
