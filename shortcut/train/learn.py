"""The story of a training: plan -> untrained head -> runs of the teacher -> trained head that says what it is.

The command line and the nodes both call this.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import weights
from ..checkpoint import Checkpoint
from ..distributed import ALONE, World, from_first
from ..grid import Grid, usual_grid
from ..models.layers import sdpa
from ..models.layout import NewHead
from ..models.lumina_dimoo import head as lumina_head
from ..models.maskgit import head as maskgit_head
from ..schedule import Settings
from .cpu import sdpa_float32
from .dataset import GB
from .evaluate import evaluate, held_out_runs
from .fit import Recipe
from .head import (
    Source,
    Teaching,
    fit_to_embeddings,
    initialised,
    train_head,
)
from .log import Figures, read_log
from .loss import Objective
from .teacher import Teacher

REPLAY_BYTES = 4 * GB  # of recorded runs kept in memory, by default
LARGE_WIDTH = 512  # of models from which on a head is sized as the paper's
USES_OF_A_STEP = 3.6  # how often training comes back to each recorded step of an image
HeadConfig = maskgit_head.Config | lumina_head.Config


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadPlan:
    """A head and how it is trained."""

    config: HeadConfig
    recipe: Recipe
    teaching: Teaching
    objective: Objective
    start: Checkpoint | None = (
        None  # weights to begin with, of `config`; None = predicts "no change"
    )

    @classmethod
    def default(
        cls,
        model_file: Checkpoint,
        *,
        runs: Sequence[Settings] = (),
        grid: Grid | None = None,
        iterations: int = 3500,
        seed: int = 0,
    ) -> HeadPlan:
        """What suits a model: the recipe of the shipped heads, with sizes in proportion.

        Args:
            runs: settings of the teacher's runs; empty = the model's own.
            grid: None = that the model was trained on.
        """
        config = head_config(model_file)
        return cls(
            config=config,
            recipe=recipe_for(config, iterations, seed),
            teaching=teaching_for(
                model_file,
                runs or (weights.settings(model_file),),
                grid or usual_grid(model_file),
                iterations,
            ),
            objective=Objective(mse=1.0, guided_kl=format_of(config).guided_kl(config, iterations)),
        )


def head_config(
    model_file: Checkpoint,
    *,
    num_blocks: int | None = None,
    bottleneck: float | None = None,
    has_time: bool = True,
    sees_new: bool = True,
    from_full: bool = True,
    kernel: int | None = None,
) -> HeadConfig:
    """Sizes of a head for a model: the paper's, with two attention heads where the model is small.

    Args:
        num_blocks: None = 1. A second one gained nothing (`experiments ablation`).
        bottleneck: the model's width by the head's; None = 2.
        sees_new: False: blind to the tokens just revealed; Lumina-DiMOO only.
        kernel: side of the neighbourhood that `heads.nearby` looks at, in place of self-attention, MaskGIT only;
            odd, 0 = as in the paper, None = 7.

    Raises:
        ValueError: a size is out of range, or there is no head for such a model.
    """
    model = model_file.config
    is_large = model.width >= LARGE_WIDTH
    num_blocks = 1 if num_blocks is None else num_blocks
    bottleneck = 2 if bottleneck is None else bottleneck
    if num_blocks < 1 or not 1 <= bottleneck <= model.width:
        raise ValueError(
            f"a head needs at least 1 block and a bottleneck from 1 to {model.width}, got {num_blocks} and "
            f"{bottleneck}."
        )
    if kernel is not None and (kernel < 0 or (kernel > 0 and kernel % 2 == 0)):
        raise ValueError(f"the kernel must be odd, or 0 for none, got {kernel}.")
    # On CPUs the time of a small head goes by its attention heads more than by its operations.
    num_heads = model.num_heads if is_large else 2
    step = 2 * num_heads  # rotary embeddings turn pairs of channels
    width = max(step, round(model.width / bottleneck / step) * step)
    asked = NewHead(
        width=model.width if bottleneck == 1 else width,
        num_blocks=num_blocks,
        num_heads=model.num_heads if bottleneck == 1 else num_heads,
        is_large=is_large,
        has_time=has_time,
        from_full=from_full,
        sees_new=sees_new,
        kernel=kernel,
    )
    for format in weights.FORMATS.values():
        if format.model == model_file.format.name and format.new_head is not None:
            return format.new_head(model, asked)
    raise ValueError(f"there is no shortcut head for a {model_file.format.title}.")


def recipe_for(config: HeadConfig, iterations: int, seed: int) -> Recipe:
    """The recipe of the shipped heads: the wider the head, the lower the rate; shares of the time stay."""
    return Recipe(
        iterations=iterations,
        seed=seed,
        # From 3e-3 of the shipped heads, 96 wide, to the 1e-4 of the authors of Lumina-DiMOO's, 2048 wide.
        lr=3e-3 * min(1.0, 96 / config.width) ** 1.11,
        warmup=min(60, iterations // 10),
        betas=(0.9, 0.98),
        ema=max(0.0, 1 - max(17.5 / max(1, iterations), 1e-4)),
        checkpoint_every=250,
    )


def teaching_for(
    model_file: Checkpoint,
    runs: Sequence[Settings],
    grid: Grid,
    iterations: int,
    *,
    images_per_run: int | None = None,
    replay_bytes: int = REPLAY_BYTES,
) -> Teaching:
    """As many runs in memory as fit there and a training of so many iterations makes use of.

    Args:
        images_per_run: of all processes together; None = 16, or fewer where they are large.
        replay_bytes: memory for the runs kept; two are kept at least.
    """
    num_steps = max(settings.num_steps for settings in runs)
    num_branches = 1 + len(runs[0].guidance)
    image_bytes = 2 * num_steps * num_branches * grid[0] * grid[1] * model_file.config.width
    num_images = replay_bytes // image_bytes
    if images_per_run is None:
        images_per_run = max(1, min(16, num_images // 4))
    windows = 4
    iterations_per_run = max(1, round(USES_OF_A_STEP * num_steps / windows))
    num_runs = iterations // iterations_per_run  # made on the way, beside those that it begins with
    return Teaching(
        runs=tuple(runs),
        images_per_run=images_per_run,
        runs_kept=max(2, min(16, num_images // max(1, images_per_run), num_runs // 2)),
        iterations_per_run=iterations_per_run,
        windows_per_batch=windows,
        images_per_window=images_per_run,
        max_chain=min(7, max(1, num_steps - 1)),
    )


def learn(
    teacher: Teacher,
    model_file: Checkpoint,
    plan: HeadPlan,
    *,
    source: Source | None = None,
    data: str = "",
    world: World = ALONE,
    checkpoint: Path | None = None,
    is_judged: bool = True,
    on_iteration: Callable[[int], None] | None = None,
    on_log: Callable[[Figures], None] | None = None,
) -> Checkpoint:
    """Trains a head. Returns it in half precision, with what it is for and how it was made.

    Args:
        model_file: what the teacher was built from; its tensors are not needed.
        source: where runs come from; None = the teacher makes them meanwhile.
        data: what the source is, as the file is to say; a resumed training must have the same.
        world, checkpoint, on_iteration, on_log: as for `train_head`.
        is_judged: True: it is held against runs that it never saw, and the file says how it did.

    Raises:
        FloatingPointError, ValueError: as `fit`; also if the plan does not fit the model.
    """
    head = untrained(plan, teacher)
    about = {
        "model": model_file.fingerprint,
        "start": plan.start.fingerprint if plan.start is not None else "untrained",
        "data": data or "made meanwhile",
        "shown": _shown(teacher, plan),
        **_named("head", asdict(plan.config)),
        **_named("teaching", asdict(plan.teaching)),
        **_named("loss", asdict(plan.objective)),
    }
    logged: list[Figures] = []

    def on_every_log(figures: Figures) -> None:
        logged.append(figures)
        if on_log is not None:
            on_log(figures)

    trained = train_head(
        teacher,
        head,
        plan.recipe,
        plan.teaching,
        plan.objective,
        source=source,
        world=world,
        checkpoint=checkpoint,
        about=about,
        one_by_one=True,
        on_iteration=on_iteration,
        on_log=on_every_log,
        log_every=max(1, min(50, plan.recipe.iterations // 50)),
    )
    if not logged and checkpoint is not None:
        logged = read_log(checkpoint)
    held_out = {}
    if is_judged:
        held_out = from_first(world, lambda: _held_out(trained, teacher, plan, world))
    return weights.pack(
        trained,
        format_of(plan.config),
        dtype=torch.bfloat16 if teacher.model.dtype == torch.bfloat16 else torch.float16,
        title=model_file.metadata.title,
        model_fingerprint=model_file.fingerprint,
        trained=_described(plan, logged, data, held_out),
    )


def untrained(plan: HeadPlan, teacher: Teacher) -> nn.Module:
    """The head as its training begins, in float32 on the teacher's device."""
    # torch's own attention is slow in bfloat16 on a CPU
    attention = sdpa_float32 if teacher.device.type == "cpu" else sdpa
    if plan.start is not None:
        if plan.start.config.model_width != plan.config.model_width:
            raise ValueError(
                f"{plan.start.name} is for a width of {plan.start.config.model_width}, not "
                f"{plan.config.model_width}. Start from a head of a model of the same size."
            )
        head = weights.build(plan.start, dtype=torch.float32, attention=attention)
        copied = {name: tensor.clone() for name, tensor in head.state_dict().items()}
        head.load_state_dict(copied, assign=True)
        return head.requires_grad_(True).to(teacher.device)
    head = initialised(plan.config, plan.recipe.seed, attention).to(teacher.device)
    fit_to_embeddings(head, teacher.model)
    return head


