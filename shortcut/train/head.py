"""Trains a shortcut head while its teacher runs, on the few most recent runs.

Which runs are kept and what is drawn from them depends on (seed, iteration) alone, so a resumed
training goes through the same numbers.

Source: arXiv 2602.23996, section 3 (features now + tokens just revealed -> next features).
Differs: trajectories are made on the way, not stored; the head learns several steps after a full pass,
as it is used: applied to its own predictions in a row, or (`from_full`) once for all tokens since then.

    B  images
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser import Model, guided
from ..heads.maskgit import Config, MaskGITHead
from ..noise import seeded
from ..schedule import Settings
from .cpu import sdpa_float32
from .fit import Recipe, fit
from .loss import (
    Objective,
    Window,
    divergence,
    feature_mse,
    image_features,
    last_step,
    mean,
    predict,
    window,
    window_loss,
)
from .record import Trajectories, record
from .teacher import DrawConditions

# Streams of random numbers beside that of the batches, which is (seed, iteration).
_RUNS, _HELD_OUT = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Teaching:
    """What the teacher shows and how it is learned from."""

    runs: tuple[
        Settings, ...
    ]  # each new run has one of these, evenly drawn; every step is a full pass
    images_per_run: int = 32
    runs_kept: int = 6
    iterations_per_run: int = 40  # then a new run takes the place of the oldest
    windows_per_batch: int = 4  # places in the runs kept, spread over early and late steps
    images_per_window: int = 8
    max_chain: int = 4  # steps from a full pass to the last that is predicted, drawn from 1 .. this


class Replay:
    """The teacher runs kept.

    At iteration i: number i // `iterations_per_run` and the `runs_kept` - 1 after it.
    """

    def __init__(
        self, make_run: Callable[[int], Trajectories], teaching: Teaching, from_full: bool
    ):
        self.make_run, self.teaching, self.from_full = make_run, teaching, from_full
        self.runs: dict[int, Trajectories] = {}

    def advance(self, iteration: int) -> None:
        """Makes the runs that `iteration` needs and forgets the others."""
        first = iteration // self.teaching.iterations_per_run
        wanted = range(first, first + self.teaching.runs_kept)
        self.runs = {n: run for n, run in self.runs.items() if n in wanted}
        for n in wanted:
            if n not in self.runs:
                self.runs[n] = self.make_run(n)

    def draw(self, generator: torch.Generator) -> list[Window]:
        """Windows of one batch; the first of them is early in its run, the last late."""
        return [self._window(place, generator) for place in range(self.teaching.windows_per_batch)]

    def _window(self, place: int, generator: torch.Generator) -> Window:
        teaching, numbers = self.teaching, sorted(self.runs)
        u_run, u_start, u_length = torch.rand(3, generator=generator).tolist()
        run = self.runs[numbers[int(u_run * len(numbers))]]
        num_starts = len(run.steps) - 1
        start = int((place + u_start) / teaching.windows_per_batch * num_starts)
        length = 1 + int(u_length * min(teaching.max_chain, num_starts - start))
        images = torch.randperm(run.num_images, generator=generator)[: teaching.images_per_window]
        part = window(run, start, length, images.to(run.masked_index[0].device))
        return last_step(part) if self.from_full else part


def initialised(config: Config, seed: int) -> MaskGITHead:
    """A head that hands its input through: training starts at "reuse".

    The global random state is left alone.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = MaskGITHead(config, attention=sdpa_float32)
    last: list[nn.Module] = [head.proj_out]
    if isinstance(head.proj_out, nn.Identity):
        last = [head.last_layer[-1]]
        if head.time is not None:
            last.append(head.time.modulation)
    for module in last:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    return head


@torch.no_grad()
def fit_to_embeddings(head: MaskGITHead, model: Any) -> None:
    """Scales the head's projection of new tokens so that its outputs have unit size.

    Its keys and values are not normalised, and a model's embeddings are small (0.1 in the shipped one), so attention
    would start nearly blind to the new tokens.
    """
    if isinstance(head.new_token_proj_in, nn.Identity):
        return
    projection: Any = head.new_token_proj_in
    config = model.config
    codes_1N = torch.arange(config.num_codes).unsqueeze(0)
    embedded_1ND = model.embed(codes_1N, codes_1N % config.num_tokens)
    projection.weight.div_(projection(embedded_1ND.to(head.dtype)).float().std())


