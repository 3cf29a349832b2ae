"""Measure what smaller weights cost the shipped text model: python -m experiments weight-types

For each type of weights the memory they take, the accuracy of vanilla pictures of the prompts that `text-quality` asks
(as there, by the judge), and how near the model stays to itself in float32: in every step of a run, float32 is shown
the same tokens and the same noise, and asked what it would reveal.

    B  images    P  prompt tokens    h, w  rows, columns of codes
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from experiments.judges import reader
from experiments.judges.file import TEXT_JUDGE
from experiments.tables.quality_measure import decoded
from experiments.tables.report import table
from experiments.tables.text_measure import PromptCase, scores, text_cases
from shortcut import shipped, weights
from shortcut.checkpoint import Checkpoint
from shortcut.cli.files import DTYPES
from shortcut.generate import generate
from shortcut.grid import Grid, usual_grid
from shortcut.models.lumina_dimoo.prompts import load_tokenizer
from shortcut.noise import Noise
from shortcut.sampler import Trace
from shortcut.schedule import Settings, plan
from shortcut.train.evaluate import Oversight

COLUMNS = ("weights", "MB", "accuracy", "tokens as in float32", "cosine", "divergence")
FLOAT8 = "float8_e4m3fn"


@dataclass(frozen=True, slots=True)
class Line:
    """A type of weights and what became of the model; shares in [0, 1]."""

    name: str
    megabytes: float
    accuracy: float
    same: float
    cosine: float
    divergence: float

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the row's text, by COLUMNS."""
        shares = (f"{self.accuracy:.1%}", f"{self.same:.1%}")
        return (
            self.name,
            f"{self.megabytes:.1f}",
            *shares,
            f"{self.cosine:.4f}",
            f"{self.divergence:.4f}",
        )


def add_parser(steps: Any) -> None:
    """Add `weight-types` to the command line."""
    about = "measure what bfloat16, float16 and float8 weights cost the text model: a table (10 minutes)"
    parser = steps.add_parser("weight-types", help=about, description=about)
    parser.add_argument("--per-task", type=int, default=8, metavar="N", help="prompts of each kind")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.set_defaults(run=run)


@torch.no_grad()
def run(options: argparse.Namespace) -> int:
    """Print the table. Returns 0."""
    model_file = weights.load(shipped.TEXT_MODEL, kind="model")
    tokenizer = load_tokenizer(shipped.TEXT_FOLDER, model_file.config)
    cases = text_cases(tokenizer, model_file.config, options.per_task)
    settings = replace(weights.settings(model_file), num_steps=options.steps)
    lines = [measure(name, model_file, cases, settings, options.seed) for name in DTYPES]
    print(table(COLUMNS, [line.cells for line in lines]))
    print(
        f"\nVanilla, {options.steps} steps, {len(cases)} prompts, seed {options.seed}; float8 computes in bfloat16."
    )
    return 0


def measure(
    name: str, model_file: Checkpoint, cases: Sequence[PromptCase], settings: Settings, seed: int
) -> Line:
    """Compare the model with weights of the type `name` with itself in float32."""
    exact: Any = weights.build(model_file, dtype=torch.float32)
    file = weights.cast(model_file, DTYPES[name])
    dtype = torch.bfloat16 if name == FLOAT8 else DTYPES[name]
    model: Any = weights.build(file, dtype=dtype)
    vq: Any = weights.build(weights.load(shipped.VQ, kind="vq"), dtype=torch.float32)
    judge, grid = reader.FILE.load(TEXT_JUDGE), usual_grid(model_file)
    found, seen = {}, []
    for numbers in by_lengths(cases):
        codes_Bhw, comparison = sampled(model, exact, cases, numbers, settings, seed, grid)
        found |= zip(numbers, reader.read(judge, decoded(vq, codes_Bhw)), strict=True)
        seen.append(comparison)
    num_predicted = sum(c.num_predicted for c in seen)
    return Line(
        name=name,
        megabytes=sum(tensor.nbytes for tensor in file.tensors.values()) / 1e6,
        accuracy=scores(cases, [found[n] for n in range(len(cases))])["accuracy"],
        same=sum(c.num_same for c in seen) / num_predicted,
        cosine=sum(c.cosine for c in seen) / sum(c.num_steps for c in seen),
        divergence=sum(c.divergence for c in seen) / num_predicted,
    )


def by_lengths(cases: Sequence[PromptCase]) -> list[list[int]]:
    """Group the numbers of cases whose prompts have one length: they make a batch without padding."""
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, case in enumerate(cases):
        groups[tuple(c.shape[1] for c in case.conditions)].append(number)
    return list(groups.values())


def sampled(
    model: Any,
    exact: Any,
    cases: Sequence[PromptCase],
    numbers: Sequence[int],
    settings: Settings,
    seed: int,
    grid: Grid,
) -> tuple[torch.Tensor, Oversight]:
    """Return codes (B, h, w) by `model`, and how near each of its steps was to a step of `exact`."""
    branches = zip(*(cases[number].conditions for number in numbers), strict=True)
    conditions = [torch.cat(prompts) for prompts in branches]
    num_tokens = grid[0] * grid[1]
    num_steps = len(plan(settings, num_tokens, num_tokens))
    noise = Noise.draw(seed, numbers, num_steps, num_tokens, "cpu")
    seen = Oversight(exact.on_grid(*grid), conditions, noise)

    def on_step(trace: Trace) -> None:
        seen(replace(trace, denoised=replace(trace.denoised, was_full=False)))

    result = generate(
        model.on_grid(*grid),
        conditions,
        settings,
        seed=seed,
        image_indices=numbers,
        num_tokens=num_tokens,
        on_step=on_step,
    )
    return result.codes_BL.unflatten(1, grid), seen
