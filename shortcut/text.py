"""Loops that make text: block by block, or in the same passes as an image. They know no model.

Both reveal tokens by the functions of the image sampler, with noise that is drawn before the loop.

    B  images    T  text tokens    L  image tokens    S  sequence    N  tokens still masked    V  vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from .denoiser import (
    Canvas,
    Conditions,
    Denoised,
    Features,
    ImageLogits,
    Logits,
    Tokens,
    guided_logits,
    positions,
)
from .guard import MAX_DRAWS, check_whole
from .noise import Noise, NormalNoise
from .sampler import Trace, check_logits, decide, sample
from .schedule import Step
from .text_schedule import ParallelSettings, TextSettings, parallel_plan, text_plan

TEXT_STREAM = 2  # of the random numbers of a text; an image has 0 and 1


class TextModel(ImageLogits, Protocol):
    """A model that answers in text, or in an image and text."""

    def features(
        self, conditions: Sequence[Conditions], text: Canvas, image: Canvas | None = None
    ) -> Features:
        """Run one full pass for each of `conditions`.

        Args:
            image: where the answer begins with one.
        """
        ...

    def text_logits(self, features_BSD: Tensor, index_BN: Tensor) -> Tensor:
        """Return float32 logits (B, N, V) at the text tokens `index_BN`."""
        ...


@torch.no_grad()
def answer(
    model: TextModel,
    condition: Conditions,
    settings: TextSettings,
    *,
    seed: int,
    image_indices: Sequence[int],
    end: int | None = None,
    device: torch.device | str = "cpu",
    on_pass: Callable[[], object] | None = None,
) -> Tensor:
    """Return the token ids (B, T) of answers, made block by block.

    What stands behind the first `end` in a row means nothing: once each row has one, no further block is made.

    Source: Nie et al. 2025, LLaDA (arXiv 2502.09992), section 2.4; Alpha-VLLM/Lumina-DiMOO
    generators/text_understanding_generator.py.
    Differs: a mask that the model draws counts as a word, where the original draws that token again.

    Args:
        image_indices: place of each row in its batch; (seed, place) alone decides its randomness.
        end: the token that ends a text; None = there is none.
        on_pass: called after each pass; an exception from it ends the run.

    Raises:
        ValueError: a setting is out of range.
        FloatingPointError: the model gave logits that are not finite.
    """
    blocks, num_rows = text_plan(settings), len(image_indices)
    text = Canvas.empty(num_rows, settings.max_tokens, device)
    num_steps = max(len(block.steps) for block in blocks)
    noise = _text_noise(seed, image_indices, num_steps, settings.max_tokens, device)
    for block in blocks:
        span = slice(block.start, block.end)

        def denoise(step: Step, tokens: Tokens, span: slice = span) -> Denoised:
            text.codes_BL[:, span], text.is_masked_BL[:, span] = (
                tokens.codes_BL,
                tokens.is_masked_BL,
            )
            features = model.features([condition], text)

            def logits(index_BN: Tensor) -> Tensor:
                return model.text_logits(features[0], span.start + index_BN)

            return Denoised(logits, features, True)

        def passed(trace: Trace) -> None:
            if on_pass is not None:
                on_pass()

        text.codes_BL[:, span] = sample(
            denoise,
            text.codes_BL[:, span],
            text.is_masked_BL[:, span],
            block.steps,
            noise.part(slice(None), span),
            passed,
        )
        text.is_masked_BL[:, span] = False
        made_BT = text.codes_BL[:, : block.end]
        if end is not None and (made_BT == end).any(1).all():
            return made_BT
    return text.codes_BL


@torch.no_grad()
def in_parallel(
    model: TextModel,
    conditions: Sequence[Conditions],
    settings: ParallelSettings,
    *,
    num_codes: int,
    seed: int,
    image_indices: Sequence[int],
    device: torch.device | str = "cpu",
    on_pass: Callable[[Canvas], object] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return an image's codes (B, L) and a text's token ids (B, T), made in the same passes.

    A step runs the first condition, which alone makes the text; where it reveals some of the image, the other
    conditions follow, which see the text that the step has revealed.

    Source: tyfeld/MMaDA-Parallel MMaDA-Parallel-A/generators/parallel_generator.py generate_ti2ti.
    Differs: as in `parallel_plan`; for any number of images, where the original makes one.

    Args:
        conditions: one for each guidance branch: `settings.guidance` has one weight less.
        num_codes: codes of the image (L).
        on_pass: called after each step with the image as it is; an exception from it ends the run.
    """
    plan, num_rows = parallel_plan(settings, num_codes), len(image_indices)
    image = Canvas.empty(num_rows, num_codes, device)
    text = Canvas.empty(num_rows, settings.max_tokens, device)
    text_noise = _text_noise(seed, image_indices, len(plan), settings.max_tokens, device)
    check_whole("steps x codes x images", len(plan) * num_codes * num_rows, 0, MAX_DRAWS)
    image_noise = NormalNoise.draw(seed, image_indices, len(plan), num_codes, device)
    is_finite = torch.ones((), dtype=torch.bool, device=device)
    for step in plan:
        features = model.features(conditions[:1], text, image)
        if step.text is not None:
            index_BN = positions(text.is_masked_BL, step.text.num_masked)
            logits = partial(model.text_logits, features[0])
            text, found = revealed(text, logits, step.text, index_BN, text_noise)
            is_finite &= found
        if step.image is not None:
            if len(conditions) > 1:
                features = (*features, *model.features(conditions[1:], text, image))
            index_BN = positions(image.is_masked_BL, step.image.num_masked)
            logits = partial(guided_logits, model, features, step.image.guidance)
            image, found = revealed(image, logits, step.image, index_BN, image_noise)
            is_finite &= found
        if on_pass is not None:
            on_pass(image)
    check_logits(is_finite)
    return image.codes_BL, text.codes_BL


def revealed(
    canvas: Canvas, logits: Logits, step: Step, index_BN: Tensor, noise: Noise
) -> tuple[Canvas, Tensor]:
    """Return the tokens after a step, given the masked ones `index_BN`, and whether the logits were finite."""
    new, is_finite = decide(Denoised(logits, (), True), step, index_BN, noise)
    made = Canvas(
        canvas.codes_BL.scatter(1, new.index_BK, new.codes_BK),
        canvas.is_masked_BL.scatter(1, new.index_BK, False),
    )
    return made, is_finite


def _text_noise(
    seed: int,
    image_indices: Sequence[int],
    num_steps: int,
    num_tokens: int,
    device: torch.device | str,
) -> Noise:
    num_draws = num_steps * num_tokens * len(image_indices)
    check_whole("text steps x tokens x images", num_draws, 0, MAX_DRAWS)
    return Noise.draw(seed, image_indices, num_steps, num_tokens, device, TEXT_STREAM)
