"""Trains a shortcut head on the few most recent runs of its teacher, made meanwhile or read from a dataset.

Which runs are kept and what is drawn from them depends on (seed, iteration) alone, so a resumed
training goes through the same numbers. Of several processes each has its share of the images of every
run; together they draw as one with all of them where a window has all images of a run, and else evenly
from every share.

Source: arXiv 2602.23996, section 3 (features now + tokens just revealed -> next features).
Differs: trajectories need not be stored; the head learns several steps after a full pass, as it is
used: applied to its own predictions in a row, or (`from_full`) once for all tokens since then.

    B  images
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import weights
from ..denoiser import Model
from ..distributed import ALONE, World
from ..models.layers import Attention
from ..noise import Noise
from ..schedule import Settings
from .cpu import sdpa_float32
from .fit import Recipe, fit
from .log import Figures
from .loss import (
    Objective,
    Window,
    feature_mse,
    last_step,
    mean,
    on_its_own,
    window,
    window_loss,
)
from .record import Trajectories
from .recording import num_bytes
from .teacher import RUNS, Teacher

CPU = torch.device("cpu")


# Run number -> this process's images of it. A number always gives the same run.
Source = Callable[[int], Trajectories]


@dataclass(frozen=True, slots=True, kw_only=True)
class Teaching:
    """What the teacher shows and how it is learned from. Numbers of images are of all processes together."""

    runs: tuple[
        Settings, ...
    ]  # each new run has one of these, evenly drawn; every step is a full pass
    images_per_run: int = 32
    runs_kept: int = 6
    iterations_per_run: int = 40  # then a new run takes the place of the oldest
    windows_per_batch: int = 4  # places in the runs kept, spread over early and late steps
    images_per_window: int = 8
    max_chain: int = 4  # steps from a full pass to the last that is predicted, drawn from 1 .. this
    # True: after a window's first step the head draws the tokens, and the model says its last target.
    # False: tokens and targets are those of the teacher's run.
    student_rollouts: bool = False

    def check(self) -> None:
        """Raises ValueError for the first figure that is out of range."""
        for name, value in (
            (item.name, getattr(self, item.name)) for item in fields(self) if item.type == "int"
        ):
            if value < 1:
                raise ValueError(f"{name.replace('_', ' ')} must be at least 1, got {value}.")
        if not self.runs or min(settings.num_steps for settings in self.runs) < 2:
            raise ValueError(
                "a head learns to go from step to step: the teacher's runs need at least 2 steps, got "
                f"{[settings.num_steps for settings in self.runs]}."
            )


class Replay:
    """The teacher runs kept.

    At iteration i: number i // `iterations_per_run` and the `runs_kept` - 1 after it.

    Args:
        device: where windows go to; None = where the runs are.
        keep_on: where runs are kept; None = where they come from.
    """

    def __init__(
        self,
        source: Source,
        teaching: Teaching,
        from_full: bool,
        world: World = ALONE,
        device: torch.device | None = None,
        keep_on: torch.device | None = None,
    ):
        self.source, self.teaching, self.from_full = source, teaching, from_full
        self.world, self.device, self.keep_on = world, device, keep_on
        self.runs: dict[int, Trajectories] = {}

    def advance(self, iteration: int) -> None:
        """Makes the runs that `iteration` needs and forgets the others."""
        first = iteration // self.teaching.iterations_per_run
        wanted = range(first, first + self.teaching.runs_kept)
        self.runs = {n: run for n, run in self.runs.items() if n in wanted}
        for n in wanted:
            if n not in self.runs:
                run = self.source(n)
                self.runs[n] = run if self.keep_on is None else run.to(self.keep_on)

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
        images, places = self._picked(run.num_images, generator)
        images, noise = images.to(run.codes_BL.device), None
        if teaching.student_rollouts:
            seed = int(torch.randint(2**62, (), generator=generator))
            device = self.device or run.codes_BL.device
            noise = Noise.draw(seed, places.tolist(), start + length, run.codes_BL.shape[1], device)
        part = window(run, start, length, images, self.device, noise)
        return last_step(part) if self.from_full and noise is None else part

    def _picked(self, num_images: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """This process's images of a window: their rows among the `num_images` that it has, and in the whole run."""
        order = torch.randperm(num_images * self.world.size, generator=generator)
        mine = order[order // num_images == self.world.rank]
        mine = mine[: self.teaching.images_per_window // self.world.size]
        return mine % num_images, mine


def initialised(config: Any, seed: int, attention: Attention = sdpa_float32) -> Any:
    """A head of this configuration that hands its input through: training starts at "reuse".

    The global random state is left alone.
    """
    network = next(f.network for f in weights.FORMATS.values() if f.config is type(config))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head: Any = network(config, attention=attention)
    for module in head.output_layers():
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    return head


@torch.no_grad()
def fit_to_embeddings(head: Any, model: Any) -> None:
    """Scales the head's projections of new tokens so that their outputs have unit size.

    Where a head does not normalise keys and values, and a model's embeddings are small (0.1 in the shipped MaskGIT),
    attention would start nearly blind to the new tokens.
    """
    projections = head.token_projections()
    if not projections:
        return
    # The head's device: a host may keep the model's weights elsewhere, and casts them to where codes are.
    config, device = model.config, next(head.parameters()).device
    codes_1N = torch.arange(config.num_codes, device=device).unsqueeze(0)
    embedded_1ND = model.embed(codes_1N, codes_1N % config.num_tokens).to(head.dtype)
    for projection in projections:
        projection.weight.div_(projection(embedded_1ND).float().std())


def train_head(
    teacher: Teacher,
    head: Any,
    recipe: Recipe,
    teaching: Teaching,
    objective: Objective,
    *,
    source: Source | None = None,
    world: World = ALONE,
    checkpoint: Path | None = None,
    about: Mapping[str, Any] | None = None,
    one_by_one: bool = False,
    on_iteration: Callable[[int], None] | None = None,
    on_log: Callable[[Figures], None] | None = None,
    log_every: int = 50,
) -> nn.Module:
    """Trains `head` for the teacher's model, which is only read. Returns the averaged head.

    Args:
        head: on the teacher's device.
        source: where runs come from; None = the teacher makes them meanwhile.
        world, checkpoint, about: as for `fit`.
        one_by_one: True: windows go through the head one after the other, which takes less memory.
        on_iteration: called before each iteration with the number of those done; an exception ends
            the training and keeps its state.
        on_log, log_every: as for `fit`. The figures are the parts of the loss, and `reuse`, the mean
            squared error of the window's first features unchanged, to hold against `mse`.

    Raises:
        FloatingPointError, ValueError: as `fit`; also if images cannot be shared out evenly.
    """
    teaching.check()
    objective.check()
    world.share(teaching.images_per_window, "images in a window")
    images = world.share(teaching.images_per_run, "images in a run")
    model, keep_on = teacher.model, place_of_runs(teacher, teaching, world)

    def made_meanwhile(number: int) -> Trajectories:
        seed = (recipe.seed, RUNS, number)
        return teacher.run(teaching.runs, teaching.images_per_run, seed, images, keep_on=keep_on)

    source = source or made_meanwhile
    replay = Replay(source, teaching, head.config.from_full, world, teacher.device, keep_on)

    def before_batch(iteration: int) -> None:
        if on_iteration is not None:
            on_iteration(iteration)
        replay.advance(iteration)

    def loss_of(network: nn.Module, windows: list[Window]) -> tuple[Tensor, dict[str, Tensor]]:
        windows = [
            w if w.noise is None else on_its_own(network, model, w, w.noise) for w in windows
        ]
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
        about=about,
        parts_of=(lambda windows: [[w] for w in windows]) if one_by_one else None,
        world=world,
        before_batch=before_batch,
        on_log=on_log,
        log_every=log_every,
    )


def place_of_runs(teacher: Teacher, teaching: Teaching, world: World = ALONE) -> torch.device:
    """Where runs are kept: on a GPU where they take at most a quarter of what is free, else in main memory.

    From main memory each batch is gathered by the CPU and copied, which took seven times the rest of an iteration
    with a small model.
    """
    if teacher.device.type != "cuda":
        return CPU
    longest = max(teaching.runs, key=lambda settings: settings.num_steps)
    _, conditions, _ = teacher.draw((longest,), teaching.images_per_run // world.size, (0, RUNS))
    needed = teaching.runs_kept * num_bytes(teacher, conditions, longest.num_steps)
    free, _ = torch.cuda.mem_get_info(teacher.device)
    return teacher.device if needed <= free / 4 else CPU


@torch.no_grad()
def _reuse_mse(model: Model, part: Window, objective: Objective) -> Tensor:
    """Error of the window's first features, unchanged, mean over its steps."""
    return mean(
        feature_mse(model, f, t, index if objective.only_masked else None)
        for target, index in zip(part.targets, part.masked_index, strict=True)
        for f, t in zip(part.features, target, strict=True)
    )
