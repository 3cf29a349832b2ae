"""The command `train`: options -> teacher and plan -> a trained head, its log and the chart of its loss."""

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
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .. import checkpoint as checkpoints
from ..checkpoint import Checkpoint
from ..compatibility import check_head
from ..devices import advice_on_memory, checked_device
from ..distributed import Ranks, process_group
from ..files import FORMAT_KEY, OUR_SUFFIX, read_metadata
from ..grid import usual_grid
from ..guard import MAX_IMAGES, MAX_WEIGHT, check_number, check_whole
from ..models import layouts
from ..train.chart import loss_chart
from ..train.cpu import keep_memory
from ..train.fit import LossError
from ..train.learn import GB, HeadPlan, head_config, head_layout, learn, recipe_for, rollouts_for
from ..train.log import Figures, check_log, log_of, read_log
from ..train.loss import Objective
from ..train.progress import progress_bar
from ..train.teacher import Teacher
from ..writing import WriteError, check_writable, locked, written_whole
from .train_options import add_model, add_sampling, add_where, load_teacher, runs_of

logger = logging.getLogger(__name__)

SIZES = {
    "blocks": None,
    "bottleneck": None,
    "kernel": None,
    "stepwise": False,
}  # as --start has them
CHART = "shortcut-chart"  # the text chunk of a PNG that tells our charts
INTERRUPTED = 130  # exit status, as of every command


