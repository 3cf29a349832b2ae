"""Measure one row of the text model's table: the judge reads pictures of prompts or edits.

A row makes one picture for each case, decodes it and lets the judge read what it shows:
- seconds per image: the sampling loop alone, without decoding;
- accuracy: the share of pictures that show all that was asked for, by task;
- the share of claims that hold, by subject.

    B  images    P  prompt tokens    C  channels    Y, X  pixel rows, columns    h, w  rows, columns of codes
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.judges.reader import read
from experiments.scenes.dataset import SIZE, to_network
from experiments.scenes.drawing import draw
from experiments.scenes.edits import altered, instruction, kept
from experiments.scenes.facts import Claim, Facts, facts_of, holds
from experiments.scenes.prompts import FIRST_PROMPT_SEED, NUMBERS, Prompt, prompts, score
from experiments.scenes.scene import Scene, compose_varied
from experiments.tables.quality_measure import decoded, encoded, through_vq
from experiments.tables.rows import Figures, Networks, Row
from shortcut.generate import generate
from shortcut.grid import Grid
from shortcut.models.lumina_dimoo.prompts import conditions
from shortcut.models.lumina_dimoo.transformer import Config

EDIT_TASKS = ("add", "remove", "colour", "sun or moon", "time of day")
NUM_EDITS = 40  # of each task


@dataclass(frozen=True, slots=True)
class PromptCase:
    """A prompt or an edit, and what its picture must show."""

    prompt: Prompt  # its claims: what is asked for
    scene: Scene  # one that shows it
    conditions: tuple[Tensor, ...]  # (1, P), one for each guidance branch
    kept: tuple[Claim, ...] = ()  # what must stay as it is in the source image


def text_cases(tokenizer: Any, config: Config, per_task: int | None = None) -> list[PromptCase]:
    """Return the prompts in the manner of GenEval, at most `per_task` of each task; None = all."""
    most = NUMBERS if per_task is None else {k: min(n, per_task) for k, n in NUMBERS.items()}
    return [
        PromptCase(
            prompt,
            compose_varied(prompt.seed),
            conditions(tokenizer, config, "text_to_image", prompt.text),
        )
        for prompt in prompts(most)
    ]


def edit_cases(networks: Networks, tokenizer: Any, per_task: int | None = None) -> list[PromptCase]:
    """Return edits of scenes that no network was trained on, `per_task` of each task; None = NUM_EDITS."""
    number = NUM_EDITS if per_task is None else per_task
    found: dict[str, list[tuple[Prompt, Scene, Scene]]] = {task: [] for task in EDIT_TASKS}
    for seed in count(FIRST_PROMPT_SEED):
        before, after = compose_varied(seed), altered(seed)
        if seed % 2:
            before, after = after, before
        asked = instruction(facts_of(before), facts_of(after), seed)
        if len(found[asked.task]) < number:
            prompt = Prompt(asked.task, asked.words.text, asked.words.claims, seed)
            found[asked.task].append((prompt, before, after))
        if all(len(edits) == number for edits in found.values()):
            break
    edits = [edit for of_task in found.values() for edit in of_task]
    sources_Bhw = encoded(
        networks.vq, _pixels([before for _, before, _ in edits]).to(networks.device)
    )
    return [
        PromptCase(
            prompt,
            after,
            conditions(tokenizer, networks.model.config, "edit", prompt.text, sources=[source_1hw]),
            kept(facts_of(before), facts_of(after)),
        )
        for (prompt, before, after), source_1hw in zip(edits, sources_Bhw.split(1), strict=True)
    ]


def measure(
    row: Row, seed: int, cases: Sequence[PromptCase], networks: Networks, grid: Grid
) -> Figures:
    """Return the figures of one row and seed: seconds per image, accuracy by task, claims that hold by label."""
    seconds, facts = 0.0, []
    if row.is_sampled:
        facts, seconds = read_samples(networks, row, seed, cases, grid)
    else:
        for part in _parts(cases, networks.batch_size):
            pixels_BCYX = _pixels([case.scene for case in part]).to(networks.device)
            shown = through_vq(networks.vq, pixels_BCYX) if row.kind == "vq" else pixels_BCYX
            facts += read(networks.judge, shown)
    return {"seconds": seconds / len(cases), **scores(cases, facts)}


def scores(cases: Sequence[PromptCase], facts: Sequence[Facts]) -> Figures:
    """Return accuracy over all and by task, and the share of claims by label; for edits, of asked for and kept."""
    pairs = list(zip(cases, facts, strict=True))
    whole = score((replace(q.prompt, claims=q.prompt.claims + q.kept), fact) for q, fact in pairs)
    labels = score((q.prompt, fact) for q, fact in pairs).labels
    if any(case.kept for case in cases):
        labels = {
            "what was asked for": _share(pairs, lambda case: case.prompt.claims),
            "all else kept": _share(pairs, lambda case: case.kept),
        }
    return {"accuracy": whole.overall, "tasks": whole.tasks, "labels": labels}


def _share(
    pairs: Sequence[tuple[PromptCase, Facts]], claims: Callable[[PromptCase], Sequence[Claim]]
) -> float:
    """Return the share of pictures of which all `claims` hold."""
    return sum(all(holds(c, fact) for c in claims(q)) for q, fact in pairs) / len(pairs)


def read_samples(
    networks: Networks, row: Row, seed: int, cases: Sequence[PromptCase], grid: Grid
) -> tuple[list[Facts], float]:
    """Return what the picture of each case shows, and the seconds of sampling all of them."""
    # A batch has prompts of one length: nothing is padded.
    by_lengths: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, case in enumerate(cases):
        by_lengths[tuple(c.shape[1] for c in case.conditions)].append(number)
    groups = [p for numbers in by_lengths.values() for p in _parts(numbers, networks.batch_size)]
    found: dict[int, Facts] = {}
    sample_codes(networks, row, seed, cases, groups[0][:2], grid)  # warm-up, not timed
    seconds = 0.0
    for numbers in groups:
        codes_Bhw, taken = sample_codes(networks, row, seed, cases, numbers, grid)
        found |= zip(numbers, read(networks.judge, decoded(networks.vq, codes_Bhw)), strict=True)
        seconds += taken
    return [found[number] for number in range(len(cases))], seconds


def sample_codes(
    networks: Networks,
    row: Row,
    seed: int,
    cases: Sequence[PromptCase],
    numbers: Sequence[int],
    grid: Grid,
) -> tuple[Tensor, float]:
    """Return codes (B, h, w) of the cases `numbers`, whose prompts have one length, and the seconds taken."""
    branches = zip(*(cases[number].conditions for number in numbers), strict=True)
    result = generate(
        networks.model.on_grid(*grid),
        [torch.cat(prompts) for prompts in branches],
        networks.settings(row),
        seed=seed,
        image_indices=numbers,
        num_tokens=grid[0] * grid[1],
        predictor=networks.predictor(row),
        device=networks.device,
    )
    return result.codes_BL.unflatten(1, grid), result.seconds


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _pixels(scenes: Sequence[Scene]) -> Tensor:
    """Return the pictures (B, C, Y, X) of scenes."""
    return to_network(torch.from_numpy(np.stack([np.asarray(draw(s, SIZE)) for s in scenes])))
