"""What a pipeline answers in text: questions about images, and edits with the model's reasoning.

B  images    L  image tokens    h, w  rows, columns of codes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from torch import Tensor

from . import checkpoint as checkpoints
from .checkpoint import Checkpoint
from .denoiser import Canvas, Conditions
from .devices import advice_on_memory
from .generate import needed_branches
from .grid import Grid
from .memory import check_memory
from .models.architecture import Branches, Network
from .models.text_rules import AnswerModel, TextConditioner, TextRules
from .pipeline import Pipeline
from .text import answer, in_parallel
from .text_schedule import ParallelSettings, TextSettings


def text_part(file: Checkpoint) -> Checkpoint:
    """Read the part of a model that only text needs; `file` may be without tensors.

    Raises:
        OSError, ValueError: as `checkpoint.load`; the model makes images only, or its file lacks that part.
    """
    if file.path is not None and file.layout.text_output is not None:
        file = checkpoints.load(file.path, "model")
    return file.text_part()


def text_output(pipeline: Pipeline) -> Network:
    """Load that part for a pipeline. Raises as `text_part`."""
    part = text_part(pipeline.model_file)
    return checkpoints.build(part, dtype=pipeline.model.dtype, device=pipeline.device)


def describe(
    pipeline: Pipeline,
    output: Network,
    condition: Conditions,
    settings: TextSettings,
    *,
    seed: int,
    on_pass: Callable[[], object] | None = None,
) -> list[str]:
    """Return an answer for each row of `condition`, of the task `text_rules.UNDERSTAND`.

    Args:
        output: from `text_output`.
        seed, on_pass: as for `text.answer`.
    """
    model = _rules(pipeline).answer(pipeline.model, output, settings.max_tokens, (0, 0))
    _check_memory(pipeline, model, [condition])
    conditioner = cast(TextConditioner, pipeline.conditioner)
    with advice_on_memory():
        ids_BT = answer(
            model,
            condition.to(pipeline.device),
            settings,
            seed=seed,
            image_indices=range(len(condition)),
            end=conditioner.end,
            device=pipeline.device,
            on_pass=on_pass,
        )
    return [conditioner.words(ids) for ids in ids_BT.tolist()]


def edit(
    pipeline: Pipeline,
    output: Network,
    conditions: Branches,
    settings: ParallelSettings,
    grid: Grid,
    *,
    seed: int,
    on_pass: Callable[[Canvas], object] | None = None,
) -> tuple[Tensor, list[str]]:
    """Return codes (B, h, w) and texts, made in the same passes.

    Args:
        output: from `text_output`.
        conditions: of the task `text_rules.REASONED_EDIT`.
        seed, on_pass: as for `text.in_parallel`.
    """
    rules = _rules(pipeline)
    weights = settings.guidance[: len(conditions) - 1]
    branches, guidance = needed_branches(rules.branches(conditions), weights)
    model = rules.answer(pipeline.model, output, settings.max_tokens, grid)
    _check_memory(pipeline, model, branches)
    conditioner = cast(TextConditioner, pipeline.conditioner)
    with advice_on_memory():
        codes_BL, ids_BT = in_parallel(
            model,
            [branch.to(pipeline.device) for branch in branches],
            replace(settings, guidance=guidance),
            num_codes=grid[0] * grid[1],
            seed=seed,
            image_indices=range(len(branches[0])),
            device=pipeline.device,
            on_pass=on_pass,
        )
    return codes_BL.unflatten(1, grid), [conditioner.words(ids) for ids in ids_BT.tolist()]


def _rules(pipeline: Pipeline) -> TextRules:
    rules = pipeline.architecture.text
    if rules is None:
        raise ValueError(f"a {pipeline.architecture.title} makes images only.")
    return rules


def _check_memory(pipeline: Pipeline, model: AnswerModel, conditions: Sequence[Conditions]) -> None:
    lengths = [model.sequence_length(condition) for condition in conditions]
    check_memory(model.activation_bytes(len(conditions[0]), lengths), pipeline.device)
