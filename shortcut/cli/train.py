"""The command `train`: options -> teacher and plan -> a trained head, its card, log and chart."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import weights
from ..checkpoint import Checkpoint
from ..distributed import World, meeting
from ..files import check_writable, written_whole
from ..grid import usual_grid
from ..locate import OURS
from ..pipeline import advice_on_memory, checked_device
from ..train.card import save_head
from ..train.chart import loss_chart
from ..train.cpu import keep_memory
from ..train.dataset import GB, Dataset
from ..train.fit import LossError
from ..train.learn import (
    HeadPlan,
    format_of,
    head_config,
    learn,
    recipe_for,
    teaching_for,
)
from ..train.log import Figures, read_log
from ..train.loss import Objective
from ..train.progress import progress_bar
from ..train.teacher import Teacher
from .train_options import (
    add_model,
    add_sampling,
    add_where,
    load_teacher,
    runs_of,
)

logger = logging.getLogger(__name__)

INTERRUPTED = 130  # exit status, as of every command
SAMPLING = ("steps", "cfg", "temperature", "choice_temperature", "schedule")


def add_parser(commands: Any) -> None:
    """Adds `train` to the command line."""
    parser = commands.add_parser(
        "train",
        help="train a shortcut head",
        description=f"{__doc__} Run again, it goes on where it stopped; under torchrun every batch is shared out.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="HEAD.safetensors")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="what `record` wrote; default: the model makes its runs meanwhile",
    )
    parser.add_argument("--iterations", type=int, default=3500, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--start",
        type=Path,
        metavar="HEAD",
        help="a head to go on from, such as that of the base of a fine-tune",
    )
    head = parser.add_argument_group("the head; default: in proportion to the model")
    head.add_argument("--blocks", type=int, help="cross- and self-attention blocks")
    head.add_argument("--bottleneck", type=float, help="the model's width by the head's")
    head.add_argument(
        "--stepwise",
        action="store_true",
        help="predict from the step before, as the paper does; default: from the last full pass",
    )
    head.add_argument(
        "--kernel",
        type=int,
        help="side of the neighbourhood of new tokens, and of features in place of self-attention, that the head looks "
        "at, in codes (odd; 0 = none, as published); MaskGIT only; default: 7",
    )
    how = parser.add_argument_group("how it learns")
    how.add_argument("--lr", type=float, help="peak learning rate; default: by the head's width")
    how.add_argument(
        "--batch-size",
        type=int,
        help="images in a run, all processes together; default: what fits the replay memory, at most 16",
    )
    how.add_argument(
        "--rollout",
        type=int,
        help="steps from a full pass to the last that is learned; default: 7; at use it should be no shorter than the "
        "stretches between full passes",
    )
    how.add_argument(
        "--student-rollouts",
        action="store_true",
        help="after the first step of a roll-out the head draws the tokens, and the model says what features these "
        "should give, as in the authors' code: one more full pass for each; default: the tokens of the model's run",
    )
    how.add_argument(
        "--kl",
        type=float,
        help="weight of the divergence of guided codes; default: 0.3; of a MaskGIT head that is not --stepwise 4, "
        "less in fewer than 1000 iterations",
    )
    how.add_argument(
        "--kl-branches",
        type=float,
        default=0.0,
        metavar="KL",
        help="weight of the divergence of the codes of each guidance branch by itself, as in the authors' code; "
        "default: %(default)s",
    )
    how.add_argument(
        "--kl-temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="what --kl-branches divides logits by; it counts T x T times as much; default: %(default)s",
    )
    how.add_argument(
        "--all-positions",
        action="store_true",
        help="squared error and --kl-branches at all positions; default: where tokens are still masked",
    )
    how.add_argument(
        "--replay-memory",
        type=float,
        default=4.0,
        metavar="GB",
        help="for runs kept in main memory; default: %(default)s",
    )
    add_model(parser)
    add_sampling(parser)
    add_where(parser)
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="log there too")
    parser.add_argument("--json", action="store_true", help="one JSON line last: head and figures")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Trains. Returns the exit status; errors are exceptions whose text is for the user."""
    check_out(options.out)
    keep_memory()
    world, checkpoint = World.here(), checkpoint_of(options.out)
    with meeting(world, checked_device(options.device).type):
        teacher, model_file = load_teacher(options)
        dataset = open_dataset(options, model_file)
        plan = plan_of(options, teacher, model_file, dataset)
        images = world.share(plan.teaching.images_per_run, "images in a run (--batch-size)")
        is_first, total = world.rank == 0, plan.recipe.iterations
        with (
            progress_bar(is_shown=is_first, unit="iteration", total=total) as bar,
            advice_on_memory(),
            terminated_as_interrupted(),
        ):
            report = Report(options, bar) if world.rank == 0 else None
            try:
                head = learn(
                    teacher,
                    model_file,
                    plan,
                    source=dataset and (lambda number: dataset.run(number, images)),
                    data="" if dataset is None else dataset.described(),
                    world=world,
                    checkpoint=checkpoint,
                    on_iteration=report and report.on_iteration,
                    on_log=report and report.on_log,
                )
            except LossError as error:
                how = f"Such as: --lr {plan.recipe.lr / 2:g} --out OTHER{options.out.suffix}"
                raise LossError(f"{error} {how}") from error
            except KeyboardInterrupt:
                if not checkpoint.exists():
                    raise
                bar.close()
                if world.rank == 0:
                    print(
                        f"interrupted: the same command goes on from {checkpoint}", file=sys.stderr
                    )
                return INTERRUPTED
    if world.rank == 0:
        write_head(options.out, head, model_file)
        figures = {"head": str(options.out), **head.metadata.trained["last"]}
        print(json.dumps(figures) if options.json else f"wrote {options.out} and its card")
    return 0


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Lets SIGTERM, as batch systems, `timeout` and torchrun send it, end the block as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not end the saving
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_out(out: Path) -> None:
    """Checks before hours of work that the head can be written in the end.

    Raises:
        ValueError: another suffix.
        OSError: nothing can be written there.
    """
    if out.suffix.lower() not in OURS:
        raise ValueError(f"{out} has the suffix {out.suffix!r}, expected {OURS[0]}.")
    for path in (out, checkpoint_of(out)):
        check_writable(path)


