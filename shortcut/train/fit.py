"""One training loop for every network: seeded batches, EMA weights, checkpoints that resume exactly.

It does not know what is trained. Batch number i depends on (seed, i) alone, so a run that was killed
and resumed goes through the same numbers as one that was not. Several processes each go through their
part of every batch, by torch's DistributedDataParallel; the first of them writes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..distributed import ALONE, Ranks, from_first
from ..guard import MAX_ITERATIONS, MAX_SEED, check_whole
from ..noise import seeded
from .log import Figures, in_words
from .state_file import CheckpointError, StateFile

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
    checkpoint_every: int = 500  # or after state_file.SAVE_SECONDS

    def check(self) -> None:
        """Raise ValueError for the first figure that is out of range."""
        for name, least in (("iterations", 1), ("seed", 0), ("warmup", 0), ("checkpoint_every", 1)):
            largest = MAX_SEED if name == "seed" else MAX_ITERATIONS
            check_whole(name, getattr(self, name), least, largest)
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number above 0, got {getattr(self, name)}.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be at least 0 and below 1, got {self.ema}.")
        if self.autocast == torch.float16:
            raise ValueError("float16 is too narrow for gradients. Use bfloat16 or float32.")

    def lr_factor(self, iteration: int) -> float:
        """Return the learning rate at 0-based `iteration` as a fraction of `lr`."""
        rise = min(1.0, (iteration + 1) / max(1, self.warmup))
        end = self.lr_end / self.lr
        return rise * (
            end + (1 - end) * 0.5 * (1 + math.cos(math.pi * iteration / self.iterations))
        )


MakeOptimizer = Callable[[Any, Recipe], torch.optim.Optimizer]  # of the weights of a network


def fit(
    network: Network,
    draw_batch: Callable[[torch.Generator], Batch],
    loss_of: Callable[[Network, Batch], tuple[Tensor, dict[str, Tensor]]],
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    about: Mapping[str, Any] | None = None,
    parts_of: Callable[[Batch], Sequence[Batch]] | None = None,
    ranks: Ranks = ALONE,
    before_batch: Callable[[int], None] | None = None,
    make_optimizer: MakeOptimizer | None = None,
    on_log: Callable[[Figures], None] | None = None,
    log_every: int = 50,
) -> Network:
    """Train `network` in place and returns its exponential moving average.

    Args:
        draw_batch: from a generator seeded by (recipe.seed, iteration) to one batch, of which each
            process has as large a part.
        loss_of: (network, batch) -> (scalar loss, figures to log), means over the batch.
        checkpoint: file to resume from and to save to, also when an exception ends the training; its
            log lies beside it as JSON lines. Where neither the log nor the last state can be written, that
            is a warning alone.
        about: what else must be as it was, beside the recipe, when a training is resumed.
        parts_of: cuts a batch into parts of one size, whose gradients are added up one after the
            other: less memory. None = all at once.
        ranks: more than one process must have joined `distributed.process_group`.
        before_batch: called with the 0-based iteration before its batch is drawn; for data that
            change on the way, and to end the training by an exception.
        make_optimizer: (network, recipe) -> optimizer of its weights. None = AdamW.
        on_log: called every `log_every` iterations with means since the last call.

    Raises:
        LossError: the loss or its gradient is not finite; the weights before it are kept.
        CheckpointError: the state cannot be saved while there is still something to learn.
        HeldError: another process trains under the same name.
        ValueError: a figure is out of range, or the checkpoint is damaged or of another training, or its log is a
            file of another kind.
    """
    recipe.check()
    state = _State.initial(network, recipe, make_optimizer or adamw)
    file = StateFile(checkpoint, {**asdict(recipe), **(about or {})}, is_writing=ranks.rank == 0)
    with file.held():
        if (saved := from_first(ranks, file.read)) is not None:
            with file.read_by():
                state.load(saved)
            del saved  # which may be as large as the state
            logger.info("resumed at iteration %d", state.done)
        file.cut_log(state.done)
        loss_module: Any = _LossModule(network, loss_of)
        if ranks.world_size > 1:
            loss_module = DistributedDataParallel(loss_module)
        start, begun = state.done, None
        network.train()
        try:
            for iteration in range(state.done, recipe.iterations):
                if before_batch is not None:
                    before_batch(iteration)
                # What the first iteration needs is made once: the time left is that of the others.
                begun = begun or time.perf_counter()
                batch = draw_batch(seeded(recipe.seed, iteration))
                parts = [batch] if parts_of is None else parts_of(batch)
                state.optimizer.zero_grad(set_to_none=True)
                figures = _add_up_gradients(loss_module, parts, recipe.autocast, state.device)
                try:
                    state.step(recipe, figures)
                except LossError as error:
                    raise LossError(f"{error}{file.advice_to_start_anew(state)}") from None
                is_last = state.done == recipe.iterations
                if state.done % log_every == 0 or is_last:
                    means = state.take_means(ranks)
                    means["iteration"] = state.done
                    seconds = (time.perf_counter() - begun) / (state.done - start)
                    means["seconds_per_iteration"] = round(seconds, 4)
                    file.write_log(means)
                    logger.info("%s", in_words(means, recipe.iterations))
                    if on_log is not None:
                        on_log(means)
                if is_last:
                    file.save_if_possible(state)
                elif state.done % recipe.checkpoint_every == 0 or file.is_due():
                    file.save(state)
        except CheckpointError:
            raise
        except BaseException:
            file.save_if_possible(state)
            raise
    return cast(Network, state.average.module.eval())


def adamw(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW over the weights of a network that learn."""
    return torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad],
        lr=recipe.lr,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
    )