def add_parser(commands: Any) -> None:
    """Add `train` to the command line."""
    parser = commands.add_parser(
        "train",
        help="train a shortcut head",
        description=f"{__doc__} Run again, it goes on where it stopped; under torchrun every batch is shared out.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="HEAD.safetensors")
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
        "at, in codes (odd; 0 = none, as published); not of Lumina-DiMOO; default: 7",
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
        "--kl",
        type=float,
        help="weight of the divergence of guided codes; default: 0.3; not of Lumina-DiMOO and "
        "not --stepwise: 4, less in fewer than 1000 iterations",
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
    """Train. Return the exit status; errors are exceptions whose text is for the user."""
    check_out(options.out)
    keep_memory()
    ranks = Ranks.here()
    if ranks.rank > 0:
        return train(options, ranks)
    with locked(checkpoint_of(options.out), "a training"):
        check_own(options.out)
        return train(options, ranks)


def train(options: argparse.Namespace, ranks: Ranks) -> int:
    """Train, with all files checked to be ours. Return the exit status."""
    checkpoint = checkpoint_of(options.out)
    with process_group(ranks, checked_device(options.device).type):
        teacher, model_file = load_teacher(options)
        plan = plan_of(options, teacher, model_file)
        ranks.share(plan.rollouts.images_per_run, "images in a run (--batch-size)")
        is_first, total = ranks.rank == 0, plan.recipe.iterations
        with (
            progress_bar(is_shown=is_first, unit="iteration", total=total) as bar,
            advice_on_memory(),
            terminated_as_interrupted(),
        ):
            report = Report(options, bar) if ranks.rank == 0 else None
            try:
                head = learn(
                    teacher,
                    model_file,
                    plan,
                    ranks=ranks,
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
                if ranks.rank == 0:
                    print(
                        f"interrupted: the same command goes on from {checkpoint}", file=sys.stderr
                    )
                return INTERRUPTED
    if ranks.rank == 0:
        write_head(options.out, head)
        figures = {"head": str(options.out), **head.metadata.trained["last"]}
        print(json.dumps(figures) if options.json else f"wrote {options.out}")
    return 0


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, as batch systems, `timeout` and torchrun send it, end the block as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not end the saving
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_out(out: Path) -> None:
    """Check before hours of work that the head can be written in the end.

    Raises:
        ValueError: another suffix.
        OSError: nothing can be written there.
    """
    if out.suffix.lower() != OUR_SUFFIX:
        raise ValueError(f"{out} has the suffix {out.suffix!r}, expected {OUR_SUFFIX}.")
    for path in (out, checkpoint_of(out), log_of(checkpoint_of(out)), chart_of(out)):
        check_writable(path)


def check_own(out: Path) -> None:
    """Check that what a training would overwrite is of a training.

    Raises:
        ValueError: a file is something else.
    """
    check_log(checkpoint_of(out))
    heads = {layout.name for layout in layouts("head")}
    if out.exists() and read_metadata(out).get(FORMAT_KEY) not in heads:
        raise ValueError(
            f"{out} is there and is no head of ours. Give another name, or move that file."
        )
    chart = chart_of(out)
    if chart.exists() and not _is_chart(chart):
        raise ValueError(
            f"{chart} is no chart of a training, but would be overwritten by one. Give another name, or move that file."
        )


def _is_chart(path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return CHART in picture.info
    except Exception:  # a damaged file can raise anything
        return False


def write_head(out: Path, head: Checkpoint) -> None:
    """Write the head; the error says how the head is not lost where that fails."""
    try:
        checkpoints.save(out, head)
    except OSError as error:
        reason = error.reason if isinstance(error, WriteError) else error
        raise OSError(
            f"{out} could not be written ({reason}). Free some room there, or allow writing, and give the "
            f"same command again: it goes on from what {checkpoint_of(out).name} has."
        ) from error


def checkpoint_of(out: Path) -> Path:
    """Return the file of the training's state, beside its head."""
    return out.with_suffix(".ckpt")


def plan_of(options: argparse.Namespace, teacher: Teacher, model_file: Checkpoint) -> HeadPlan:
    """Return the plan that the options ask for.

    Raises:
        FileNotFoundError, ValueError: a figure is out of range, or the head to start from is none.
    """
    architecture = model_file.architecture
    start = None
    if options.start is not None:
        for name, usual in SIZES.items():
            if getattr(options, name) is not usual:
                raise ValueError(
                    f"--{name} has no effect with --start: the head keeps its sizes. Leave it out."
                )
        if Path(options.start).resolve() == options.out.resolve():
            raise ValueError(
                f"--out is the head of --start, {options.out}, which would be overwritten. Give another name."
            )
        start = checkpoints.load(options.start, kind="head", model=model_file)
        check_head(start, model_file, is_start=True)
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
    check_number("--replay-memory", options.replay_memory, 0, MAX_WEIGHT)
    for name in ("batch_size", "rollout"):
        if (value := getattr(options, name)) is not None:
            check_whole(f"--{name.replace('_', '-')}", value, 1, MAX_IMAGES)
    if options.kl is not None:
        check_number("--kl", options.kl, 0, MAX_WEIGHT)
    recipe = recipe_for(config, options.iterations, options.seed)
    is_float32 = teacher.model.dtype == torch.float32
    rollouts = rollouts_for(
        model_file,
        runs_of(options, teacher.settings),
        options.grid or usual_grid(model_file),
        options.iterations,
        images_per_run=options.batch_size,
        replay_bytes=int(options.replay_memory * GB),
    )
    if options.rollout is not None:
        rollouts = replace(rollouts, max_chain=options.rollout)
    kl = architecture.guided_kl(config, options.iterations) if options.kl is None else options.kl
    return HeadPlan(
        layout=head_layout(architecture),
        config=config,
        recipe=replace(
            recipe,
            lr=recipe.lr if options.lr is None else options.lr,
            autocast=teacher.autocast or (None if is_float32 else torch.bfloat16),
        ),
        rollouts=rollouts,
        objective=Objective(guided_kl=kl),
        start=start,
    )


def chart_of(out: Path) -> Path:
    """Return the picture of the training's loss, beside its head."""
    return out.with_suffix(".png")


class Report:
    """Shows a training: a bar with the time left; at each log a chart beside the head, and TensorBoard."""

    def __init__(self, options: argparse.Namespace, bar: Any):
        self.chart, self.checkpoint = chart_of(options.out), checkpoint_of(options.out)
        self.bar, self.num_begun = bar, 0
        self.logged: list[Figures] = []  # for the chart, should there be no file of them
        self.write_scalars = scalar_writer(options.tensorboard)

    def on_iteration(self, done: int) -> None:
        """Move the bar, before each iteration; the first has runs of the teacher to wait for."""
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
        """Show means, every few iterations."""
        self.bar.set_postfix_str(f"loss {figures['loss']:.4g}", refresh=False)
        self.bar.update(figures["iteration"] - self.bar.n)
        self.logged.append(figures)
        mark = PngInfo()
        mark.add_text(CHART, self.checkpoint.name)
        try:
            with written_whole(self.chart) as partial:
                chart = loss_chart(read_log(self.checkpoint) or self.logged)
                chart.save(partial, format="PNG", pnginfo=mark)
        except OSError as error:  # no reason to end a training
            logger.warning("%s could not be written (%s)", self.chart, error)
        self.write_scalars(figures, int(figures["iteration"]))


def scalar_writer(folder: Path | None) -> Callable[[Figures, int], None]:
    """Return a function that writes figures for TensorBoard to `folder`; without one it does nothing.

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
