"""The plan of a run as data: how many tokens each step reveals, which steps are full passes, how random each is.

Pure Python, no tensors: a plan can be printed, compared and written by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step does. Temperatures and guidance are those of this step."""

    index: int  # 0-based
    num_masked: int  # tokens masked before the step, per image
    num_revealed: int  # tokens it reveals, per image; 0 is allowed
    mask_ratio: (
        float  # share of the image that is masked before the step, as a shortcut head sees it
    )
    is_full: bool  # True: a full pass of the model. False: the predictor is asked first
    guidance: tuple[
        float, ...
    ]  # one weight per branch beside the first: cond + weight * (cond - branch)
    temperature: float  # of the codes; 0 = the most likely code
    score_temperature: float  # of the distribution whose log-probability is a code's confidence
    choice_temperature: (
        float  # of the Gumbel noise on the confidence; 0 = none, inf = positions by noise alone
    )

    @property
    def num_masked_after(self) -> int:
        """Tokens still masked after the step, per image."""
        return self.num_masked - self.num_revealed


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a user turns. The defaults are those of the original MaskGIT (golden/README.md section 6)."""

    num_steps: int = 32
    full_steps: int | tuple[int, ...] | None = (
        None  # how many steps are full passes, or which; None = all
    )
    guidance: tuple[float, ...] = (2.8,)  # empty = no guidance branch at all
    guidance_ramp: bool = (
        True  # True: rises evenly from 0 in the first step to `guidance` in the last
    )
    schedule: str = "arccos"
    temperature: float = 1.0  # of the codes; 0 = the most likely code
    choice_temperature: float = (
        7.0  # of the first step; falls evenly to 0 in the last; inf = random positions
    )

    def check(self) -> None:
        """Raises ValueError for the first setting that is out of range."""
        if self.num_steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.num_steps}.")
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}."
            )
        for name, value in (
            ("temperature", self.temperature),
            *(("cfg", g) for g in self.guidance),
        ):
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be a finite number of at least 0, got {value}.")
        if math.isnan(self.choice_temperature) or self.choice_temperature < 0:
            raise ValueError(
                f"choice temperature must be at least 0, got {self.choice_temperature}."
            )
        self.full_indices(self.num_steps)

    def full_indices(self, num_steps: int) -> frozenset[int]:
        """The full steps of a run that has `num_steps` steps, which may be fewer than asked for."""
        if self.full_steps is None:
            return frozenset(range(num_steps))
        if isinstance(self.full_steps, int):
            limit = num_steps if num_steps < self.num_steps else self.full_steps
            return frozenset(full_step_indices(num_steps, min(self.full_steps, limit)))
        if 0 not in self.full_steps or not all(0 <= i < self.num_steps for i in self.full_steps):
            raise ValueError(
                f"the list of full steps must contain 0 and stay below steps ({self.num_steps}), "
                f"got {list(self.full_steps)}."
            )
        return frozenset(i for i in self.full_steps if i < num_steps)


# Share of the tokens per step at r = 1 .. 0, before normalisation.
# Source: llvictorll/Maskgit-pytorch Trainer/vit.py adap_sche.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "arccos": lambda r: math.acos(r) / (math.pi / 2),
    "cosine": lambda r: math.cos(r * math.pi / 2),
    "linear": lambda r: 1 - r,
    "root": lambda r: 1 - math.sqrt(r),
    "square": lambda r: 1 - r * r,
}


def reveal_counts(schedule: str, num_steps: int, num_tokens: int) -> list[int]:
    """Tokens to reveal in each step: at least 1 each, `num_tokens` in all.

    Source: Besnier and Chen 2023, section 3; adap_sche as above: shares are rounded, zeros become 1, the last step
    takes the difference.
    Differs: where the difference would leave the last step without a token, the largest counts give some up; one
    step reveals everything.

    Raises:
        ValueError: unknown schedule, or more steps than tokens.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}.")
    if not 1 <= num_steps <= num_tokens:
        raise ValueError(
            f"steps must be between 1 and the number of tokens to make ({num_tokens}), got {num_steps}."
        )
    if num_steps == 1:
        return [num_tokens]
    shares = [SCHEDULES[schedule](1 - i / (num_steps - 1)) for i in range(num_steps)]
    counts = [max(1, round(share / sum(shares) * num_tokens)) for share in shares]
    counts[-1] += num_tokens - sum(counts)
    while counts[-1] < 1:
        largest = max(range(num_steps - 1), key=lambda i: counts[i])
        counts[largest] -= 1
        counts[-1] += 1
    return counts


def full_step_indices(num_steps: int, num_full: int) -> list[int]:
    """The steps that are full passes: step 0, then `num_full - 1` more, evenly spread.

    Source: MIGM-Shortcut Trainer/vit.py sample_shortcut: step k is
    max(previous + 1, round(num_steps * (k / num_full))), rounding halves to even.
    Differs: `num_full` = 1 is step 0 alone.

    Raises:
        ValueError: `num_full` outside 1 .. `num_steps`.
    """
    if not 1 <= num_full <= num_steps:
        raise ValueError(
            f"full steps must be between 1 and steps ({num_steps}), got {num_full}. Lower full steps or raise steps."
        )
    indices = [0]
    for k in range(1, num_full):
        indices.append(max(indices[-1] + 1, round(num_steps * (k / num_full))))
    return indices


def plan(settings: Settings, num_tokens: int, image_tokens: int) -> list[Step]:
    """All steps of a run that makes `num_tokens` of the `image_tokens` tokens of each image.

    Steps are limited to `num_tokens`, since each reveals at least one token; nothing to make gives an empty plan.

    Source: MIGM-Shortcut Trainer/vit.py sample_shortcut ("linear").

    Raises:
        ValueError: a setting is out of range.
    """
    settings.check()
    num_steps = min(settings.num_steps, num_tokens)
    if num_steps == 0:
        return []
    is_full = settings.full_indices(num_steps)
    steps, masked = [], num_tokens
    for i, count in enumerate(reveal_counts(settings.schedule, num_steps, num_tokens)):
        elapsed = i / (num_steps - 1) if num_steps > 1 else 1.0
        steps.append(
            Step(
                index=i,
                num_masked=masked,
                num_revealed=count,
                mask_ratio=masked / image_tokens,
                is_full=i in is_full,
                guidance=tuple(
                    g * elapsed if settings.guidance_ramp else g for g in settings.guidance
                ),
                temperature=settings.temperature,
                score_temperature=settings.temperature or 1.0,
                choice_temperature=_annealed(settings.choice_temperature, elapsed),
            )
        )
        masked -= count
    return steps


def _annealed(temperature: float, elapsed: float) -> float:
    return temperature if math.isinf(temperature) else temperature * (1 - elapsed)