class LossError(FloatingPointError):
    """The loss or its gradient is not finite."""


class _LossModule(nn.Module):
    """The loss as a forward pass, for DistributedDataParallel to watch."""

    def __init__(self, network: nn.Module, loss_of: Callable[..., Any]):
        super().__init__()
        self.network, self.loss_of = network, loss_of

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss_of(self.network, batch)


def _add_up_gradients(
    loss_module: Any, parts: Sequence[Any], autocast: torch.dtype | None, device: torch.device
) -> dict[str, Tensor]:
    """Leave the gradients of the mean loss in the parameters. Returns the mean figures."""
    sums: dict[str, Tensor] = {}
    for number, part in enumerate(parts, 1):
        is_last_part = number == len(parts) or not hasattr(loss_module, "no_sync")
        with contextlib.nullcontext() if is_last_part else loss_module.no_sync():
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                loss, figures = loss_module(part)
            (loss / len(parts)).backward()
        for name, value in {"loss": loss, **figures}.items():
            sums[name] = sums.get(name, 0) + value.detach().float() / len(parts)
    return sums


@dataclass(slots=True)
class _State:
    """What a training changes, and what a resumed one goes on with."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    average: AveragedModel
    parameters: list[nn.Parameter]
    done: int = 0  # iterations
    is_whole: bool = True  # False: an exception came in the middle of a step
    logged: int = 0  # iterations at the last log
    sums: dict[str, Tensor] = field(default_factory=dict)  # of the figures since then

    @classmethod
    def initial(
        cls,
        network: nn.Module,
        recipe: Recipe,
        make_optimizer: MakeOptimizer,
    ) -> _State:
        parameters = [p for p in network.parameters() if p.requires_grad]
        optimizer = make_optimizer(network, recipe)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.lr_factor)
        average = AveragedModel(
            network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True
        )
        return cls(network, optimizer, schedule, average, parameters)

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    def step(self, recipe: Recipe, figures: Mapping[str, Tensor]) -> None:
        """Do one iteration with the gradients at hand; `figures` belong to it."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, recipe.clip)
        if not norm.isfinite():
            raise LossError(
                f"the loss or its gradient is not finite in iteration {self.done + 1} of {recipe.iterations}. Train "
                f"anew with a lower learning rate (now {recipe.lr:g})."
            )
        self.is_whole = False
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.network)
        self.sums = {
            n: value + self.sums[n] if self.sums else value for n, value in figures.items()
        }
        self.done += 1
        self.is_whole = True

    def take_means(self, ranks: Ranks) -> Figures:
        """Return means of the figures since the last log, over all processes."""
        values = torch.stack(list(self.sums.values()))
        if ranks.world_size > 1:
            torch.distributed.all_reduce(values)
        values = values / (ranks.world_size * (self.done - self.logged))
        means: Figures = dict(zip(self.sums, values.tolist(), strict=True))
        self.sums, self.logged = {}, self.done
        return means

    def dump(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in _PARTS}
        return {**parts, "iteration": self.done, "logged": self.logged, "sums": self.sums}

    def load(self, saved: Mapping[str, Any]) -> None:
        for name in _PARTS:
            getattr(self, name).load_state_dict(saved[name])
        self.done = saved["iteration"]
        # A checkpoint from before these were kept has none.
        self.logged = saved.get("logged", self.done)
        self.sums = {n: value.to(self.device) for n, value in saved.get("sums", {}).items()}


_PARTS = ("network", "optimizer", "schedule", "average")
