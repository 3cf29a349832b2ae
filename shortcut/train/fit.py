"""One training loop for every network: seeded batches, EMA weights, checkpoints that resume exactly.

It does not know what is trained. Batch number i depends on (seed, i) alone, so a run that was killed
and resumed goes through the same numbers as one that was not.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..noise import seeded

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)
Batch = TypeVar("Batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a network is trained. Figures are per optimizer step ("iteration")."""

    iterations: int
    seed: int = 0
    lr: float = 1e-3  # peak; reached after `warmup` iterations, then a half cosine down to `lr_end`
    lr_end: float = 0.0
    warmup: int = 100
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.999  # decay of the averaged weights, which are the result
    autocast: torch.dtype | None = None  # None trains in the weights' own type
    checkpoint_every: int = 500

    def lr_factor(self, iteration: int) -> float:
        """Learning rate at 0-based `iteration` as a fraction of `lr`."""
        rise = min(1.0, (iteration + 1) / max(1, self.warmup))
        end = self.lr_end / self.lr
        return rise * (
            end + (1 - end) * 0.5 * (1 + math.cos(math.pi * iteration / self.iterations))
        )


def fit(
    network: Network,
    draw_batch: Callable[[torch.Generator], Batch],
    loss_of: Callable[[Network, Batch], tuple[Tensor, dict[str, Tensor]]],
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    before_batch: Callable[[int], None] | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
    log_every: int = 50,
) -> Network:
    """Trains `network` in place and returns its exponential moving average.

    Args:
        draw_batch: from a generator seeded by (recipe.seed, iteration) to one batch.
        loss_of: (network, batch) -> (scalar loss, figures to log).
        checkpoint: file to resume from and to save to; its log lies beside it as JSON lines.
        before_batch: called with the 0-based iteration before its batch is drawn; for data that
            change on the way.
        on_log: called every `log_every` iterations with means since the last call.

    Raises:
        FloatingPointError: the loss is not finite; the last good checkpoint is kept.
        ValueError: the checkpoint was made by another recipe.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.lr_factor)
    average = AveragedModel(
        network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True
    )
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule, "average": average}
    start = _resume(checkpoint, parts, recipe)
    device = parameters[0].device
    sums: dict[str, Tensor] = {}
    begun, last = time.perf_counter(), start
    network.train()
    for iteration in range(start, recipe.iterations):
        if before_batch is not None:
            before_batch(iteration)
        batch = draw_batch(seeded(recipe.seed, iteration))
        with torch.autocast(device.type, recipe.autocast, enabled=recipe.autocast is not None):
            loss, figures = loss_of(network, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
        for name, value in {"loss": loss, **figures}.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach().float()
        done = iteration + 1
        if done % log_every == 0 or done == recipe.iterations:
            means = {name: value.item() / (done - last) for name, value in sums.items()}
            seconds = (time.perf_counter() - begun) / (done - start)
            means |= {"iteration": done, "seconds_per_iteration": round(seconds, 4)}
            _log(checkpoint, means, recipe)
            if on_log is not None:
                on_log(means)
            if not math.isfinite(means["loss"]):
                raise FloatingPointError(
                    f"the loss is {means['loss']} within iterations {last + 1} to {done}. The last good checkpoint "
                    f"is {checkpoint}. Lower the learning rate (now {recipe.lr}) and resume."
                )
            sums, last = {}, done
        if checkpoint is not None and (
            done % recipe.checkpoint_every == 0 or done == recipe.iterations
        ):
            _save(checkpoint, parts, recipe, done)
    return cast(Network, average.module.eval())


def _resume(checkpoint: Path | None, parts: dict[str, Any], recipe: Recipe) -> int:
    """Loads `parts` from `checkpoint` if it exists. Returns the number of iterations already done."""
    if checkpoint is None or not checkpoint.exists():
        return 0
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if saved["recipe"] != _as_json(recipe):
        raise ValueError(
            f"{checkpoint} was made by another recipe: found {saved['recipe']}, expected {_as_json(recipe)}. "
            "Train with the recipe it was started with, or remove the file to start again."
        )
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    logger.info("resumed %s at iteration %d", checkpoint.name, saved["iteration"])
    return saved["iteration"]


def _save(checkpoint: Path, parts: dict[str, Any], recipe: Recipe, iteration: int) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    state = {name: part.state_dict() for name, part in parts.items()}
    partial = checkpoint.with_suffix(".partial")
    torch.save(state | {"recipe": _as_json(recipe), "iteration": iteration}, partial)
    os.replace(partial, checkpoint)


def _log(checkpoint: Path | None, means: dict[str, float], recipe: Recipe) -> None:
    left = (recipe.iterations - means["iteration"]) * means["seconds_per_iteration"]
    figures = "  ".join(f"{k} {v:.4g}" for k, v in means.items() if k != "iteration")
    logger.info("%d/%d  %s  %.0f s left", means["iteration"], recipe.iterations, figures, left)
    if checkpoint is not None:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with checkpoint.with_suffix(".jsonl").open("a") as log:
            log.write(json.dumps(means) + "\n")


def _as_json(recipe: Recipe) -> str:
    return json.dumps({k: str(v) for k, v in asdict(recipe).items()}, sort_keys=True)
