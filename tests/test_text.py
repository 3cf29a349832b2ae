"""Text beyond its originals: plans, batches, ends, random words, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from golden_sets import load
from lumina_sets import known
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.models.lumina_dimoo.answer import Answer
from shortcut_pack.shortcut.text import answer, in_parallel
from shortcut_pack.shortcut.text_schedule import (
    ParallelSettings,
    TextSettings,
    parallel_plan,
    text_plan,
)
from torch import Tensor

GRID = (3, 4)
CODES = 12
SETTINGS = TextSettings(max_tokens=20, num_steps=10, block_length=8, temperature=0.8)
PARALLEL = ParallelSettings(
    max_tokens=10, num_steps=8, image_steps=5, text_temperature=0.7, guidance=(2.0,)
)


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    file = checkpoints.from_tensors(
        load("dimoo_backbone").weights("backbone"), num_codes=64, **known("dimoo_backbone")
    )
    return checkpoints.build(file), checkpoints.build(file.text_part())


def prompts(num_rows: int, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(
        28, (num_rows, length), generator=torch.Generator().manual_seed(length + seed)
    )


def asked(parts: Any, settings: TextSettings = SETTINGS, rows: Any = (0, 1, 2), **more: Any) -> Any:
    model = Answer.of(*parts, settings.max_tokens, (0, 0))
    condition = prompts(3)[torch.tensor(rows)]
    return answer(model, condition, settings, **{"seed": 3, "image_indices": rows, **more})


def made(parts: Any, settings: ParallelSettings = PARALLEL, rows: Any = (0, 1, 2)) -> Any:
    model = Answer.of(*parts, settings.max_tokens, GRID)
    index = torch.tensor(rows)
    branches = [prompts(3)[index], prompts(3, 9, seed=5)[index]]
    return in_parallel(model, branches, settings, num_codes=CODES, seed=3, image_indices=rows)


def test_each_token_is_made_once_whatever_the_numbers():
    for num_tokens in (1, 7, 31, 128):
        for num_steps in (1, 5, 31, 200):
            for length in (1, 8, 32, 300):
                settings = TextSettings(
                    max_tokens=num_tokens, num_steps=num_steps, block_length=length
                )
                blocks = text_plan(settings)
                assert [b.start for b in blocks] + [num_tokens] == [0] + [b.end for b in blocks]
                for block in blocks:
                    counts = [step.num_revealed for step in block.steps]
                    assert sum(counts) == block.end - block.start and min(counts) >= 1
                assert sum(len(b.steps) for b in blocks) <= max(num_steps, len(blocks))


def test_the_documented_numbers_are_one_token_a_pass_in_blocks_of_32():
    blocks = text_plan(TextSettings())
    assert [(b.start, b.end, len(b.steps)) for b in blocks] == [
        (start, start + 32, 32) for start in range(0, 128, 32)
    ]


@pytest.mark.parametrize(
    ("max_tokens", "num_steps", "block_length", "expected"),
    [
        (100, 100, 32, [32, 32, 32, 4]),
        (33, 33, 32, [32, 1]),
        (40, 40, 32, [32, 8]),
        (64, 5, 32, [3, 2]),
        (100, 50, 32, [16, 16, 16, 2]),
        (128, 4, 16, [1] * 8),
        (8, 200, 4, [4, 4]),
    ],
)
def test_blocks_share_the_passes_by_their_length(max_tokens, num_steps, block_length, expected):
    settings = TextSettings(max_tokens=max_tokens, num_steps=num_steps, block_length=block_length)
    assert [len(block.steps) for block in text_plan(settings)] == expected


def test_an_image_and_a_text_are_finished_together():
    for num_codes in (1, 4, 1024):
        for num_steps, image_steps in ((1, 1), (3, 3), (128, 64), (128, 128)):
            settings = ParallelSettings(num_steps=num_steps, image_steps=image_steps)
            plan = parallel_plan(settings, num_codes)
            texts = [s.text.num_revealed for s in plan if s.text]
            images = [s.image.num_revealed for s in plan if s.image]
            assert len(plan) == num_steps
            assert (sum(texts), sum(images)) == (256, num_codes) and min(texts + images) >= 1


def test_the_image_begins_after_a_quarter():
    plan = parallel_plan(ParallelSettings(), 1024)
    (first, *_, last) = [i for i, step in enumerate(plan) if step.image]
    assert (first, last) == (32, 127)
    assert sum(step.image is not None for step in plan) == 64


def test_a_row_does_not_depend_on_its_batch(parts):
    together = asked(parts)
    assert not torch.equal(together[0], together[1])
    codes, text = made(parts)
    for i in range(3):
        assert torch.equal(asked(parts, rows=[i])[0], together[i])
        alone_codes, alone_text = made(parts, rows=[i])
        assert torch.equal(alone_codes[0], codes[i]) and torch.equal(alone_text[0], text[i])


def test_words_are_random_only_above_temperature_0(parts):
    cold = replace(SETTINGS, temperature=0.0)
    assert torch.equal(asked(parts, cold), asked(parts, cold, seed=4))
    assert not torch.equal(asked(parts), asked(parts, seed=4))


def test_global_randomness_is_not_touched(parts):
    before = torch.get_rng_state()
    asked(parts), made(parts)
    assert torch.equal(before, torch.get_rng_state())


def test_no_further_block_is_made_once_each_text_has_ended(parts):
    whole, passes = asked(parts), []
    word = int(whole[0, 2])
    end = next(
        n for n in (8, 16, 20) if (whole[:1, :n] == word).any()
    )  # of the block that ends the first row
    short = asked(parts, rows=[0], end=word, on_pass=lambda: passes.append(1))
    assert torch.equal(short, whole[:1, :end]) and end == 8
    assert len(passes) == 4
    missing = next(word for word in range(364) if not (whole == word).any())
    assert asked(parts, end=missing).shape == (3, 20)


def test_a_hook_ends_a_run(parts):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asked(parts, on_pass=stop)
    model = Answer.of(*parts, PARALLEL.max_tokens, GRID)
    with pytest.raises(KeyboardInterrupt):
        in_parallel(
            model,
            [prompts(1), prompts(1)],
            PARALLEL,
            num_codes=CODES,
            seed=0,
            image_indices=[0],
            on_pass=stop,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": 0}, "max tokens must be a whole number of at least 1, got 0"),
        ({"max_tokens": 5000}, "max tokens must be at most 4096"),
        ({"num_steps": 0}, "text steps must be"),
        ({"block_length": 0}, "block length must be"),
        ({"temperature": float("nan")}, "text temperature must be a finite number"),
    ],
)
def test_what_is_out_of_range_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        text_plan(replace(TextSettings(), **change))


def test_more_image_steps_than_steps_are_refused():
    with pytest.raises(ValueError, match="image steps must be at most 8, got 9"):
        parallel_plan(replace(PARALLEL, image_steps=9), CODES)
