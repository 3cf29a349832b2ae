"""The sampling loop: reveals masked tokens step by step. It knows no model and waits for no device.

All counts come from the plan, so nothing in a step is copied to the host, and a run may be recorded (cuda_graph.py).

    B  images    L  image tokens    N  tokens still masked    K  tokens revealed by a step    V  codebook size
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .denoiser import AT_ONCE, Chosen, Denoised, Logits, Revealed, Tokens, positions
from .noise import Noise
from .orders import Order, confidence
from .schedule import Step


@dataclass(frozen=True, slots=True)
class Trace:
    """Record of one step. Tensors are live: copy those that outlive the call."""

    step: Step
    denoised: Denoised
    revealed: Revealed  # by this step
    codes_BL: Tensor  # after the step; undefined where masked
    is_masked_BL: Tensor  # after the step


@dataclass(frozen=True, slots=True)
class Drawn:
    """Codes drawn at some positions."""

    codes_BN: Tensor
    score_BN: Tensor  # of each; the highest are revealed first
    is_finite: Tensor  # whether all logits were


def sample(
    denoise: Callable[[Step, Tokens], Denoised],
    codes_BL: Tensor,
    is_masked_BL: Tensor,
    plan: Sequence[Step],
    noise: Noise,
    on_step: Callable[[Trace], None] | None = None,
    order: Order = confidence,
) -> Tensor:
    """Fill the masked positions of `codes_BL`, as `fill` does. Returns code ids (B, L).

    Raises:
        FloatingPointError: the model gave logits that are not finite.
    """
    codes_BL, is_finite = fill(denoise, codes_BL, is_masked_BL, plan, noise, on_step, order)
    check_logits(is_finite)
    return codes_BL


@torch.no_grad()
def fill(
    denoise: Callable[[Step, Tokens], Denoised],
    codes_BL: Tensor,
    is_masked_BL: Tensor,
    plan: Sequence[Step],
    noise: Noise,
    on_step: Callable[[Trace], None] | None = None,
    order: Order = confidence,
) -> tuple[Tensor, Tensor]:
    """Fill the masked positions of `codes_BL`. Known codes never change.

    Args:
        denoise: (step, tokens) -> how to make the logits of the masked positions.
        is_masked_BL: as many True in each image as `plan` has tokens to make.
        on_step: called after each step; an exception from it ends the run.
        order: says which tokens come first.

    Returns:
        (code ids (B, L), whether all logits were finite: for `check_logits`)
    """
    is_finite = torch.ones((), dtype=torch.bool, device=codes_BL.device)
    is_made_BL = is_masked_BL
    for step in plan:
        index_BN = positions(is_masked_BL, step.num_masked)
        choose = partial(choice, step=step, index_BN=index_BN, noise=noise, order=order)
        denoised = denoise(step, Tokens(codes_BL, is_masked_BL, index_BN, choose))
        revealed, were_finite = decide(denoised, step, index_BN, noise, order)
        is_finite &= were_finite
        num_known, is_known_BL = plan[0].num_masked - step.num_masked, is_made_BL & ~is_masked_BL
        hidden_BK = least_probable(denoised.logits, codes_BL, is_known_BL, num_known, step)
        codes_BL = codes_BL.scatter(1, revealed.index_BK, revealed.codes_BK)
        is_masked_BL = is_masked_BL.scatter(1, revealed.index_BK, False)
        is_masked_BL = is_masked_BL.scatter(1, hidden_BK, True)
        if on_step is not None:
            on_step(Trace(step, denoised, revealed, codes_BL, is_masked_BL))
        del denoised  # its features are large, and the next step begins with a full pass
    return codes_BL, is_finite


def check_logits(is_finite: Tensor) -> None:
    """Raise FloatingPointError if some logits of a run were not finite."""
    if not is_finite:
        raise FloatingPointError(
            "the model gave logits that are not finite (NaN or infinity). With float16 this is an overflow: "
            "use bfloat16 or float32. Otherwise the weights are damaged: check the file."
        )


def decide(
    denoised: Denoised, step: Step, index_BN: Tensor, noise: Noise, order: Order = confidence
) -> tuple[Revealed, Tensor]:
    """Choose the tokens that a step reveals and their codes, among all masked positions `index_BN`.

    Where the denoiser has chosen already, only codes are drawn, by the same noise.

    Returns:
        (the tokens and codes, whether the logits were finite)
    """
    if (chosen := denoised.chosen) is not None:
        drawn = draw(denoised.logits, step, chosen.index_BK, noise)
        return Revealed(drawn.codes_BN, chosen.index_BK), drawn.is_finite & chosen.is_finite
    drawn = draw(denoised.logits, step, index_BN, noise, order)
    chosen_BK = drawn.score_BN.topk(step.num_revealed).indices.sort().values
    revealed = Revealed(drawn.codes_BN.gather(1, chosen_BK), index_BN.gather(1, chosen_BK))
    return revealed, drawn.is_finite


def choice(
    logits: Logits, step: Step, index_BN: Tensor, noise: Noise, order: Order = confidence
) -> Chosen:
    """Choose the tokens that a step reveals, as `decide` does."""
    drawn = draw(logits, step, index_BN, noise, order)
    chosen_BK = drawn.score_BN.topk(step.num_revealed).indices.sort().values
    return Chosen(index_BN.gather(1, chosen_BK), drawn.is_finite)


def least_probable(
    logits: Logits, codes_BL: Tensor, is_known_BL: Tensor, num_known: int, step: Step
) -> Tensor:
    """Return the tokens (B, K) that a step hides again: those known whose codes its full pass finds least probable.

    Source: FreeCorrection (arXiv 2602.02927).
    Differs: by one pass, not by the mean over all so far; how many, see `schedule.CORRECTED_SHARE`.

    Args:
        is_known_BL: True where the run has revealed a token before: `num_known` in each image.
    """
    if step.num_hidden == 0:
        return torch.zeros_like(codes_BL[:, :0])
    index_BN, found = positions(is_known_BL, num_known), []
    for part_BN in index_BN.split(max(1, AT_ONCE // len(index_BN)), dim=1):
        code_BN1 = codes_BL.gather(1, part_BN).unsqueeze(-1)
        found.append(logits(part_BN).log_softmax(-1).gather(-1, code_BN1).squeeze(-1))
    least_BK = torch.cat(found, 1).topk(step.num_hidden, largest=False).indices
    return index_BN.gather(1, least_BK)


def draw(
    logits: Logits, step: Step, index_BN: Tensor, noise: Noise, order: Order = confidence
) -> Drawn:
    """Draw a code at each of the positions `index_BN` and score it, with logits of AT_ONCE positions at a time."""
    codes: list[Tensor] = []
    scores: list[Tensor] = []
    is_finite = torch.ones((), dtype=torch.bool, device=index_BN.device)
    for part_BN in index_BN.split(max(1, AT_ONCE // len(index_BN)), dim=1):
        logits_BNV = logits(part_BN)
        # A logit that is not finite makes the sum so. The sum reads the logits once, isfinite().all() several times.
        is_finite &= logits_BNV.sum().isfinite()
        codes.append(draw_codes(logits_BNV, step, part_BN, noise))
        scores.append(order(logits_BNV, codes[-1], step, part_BN, noise))
        del logits_BNV  # before the next are made
    return Drawn(torch.cat(codes, 1), torch.cat(scores, 1), is_finite)


def draw_codes(logits_BNV: Tensor, step: Step, index_BN: Tensor, noise: Noise) -> Tensor:
    """Draw one code (B, N) per position from softmax(logits / temperature); at temperature 0 take the most likely."""
    if step.temperature == 0:
        return logits_BNV.argmax(-1)
    return noise.codes(step.index, index_BN, logits_BNV / step.temperature)