def _held_out(head: Any, teacher: Teacher, plan: HeadPlan, world: World) -> dict[str, Any]:
    """How the head did on runs that it never saw, of as many images as one process had."""
    teaching = replace(
        plan.teaching,
        runs=tuple(dict.fromkeys(plan.teaching.runs)),
        images_per_run=plan.teaching.images_per_run // world.size,
    )
    figures = {}
    for run in held_out_runs(teacher, plan.recipe, teaching):
        num_steps = len(run.steps)
        longest = min(teaching.max_chain, num_steps - 1)
        figures[f"{num_steps} steps"] = evaluate(head, teacher.model, run, longest)
    return figures


def _described(
    plan: HeadPlan, logged: Sequence[Figures], data: str, held_out: Mapping[str, Any]
) -> dict[str, Any]:
    """What the file says of its training; all of it can be written as JSON."""
    recipe, teaching = asdict(plan.recipe), asdict(plan.teaching)
    autocast = recipe.pop("autocast")
    runs = teaching.pop("runs")
    last = dict(logged[-1]) if logged else {}
    last.pop("seconds_per_iteration", None)  # the same training gives the same file
    return {
        "recipe": {**recipe, "autocast": autocast and str(autocast).removeprefix("torch.")},
        "teaching": {**teaching, "steps": [run["num_steps"] for run in runs]},
        "loss": asdict(plan.objective),
        "data": data,
        "last": last,
        "held_out": held_out,
    }


def _shown(teacher: Teacher, plan: HeadPlan) -> str:
    """Tells apart what teachers show: classes, prompts, size and arithmetic."""
    drawn = [teacher.draw(plan.teaching.runs, 1, (plan.recipe.seed, n))[1] for n in range(8)]
    conditions = json.dumps([[c.tolist() for c in branches] for branches in drawn])
    return f"{zlib.crc32(conditions.encode()):08x}, {teacher.num_tokens} tokens, {teacher.autocast}"


def _named(prefix: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix} {name}": value for name, value in fields.items()}


def format_of(config: HeadConfig) -> Any:
    return next(f for f in weights.FORMATS.values() if f.config is type(config))
