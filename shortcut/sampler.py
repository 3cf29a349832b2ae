"""The sampling loop: reveals masked tokens step by step. It knows no model and waits for no device.

All counts come from the plan, so nothing in a step is copied to the host.

    B  images    L  image tokens    N  tokens still masked    K  tokens revealed by a step    V  codebook size
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .denoiser import Denoised, Revealed, Tokens, positions
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


@torch.no_grad()
def sample(
    denoise: Callable[[Step, Tokens], Denoised],
    codes_BL: Tensor,
    is_masked_BL: Tensor,
    plan: Sequence[Step],
    noise: Noise,
    on_step: Callable[[Trace], None] | None = None,
    order: Order = confidence,
) -> Tensor:
    """Fill the masked positions of `codes_BL`. Known codes never change. Returns code ids (B, L).

    Args:
        denoise: (step, tokens) -> logits at the masked positions.
        is_masked_BL: as many True in each image as `plan` has tokens to make.
        on_step: called after each step; an exception from it ends the run.
        order: says which tokens come first.

    Raises:
        FloatingPointError: the model gave logits that are not finite.
    """
    is_finite = torch.ones((), dtype=torch.bool, device=codes_BL.device)
    for step in plan:
        index_BN = positions(is_masked_BL, step.num_masked)
        choose = partial(choice, step=step, index_BN=index_BN, noise=noise, order=order)
        denoised = denoise(step, Tokens(codes_BL, is_masked_BL, index_BN, choose))
        # A logit that is not finite makes the sum so. The sum reads the logits once, isfinite().all() several times.
        is_finite &= denoised.logits_BNV.sum().isfinite()
        revealed = decide(denoised, step, index_BN, noise, order)
        codes_BL = codes_BL.scatter(1, revealed.index_BK, revealed.codes_BK)
        is_masked_BL = is_masked_BL.scatter(1, revealed.index_BK, False)
        if on_step is not None:
            on_step(Trace(step, denoised, revealed, codes_BL, is_masked_BL))
        del denoised  # its logits are large, and the next step begins with a full pass
    check_logits(is_finite)
    return codes_BL


def check_logits(is_finite: Tensor) -> None:
    """Raise FloatingPointError if some logits of a run were not finite."""
    if not is_finite:
        raise FloatingPointError(
            "the model gave logits that are not finite (NaN or infinity). With float16 this is an overflow: "
            "use bfloat16 or float32. Otherwise the weights are damaged: check the file."
        )


def decide(
    denoised: Denoised, step: Step, index_BN: Tensor, noise: Noise, order: Order = confidence
) -> Revealed:
    """Choose the tokens that a step reveals and their codes, given the logits at all masked positions `index_BN`.

    Where the denoiser has chosen already, only codes are drawn, by the same noise.
    """
    if (index_BK := denoised.chosen_BK) is not None:
        return Revealed(draw_codes(denoised.logits_BNV, step, index_BK, noise), index_BK)
    drawn_BN = draw_codes(denoised.logits_BNV, step, index_BN, noise)
    score_BN = order(denoised.logits_BNV, drawn_BN, step, index_BN, noise)
    chosen_BK = foremost(score_BN, denoised.unseen_BN, step.num_revealed).sort().values
    return Revealed(drawn_BN.gather(1, chosen_BK), index_BN.gather(1, chosen_BK))


def choice(
    logits_BNV: Tensor, step: Step, index_BN: Tensor, noise: Noise, order: Order = confidence
) -> Tensor:
    """Choose the tokens (B, K) that a step reveals, ascending, as `decide` does without spread."""
    drawn_BN = draw_codes(logits_BNV, step, index_BN, noise)
    score_BN = order(logits_BNV, drawn_BN, step, index_BN, noise)
    return index_BN.gather(1, score_BN.topk(step.num_revealed).indices.sort().values)


def foremost(score_BN: Tensor, unseen_BN: Tensor | None, count: int) -> Tensor:
    """Return the `count` positions (B, K) to reveal first: fewest `unseen_BN` first, then highest scores."""
    if unseen_BN is None:
        return score_BN.topk(count).indices
    order_BN = score_BN.argsort(dim=1, descending=True)
    fewest_first_BN = unseen_BN.gather(1, order_BN).argsort(dim=1, stable=True)
    return order_BN.gather(1, fewest_first_BN)[:, :count]


def draw_codes(logits_BNV: Tensor, step: Step, index_BN: Tensor, noise: Noise) -> Tensor:
    """Draw one code (B, N) per position from softmax(logits / temperature); at temperature 0 take the most likely."""
    if step.temperature == 0:
        return logits_BNV.argmax(-1)
    return noise.codes(step.index, index_BN, logits_BNV / step.temperature)
