"""From a plan to a trained head: untrained head -> runs of the teacher -> head that says what it is.

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

from .. import checkpoint as checkpoints
from ..checkpoint import Checkpoint, cast
from ..distributed import ALONE, Ranks, from_first
from ..grid import usual_grid
from ..models.architecture import Architecture, Grid, HeadConfig, HeadNetwork, HeadSize
from ..models.layers import sdpa
from ..models.layout import Layout, check_sizes
from ..schedule import Settings
from ..settings import usual_settings
from .cpu import sdpa_float32
from .evaluate import evaluate, held_out_runs
from .fit import Recipe
from .head import RolloutConfig, fit_to_embeddings, initialised, train_head
from .log import Figures, read_log
from .loss import Objective
from .teacher import Teacher

GB = 10**9
REPLAY_BYTES = 4 * GB  # of recorded runs kept in memory, by default
LARGE_WIDTH = 512  # of models from which on a head is sized as the paper's
USES_OF_A_STEP = 3.6  # how often training comes back to each recorded step of an image


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadPlan:
    """A head and how it is trained."""

    layout: Layout  # of the head
    config: Any  # a HeadConfig, and a dataclass
    recipe: Recipe
    rollouts: RolloutConfig
    objective: Objective
    start: Checkpoint | None = None  # weights to begin with; None = predicts "no change"

    @classmethod
    def default(
        cls,
        model_file: Checkpoint,
        *,
        runs: Sequence[Settings] = (),
        iterations: int = 3500,
        seed: int = 0,
    ) -> HeadPlan:
        """Return what suits a model: the recipe of the shipped heads, with sizes in proportion.

        Args:
            runs: settings of the teacher's runs; empty = the model's own.
        """
        config = head_config(model_file)
        architecture = model_file.architecture
        return cls(
            layout=head_layout(architecture),
            config=config,
            recipe=recipe_for(config, iterations, seed),
            rollouts=rollouts_for(
                model_file,
                runs or (usual_settings(model_file),),
                usual_grid(model_file),
                iterations,
            ),
            objective=Objective(guided_kl=architecture.guided_kl(config, iterations)),
        )


def head_config(
    model_file: Checkpoint,
    *,
    num_blocks: int | None = None,
    bottleneck: float | None = None,
    from_full: bool = True,
    kernel: int | None = None,
) -> Any:
    """Return the sizes of a head for a model: the paper's, with two attention heads where the model is small.

    Args:
        num_blocks: None = 1. A second one gained nothing (experiments/RESULTS.md).
        bottleneck: the model's width by the head's; None = 2.
        kernel: side of the neighbourhood that `nearby` looks at, in place of self-attention; odd, 0 = as in the paper,
            None = 7. Not for Lumina-DiMOO.

    Raises:
        ValueError: a size is out of range, or there is no head for such a model.
    """
    model = model_file.config
    is_large = model.width >= LARGE_WIDTH
    model_heads = model_file.architecture.num_heads(model)
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
    num_heads = model_heads if is_large else 2
    step = 2 * num_heads  # rotary embeddings turn pairs of channels
    width = max(step, round(model.width / bottleneck / step) * step)
    asked = HeadSize(
        width=model.width if bottleneck == 1 else width,
        num_blocks=num_blocks,
        num_heads=model_heads if bottleneck == 1 else num_heads,
        is_large=is_large,
        from_full=from_full,
        kernel=kernel,
    )
    architecture = model_file.architecture
    if architecture.new_head is None:
        raise ValueError(f"there is no shortcut head for a {architecture.title}.")
    config = architecture.new_head(model, asked)
    check_sizes(config)
    return config


def head_layout(architecture: Architecture) -> Layout:
    """Return the layout of an architecture's heads. Raises ValueError if it has none."""
    if architecture.head is None:
        raise ValueError(f"there is no shortcut head for a {architecture.title}.")
    return architecture.head


def recipe_for(config: HeadConfig, iterations: int, seed: int) -> Recipe:
    """Return the recipe of the shipped heads: the wider the head, the lower the rate; shares of the time stay."""
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


