"""Measure what smaller weights cost the shipped text model: python -m experiments weight-types

For each type of weights: the memory they take, and how near the model stays to itself in float32. In every step of a
vanilla run, float32 sees the same tokens and the same noise, and says what it would reveal.

    B  images    L  image tokens    N  tokens masked before a step    K  tokens it reveals    V  codebook size
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from experiments.tables.cases import FIRST_SEED, Case, batched, batches, cases_of
from experiments.tables.report import table
from experiments.tables.rows import DTYPES
from shortcut import Pipeline, shipped
from shortcut import checkpoint as checkpoints
from shortcut.denoiser import Tokens, guided_logits, image_features, positions
from shortcut.generate import num_draws
from shortcut.grid import Grid, usual_grid
from shortcut.models.architecture import Branches, GridModel
from shortcut.noise import Noise
from shortcut.quantized import TARGETS, Target
from shortcut.sampler import Trace, decide
from shortcut.schedule import Settings, plan
from shortcut.settings import usual_settings
from shortcut.train.loss import divergence

COLUMNS = ("weights", "MB", "tokens as in float32", "cosine", "divergence")
FORMATS = (".1%", ".4f", ".4f")  # of the last three
WEIGHTS: dict[str, Target] = {**DTYPES, **TARGETS}


class Comparison:
    """A step hook that asks another model, in every step, what it would have done.

    It draws with the same noise, so a token counts as the same if the other model would have revealed that position in
    that step, with that code.
    """

    def __init__(self, model: GridModel, conditions: Branches, noise: Noise):
        self.model, self.conditions, self.noise = model, conditions, noise
        self.num_same = self.num_tokens = self.num_steps = 0
        self.cosine = 0.0  # of the first branch's features, summed over the steps
        self.divergence = 0.0  # of the guided codes, summed over the tokens revealed

    def __call__(self, trace: Trace) -> None:
        step, revealed = trace.step, trace.revealed
        is_masked_BL = trace.is_masked_BL.scatter(1, revealed.index_BK, True)
        index_BN = positions(is_masked_BL, step.num_masked)
        tokens = Tokens(trace.codes_BL, is_masked_BL, index_BN)
        features = self.model.features(tokens.codes_BL, is_masked_BL, self.conditions, step)
        logits = partial(guided_logits, self.model, features, step.guidance)
        wanted, _ = decide(replace(trace.denoised, logits=logits), step, index_BN, self.noise)
        wanted_BL = torch.full_like(trace.codes_BL, -1)
        wanted_BL.scatter_(1, wanted.index_BK, wanted.codes_BK)
        is_same_BK = wanted_BL.gather(1, revealed.index_BK) == revealed.codes_BK
        self.num_same += int(is_same_BK.sum())
        self.num_tokens += is_same_BK.numel()
        self.num_steps += 1
        found = trace.denoised.features[0]
        first = (image_features(self.model, f, index_BN).float() for f in (found, features[0]))
        self.cosine += float(torch.cosine_similarity(*first, dim=-1).mean())
        found_BKV, wanted_BKV = (
            make(revealed.index_BK) for make in (trace.denoised.logits, logits)
        )
        self.divergence += float(divergence(found_BKV, wanted_BKV)) * is_same_BK.numel()


def add_parser(steps: Any) -> None:
    """Add `weight-types` to the command line."""
    about = "measure what bfloat16, float16 and quantized weights cost the text model: a table (25 minutes a seed)"
    parser = steps.add_parser("weight-types", help=about, description=about)
    parser.add_argument("--num", type=int, default=64, help="prompts")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.set_defaults(run=run)


@torch.no_grad()
def run(options: argparse.Namespace) -> int:
    """Print the table. Returns 0."""
    pipeline = Pipeline.load("scenes text")
    cases = cases_of(pipeline, range(FIRST_SEED, FIRST_SEED + options.num))
    settings = replace(usual_settings(pipeline.model_file), num_steps=options.steps)
    print(table(COLUMNS, []), flush=True)
    for name in WEIGHTS:
        file = checkpoints.cast(checkpoints.load(shipped.TEXT_MODEL, kind="model"), WEIGHTS[name])
        network = checkpoints.build(file, dtype=DTYPES.get(name, torch.bfloat16))
        tested = replace(pipeline, model=network, head=None, accelerator_name=None)
        found = [measure(tested, pipeline, cases, settings, seed) for seed in options.seeds]
        size = f"{sum(tensor.nbytes for tensor in file.tensors.values()) / 1e6:.1f}"
        texts = map(cell, zip(*found, strict=True), FORMATS)
        print(f"| {' | '.join((name, size, *texts))} |", flush=True)
    print(
        f"\nVanilla, {options.steps} steps, {len(cases)} prompts, seeds {' '.join(map(str, options.seeds))}; "
        "activations around quantized weights are bfloat16. In brackets: the standard error of the mean over seeds."
    )
    return 0


def cell(values: Sequence[float], format: str) -> str:
    """Return the mean over the seeds, and its standard error where there are several."""
    if len(values) == 1:
        return f"{values[0]:{format}}"
    return f"{fmean(values):{format}} ({stdev(values) / len(values) ** 0.5:{format}})"


def measure(
    tested: Pipeline,
    exact: Pipeline,
    cases: Sequence[Case],
    settings: Settings,
    seed: int,
) -> tuple[float, ...]:
    """Compare a model with itself in float32. Returns the figures of COLUMNS behind the size."""
    grid, seen = usual_grid(exact.model_file), []
    for numbers in batches(cases, len(cases)):
        _, comparison = sampled(tested, exact, cases, numbers, settings, seed, grid)
        seen.append(comparison)
    num_tokens = sum(c.num_tokens for c in seen)
    return (
        sum(c.num_same for c in seen) / num_tokens,
        sum(c.cosine for c in seen) / sum(c.num_steps for c in seen),
        sum(c.divergence for c in seen) / num_tokens,
    )


def sampled(
    tested: Pipeline,
    exact: Pipeline,
    cases: Sequence[Case],
    numbers: Sequence[int],
    settings: Settings,
    seed: int,
    grid: Grid,
) -> tuple[Tensor, Comparison]:
    """Return codes (B, h, w) of the cases `numbers`, and how near each step was to a step of `exact`."""
    conditions, num_tokens = batched(cases, numbers), grid[0] * grid[1]
    steps = plan(settings, num_tokens, num_tokens, tested.architecture.rules)
    noise = Noise.draw(seed, numbers, num_draws(steps), num_tokens, "cpu")
    comparison = Comparison(exact.model.on_grid(*grid), conditions, noise)
    result = tested.sample(
        conditions, settings, grid, seed=seed, image_indices=numbers, on_step=comparison
    )
    return result.codes_BL.unflatten(1, grid), comparison
