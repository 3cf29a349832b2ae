"""The plan of a run as data: how many tokens each step reveals, which steps are full passes, how random each is.

Pure Python, no tensors: a plan can be printed, compared and written by hand.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from .guard import MAX_STEPS, MAX_WEIGHT, check_number, check_temperature, check_whole, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step does. Temperatures and guidance hold for this step."""

    index: int  # 0-based, in the schedule: numbers of steps that reveal nothing are left out
    num_masked: int  # tokens masked before the step, per image
    num_revealed: int  # tokens it reveals, per image; at least 1
    num_hidden: int = 0  # of those known before that it hides again, per image: see `CORRECTED`
    mask_ratio: float  # share that is masked before the step, as a shortcut head sees it, in [0, 1]
    is_full: bool  # True: a full pass of the model. False: the accelerator is asked first
    guidance: tuple[
        float, ...
    ]  # one weight per branch beside the first: cond + weight * (cond - branch)
    temperature: float  # of the codes; 0 = the most likely code
    score_temperature: float  # of the distribution whose log-probability is a code's confidence
    choice_temperature: (
        float  # of the Gumbel noise on the confidence; 0 = none, inf = positions by noise alone
    )
    steps_left: int = 0  # of the schedule after this one: what models that take a timestep are told

    @property
    def num_masked_after(self) -> int:
        """Tokens still masked after the step, per image."""
        return self.num_masked - self.num_revealed + self.num_hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Hold what a user turns. The defaults are those of the original MaskGIT (tests/golden/README.md section 6)."""

    num_steps: int = 32
    full_steps: int | tuple[int, ...] | None = (
        None  # how many are full passes, or which; None = all
    )
    # How much closer full passes stand at the beginning, if they are given by number; 1 = evenly.
    full_power: float = 1.0
    guidance: tuple[float, ...] = (2.8,)  # empty = no guidance branch at all
    guidance_ramp: bool = (
        True  # True: rises evenly from 0 in the first step to `guidance` in the last
    )
    schedule: str = "arccos"
    temperature: float = 1.0  # of the codes; 0 = the most likely code
    choice_temperature: float = 7.0  # of the first step; inf = random positions
    # Which tokens come first: one of ORDERS. "halton" has no use for the choice temperature.
    order: str = "confidence"
    is_one_step: bool = False  # True: of a student whose one step starts from partly random codes

    def check(self) -> None:
        """Raise ValueError for the first setting that is out of range."""
        check_whole("steps", self.num_steps, 1, MAX_STEPS)
        if self.is_one_step and self.num_steps != 1:
            raise ValueError(
                f"a one-step student takes 1 step, got {self.num_steps}. Leave the steps out."
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"schedule must be one of {', '.join(SCHEDULES)}, got {shown(self.schedule)}."
            )
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {shown(self.order)}.")
        check_number("full power", self.full_power, 1, MAX_FULL_POWER)
        check_temperature("temperature", self.temperature)
        for weight in self.guidance:
            check_number("cfg", weight, 0, MAX_WEIGHT)
        if self.choice_temperature != math.inf:
            check_number("choice temperature", self.choice_temperature, 0, MAX_WEIGHT)
        listed = self.full_steps if isinstance(self.full_steps, tuple) else (self.full_steps,)
        if self.full_steps is not None and not all(type(index) is int for index in listed):
            raise ValueError(
                f"full steps must be a whole number or a tuple of steps, got {shown(self.full_steps)}."
            )
        if isinstance(self.full_steps, tuple) and len(self.full_steps) > self.num_steps:
            raise ValueError(
                f"full steps lists {len(self.full_steps)} of {self.num_steps} steps, expected no more."
            )
        self.full_indices(self.num_steps)

    def full_indices(self, num_steps: int) -> frozenset[int]:
        """Return the full steps of a run of `num_steps` steps, which may be fewer than asked for."""
        if self.full_steps is None:
            return frozenset(range(num_steps))
        if isinstance(self.full_steps, int):
            limit = num_steps if num_steps < self.num_steps else self.full_steps
            num_full = min(self.full_steps, limit)
            return frozenset(full_step_indices(num_steps, num_full, self.full_power))
        if 0 not in self.full_steps or not all(0 <= i < self.num_steps for i in self.full_steps):
            raise ValueError(
                f"the list of full steps must contain 0 and stay below steps ({self.num_steps}), "
                f"got {list(self.full_steps)}."
            )
        return frozenset(i for i in self.full_steps if i < num_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerRules:
    """What an architecture fixes about its sampler. The defaults are MaskGIT's."""

    choice_ramp: bool = True  # True: the choice temperature falls evenly to 0 in the last step
    score_temperature: float | None = None  # None = that of the codes, or 1 where that is 0
    ratio_of_made: bool = (
        False  # True: mask ratios are shares of the tokens to make, not of the image
    )


