"""The figures of one row of the text model's table: pictures of prompts or edits, read by the judge.

A row makes one picture for each question, decodes it and lets the judge read what it shows:
- seconds per image: the sampling loop alone, without decoding;
- accuracy: the share of pictures that show all that was asked for, by task;
- the share of claims that hold, by what they are about.

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

from shortcut.generate import generate
from shortcut.grid import Grid
from shortcut.models.lumina_dimoo.prompts import conditions
from shortcut.models.lumina_dimoo.transformer import Config

from .data import SIZE, to_network
from .quality_measure import decoded, encoded, through_vq
from .quality_rows import Figures, Kit, Row
from .scene_drawing import draw
from .scene_edits import altered, instruction, kept
from .scene_facts import (
    Claim,
    Facts,
    facts_of,
    holds,
)
from .scenes import Scene, compose_varied
from .text_judge import read
from .text_prompts import (
    FIRST_PROMPT_SEED,
    NUMBERS,
    Prompt,
    prompts,
    score,
)

EDIT_TASKS = ("add", "remove", "colour", "sun or moon", "time of day")
NUM_EDITS = 40  # of each task


@dataclass(frozen=True, slots=True)
class Question:
    """What a picture is made of, and what it must show."""

    prompt: Prompt  # its claims: what is asked for
    scene: Scene  # one that shows it
    conditions: tuple[Tensor, ...]  # (1, P), one for each guidance branch
    kept: tuple[Claim, ...] = ()  # what must stay as it is in the source image


def text_questions(tokenizer: Any, config: Config, per_task: int | None = None) -> list[Question]:
    """The prompts in the manner of GenEval, at most `per_task` of each task; None = as many as there are."""
    most = NUMBERS if per_task is None else {k: min(n, per_task) for k, n in NUMBERS.items()}
    return [
        Question(
            prompt,
            compose_varied(prompt.seed),
            conditions(tokenizer, config, "text_to_image", prompt.text),
        )
        for prompt in prompts(most)
    ]


def edit_questions(kit: Kit, tokenizer: Any, per_task: int | None = None) -> list[Question]:
    """Edits of scenes that no network was trained on, as many of each of EDIT_TASKS; None = NUM_EDITS."""
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
    sources_Bhw = encoded(kit.vq, _pixels([before for _, before, _ in edits]).to(kit.device))
    return [
        Question(
            prompt,
            after,
            conditions(tokenizer, kit.model.config, "edit", prompt.text, sources=[source_1hw]),
            kept(facts_of(before), facts_of(after)),
        )
        for (prompt, before, after), source_1hw in zip(edits, sources_Bhw.split(1), strict=True)
    ]


def measure(row: Row, seed: int, questions: Sequence[Question], kit: Kit, grid: Grid) -> Figures:
    """The figures of one row and seed: seconds per image, accuracy by task, claims that hold by label."""
    seconds, facts = 0.0, []
    if row.is_sampled:
        facts, seconds = read_samples(kit, row, seed, questions, grid)
    else:
        for part in _parts(questions, kit.batch_size):
            pixels_BCYX = _pixels([question.scene for question in part]).to(kit.device)
            shown = through_vq(kit.vq, pixels_BCYX) if row.kind == "vq" else pixels_BCYX
            facts += read(kit.judge, shown)
    return {"seconds": seconds / len(questions), **scores(questions, facts)}


def scores(questions: Sequence[Question], facts: Sequence[Facts]) -> Figures:
    """Accuracy over all, by task, and the share of claims by label; of edits, of asked for and of kept."""
    pairs = list(zip(questions, facts, strict=True))
    whole = score((replace(q.prompt, claims=q.prompt.claims + q.kept), fact) for q, fact in pairs)
    labels = score((q.prompt, fact) for q, fact in pairs).labels
    if any(question.kept for question in questions):
        labels = {
            "what was asked for": _share(pairs, lambda question: question.prompt.claims),
            "all else kept": _share(pairs, lambda question: question.kept),
        }
    return {"accuracy": whole.overall, "tasks": whole.tasks, "labels": labels}


def _share(
    pairs: Sequence[tuple[Question, Facts]], claims: Callable[[Question], Sequence[Claim]]
) -> float:
    """Share of pictures of which all `claims` hold."""
    return sum(all(holds(c, fact) for c in claims(q)) for q, fact in pairs) / len(pairs)


def read_samples(
    kit: Kit, row: Row, seed: int, questions: Sequence[Question], grid: Grid
) -> tuple[list[Facts], float]:
    """What the picture of each question shows, and the seconds of sampling all of them."""
    # A batch has prompts of one length: nothing is padded.
    by_lengths: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        by_lengths[tuple(c.shape[1] for c in question.conditions)].append(number)
    groups = [p for numbers in by_lengths.values() for p in _parts(numbers, kit.batch_size)]
    found: dict[int, Facts] = {}
    sample_codes(kit, row, seed, questions, groups[0][:2], grid)  # the first call is slower
    seconds = 0.0
    for numbers in groups:
        codes_Bhw, taken = sample_codes(kit, row, seed, questions, numbers, grid)
        found |= zip(numbers, read(kit.judge, decoded(kit.vq, codes_Bhw)), strict=True)
        seconds += taken
    return [found[number] for number in range(len(questions))], seconds


def sample_codes(
    kit: Kit,
    row: Row,
    seed: int,
    questions: Sequence[Question],
    numbers: Sequence[int],
    grid: Grid,
) -> tuple[Tensor, float]:
    """Codes (B, h, w) of the questions `numbers`, whose prompts are as long, and the seconds that they took."""
    branches = zip(*(questions[number].conditions for number in numbers), strict=True)
    result = generate(
        kit.model.on_grid(*grid),
        [torch.cat(prompts) for prompts in branches],
        kit.settings(row),
        seed=seed,
        image_indices=numbers,
        num_tokens=grid[0] * grid[1],
        predictor=kit.predictor(row),
        device=kit.device,
    )
    return result.codes_BL.unflatten(1, grid), result.seconds


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _pixels(scenes: Sequence[Scene]) -> Tensor:
    """Pictures (B, C, Y, X) of scenes."""
    return to_network(torch.from_numpy(np.stack([np.asarray(draw(s, SIZE)) for s in scenes])))
