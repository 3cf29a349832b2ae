"""Train a shortcut head on a replay buffer of the model's most recent runs, made meanwhile.

Which runs are kept and what is drawn from them depends on (seed, iteration) alone, so a resumed training goes through
the same numbers. Of several processes each has its share of the images of every run; together they draw as one with
all of them where a window has all images of a run, and else evenly from every share.

Source: arXiv 2602.23996, section 3 (features now + tokens just revealed -> next features).
Differs: trajectories are not stored; the head learns several steps after a full pass, as it is used: applied to its own
predictions in a row, or (`from_full`) once for all tokens since then.

    B  images
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..denoiser import MaskedImageModel
from ..distributed import ALONE, Ranks
from ..guard import MAX_IMAGES, MAX_ITERATIONS, check_whole
from ..models.architecture import GridModel, HeadConfig, HeadNetwork
from ..models.layers import Attention
from ..models.layout import Layout
from ..schedule import Settings
from .cpu import sdpa_float32
from .fit import Recipe, fit
from .log import Figures
from .loss import Objective, Window, feature_mse, mean, window, window_loss
from .record import Trajectories
from .teacher import RUNS, Teacher


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """Say which runs a head learns from and how they are sampled. Images are counted over all processes."""

    runs: tuple[Settings, ...]  # each new run has one of these, evenly drawn; all full passes
    images_per_run: int = 32
    runs_kept: int = 6
    iterations_per_run: int = 40  # then a new run replaces the oldest
    windows_per_batch: int = 4  # spread over early and late steps of the runs kept
    images_per_window: int = 8
    max_chain: int = 4  # steps from a full pass to the last that is predicted, drawn from 1 .. this

    def check(self) -> None:
        """Raise ValueError for the first figure that is out of range."""
        for name, value in (
            (item.name, getattr(self, item.name)) for item in fields(self) if item.type == "int"
        ):
            largest = MAX_ITERATIONS if name == "iterations_per_run" else MAX_IMAGES
            check_whole(name.replace("_", " "), value, 1, largest)
        if not self.runs or min(settings.num_steps for settings in self.runs) < 2:
            raise ValueError(
                "a head learns to go from step to step: the teacher's runs need at least 2 steps, got "
                f"{[settings.num_steps for settings in self.runs]}."
            )


class ReplayBuffer:
    """Keep recent runs: at iteration i run number i // `iterations_per_run` and the `runs_kept` - 1 after it.

    Args:
        make_run: run number -> this process's images of it. A number always gives the same run.
        device: where windows go to.
    """

    def __init__(
        self,
        make_run: Callable[[int], Trajectories],
        config: RolloutConfig,
        from_full: bool,
        ranks: Ranks,
        device: torch.device,
    ):
        self.make_run, self.config, self.from_full = make_run, config, from_full
        self.ranks, self.device = ranks, device
        self.runs: dict[int, Trajectories] = {}

    def advance(self, iteration: int) -> None:
        """Make the runs that `iteration` needs and forget the others."""
        first = iteration // self.config.iterations_per_run
        wanted = range(first, first + self.config.runs_kept)
        self.runs = {n: run for n, run in self.runs.items() if n in wanted}
        for n in wanted:
            if n not in self.runs:
                self.runs[n] = self.make_run(n)

    def draw(self, generator: torch.Generator) -> list[Window]:
        """Draw the windows of one batch; the first of them is early in its run, the last late."""
        return [self._window(number, generator) for number in range(self.config.windows_per_batch)]

    def _window(self, number: int, generator: torch.Generator) -> Window:
        config, numbers = self.config, sorted(self.runs)
        u_run, u_start, u_length = torch.rand(3, generator=generator).tolist()
        run = self.runs[numbers[int(u_run * len(numbers))]]
        num_starts = len(run.steps) - 1
        start = int((number + u_start) / config.windows_per_batch * num_starts)
        length = 1 + int(u_length * min(config.max_chain, num_starts - start))
        images = self._picked(run.num_images, generator).to(run.codes_BL.device)
        return window(run, start, length, images, self.device, only_last=self.from_full)

    def _picked(self, num_images: int, generator: torch.Generator) -> Tensor:
        """Return the rows of this process's images of a window."""
        order = torch.randperm(num_images * self.ranks.world_size, generator=generator)
        mine = order[order // num_images == self.ranks.rank]
        return mine[: self.config.images_per_window // self.ranks.world_size] % num_images


def initialised(
    layout: Layout, config: HeadConfig, seed: int, attention: Attention = sdpa_float32
) -> HeadNetwork:
    """Return a head of this configuration that passes its input through: training starts at "reuse".

    The global random state is left alone.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = cast(HeadNetwork, layout.network(config, attention=attention))
    for module in head.output_layers():
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    return head


@torch.no_grad()
def fit_to_embeddings(head: HeadNetwork, model: GridModel) -> None:
    """Scale the head's projections of new tokens so that their outputs have unit size.

    Where a head does not normalise keys and values, and a model's embeddings are small (0.1 in the shipped MaskGIT),
    attention would start nearly blind to the new tokens.
    """
    projections = head.token_projections()
    if not projections:
        return
    # The head's device: a host may keep the model's weights elsewhere, and casts them to where codes are.
    device, num_tokens = next(head.parameters()).device, model.grid[0] * model.grid[1]
    codes_1N = torch.arange(model.config.num_codes, device=device).unsqueeze(0)
    embedded_1ND = model.embed(codes_1N, codes_1N % num_tokens).to(head.dtype)
    for projection in projections:
        cast(Tensor, projection.weight).div_(projection(embedded_1ND).float().std())


def train_head(
    teacher: Teacher,
    head: HeadNetwork,
    recipe: Recipe,
    config: RolloutConfig,
    objective: Objective,
    *,
    ranks: Ranks = ALONE,
    checkpoint: Path | None = None,
    about: Mapping[str, Any] | None = None,
    one_by_one: bool = False,
    on_iteration: Callable[[int], None] | None = None,
    on_log: Callable[[Figures], None] | None = None,
    log_every: int = 50,
) -> HeadNetwork:
    """Train `head` for the teacher's model, which is only read. Returns the averaged head.

    Args:
        head: on the teacher's device.
        ranks, checkpoint, about: as for `fit`.
        one_by_one: True: windows go through the head one after the other, which takes less memory.
        on_iteration: called before each iteration with the number of those done; an exception ends
            the training and keeps its state.
        on_log, log_every: as for `fit`. The figures are the parts of the loss, and `reuse`, the mean
            squared error of the window's first features unchanged, to compare with `mse`.

    Raises:
        FloatingPointError, ValueError: as `fit`; also if images cannot be shared out evenly.
    """
    config.check()
    objective.check()
    ranks.share(config.images_per_window, "images in a window")
    images = ranks.share(config.images_per_run, "images in a run")
    model, keep_on = teacher.model, device_of_runs(teacher, config, ranks)

    def make_run(number: int) -> Trajectories:
        seed = (recipe.seed, RUNS, number)
        return teacher.run(config.runs, config.images_per_run, seed, images, keep_on=keep_on)

    buffer = ReplayBuffer(make_run, config, head.config.from_full, ranks, teacher.device)

    def before_batch(iteration: int) -> None:
        if on_iteration is not None:
            on_iteration(iteration)
        buffer.advance(iteration)

    def loss_of(network: nn.Module, windows: list[Window]) -> tuple[Tensor, dict[str, Tensor]]:
        learning = cast(HeadNetwork, network)
        results = [window_loss(learning, model, w, objective) for w in windows]
        figures = {name: mean(parts[name] for _, parts in results) for name in results[0][1]}
        figures["reuse"] = mean(_reuse_mse(model, w) for w in windows)
        return mean(loss for loss, _ in results), figures

    trained = fit(
        cast(nn.Module, head),
        buffer.draw,
        loss_of,
        recipe,
        checkpoint=checkpoint,
        about=about,
        parts_of=(lambda windows: [[w] for w in windows]) if one_by_one else None,
        ranks=ranks,
        before_batch=before_batch,
        on_log=on_log,
        log_every=log_every,
    )
    return cast(HeadNetwork, trained)


def device_of_runs(teacher: Teacher, config: RolloutConfig, ranks: Ranks = ALONE) -> torch.device:
    """Return where the runs that are kept at a time have a place."""
    longest = max(config.runs, key=lambda settings: settings.num_steps)
    _, conditions, _ = teacher.draw(
        (longest,), config.images_per_run // ranks.world_size, (0, RUNS)
    )
    a_run = teacher.recorded_bytes(conditions, longest.num_steps)
    return teacher.place_of(config.runs_kept * a_run)


@torch.no_grad()
def _reuse_mse(model: MaskedImageModel, part: Window) -> Tensor:
    """Return the error of the window's first features, unchanged, mean over its steps."""
    return mean(
        feature_mse(model, f, t, index)
        for target, index in zip(part.targets, part.masked_index, strict=True)
        for f, t in zip(part.features, target, strict=True)
    )
