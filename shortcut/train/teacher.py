"""Make the runs that a shortcut head learns from: a model makes pictures of random requests, recorded.

A run depends on its seed alone, so it can be made again anywhere, and in parts by several processes.

    B  images
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..checkpoint import Checkpoint
from ..denoiser import Conditions
from ..generate import generate
from ..grid import usual_grid
from ..memory import memory_of
from ..models.architecture import (
    Branches,
    Conditioner,
    Grid,
    GridModel,
    ModelNetwork,
    Request,
)
from ..noise import seeded
from ..sampler import Trace
from ..schedule import SamplerRules, Settings
from ..settings import usual_settings
from .record import Recorder, Trajectories

# Stream of random numbers of the runs that a head learns from; run n of a seed is drawn by (seed, RUNS, n).
RUNS = 1
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """Hold a model and the requests that its runs are drawn from. It is only read."""

    model: GridModel  # without gradients
    draw_conditions: Callable[[int, torch.Generator], Branches]
    requests: tuple[Request, ...]  # that conditions are drawn from; none = anything
    settings: Settings  # that the model is used with
    rules: SamplerRules
    num_tokens: int  # of one image
    autocast: torch.dtype | None = None  # None = arithmetic in the type of the weights
    device: torch.device = CPU
    on_step: Callable[[Trace], None] | None = None  # after each step of a run; an exception ends it

    def draw(
        self, runs: Sequence[Settings], num_images: int, seed: tuple[int, ...]
    ) -> tuple[Settings, Branches, int]:
        """Return settings, conditions of all images and seed of the noise of a run, which follow from `seed` alone.

        Args:
            runs: a run has one of these settings, evenly drawn.
            seed: up to four integers.
        """
        generator = seeded(*seed)
        settings = runs[int(torch.randint(len(runs), (), generator=generator))]
        branches = self.draw_conditions(num_images, generator)[: 1 + len(settings.guidance)]
        return settings, branches, int(torch.randint(2**62, (), generator=generator))

    def run(
        self,
        runs: Sequence[Settings],
        num_images: int,
        seed: tuple[int, ...],
        images: slice = slice(None),
        keep_on: torch.device | None = None,
    ) -> Trajectories:
        """Return the rows `images` of a recorded run of `num_images` images.

        Args:
            runs, seed: as for `draw`.
            images: which of the images to make; they do not depend on the others.
            keep_on: where the record is kept; None = as `place_of` says.
        """
        settings, branches, noise_seed = self.draw(runs, num_images, seed)
        conditions = tuple(branch[images].to(self.device) for branch in branches)
        if keep_on is None:
            keep_on = self.place_of(self.recorded_bytes(conditions, settings.num_steps))
        recorder = Recorder(conditions, keep_on=keep_on)

        def after_step(trace: Trace) -> None:
            recorder(trace)
            if self.on_step is not None:
                self.on_step(trace)

        with self.arithmetic():
            generate(
                self.model,
                conditions,
                settings,
                self.rules,
                seed=noise_seed,
                image_indices=range(num_images)[images],
                num_tokens=self.num_tokens,
                device=self.device,
                on_step=after_step,
            )
        return recorder.trajectories()

    def recorded_bytes(self, conditions: Sequence[Conditions], num_steps: int) -> int:
        """Return the memory of a recorded run: its features in float16, which make up nearly all of it."""
        length = sum(self.model.sequence_length(branch) for branch in conditions)
        return 2 * len(conditions[0]) * num_steps * length * self.model.config.width

    def place_of(self, num_bytes: float) -> torch.device:
        """Return where recorded runs of so many bytes are kept.

        On a GPU where they take at most a quarter of what is free, else in main memory. From there each batch is
        gathered by the CPU and copied, which took seven times the rest of an iteration with a small model.
        """
        if self.device.type == "cuda":
            free, _ = memory_of(self.device) or (0, 0)
            if num_bytes <= free / 4:
                return self.device
        return CPU

    def arithmetic(self) -> torch.autocast:
        """Return a context in which networks compute as in recorded runs."""
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)


def teacher_of(
    model_file: Checkpoint,
    network: ModelNetwork,
    conditioner: Conditioner,
    requests: Sequence[Request] = (),
    *,
    settings: Settings | None = None,
    grid: Grid | None = None,
    autocast: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    is_sequential: bool = False,
) -> Teacher:
    """Return a teacher for a loaded model.

    Args:
        model_file: what the network was built from; its tensors are not needed.
        requests: what the model shows, evenly drawn; none = anything, if it can do without.
        settings: None = those of the model.
        grid: rows and columns of codes; None = those that the model was trained on.
        is_sequential: one guidance branch at a time.

    Raises:
        ValueError: a request or the grid does not go with the model, or the model needs requests.
    """
    for request in requests:
        model_file.architecture.check(request)
    rows, columns = grid or usual_grid(model_file)
    return Teacher(
        model=network.on_grid(rows, columns, is_sequential=is_sequential),
        draw_conditions=conditioner.draw(requests),
        requests=tuple(requests),
        settings=settings or usual_settings(model_file),
        rules=model_file.architecture.rules,
        num_tokens=rows * columns,
        autocast=autocast,
        device=torch.device(device),
    )
