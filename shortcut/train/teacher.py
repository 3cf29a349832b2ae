"""The teacher of a shortcut head: a model that makes pictures of random conditions, on record.

What a run shows depends on its seed alone, so it can be made again anywhere, and in parts by several processes.

    B  images    P  prompt tokens
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import weights
from ..checkpoint import Checkpoint
from ..grid import Grid, usual_grid
from ..models.lumina_dimoo.prompts import conditions
from ..models.lumina_dimoo.transformer import Config as LuminaConfig
from ..models.maskgit.classes import class_branches, class_id
from ..noise import seeded
from ..sampler import Trace
from ..schedule import Settings
from .record import Trajectories, record

# Stream of random numbers of the runs that a head learns from; run n of a seed is drawn by (seed, RUNS, n).
RUNS = 1

# (number of images, generator) -> one tensor for each guidance branch, rows = images.
DrawConditions = Callable[[int, torch.Generator], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A model and what it is asked for. It is only read."""

    model: Any  # on the grid of the images, without gradients, as `weights.build` gives it
    draw_conditions: DrawConditions
    settings: Settings  # that the model is used with
    num_tokens: int  # of one image
    autocast: torch.dtype | None = None  # None = arithmetic in the type of the weights
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    on_step: Callable[[Trace], None] | None = (
        None  # after each step of a run; an exception from it ends the run
    )

    def draw(
        self, runs: Sequence[Settings], num_images: int, seed: tuple[int, ...]
    ) -> tuple[Settings, tuple[Tensor, ...], int]:
        """Settings, conditions of all images and seed of the noise of a run, which follow from `seed` alone.

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
        """The rows `images` of a recorded run of `num_images` images.

        Args:
            runs, seed: as for `draw`.
            images: which of the images to make; they do not depend on the others.
            keep_on: where the record is kept; None = on the device of the model.
        """
        settings, branches, noise_seed = self.draw(runs, num_images, seed)
        return record(
            self.model,
            [branch[images] for branch in branches],
            settings,
            seed=noise_seed,
            image_indices=range(num_images)[images],
            num_tokens=self.num_tokens,
            autocast=self.autocast,
            device=self.device,
            keep_on=keep_on,
            on_step=self.on_step,
        )


def teacher_of(
    model_file: Checkpoint,
    network: Any,
    *,
    settings: Settings | None = None,
    grid: Grid | None = None,
    classes: Sequence[str] = (),
    tokenizer: Any | None = None,
    prompts: Sequence[str] = (),
    autocast: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    is_sequential: bool = False,
) -> Teacher:
    """The teacher that a loaded model is.

    Args:
        model_file: what the network was built from; its tensors are not needed.
        settings: None = those of the model.
        grid: rows and columns of codes; None = those that the model was trained on.
        classes: of a class-conditional model, names or numbers of what it shows; empty = all.
        tokenizer, prompts: of a text model, what it shows.
        is_sequential: one guidance branch at a time.

    Raises:
        ValueError: a text model without prompts or with classes, a model of classes with prompts, no such class,
            a grid that the model does not make, a prompt that is too long.
    """
    conditioning, title = model_file.format.conditioning, model_file.format.title
    config, names = model_file.config, model_file.metadata.class_names
    if conditioning == "text":
        if classes:
            raise ValueError(f"a {title} knows no classes. Give prompts in their place.")
        draw_conditions = text_conditions(tokenizer, config, prompts)
    else:
        if prompts:
            raise ValueError(f"a {title} knows no prompts. Leave them out, or choose classes.")
        chosen = [class_id(text, names, config.num_classes) for text in classes]
        draw_conditions = class_conditions(config.num_classes, chosen)
    rows, columns = grid or usual_grid(model_file)
    return Teacher(
        model=network.on_grid(rows, columns, is_sequential=is_sequential),
        draw_conditions=draw_conditions,
        settings=settings or weights.settings(model_file),
        num_tokens=rows * columns,
        autocast=autocast,
        device=torch.device(device),
    )


def class_conditions(num_classes: int, chosen: Sequence[int] = ()) -> DrawConditions:
    """Random classes, guided away from no class (class number `num_classes`).

    Args:
        chosen: the classes to draw from, evenly; empty = all.
    """
    chosen_N = torch.tensor(list(chosen) or range(num_classes))

    def draw(num_images: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        class_B = chosen_N[torch.randint(len(chosen_N), (num_images,), generator=generator)]
        return class_branches(class_B, num_classes, num_guided=1)

    return draw


def text_conditions(tokenizer: Any, config: LuminaConfig, prompts: Sequence[str]) -> DrawConditions:
    """Text to image of random prompts, each as likely as the others, guided away from no text.

    The images of a run have prompts of one length in tokens, so that nothing has to be padded.

    Raises:
        ValueError: there is no prompt, or one is too long.
    """
    if not prompts:
        raise ValueError(
            "a text model needs prompts to show what it does: give --prompts FILE with one prompt a line."
        )
    found: defaultdict[int, list[Tensor]] = defaultdict(list)
    unwanted_1P = torch.empty(1, 0)
    for text in prompts:
        wanted_1P, unwanted_1P = conditions(tokenizer, config, "text_to_image", text)
        found[wanted_1P.shape[1]].append(wanted_1P)
    by_length = [torch.cat(rows) for _, rows in sorted(found.items())]
    share = torch.tensor([float(len(prompts_BP)) for prompts_BP in by_length])

    def draw(num_images: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        prompts_BP = by_length[int(share.multinomial(1, generator=generator))]
        index = torch.randint(len(prompts_BP), (num_images,), generator=generator)
        return prompts_BP[index], unwanted_1P.expand(num_images, -1)

    return draw