MAX_FULL_POWER = 8.0
# Share of the tokens per step at r = 1 .. 0, before normalisation.
# Source: llvictorll/Maskgit-pytorch Trainer/vit.py adap_sche.
SHARES: dict[str, Callable[[float], float]] = {
    "arccos": lambda r: math.acos(r) / (math.pi / 2),
    "cosine": lambda r: math.cos(r * math.pi / 2),
    "linear": lambda r: 1 - r,
    "root": lambda r: 1 - math.sqrt(r),
    "square": lambda r: 1 - r * r,
}
LUMINA, AMUSED, AMUSED_LINEAR = "lumina", "amused", "amused-linear"
ROUNDED_DOWN = (LUMINA, AMUSED, AMUSED_LINEAR)  # what stays masked; by the model they are of
SCHEDULES = (*SHARES, *ROUNDED_DOWN)
HALTON, CORRECTED = "halton", "corrected"
ORDERS = ("confidence", HALTON, CORRECTED)  # see `orders.BY_NAME`
# By confidence, and each full pass after this share of the steps, but in the last two, hides again what it finds least
# probable: so large a share of as many tokens as were revealed since the full pass before.
CORRECTED_FROM, CORRECTED_SHARE = 0.4, 0.25


def reveal_counts(
    schedule: str,
    num_steps: int,
    num_tokens: int,
    image_tokens: int | None = None,
    denoise: float = 1.0,
) -> list[int]:
    """Return the tokens to reveal in each step, `num_tokens` in all; at least 1 each but in those of `ROUNDED_DOWN`.

    Source: Besnier and Chen 2023, section 3; adap_sche as above: shares are rounded, zeros become 1, the last step
    takes the difference. For "lumina" see `lumina_counts`.
    Differs: where the difference would leave the last step without a token, the largest counts give some up; one
    step reveals everything.

    Args:
        num_steps: at least 1, and at most `num_tokens` where each must reveal one.
        image_tokens, denoise: as for `plan`, for `amused_counts`.
    """
    if schedule == LUMINA:
        return lumina_counts(num_steps, num_tokens)
    if schedule in ROUNDED_DOWN:
        return amused_counts(schedule, num_steps, num_tokens, image_tokens or num_tokens, denoise)
    if num_steps == 1:
        return [num_tokens]
    shares = [SHARES[schedule](1 - i / (num_steps - 1)) for i in range(num_steps)]
    counts = [max(1, round(share / sum(shares) * num_tokens)) for share in shares]
    counts[-1] += num_tokens - sum(counts)
    while counts[-1] < 1:
        largest = max(range(num_steps - 1), key=lambda i: counts[i])
        counts[largest] -= 1
        counts[-1] += 1
    return counts


def lumina_counts(num_steps: int, num_tokens: int) -> list[int]:
    """Return the tokens to reveal in each step, `num_tokens` in all. A step may get 0.

    After step s of N, floor(num_tokens * cos(pi / 2 * (s + 1) / N)) stay masked, but at least 1 until the last.

    Source: Chang et al. 2022, equation 3; MIGM-Shortcut DiMOO-Shortcut generators/image_generation_generator.py.
    It computes in float32, which matters: of 48 tokens 23 stay after 8 of 12 steps, as cos(pi / 3) falls below 0.5.
    Differs: the cosine is the float32 nearest to the true one, on every device; torch's is an ulp off at times, which
    shows at 1 in 200,000 counts. Lumina-DiMOO itself reveals one token where this rule, MIGM-Shortcut's, reveals none.
    """
    masked = [max(1, cosine_share(i / num_steps, num_tokens)) for i in range(1, num_steps)]
    return [before - after for before, after in pairwise([num_tokens, *masked, 0])]


def amused_counts(
    schedule: str, num_steps: int, num_tokens: int, image_tokens: int, denoise: float
) -> list[int]:
    """Return the tokens to reveal in each step, `num_tokens` in all. A step may get 0.

    Of the `image_tokens` tokens of an image, a share of `num_tokens` / `image_tokens` is to be made, and the share of
    that which stays masked is rounded down; at least 1 until the last step, and at most all but one.

    With `denoise` below 1 the tokens that stay count as those that the first steps would have revealed: these steps
    reveal nothing, and a run is as much shorter.

    Source: diffusers schedulers/scheduling_amused.py AmusedScheduler.step, in float32, which matters: of 48 tokens 31
    stay after 4 of 12 linear steps; pipelines/deprecated/amused: "linear" for in-painting, image to image by strength.
    Differs: where nothing is masked, or one token alone, the scheduler masks a known token or makes the same one again
    and again; such steps reveal nothing here, and `plan` leaves them out. Image to image at strength s is `denoise` =
    cos(pi / 2 * (1 - s)), the share that it masks on average, and here exactly; at strength 1 its index wraps around
    and it masks nothing, where `denoise` = 1 makes everything anew. In-painting below strength 1 enters late, yet masks
    all of the mask; here `denoise` is the share of the mask.
    """
    made = float32(min(1.0, num_tokens / (denoise * image_tokens)))
    masked = [num_tokens]
    for i in range(1, num_steps):
        ratio, stay = float32(i / num_steps), masked[-1]
        share = float32(1 - ratio) if schedule == AMUSED_LINEAR else cosine(ratio)
        if denoise == 1 or share < denoise - 1e-6:
            stay = math.floor(float32(image_tokens * float32(made * share)))
            stay = max(1, min(stay, masked[-1] - 1))
        masked.append(stay)
    return [before - after for before, after in pairwise([*masked, 0])]


