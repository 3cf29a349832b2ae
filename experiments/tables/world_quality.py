"""Measure a model of the world's pictures: python -m experiments world-quality --work DIR

- A class model: Frechet distance in the judge's features from fresh pictures through the VQ, the best that codes can
  show; and the share of pictures that show the hour and the place of their class.
- A text model: the share of pictures that show all that their prompt says. Prompts are captions of pictures that no
  network was trained on.
The rows "real" and "vq" need no sampling: other fresh pictures, as they are and through the VQ.

    B  images    h, w  rows, columns of codes
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from experiments.judges import reader, world_reader
from experiments.judges.world_reader import pictures
from experiments.scenes.captions import Words
from experiments.scenes.facts import Claim, holds
from experiments.scenes.prompts import FIRST_PROMPT_SEED, Prompt
from experiments.tables.frechet import Gaussian, frechet_distance
from experiments.tables.quality_measure import through_vq
from experiments.tables.report import COST_COLUMNS, Cost, table
from experiments.tables.rows import (
    Figures,
    Row,
    Subject,
    add_arguments,
    add_sampler_arguments,
    load_pipeline,
    measured_rows,
    parse_rows,
    setting_of,
    setup_of,
    with_options,
)
from experiments.tables.text_measure import PromptCase, batched, by_lengths
from experiments.world.captions import describe
from experiments.world.scene import compose
from shortcut.models.architecture import Request
from shortcut.settings import usual_settings

ROWS = ("real", "vq", "vanilla-8", "vanilla-12", "vanilla-16", "vanilla-32")
FIRST_REFERENCE_SEED = 10_000_000


def add_parser(steps: Any) -> None:
    """Add `world-quality` to the command line."""
    about = "measure speed and quality of the models of the 128 x 128 pictures: a table"
    parser = steps.add_parser("world-quality", help=about, description=about)
    parser.add_argument("--num", type=int, default=1000, help="pictures of a row and seed")
    parser.add_argument("--references", type=int, default=3000, help="other fresh pictures")
    parser.add_argument("--head", type=Path, help="default: none, so that no row may ask for it")
    folder = Path("output/world")
    names = {"model": "world-maskgit", "vq": "world-vqgan", "judge": "world-judge"}
    files = {option: folder / f"{name}.safetensors" for option, name in names.items()}
    add_arguments(parser, ROWS, folder / "quality", files)
    add_sampler_arguments(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure what is not measured yet and print the table. Returns 0."""
    pipeline = load_pipeline(options)
    settings = with_options(usual_settings(pipeline.model_file), options)
    judge = world_reader.FILE.load(options.judge).to(pipeline.device)
    subject = Subject(pipeline, judge, settings, options.batch)
    rows, cases = parse_rows(options.rows, subject), cases_of(subject, options.num)
    files = [path for path in (options.model, options.head, options.vq, options.judge) if path]
    setup = setup_of(files, subject, options, options.num, options.references)
    reference = cache(lambda: reference_of(subject, options.references))

    def measure_row(row: Row, seed: int) -> Figures:
        return measure(row, seed, cases, subject, reference())

    measured = measured_rows(options.work, setup, rows, options.seeds, measure_row)
    lines = []
    for row in rows:
        figures = [measured[row.name, seed] for seed in options.seeds]
        seconds = mean(figure["seconds"] for figure in figures)
        cost = Cost(**subject.cost(row, seconds, cases[0].conditions))
        cells = (
            _cell([f["distance"] for f in figures], ".1f"),
            _cell([f["met"] for f in figures], ".1%"),
        )
        lines.append((*cost.cost_cells, *cells))
    print(table((*COST_COLUMNS, "distance in codes", "asked for and shown"), lines))
    print(f"\n{options.num} pictures of a row and seed. {setting_of(options, subject)}")
    return 0


def _cell(values: Sequence[float], form: str) -> str:
    return f"{mean(values):{form}} ({', '.join(f'{value:{form}}' for value in values)})"


def cases_of(subject: Subject, num: int) -> list[PromptCase]:
    """Return fresh scenes, each asked for by its class or by a caption, with what its picture must show."""
    found = []
    for seed in range(FIRST_PROMPT_SEED, FIRST_PROMPT_SEED + num):
        scene = compose(seed)
        claims = Claim("time", value=scene.time), Claim("biome", value=scene.place)
        words = Words(str(scene.class_id), claims)
        request = Request(label=words.text)
        if "prompt" in subject.pipeline.architecture.takes:
            words = describe(scene, seed)
            request = Request(prompt=words.text)
        conditions = subject.pipeline.conditioner.conditions(request, 1)
        found.append(PromptCase(Prompt("", words.text, words.claims, seed), scene, conditions))
    return found


def reference_of(subject: Subject, num: int) -> Gaussian:
    """Return the features of other fresh pictures through the VQ, the best that codes can show."""
    seeds = range(FIRST_REFERENCE_SEED, FIRST_REFERENCE_SEED + num)
    return Gaussian.of(
        np.concatenate(
            [
                world_reader.features(subject.judge, through_vq(subject.pipeline, pictures(part)))
                for part in _parts([compose(seed) for seed in seeds], subject.batch_size)
            ]
        )
    )


@torch.no_grad()
def measure(
    row: Row, seed: int, cases: Sequence[PromptCase], subject: Subject, reference: Gaussian
) -> Figures:
    """Return the figures of one row and seed: seconds a picture, distance, share of pictures that show all claims."""
    features, met, seconds = [], 0, 0.0
    groups = by_lengths(cases) if row.num_steps else [list(range(len(cases)))]
    for numbers in (part for group in groups for part in _parts(group, subject.batch_size)):
        if row.num_steps:
            codes_Bhw, taken = subject.sample(row, batched(cases, numbers), seed, numbers)
            shown, seconds = subject.pipeline.decode(codes_Bhw), seconds + taken
        else:
            shown = pictures([cases[number].scene for number in numbers])
            shown = through_vq(subject.pipeline, shown) if row.kind == "vq" else shown
        features.append(world_reader.features(subject.judge, shown))
        read = reader.read(subject.judge, shown, sight=world_reader.SIGHT)
        pairs = zip(numbers, read, strict=True)
        met += sum(all(holds(c, facts) for c in cases[n].prompt.claims) for n, facts in pairs)
    return {
        "seconds": seconds / len(cases),
        "distance": frechet_distance(Gaussian.of(np.concatenate(features)), reference),
        "met": met / len(cases),
    }


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
