"""What smaller weights cost the text model, compared with itself in float32."""

from __future__ import annotations

from dataclasses import replace

import builders
import pytest
import torch

from experiments.tables.text_measure import text_questions
from experiments.tables.weight_types import FLOAT8, by_lengths, sampled
from shortcut import shipped, weights
from shortcut.cli.files import DTYPES
from shortcut.models.lumina_dimoo.prompts import load_tokenizer

GRID = (4, 4)


def compared(name: str):
    file = builders.text_model()
    tokenizer = load_tokenizer(shipped.TEXT_FOLDER, file.config)
    questions = text_questions(tokenizer, file.config, 1)
    exact = weights.build(file, dtype=torch.float32)
    dtype = torch.bfloat16 if name == FLOAT8 else DTYPES[name]
    model = weights.build(weights.cast(file, DTYPES[name]), dtype=dtype)
    settings = replace(weights.settings(file), num_steps=4)
    numbers = by_lengths(questions)[0]
    codes_Bhw, seen = sampled(model, exact, questions, numbers, settings, 3, GRID)
    assert codes_Bhw.shape == (len(numbers), *GRID)
    assert seen.num_steps == 4 and seen.num_predicted == codes_Bhw.numel()
    return seen


@torch.no_grad()
def test_float32_is_as_itself():
    seen = compared("float32")
    assert seen.num_same == seen.num_predicted
    assert seen.divergence == pytest.approx(0, abs=1e-6)


@torch.no_grad()
def test_the_fewer_bits_the_further_away():
    half, eighth = compared("bfloat16"), compared(FLOAT8)
    assert 0 < half.divergence < eighth.divergence
    assert eighth.cosine < half.cosine < half.num_steps


def test_prompts_of_one_length_make_a_batch():
    file = builders.text_model()
    tokenizer = load_tokenizer(shipped.TEXT_FOLDER, file.config)
    questions = text_questions(tokenizer, file.config, 3)
    groups = by_lengths(questions)
    assert sorted(n for numbers in groups for n in numbers) == list(range(len(questions)))
    for numbers in groups:
        assert len({questions[n].conditions[0].shape[1] for n in numbers}) == 1