def cosine_share(elapsed: float, num_tokens: int) -> int:
    """Return floor(num_tokens * cos(pi / 2 * elapsed)) as float32 arithmetic gives it; -1 at the end."""
    return math.floor(float32(num_tokens * cosine(float32(elapsed))))


def cosine(ratio: float) -> float:
    """Return cos(pi / 2 * ratio) of a float32 as float32 arithmetic gives it, but on every device."""
    return float32(math.cos(float32(float32(math.pi / 2) * ratio)))


def float32(number: float) -> float:
    """Return the nearest float32; of a product of two float32s that is what float32 arithmetic gives."""
    return struct.unpack("f", struct.pack("f", number))[0]


def full_step_indices(num_steps: int, num_full: int, power: float = 1.0) -> list[int]:
    """Return the steps that are full passes: step 0, then `num_full - 1` more.

    Source: MIGM-Shortcut Trainer/vit.py sample_shortcut: step k is
    max(previous + 1, round(num_steps * (k / num_full))), rounding halves to even.
    Differs: `num_full` = 1 is step 0 alone; a power of k / num_full above 1 brings them closer to the beginning.

    Raises:
        ValueError: `num_full` outside 1 .. `num_steps`.
    """
    if not 1 <= num_full <= num_steps:
        raise ValueError(
            f"full steps must be between 1 and steps ({num_steps}), got {num_full}. Lower full steps or raise steps."
        )
    indices = [0]
    for k in range(1, num_full):
        indices.append(max(indices[-1] + 1, round(num_steps * (k / num_full) ** power)))
    return indices


def plan(
    settings: Settings,
    num_tokens: int,
    image_tokens: int,
    rules: SamplerRules = SamplerRules(),
    denoise: float = 1.0,
) -> list[Step]:
    """Return the steps of a run that makes `num_tokens` of the `image_tokens` tokens of each image.

    Every step reveals at least one token. A schedule may give a step none (`ROUNDED_DOWN`): that step is left out, its
    full pass goes to the next one, and the others keep their numbers. Nothing to make gives an empty plan.

    Args:
        denoise: share that `num_tokens` is of the tokens that may be made.

    Source: MIGM-Shortcut Trainer/vit.py sample_shortcut ("linear").
    Differs: the original spends a pass on steps that reveal nothing, which tells it nothing new.

    Raises:
        ValueError: a setting is out of range.
    """
    settings.check()
    if num_tokens == 0:
        return []
    num_steps = settings.num_steps
    if settings.schedule not in ROUNDED_DOWN:
        num_steps = min(num_steps, num_tokens)
    full = settings.full_indices(num_steps)
    score_temperature = rules.score_temperature or settings.temperature or 1.0
    whole = num_tokens if rules.ratio_of_made else image_tokens
    steps: list[Step] = []
    num_masked, is_full = num_tokens, False
    masked_at_full = num_tokens  # before the last full pass
    counts = reveal_counts(settings.schedule, num_steps, num_tokens, image_tokens, denoise)
    for i, num_revealed in enumerate(counts):
        is_full |= i in full
        if num_revealed == 0:
            continue
        elapsed = i / (num_steps - 1) if num_steps > 1 else 1.0
        choice_temperature = settings.choice_temperature
        if rules.choice_ramp and not math.isinf(choice_temperature):
            choice_temperature *= 1 - elapsed
        guidance = settings.guidance
        if settings.guidance_ramp:
            guidance = tuple(weight * elapsed for weight in guidance)
        num_hidden = 0
        if is_full:
            if settings.order == CORRECTED and elapsed > CORRECTED_FROM and i < num_steps - 2:
                share = round(CORRECTED_SHARE * (masked_at_full - num_masked))
                num_hidden = min(share, num_masked - num_revealed)
            masked_at_full = num_masked
        steps.append(
            Step(
                index=i,
                num_masked=num_masked,
                num_revealed=num_revealed + num_hidden,
                num_hidden=num_hidden,
                mask_ratio=num_masked / whole,
                is_full=is_full,
                guidance=guidance,
                temperature=settings.temperature,
                score_temperature=score_temperature,
                choice_temperature=choice_temperature,
                steps_left=num_steps - 1 - i,
            )
        )
        num_masked, is_full = num_masked - num_revealed, False
    return steps
