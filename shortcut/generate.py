"""From conditions and settings to codes: plan -> noise -> sampler loop. Command line, nodes and training call it.

B  images    L  image tokens    T  steps
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .accelerators import MakeAccelerator
from .denoiser import Conditions, Denoiser, MaskedImageModel
from .guard import MAX_DRAWS, MAX_IMAGES, MAX_SEED, MAX_SIDE, check_whole
from .models.architecture import Branches, GridModel
from .noise import Noise, seeded
from .one_step import OneStepStudent
from .orders import BY_NAME, Order
from .sampler import Trace, check_logits, fill
from .schedule import SamplerRules, Settings, Step, plan
from .split import Copy, split


@dataclass(frozen=True, slots=True)
class Result:
    """The codes of a run and what it took."""

    codes_BL: Tensor
    num_steps: int  # steps executed; the longest group's where images have different numbers of tokens to make
    num_full: int  # of these, full passes of the model
    seconds: float  # wall time of the sampling loop


@dataclass(frozen=True, slots=True)
class Made:
    """Holds what a run made of a group of images."""

    codes_BL: Tensor
    is_finite: Tensor  # whether all logits were
    num_full: int  # full passes of the model


@dataclass(frozen=True, slots=True)
class Run:
    """Says what is done with the tensors of a group of images."""

    model: MaskedImageModel
    steps: Sequence[Step]
    accelerator: MakeAccelerator | None
    order: Order
    on_step: Callable[[Trace], None] | None

    def __call__(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        code_TBL: Tensor,
        choice_TBL: Tensor,
        *conditions: Conditions,
    ) -> Made:
        """Fill the masked tokens, by the noise of the run."""
        is_vanilla = all(step.is_full for step in self.steps)
        accelerator = None if is_vanilla else self.accelerator
        made = None if accelerator is None else accelerator(self.model, conditions)
        denoiser, noise = Denoiser(self.model, conditions, made), Noise(code_TBL, choice_TBL)
        filled_BL, is_finite = fill(
            denoiser, codes_BL, is_masked_BL, self.steps, noise, self.on_step, self.order
        )
        return Made(filled_BL, is_finite, denoiser.num_full)


# (what a run depends on besides shapes, the run, its inputs) -> what it made
StartRun = Callable[[Hashable, Run, Sequence[Any]], Made]


def unrecorded(key: Hashable, run: Run, inputs: Sequence[Any]) -> Made:
    """Start a run without recording it."""
    return run(*inputs)


def generate(
    model: GridModel,
    conditions: Sequence[Conditions],
    settings: Settings,
    rules: SamplerRules,
    *,
    seed: int,
    image_indices: Sequence[int],
    num_tokens: int,
    accelerator: MakeAccelerator | None = None,
    known_codes_BL: Tensor | None = None,
    is_editable_BL: Tensor | None = None,
    denoise: float = 1.0,
    images_at_once: int = MAX_IMAGES,
    device: torch.device | str = "cpu",
    copies: Sequence[Copy] = (),
    on_step: Callable[[Trace], None] | None = None,
    start: StartRun = unrecorded,
) -> Result:
    """Make the codes of a batch of images.

    Args:
        conditions: one for each guidance branch, rows = images; `settings.guidance` has one weight less. Images whose
            conditions have other lengths are handled apart, so that nothing is padded.
        image_indices: place of each image in its batch; (seed, place) alone decides its randomness.
        num_tokens: tokens of one image (L).
        accelerator: makes the run's accelerator; None = every step is a full pass.
        known_codes_BL: codes to start from; None = everything is made.
        is_editable_BL: True where tokens may be made anew; None = everywhere.
        denoise: share of the editable tokens that is made anew, picked at random by the seed, in (0, 1].
        images_at_once: the most images in a pass; more are made one group after the other, and come out the same.
        copies: of the model on other devices, which take guidance branches over.
        on_step: hook of the sampler; images are handled in groups of equal numbers of tokens to make.
        start: starts the run of a group, or a recording of it.

    Raises:
        ValueError: a setting is out of range, tensors do not fit the model's number of tokens, or a one-step student
            is given codes.
    """
    settings.check()
    if settings.is_one_step and known_codes_BL is not None:
        raise ValueError(
            "a one-step student makes whole pictures. Leave out the picture to change, the mask and denoise."
        )
    is_masked_BL = masked_at_start(
        seed, image_indices, num_tokens, known_codes_BL, is_editable_BL, denoise
    ).to(device)
    codes_BL = torch.zeros(is_masked_BL.shape, dtype=torch.long, device=device)
    if known_codes_BL is not None:
        codes_BL = known_codes_BL.to(device, torch.long, copy=True)
    begun, num_steps, num_full = time.perf_counter(), 0, 0
    order = BY_NAME[settings.order](model.grid, device)
    for count, rows in groups(model, conditions, is_masked_BL, images_at_once):
        rows_B = torch.tensor(rows, device=device)
        steps = plan(settings, count, num_tokens, rules, denoise)
        group_conditions = tuple(c[rows].to(device) for c in conditions)
        indices = [image_indices[row] for row in rows]
        if settings.is_one_step:
            student = OneStepStudent(
                model, model.config.num_codes, seed=seed, image_indices=indices, device=device
            )
            run = Run(student, steps, None, order, on_step)
        else:
            others = copies if len(conditions) > 1 else ()
            shared = split(model, torch.device(device), others)
            run = Run(shared, steps, accelerator, order, on_step)
        check_whole(
            "steps x tokens x images", num_draws(steps) * num_tokens * len(rows), 0, MAX_DRAWS
        )
        noise = Noise.draw(seed, indices, num_draws(steps), num_tokens, device)
        made = start(
            (model.grid, settings.order, tuple(steps)),
            run,
            (
                *(codes_BL[rows_B], is_masked_BL[rows_B]),
                *(noise.code_TBL, noise.choice_TBL),
                *group_conditions,
            ),
        )
        check_logits(made.is_finite)
        codes_BL[rows_B] = made.codes_BL
        num_steps, num_full = max(num_steps, len(steps)), max(num_full, made.num_full)
    return Result(codes_BL, num_steps, num_full, time.perf_counter() - begun)


def groups(
    model: GridModel,
    conditions: Sequence[Conditions],
    is_masked_BL: Tensor,
    images_at_once: int = MAX_IMAGES,
) -> list[tuple[int, list[int]]]:
    """Return the images that run together, by their rows, and how many tokens each of them has to make.

    They have equal numbers of tokens to make and conditions of equal lengths, and are at most so many.
    """
    found: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, count in enumerate(is_masked_BL.sum(1).tolist()):
        lengths = [model.sequence_length(c[row : row + 1]) for c in conditions]
        found[(count, *lengths)].append(row)
    return [
        (count, rows[start : start + images_at_once])
        for (count, *_), rows in sorted(found.items())
        for start in range(0, len(rows), images_at_once)
    ]


def num_draws(steps: Sequence[Step]) -> int:
    """Return the steps of the schedule that noise is drawn for, those left out of the plan included."""
    return steps[-1].index + 1 if steps else 0


def needed_branches(
    conditions: Sequence[Conditions], guidance: Sequence[float]
) -> tuple[Branches, tuple[float, ...]]:
    """Return the conditions and guidance weights that matter: a branch of weight 0 costs a pass for nothing.

    Args:
        conditions: the wanted one, then one for each weight in `guidance`.

    Raises:
        ValueError: there are more or fewer weights.
    """
    wanted, *others = conditions
    if len(others) != len(guidance):
        raise ValueError(
            f"{len(conditions)} conditions need {len(others)} guidance weights, got {len(guidance)}."
        )
    used = [(c, weight) for c, weight in zip(others, guidance, strict=True) if weight != 0]
    return (wanted, *(c for c, _ in used)), tuple(weight for _, weight in used)


def masked_at_start(
    seed: int,
    image_indices: Sequence[int],
    num_tokens: int,
    known_codes_BL: Tensor | None,
    is_editable_BL: Tensor | None,
    denoise: float,
) -> Tensor:
    """Return which tokens are to be made: (B, L), True = masked, on the CPU.

    Raises:
        ValueError: `denoise` outside (0, 1], or a tensor of another shape than (images, `num_tokens`).
    """
    check_whole("images", len(image_indices), 0, MAX_IMAGES)
    check_whole("tokens", num_tokens, 0, MAX_SIDE**2)
    check_whole("seed", seed, 0, MAX_SEED)
    shape = (len(image_indices), num_tokens)
    for name, tensor in (("known codes", known_codes_BL), ("editable", is_editable_BL)):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"{name} must have shape (images, tokens) = {shape}, got {tuple(tensor.shape)}."
            )
    if not 0 < denoise <= 1:
        raise ValueError(f"denoise must be above 0 and at most 1, got {denoise}.")
    if known_codes_BL is None:
        if denoise < 1 or is_editable_BL is not None:
            raise ValueError(
                f"denoise {denoise:g} and editable tokens are for codes to start from, and there are none. Give known "
                "codes, or leave these out."
            )
        return torch.ones(shape, dtype=torch.bool)
    is_masked_BL = (
        torch.ones(shape, dtype=torch.bool) if is_editable_BL is None else is_editable_BL.cpu()
    )
    if denoise == 1:
        return is_masked_BL
    # A stream of its own, so that the pick is independent of the draws of the run.
    order_BL = torch.stack(
        [torch.rand(num_tokens, generator=seeded(seed, i, 1)) for i in image_indices]
    )
    rank_BL = order_BL.masked_fill(~is_masked_BL, 2.0).argsort(1).argsort(1)
    # 0.6 of 25 is 15 in decimals, and a little more in floating point.
    num_picked_B1 = (denoise * is_masked_BL.sum(1, keepdim=True).double() - 1e-9).ceil()
    return is_masked_BL & (rank_BL < num_picked_B1)
