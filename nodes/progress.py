"""What a run shows while it goes on: ComfyUI's progress bar, a preview now and then, a line of text on the node."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image
from torch import Tensor

from ..shortcut.denoiser import Canvas
from ..shortcut.grid import Grid
from ..shortcut.image import preview
from ..shortcut.sampler import Trace
from .host import NodeText
from .timing import StepClock

PREVIEW_SIZE = 512  # pixels of the longer side
PREVIEW_INTERVAL = 0.1  # seconds at least between previews; each waits for the device
PREVIEW_SHARE = 0.02  # of the time of a run at most
PREVIEW_COST = 0.04  # seconds of the first, before one was timed
SENDING = 8.0  # a preview costs so many times what making it takes, with its encoding as JPEG and sending by ComfyUI
TEXT_INTERVAL = 0.2  # seconds between lines


class Preview:
    """Shows the first image of a run as far as it is revealed, if the user wants previews."""

    def __init__(self, grid: Grid, colours_V3: Tensor):
        self.grid, self.colours_V3 = grid, colours_V3
        self.is_wanted = args.preview_method != LatentPreviewMethod.NoPreviews
        self.begun = self.shown_at = time.perf_counter()
        self.spent, self.cost = 0.0, PREVIEW_COST

    def of(self, trace: Trace | Canvas) -> tuple[str, Image.Image, int] | None:
        """Return what ComfyUI's bar takes; None if no preview is wanted, or it would come too soon or cost too much."""
        now = time.perf_counter()
        is_due = now - self.shown_at >= PREVIEW_INTERVAL
        is_cheap = self.spent + self.cost <= PREVIEW_SHARE * (now - self.begun)
        if not (self.is_wanted and is_due and is_cheap):
            return None
        codes_hw, is_masked_hw = (
            t[0].unflatten(0, self.grid).cpu() for t in (trace.codes_BL, trace.is_masked_BL)
        )
        self.shown_at = time.perf_counter()  # now the device is done
        picture = preview(codes_hw, is_masked_hw, self.colours_V3)
        scale = max(1, PREVIEW_SIZE // max(picture.size))
        # Enlarged here because ComfyUI would blur the codes into each other.
        size = (picture.width * scale, picture.height * scale)
        picture = picture.resize(size, Image.Resampling.NEAREST)
        self.cost = SENDING * (time.perf_counter() - self.shown_at)
        self.spent += self.cost
        return ("JPEG", picture, PREVIEW_SIZE)


def with_bar(items: Iterable[Any], total: int) -> Iterator[Any]:
    """Yield `items` with a bar on the node. An interrupt ends it."""
    bar = comfy.utils.ProgressBar(total)
    for number, item in enumerate(items, 1):
        mm.throw_exception_if_processing_interrupted()
        bar.update_absolute(number, total)
        yield item


class StepReport:
    """The hook of a run: interruption, progress bar, preview of the first image, line of text, timing.

    Args:
        num_steps: of the run, of all groups of images.
        text: of the node.
        prefix: of the line.
        before, total: steps of the runs before this one, and of all runs that the bar is for; None = of this alone.
    """

    def __init__(
        self,
        num_steps: int,
        grid: Grid,
        colours_V3: Tensor,
        device: torch.device,
        text: NodeText,
        prefix: str = "",
        before: int = 0,
        total: int | None = None,
    ):
        self.num_steps, self.text, self.prefix = num_steps, text, prefix
        self.before, self.total = before, total or num_steps
        self.bar = comfy.utils.ProgressBar(self.total)
        self.preview = Preview(grid, colours_V3)
        self.clock = StepClock(device)
        self.begun, self.said_at = time.perf_counter(), -math.inf
        self.num_done = self.num_full = 0

    def __call__(self, trace: Trace) -> None:
        mm.throw_exception_if_processing_interrupted()
        self.clock.tick(trace.denoised.was_full)
        self.num_done += 1
        self.num_full += trace.denoised.was_full
        done = self.before + self.num_done
        self.bar.update_absolute(done, self.total, self.preview.of(trace))
        now = time.perf_counter()
        if now - self.said_at >= TEXT_INTERVAL:
            self.said_at = now
            self.text.show(
                f"{self.prefix}step {self.num_done} of {self.num_steps}, {self.num_full} full, "
                f"{now - self.begun:.1f} s"
            )


class PassReport:
    """The hook of a run that makes text: interruption, progress bar, line of text, preview of an image beside it."""

    def __init__(self, num_passes: int, text: NodeText, preview: Preview | None = None):
        self.num_passes, self.text, self.preview = num_passes, text, preview
        self.bar = comfy.utils.ProgressBar(num_passes)
        self.begun, self.num_done = time.perf_counter(), 0

    def __call__(self, image: Canvas | None = None) -> None:
        mm.throw_exception_if_processing_interrupted()
        self.num_done += 1
        shown = None if self.preview is None or image is None else self.preview.of(image)
        self.bar.update_absolute(self.num_done, self.num_passes, shown)
        self.text.show(self.took())

    def took(self) -> str:
        """Return how far the run is, or what it took."""
        return (
            f"pass {self.num_done} of {self.num_passes}, {time.perf_counter() - self.begun:.1f} s"
        )
