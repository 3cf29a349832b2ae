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
from experiments.tables.quality_measure import through_vq
from experiments.tables.rows import Figures, Row, Subject
from shortcut import Pipeline
from shortcut.models.architecture import Request

EDIT_TASKS = ("add", "remove", "colour", "sun or moon", "time of day")
NUM_EDITS = 40  # of each task


@dataclass(frozen=True, slots=True)
class PromptCase:
    """A prompt or an edit, and what its picture must show."""

    prompt: Prompt  # its claims: what is asked for
    scene: Any  # one that shows it
    conditions: Any  # (1, P) for each guidance branch
    kept: tuple[Claim, ...] = ()  # what must stay as it is in the source image


def text_cases(pipeline: Pipeline, per_task: int | None = None) -> list[PromptCase]:
    """Return the prompts in the manner of GenEval, at most `per_task` of each task; None = all."""
    most = NUMBERS if per_task is None else {k: min(n, per_task) for k, n in NUMBERS.items()}
    return [
        PromptCase(
            prompt,
            compose_varied(prompt.seed),
            pipeline.conditioner.conditions(Request(prompt=prompt.text), 1),
        )
        for prompt in prompts(most)
    ]


def edit_cases(pipeline: Pipeline, per_task: int | None = None) -> list[PromptCase]:
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
    cases = []
    for prompt, before, after in (edit for of_task in found.values() for edit in of_task):
        source_1hw = pipeline.encode(_pixels([before]))
        request = Request(prompt=prompt.text, task="edit", sources=(source_1hw,))
        conditions = pipeline.conditioner.conditions(request, 1)
        all_else = kept(facts_of(before), facts_of(after))
        cases.append(PromptCase(prompt, after, conditions, all_else))
    return cases


def measure(row: Row, seed: int, cases: Sequence[PromptCase], subject: Subject) -> Figures:
    """Return the figures of one row and seed: seconds per image, accuracy by task, claims that hold by label."""
    seconds, facts = 0.0, []
    if row.num_steps:
        facts, seconds = read_samples(subject, row, seed, cases)
    else:
        for part in _parts(cases, subject.batch_size):
            pixels = _pixels([case.scene for case in part]).to(subject.pipeline.device)
            shown = through_vq(subject.pipeline, pixels) if row.kind == "vq" else pixels
            facts += read(subject.judge, shown)
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


def by_lengths(cases: Sequence[PromptCase]) -> list[list[int]]:
    """Group the numbers of cases whose prompts have one length: they make a batch without padding."""
    groups: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for number, case in enumerate(cases):
        groups[tuple(c.shape[1:] for c in case.conditions)].append(number)
    return list(groups.values())


def batched(cases: Sequence[PromptCase], numbers: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the conditions of the cases `numbers`, whose prompts have one length."""
    branches = zip(*(cases[number].conditions for number in numbers), strict=True)
    return tuple(torch.cat(prompts) for prompts in branches)


def read_samples(
    subject: Subject, row: Row, seed: int, cases: Sequence[PromptCase]
) -> tuple[list[Facts], float]:
    """Return what the picture of each case shows, and the seconds of sampling all of them."""
    parts = [p for numbers in by_lengths(cases) for p in _parts(numbers, subject.batch_size)]
    found: dict[int, Facts] = {}
    subject.sample(row, batched(cases, parts[0][:2]), seed, parts[0][:2])  # warm-up, not timed
    seconds = 0.0
    for numbers in parts:
        codes_Bhw, taken = subject.sample(row, batched(cases, numbers), seed, numbers)
        found |= zip(numbers, read(subject.judge, subject.pipeline.decode(codes_Bhw)), strict=True)
        seconds += taken
    return [found[number] for number in range(len(cases))], seconds


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _pixels(scenes: Sequence[Scene]) -> Tensor:
    """Return the pictures (B, C, Y, X) of scenes."""
    return to_network(torch.from_numpy(np.stack([np.asarray(draw(s, SIZE)) for s in scenes])))
