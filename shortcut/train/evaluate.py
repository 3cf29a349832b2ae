"""Measure how well a shortcut head or another accelerator follows its teacher, on runs that it never saw.

B  images    N  positions still masked    C  numbers of steps in a row
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..accelerators import MakeAccelerator
from ..denoiser import Conditions, Features, guided_logits, image_features
from ..generate import generate
from ..models.architecture import GridModel, HeadNetwork
from ..sampler import Trace
from ..schedule import Settings
from .loss import Window, divergence, feature_mse, mean, predict, window
from .record import Trajectories
from .teacher import Teacher

# Stream of random numbers apart from that of the runs that heads learn from, `teacher.RUNS`.
HELD_OUT = 2


def held_out_runs(
    teacher: Teacher, runs: Sequence[Settings], num_images: int, seed: int
) -> list[Trajectories]:
    """Return one run for each of `runs`, none of which a head trained with this seed saw."""
    return [
        teacher.run((settings,), num_images, (seed, HELD_OUT, number))
        for number, settings in enumerate(runs)
    ]


def held_out_parts(
    teacher: Teacher, settings: Settings, num_images: int, seed: int, at_once: int
) -> Iterator[Trajectories]:
    """Yield the first run of `held_out_runs` in parts of at most `at_once` images, which are forgotten in between."""
    for start in range(0, num_images, at_once):
        images = slice(start, start + at_once)
        yield teacher.run((settings,), num_images, (seed, HELD_OUT, 0), images)


@torch.no_grad()
def evaluate(
    head: HeadNetwork, model: GridModel, runs: Iterable[Trajectories], max_chain: int
) -> list[dict[str, float]]:
    """Measure how well `head` follows `runs`: an entry for each number of steps in a row, at most `max_chain`.

    Each entry has, over positions still masked: `error`, squared error as a share of the error of keeping the features
    of the window's first step; `cosine` of the first branch's features with the teacher's; `kl`, divergence after
    guidance from the teacher's codes, and `kl_reuse`, the divergence of keeping the features.
    """
    totals_C6, device = (
        torch.zeros(max_chain, 6, dtype=torch.float64),
        next(head.parameters()).device,
    )
    for run in runs:
        last = len(run.steps) - 1
        for start in range(last):
            part = window(run, start, min(max_chain, last - start), device=device)
            for chain, estimate in enumerate(predict(head, model, part)):
                totals_C6[chain] += run.num_images * _compare(model, part, chain, estimate)
    table, found = [], (row for row in totals_C6.tolist() if row[-1])
    for chain, (error, reuse, cosine, kl, kl_reuse, count) in enumerate(found, 1):
        row = {"error": error / reuse, "cosine": cosine / count}
        table.append({"chain": chain, **row, "kl": kl / count, "kl_reuse": kl_reuse / count})
    return table


@torch.no_grad()
def divergence_of_run(
    teacher: Teacher,
    make: MakeAccelerator,
    settings: Settings,
    conditions: Sequence[Conditions],
    seed: int,
    first: int = 0,
) -> Tensor:
    """Return how far the codes of a run are drawn from the model's own distributions: nats of each image (B,).

    Summed over the tokens that steps reveal without a full pass: the divergence after guidance from what a full pass of
    the same tokens says.

    Args:
        conditions: of the images, one for each guidance branch.
        seed: of the noise.
        first: place of the first image in its batch.
    """
    model, given = teacher.model, [condition.to(teacher.device) for condition in conditions]
    before: list[Trace] = []
    nats_B = torch.zeros(len(given[0]), device=teacher.device)

    def compare(trace: Trace) -> None:
        nonlocal nats_B
        if not trace.denoised.was_full:
            state = before[0].codes_BL, before[0].is_masked_BL
            own = model.features(*state, given, trace.step)
            used, wanted = (
                guided_logits(model, f, trace.step.guidance, trace.revealed.index_BK)
                for f in (trace.denoised.features, own)
            )
            logp, wanted = (x.log_softmax(-1) for x in (used, wanted))
            nats_B = nats_B + (wanted.exp() * (wanted - logp)).sum((1, 2))
        before[:] = [trace]

    generate(
        model,
        given,
        settings,
        teacher.rules,
        seed=seed,
        image_indices=range(first, first + len(nats_B)),
        num_tokens=teacher.num_tokens,
        accelerator=make,
        device=teacher.device,
        on_step=compare,
    )
    return nats_B.cpu()


def _compare(model: GridModel, part: Window, chain: int, estimate: Features) -> Tensor:
    """Return sums for `evaluate`: error, error of reuse, cosine, divergence, divergence of reuse, 1."""
    target, index, step = part.targets[chain], part.masked_index[chain], part.steps[chain]
    error = mean(feature_mse(model, e, t, index) for e, t in zip(estimate, target, strict=True))
    reuse = mean(
        feature_mse(model, f, t, index) for f, t in zip(part.features, target, strict=True)
    )
    first = (image_features(model, f, index) for f in (estimate[0], target[0]))
    cosine = torch.cosine_similarity(*first, dim=-1).mean()

    def logits(features: Features) -> Tensor:
        in_model_type = tuple(f.to(model.dtype) for f in features)
        return guided_logits(model, in_model_type, step.guidance, index)

    wanted = logits(target)
    kl, kl_reuse = divergence(logits(estimate), wanted), divergence(logits(part.features), wanted)
    return torch.stack([error, reuse, cosine, kl, kl_reuse, torch.ones_like(error)]).cpu().double()