def rollouts_for(
    model_file: Checkpoint,
    runs: Sequence[Settings],
    grid: Grid,
    iterations: int,
    *,
    images_per_run: int | None = None,
    replay_bytes: int = REPLAY_BYTES,
) -> RolloutConfig:
    """Return how runs are made and kept: as many as fit in memory and as the iterations make use of.

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
    return RolloutConfig(
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
    ranks: Ranks = ALONE,
    checkpoint: Path | None = None,
    about: Mapping[str, Any] | None = None,
    on_iteration: Callable[[int], None] | None = None,
    on_log: Callable[[Figures], None] | None = None,
) -> Checkpoint:
    """Train a head. Returns it in half precision, with what it is for, how it was made and how it did on other runs.

    Args:
        model_file: what the teacher was built from; its tensors are not needed.
        ranks, checkpoint, on_iteration, on_log: as for `train_head`.
        about: what else a resumed training must have in common, beside the plan, the model's file and the requests.

    Raises:
        FloatingPointError, ValueError: as `fit`; also if the plan does not fit the model.
    """
    plan.recipe.check()
    head = untrained(plan, teacher)
    about = {
        **(about or {}),
        "model": model_file.fingerprint,
        "start": plan.start.fingerprint if plan.start is not None else "untrained",
        "shown": _shown(teacher),
        **_named("head", asdict(plan.config)),
        **_named("rollouts", asdict(plan.rollouts)),
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
        plan.rollouts,
        plan.objective,
        ranks=ranks,
        checkpoint=checkpoint,
        about=about,
        one_by_one=True,
        on_iteration=on_iteration,
        on_log=on_every_log,
        log_every=max(1, min(50, plan.recipe.iterations // 50)),
    )
    if not logged and checkpoint is not None:
        logged = read_log(checkpoint)
    held_out = from_first(ranks, lambda: _held_out(trained, teacher, plan, ranks))
    packed = checkpoints.pack(
        trained,
        plan.layout,
        title=model_file.metadata.title,
        model_fingerprint=model_file.fingerprint,
        trained=_described(plan, logged, held_out),
    )
    dtype = torch.bfloat16 if teacher.model.dtype == torch.bfloat16 else torch.float16
    return replace(cast(replace(packed, path=checkpoint), dtype), path=None)  # for messages


def untrained(plan: HeadPlan, teacher: Teacher) -> HeadNetwork:
    """Return the head as its training begins, in float32 on the teacher's device."""
    # torch's own attention is slow in bfloat16 on a CPU
    attention = sdpa_float32 if teacher.device.type == "cpu" else sdpa
    if plan.start is not None:
        head = checkpoints.build(plan.start, dtype=torch.float32, attention=attention)
        copied = {name: tensor.clone() for name, tensor in head.state_dict().items()}
        head.load_state_dict(copied, strict=True, assign=True)
        return head.requires_grad_(True).to(teacher.device)
    head = initialised(plan.layout, plan.config, plan.recipe.seed, attention).to(teacher.device)
    fit_to_embeddings(head, teacher.model)
    return head


def _held_out(head: HeadNetwork, teacher: Teacher, plan: HeadPlan, ranks: Ranks) -> dict[str, Any]:
    """Return how the head did on runs that it never saw, with as many images as one process had."""
    rollouts = plan.rollouts
    runs = tuple(dict.fromkeys(rollouts.runs))
    num_images = rollouts.images_per_run // ranks.world_size
    figures = {}
    for settings, run in zip(
        runs, held_out_runs(teacher, runs, num_images, plan.recipe.seed), strict=True
    ):
        found = evaluate(head, teacher.model, [run], rollouts.max_chain)
        figures[f"{settings.num_steps} steps"] = found
    return figures


def _described(
    plan: HeadPlan, logged: Sequence[Figures], held_out: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the file says of its training, as JSON."""
    recipe, rollouts = asdict(plan.recipe), asdict(plan.rollouts)
    autocast = recipe.pop("autocast")
    runs = rollouts.pop("runs")
    last = dict(logged[-1]) if logged else {}
    last.pop("seconds_per_iteration", None)  # the same training gives the same file
    return {
        "recipe": {**recipe, "autocast": autocast and str(autocast).removeprefix("torch.")},
        "rollouts": {**rollouts, "steps": [run["num_steps"] for run in runs]},
        "loss": asdict(plan.objective),
        "last": last,
        "held_out": held_out,
    }


def _shown(teacher: Teacher) -> str:
    """Return what tells teachers apart: requests, size and arithmetic."""
    requests = json.dumps([(r.label, r.prompt, r.negative, r.task) for r in teacher.requests])
    rows, columns = teacher.model.grid
    arithmetic = teacher.autocast or teacher.model.dtype
    return f"{zlib.crc32(requests.encode()):08x}, {rows} x {columns} tokens, {arithmetic}"


def _named(prefix: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix} {name}": value for name, value in fields.items()}