def train_head(
    model: Any,
    head: Any,
    draw_conditions: DrawConditions,
    recipe: Recipe,
    teaching: Teaching,
    objective: Objective,
    *,
    num_tokens: int,
    checkpoint: Path | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> nn.Module:
    """Trains `head` for `model`, which is only read. Returns the averaged head.

    Args:
        model: on the grid of the images; its weights take no gradients, as `weights.build` gives it.
        recipe: `autocast` is also the teacher's.
        num_tokens: tokens of one image.
        checkpoint: file to resume from and to save to.
        on_log: called with the figures of `fit`: the parts of the loss, and `reuse`, the mean
            squared error of the window's first features unchanged, to hold against `mse`.
    """
    device = next(head.parameters()).device

    def make_run(number: int) -> Trajectories:
        return teacher_run(
            model,
            draw_conditions,
            recipe,
            teaching,
            (_RUNS, number),
            num_tokens=num_tokens,
            device=device,
        )

    replay = Replay(make_run, teaching, head.config.from_full)

    def loss_of(network: nn.Module, windows: list[Window]) -> tuple[Tensor, dict[str, Tensor]]:
        results = [window_loss(network, model, w, objective) for w in windows]
        figures = {name: mean(parts[name] for _, parts in results) for name in results[0][1]}
        figures["reuse"] = mean(_reuse_mse(model, w, objective) for w in windows)
        return mean(loss for loss, _ in results), figures

    return fit(
        head,
        replay.draw,
        loss_of,
        recipe,
        checkpoint=checkpoint,
        before_batch=replay.advance,
        on_log=on_log,
    )


def teacher_run(
    model: Any,
    draw_conditions: DrawConditions,
    recipe: Recipe,
    teaching: Teaching,
    stream: tuple[int, ...],
    *,
    num_tokens: int,
    device: torch.device | str = "cpu",
) -> Trajectories:
    """One recorded run whose settings, conditions and noise follow from (recipe.seed, *stream)."""
    generator = seeded(recipe.seed, *stream)
    settings = teaching.runs[int(torch.randint(len(teaching.runs), (), generator=generator))]
    conditions = draw_conditions(teaching.images_per_run, generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    return record(
        model,
        conditions,
        settings,
        seed=seed,
        num_tokens=num_tokens,
        autocast=recipe.autocast,
        device=device,
    )


def held_out_runs(
    model: Any,
    draw_conditions: DrawConditions,
    recipe: Recipe,
    teaching: Teaching,
    *,
    num_tokens: int,
) -> list[Trajectories]:
    """One run for each of `teaching.runs`, none of which a head of this recipe saw."""
    return [
        teacher_run(
            model,
            draw_conditions,
            recipe,
            Teaching(runs=(settings,), images_per_run=teaching.images_per_run),
            (_HELD_OUT, number),
            num_tokens=num_tokens,
        )
        for number, settings in enumerate(teaching.runs)
    ]


@torch.no_grad()
def evaluate(
    head: Any, model: Model, run: Trajectories, max_chain: int, stride: int = 1
) -> list[dict[str, float]]:
    """How well `head` follows `run`: one entry for each number of steps in a row, 1 .. `max_chain`.

    Each entry has, over positions still masked: `error`, squared error as a share of that of the
    window's first features unchanged ("reuse"); `cosine` of the first branch's features with the
    teacher's; `kl`, divergence after guidance from the teacher's, and `kl_reuse`, that of reuse.

    Args:
        stride: steps between the windows' starts.
    """
    totals = [torch.zeros(6, dtype=torch.float64) for _ in range(max_chain)]
    last = len(run.steps) - 1
    for start in range(0, last, stride):
        part = window(run, start, min(max_chain, last - start))
        for chain, estimate in enumerate(predict(head, model, part)):
            totals[chain] += _compare(model, part, chain, estimate)
    table = []
    for chain, total in enumerate(totals, 1):
        error, reuse, cosine, kl, kl_reuse, count = total.tolist()
        row = {
            "error": error / reuse,
            "cosine": cosine / count,
            "kl": kl / count,
            "kl_reuse": kl_reuse / count,
        }
        table.append({"chain": chain, **row})
    return table


def _compare(model: Model, part: Window, chain: int, estimate: tuple[Tensor, ...]) -> Tensor:
    """Sums for `evaluate`: error, error of reuse, cosine, divergence, divergence of reuse, 1."""
    target, index, step = part.targets[chain], part.masked_index[chain], part.steps[chain]
    error = mean(feature_mse(model, e, t, index) for e, t in zip(estimate, target, strict=True))
    reuse = mean(
        feature_mse(model, f, t, index) for f, t in zip(part.features, target, strict=True)
    )
    first = (image_features(model, f, index) for f in (estimate[0], target[0]))
    cosine = torch.cosine_similarity(*first, dim=-1).mean()

    def logits(features: tuple[Tensor, ...]) -> Tensor:
        return guided([model.logits(f, index) for f in features], step.guidance)

    wanted = logits(target)
    kl, kl_reuse = divergence(logits(estimate), wanted), divergence(logits(part.features), wanted)
    return torch.stack([error, reuse, cosine, kl, kl_reuse, torch.ones_like(error)]).double().cpu()


@torch.no_grad()
def _reuse_mse(model: Model, part: Window, objective: Objective) -> Tensor:
    """Error of the window's first features, unchanged, mean over its steps."""
    return mean(
        feature_mse(model, f, t, index if objective.only_masked else None)
        for target, index in zip(part.targets, part.masked_index, strict=True)
        for f, t in zip(part.features, target, strict=True)
    )
