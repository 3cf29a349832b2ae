"""Text of Lumina-DiMOO and MMaDA-Parallel-A against the originals: each token and the pass that reveals it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden_sets import load
from lumina_sets import known
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import text_schedule
from shortcut_pack.shortcut.denoiser import Canvas
from shortcut_pack.shortcut.generate import needed_branches
from shortcut_pack.shortcut.models.lumina_dimoo.answer import Answer
from shortcut_pack.shortcut.models.lumina_dimoo.mmada import laid_over
from shortcut_pack.shortcut.text import answer, in_parallel
from shortcut_pack.shortcut.text_schedule import ParallelSettings, TextSettings
from torch import Tensor

GOLDEN = load("lumina_text")
QUESTIONS, EDITS = GOLDEN.info["understand"], GOLDEN.info["parallel"]


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    """The network, and its output of text."""
    file = checkpoints.from_tensors(
        GOLDEN.weights("backbone"), num_codes=64, **known("dimoo_backbone")
    )
    return checkpoints.build(file), checkpoints.build(file.text_part())


def watched(model: Answer) -> tuple[Any, list[list[Tensor]]]:
    """The model, and what of the text and the image is masked before each step."""
    seen: list[Any] = []
    first: list[Any] = []

    class Watched:
        def features(self, conditions: Any, text: Canvas, image: Canvas | None = None) -> Any:
            first.append(conditions[0])
            if (
                conditions[0] is first[0]
            ):  # the other guidance branches follow in a pass of their own
                seen.append([c.is_masked_BL.clone() for c in (text, image) if c is not None])
            return model.features(conditions, text, image)

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

    return Watched(), seen


def revealed_at(masks: list[Tensor]) -> list[int]:
    """The pass that reveals each token, of masks (1, T) before each pass."""
    return (torch.cat(masks).sum(0) - 1).tolist()


def asked(case: dict[str, Any], parts: tuple[Any, Any], **changes: Any) -> tuple[list, list]:
    model, seen = watched(Answer.of(*parts, case["max_tokens"], (0, 0)))
    settings = TextSettings(
        max_tokens=case["max_tokens"], num_steps=case["steps"], block_length=case["block_length"]
    )
    ids_BT = answer(
        model,
        torch.tensor([case["prompt"]]),
        replace(settings, **changes),
        seed=0,
        image_indices=[0],
    )
    return ids_BT[0].tolist(), revealed_at([masks[0] for masks in seen])


@pytest.mark.parametrize("name", QUESTIONS)
def test_an_answer_equals_the_original(name: str, parts: tuple[Any, Any]) -> None:
    case = QUESTIONS[name]
    ids, when = asked(case, parts)
    assert ids == case["text"]
    assert when == case["revealed_at"]


def test_control_blocks_matter(parts: tuple[Any, Any]) -> None:
    case = QUESTIONS["several_a_step"]
    ids, when = asked(case, parts, block_length=24)
    assert ids != case["text"] and when != case["revealed_at"]


def edited(case: dict[str, Any], parts: tuple[Any, Any]) -> tuple[Any, Any, list]:
    rows, columns = case["grid"]
    model, seen = watched(Answer.of(*parts, case["max_tokens"], (rows, columns)))
    settings = ParallelSettings(
        max_tokens=case["max_tokens"],
        num_steps=case["text_steps"],
        image_steps=case["steps"],
        guidance=tuple(case["guidance"]),
        temperature=0.0,
    )
    branches = laid_over(tuple(torch.tensor([p]) for p in case["prompts"]))
    branches, guidance = needed_branches(branches, settings.guidance)
    settings = replace(settings, guidance=guidance)
    codes_BL, text_BT = in_parallel(
        model, branches, settings, num_codes=rows * columns, seed=0, image_indices=[0]
    )
    return codes_BL[0], text_BT[0].tolist(), seen


@pytest.mark.parametrize("name", EDITS)
def test_an_image_and_a_text_in_the_same_passes_equal_the_original(
    name: str, parts: tuple[Any, Any]
) -> None:
    case = EDITS[name]
    codes_L, text, seen = edited(case, parts)
    assert text == case["text"]
    text_masks, image_masks = (list(masks) for masks in zip(*seen, strict=True))
    assert revealed_at(text_masks) == case["text_revealed_at"]
    assert revealed_at(image_masks) == case["image_revealed_at"]
    is_decided_L = torch.arange(len(codes_L)) != case["left_masked"]
    assert torch.equal(codes_L[is_decided_L], torch.tensor(case["codes"])[is_decided_L])


def test_control_when_the_image_begins_matters(
    parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, plan = EDITS["guided"], text_schedule.parallel_plan
    monkeypatch.setattr("shortcut_pack.shortcut.text.parallel_plan", late(plan))
    assert edited(case, parts)[1] != case["text"]


def late(plan: Callable[..., Any]) -> Callable[..., Any]:
    """A plan that makes the image in the last step alone."""

    def made(settings: ParallelSettings, num_codes: int) -> Any:
        *early, last = plan(settings, num_codes)
        whole = replace(last.image, num_masked=num_codes, num_revealed=num_codes)
        return [*(replace(step, image=None) for step in early), replace(last, image=whole)]

    return made