def write_head(out: Path, head: Checkpoint, model_file: Checkpoint) -> None:
    """As `save_head`; says how the head is not lost where that fails."""
    try:
        save_head(out, head, model_file)
    except OSError as error:
        raise OSError(
            f"{out} or its card could not be written ({error}). Free some room there, or allow writing, and give the "
            f"same command again: it goes on from what {checkpoint_of(out).name} has."
        ) from error


def checkpoint_of(out: Path) -> Path:
    """Where the state of a training lies, beside its head."""
    return out.with_suffix(".ckpt")


def open_dataset(options: argparse.Namespace, model_file: Checkpoint) -> Dataset | None:
    """The dataset that the options name, if they do.

    Raises:
        FileNotFoundError, ValueError: as `Dataset.open`; settings are given that it has itself.
    """
    if options.data is None:
        return None
    given = [name for name in (*SAMPLING, "batch_size") if getattr(options, name) is not None]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise ValueError(
            f"{option} is for runs made meanwhile: those in {options.data} have theirs."
        )
    return Dataset.open(options.data, model_file, options.grid or usual_grid(model_file))


def plan_of(
    options: argparse.Namespace, teacher: Teacher, model_file: Checkpoint, dataset: Dataset | None
) -> HeadPlan:
    """What the options ask for.

    Raises:
        FileNotFoundError, ValueError: a figure is out of range, or the head to start from is none.
    """
    start = None if options.start is None else weights.load(options.start, kind="head")
    if start is None:
        config = head_config(
            model_file,
            num_blocks=options.blocks,
            bottleneck=options.bottleneck,
            kernel=options.kernel,
            from_full=not options.stepwise,
        )
    else:
        config = start.config
    recorded = dataset and dataset.recording
    runs = recorded.runs if recorded else runs_of(options, teacher.settings)
    recipe = recipe_for(config, options.iterations, options.seed)
    is_float32 = teacher.model.dtype == torch.float32
    teaching = teaching_for(
        model_file,
        runs,
        options.grid or usual_grid(model_file),
        options.iterations,
        images_per_run=recorded.images_per_run if recorded else options.batch_size,
        replay_bytes=int(options.replay_memory * GB),
    )
    if recorded:
        teaching = replace(teaching, runs_kept=min(teaching.runs_kept, recorded.num_runs))
    return HeadPlan(
        config=config,
        recipe=replace(
            recipe,
            lr=recipe.lr if options.lr is None else options.lr,
            autocast=teacher.autocast or (None if is_float32 else torch.bfloat16),
        ),
        teaching=replace(
            teaching,
            max_chain=teaching.max_chain if options.rollout is None else options.rollout,
            student_rollouts=options.student_rollouts,
        ),
        objective=Objective(
            mse=1.0,
            kl=options.kl_branches,
            kl_temperature=options.kl_temperature,
            guided_kl=format_of(config).guided_kl(config, options.iterations)
            if options.kl is None
            else options.kl,
            only_masked=not options.all_positions,
        ),
        start=start,
    )


class Report:
    """Shows a training: a bar with the time left; at each log a chart beside the head, and TensorBoard."""

    def __init__(self, options: argparse.Namespace, bar: Any):
        self.chart, self.checkpoint = options.out.with_suffix(".png"), checkpoint_of(options.out)
        self.bar, self.num_begun = bar, 0
        self.logged: list[Figures] = []  # for the chart, should there be no file of them
        self.write_scalars = scalar_writer(options.tensorboard)

    def on_iteration(self, done: int) -> None:
        """Called before each iteration; the first has runs of the teacher to wait for."""
        if self.num_begun == 0:
            self.bar.initial = self.bar.n = self.bar.last_print_n = done
            self.bar.set_description("first runs")
        elif self.num_begun == 1:
            # The time left is that of iterations without such a wait.
            self.bar.n = self.bar.last_print_n = done
            self.bar.last_print_t = time.time()
            self.bar.set_description(None, refresh=False)
        else:
            self.bar.update(done - self.bar.n)
        self.num_begun += 1

    def on_log(self, figures: Figures) -> None:
        """Called with means every few iterations."""
        self.bar.set_postfix_str(f"loss {figures['loss']:.4g}", refresh=False)
        self.bar.update(figures["iteration"] - self.bar.n)
        self.logged.append(figures)
        try:
            with written_whole(self.chart) as partial:
                loss_chart(read_log(self.checkpoint) or self.logged).save(partial, format="PNG")
        except OSError as error:  # no reason to end a training
            logger.warning("%s could not be written (%s)", self.chart, error)
        self.write_scalars(figures, int(figures["iteration"]))


def scalar_writer(folder: Path | None) -> Callable[[Figures, int], None]:
    """What writes figures for TensorBoard to `folder`; nothing without one.

    Raises:
        ValueError: TensorBoard is not installed.
    """
    if folder is None:
        return lambda figures, iteration: None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "--tensorboard needs TensorBoard: pip install tensorboard. Without it the log is a .jsonl file beside the "
            "head."
        ) from error
    writer = SummaryWriter(str(folder))

    def write(figures: Figures, iteration: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, iteration)
        writer.flush()

    return write
