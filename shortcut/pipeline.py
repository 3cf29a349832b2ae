"""A model with its VQ model, conditioner and shortcut head, checked to fit each other once, and what they make.

    pipeline = Pipeline.load("scenes")
    pictures = pipeline.generate(label="night snow", seed=7, steps=32, full_steps=8)

B  images    L  image tokens    h, w  rows, columns of codes    Y, X  pixel rows, columns
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from . import checkpoint as checkpoints
from . import shipped
from .accelerators import MakeAccelerator
from .accelerators.choice import HEAD, PARTIAL, check, named, needs_head, run_bytes
from .checkpoint import Checkpoint
from .companions import placed
from .compatibility import check_head, check_vq
from .compiled import Compiled
from .cuda_graph import Recordings
from .denoiser import Conditions
from .devices import advice_on_memory, checked_devices, is_out_of_memory
from .generate import Result, generate, needed_branches, unrecorded
from .grid import Grid, doubt_of_size, grid_of
from .guard import MAX_IMAGES, check_whole
from .image import to_pictures
from .memory import images_at_once
from .models.architecture import (
    ONE_STEP,
    Architecture,
    Branches,
    Conditioner,
    HeadNetwork,
    ModelNetwork,
    Request,
    VQNetwork,
)
from .sampler import Trace
from .schedule import Settings
from .settings import chosen_settings, unknown_settings
from .split import Copy

logger = logging.getLogger(__name__)

NO_HEAD = "none"  # in place of a head's file
LARGE = 2**33  # bytes of weights in float32 above which they keep the type of their file


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Networks that fit each other, on one device. The files are descriptions without tensors."""

    model_file: Checkpoint
    model: ModelNetwork
    conditioner: Conditioner
    vq_file: Checkpoint
    vq: VQNetwork
    head_file: Checkpoint | None = None
    head: HeadNetwork | None = None
    device: torch.device
    is_sequential: bool = False  # one guidance branch at a time
    copies: tuple[tuple[ModelNetwork, torch.device], ...] = ()  # of the model, on other devices
    recordings: Recordings | None = None  # of runs; None = none is recorded
    accelerator_name: str | None = None  # one of `accelerators.choice.NAMES`; None = vanilla

    @classmethod
    def load(
        cls,
        model: str | Path,
        vq: str | Path | None = None,
        head: str | Path | None = None,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        is_sequential: bool = False,
        more_devices: Sequence[str] = (),
        cuda_graph: bool = False,
        compiled: bool = False,
        accelerator: str | None = None,
    ) -> Pipeline:
        """Load files and check that they fit each other.

        Args:
            model: file or folder of a model, or the name of a shipped one, which comes with its VQ model and head.
            vq: None = the VQ model in the model's folder.
            head: None = none, or the shipped one; "none" = none.
            device: "cuda" is the process's own device under torchrun.
            dtype: of model and head; None = float32, or the file's own type where float32 would take over 8 GB.
            more_devices: each holds the model too and takes guidance branches over, in turn.
            cuda_graph: True: a run is recorded, and one with the same plan, number of images and length of the prompt
                is started from the recording. Runs with an `on_step` and of one-step students are not.
            compiled: True: the model's blocks go through torch.compile in the first run, and round differently. Where
                that fails they run as they are.
            accelerator: what answers steps that are not full passes, one of `accelerators.choice.NAMES`; None = the
                head, if there is one; for a shipped model what suits it best.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged or unknown, two do not fit each other, or there is no such device, or it is
                named twice, or it records nothing.
        """
        if (files := shipped.files_of(str(model))) is not None:
            if head is None and accelerator is None:
                accelerator = shipped.ACCELERATORS.get(files["model"])
            model, vq, head = files["model"], vq or files["vq"], head or files["head"]
        head = None if head == NO_HEAD else head
        found_device, *others = checked_devices((device, *more_devices))
        if cuda_graph and (found_device.type != "cuda" or others):
            raise ValueError(
                f"a CUDA graph is recorded on one NVIDIA GPU, got {', '.join((device, *more_devices))}. Leave it out "
                "(--cuda-graph), or use --device cuda alone."
            )
        model_file = checkpoints.load(model, kind="model")
        assert model_file.path is not None
        vq_file = checkpoints.load(vq or model_file.folder, kind="vq")
        check_vq(vq_file, model_file)
        head_file = None if head is None else checkpoints.load(head, kind="head", model=model_file)
        if head_file is not None and (doubt := check_head(head_file, model_file)):
            logger.warning(doubt)
        dtype = dtype or default_dtype(model_file)
        model_file = shipped.widened(model_file, dtype)
        if accelerator is None and head_file is not None:
            accelerator = HEAD
        if accelerator is not None:
            check(accelerator, has_head=head_file is not None)
        build = partial(checkpoints.build, device=found_device)
        pipeline = cls(
            model_file=model_file.without_tensors(),
            model=cast(ModelNetwork, build(model_file, dtype=dtype)),
            conditioner=conditioner_of(model_file),
            vq_file=vq_file.without_tensors(),
            vq=cast(VQNetwork, build(vq_file, dtype=torch.float32)),
            head_file=head_file and head_file.without_tensors(),
            head=head_file and cast(HeadNetwork, build(head_file, dtype=dtype)),
            device=found_device,
            is_sequential=is_sequential,
            copies=tuple(
                (cast(ModelNetwork, build(model_file, dtype=dtype, device=other)), other)
                for other in others
            ),
            recordings=Recordings() if cuda_graph else None,
        )
        if compiled:
            logger.info("the first run compiles the model's blocks, which takes a minute or so")
            for network in (pipeline.model, *(copy for copy, _ in pipeline.copies)):
                network.in_order = Compiled(iter, {})
        return pipeline if accelerator is None else pipeline.with_accelerator(accelerator)

    def with_accelerator(self, name: str) -> Pipeline:
        """Return the same networks with another accelerator. Raises ValueError as `accelerators.choice.named`."""
        named(name, self.head)
        return replace(self, accelerator_name=name)

    def for_run(self, accelerator: str | None, preset: str | None, full_steps: Any) -> Pipeline:
        """Return the pipeline with the accelerator of a run.

        Args:
            accelerator: its name; None = the pipeline's own, or partial passes if it has none and a preset or full
                steps are given.

        Raises:
            ValueError: as `with_accelerator`, or one is given for a single step.
        """
        if preset == ONE_STEP:
            if accelerator is not None:
                raise ValueError(
                    f"--preset {ONE_STEP} is a single full pass, with nothing for --accelerator {accelerator} to do. "
                    "Leave one of them out."
                )
            return replace(self, accelerator_name=None)
        is_faster = preset is not None or full_steps is not None
        if accelerator is None and self.accelerator_name is None and is_faster:
            accelerator = PARTIAL
        return self if accelerator is None else self.with_accelerator(accelerator)

    @property
    def architecture(self) -> Architecture:
        """The model's architecture."""
        return self.model_file.architecture

    @property
    def downscale(self) -> int:
        """Pixels per code along one side."""
        return self.vq.config.downscale

    @property
    def accelerator(self) -> MakeAccelerator | None:
        """Makes the accelerator of a run; None = vanilla."""
        name = self.accelerator_name
        return None if name is None else named(name, self.head)

    @property
    def used_head(self) -> HeadNetwork | None:
        """The head, if the accelerator asks it."""
        return self.head if needs_head(self.accelerator_name) else None

    def conditions(self, request: Request, num_images: int) -> Branches:
        """Return the conditions of each guidance branch, rows = images. Words that say nothing to the model are logged.

        Raises:
            ValueError: the request has something that the model does not know or take, or lacks something.
        """
        self.architecture.check(request)
        branches = self.conditioner.conditions(request, num_images)
        if unknown := self.conditioner.unknown_words(request):
            logger.warning(
                "%s never saw these words, which say nothing to it: %s.",
                *(self.model_file.name, ", ".join(unknown)),
            )
        return branches

    def generate(
        self,
        prompt: str | None = None,
        *,
        label: str | int | None = None,
        negative: str | None = None,
        seed: int = 0,
        num_images: int = 1,
        width: int | None = None,
        height: int | None = None,
        accelerator: str | None = None,
        on_step: Callable[[Trace], None] | None = None,
        **settings: Any,
    ) -> list[Image.Image]:
        """Make pictures from a prompt or a class.

        Args:
            label: name or number of a class.
            width, height: pixels; None = those that the model was trained on.
            accelerator: as for `for_run`.
            settings: as for `chosen_settings`: preset, steps, full_steps, cfg, temperature, schedule ...

        Raises:
            ValueError: something is out of range, or the model does not know it.
            RuntimeError: the device is out of memory.
        """
        check_whole("num_images", num_images, 1, MAX_IMAGES)
        if unknown := settings.keys() & {"num_guided", "has_mask"}:  # not for a user to say
            raise unknown_settings(unknown)
        self = self.for_run(accelerator, settings.get("preset"), settings.get("full_steps"))
        label = None if label is None else str(label)
        request = Request(prompt=prompt, label=label, negative=negative)
        conditions = self.conditions(request, num_images)
        chosen = chosen_settings(
            self.model_file,
            num_guided=len(conditions) - 1,
            accelerator=self.accelerator_name,
            **settings,
        )
        grid = grid_of(self.model_file, self.downscale, width, height)
        result = self.sample(
            conditions,
            chosen,
            grid,
            seed=seed,
            image_indices=range(num_images),
            on_step=on_step,
        )
        return to_pictures(self.decode(result.codes_BL.unflatten(1, grid)))

    def sample(
        self,
        conditions: Sequence[Conditions],
        settings: Settings,
        grid: Grid,
        *,
        seed: int,
        image_indices: Sequence[int],
        known_codes_BL: Tensor | None = None,
        is_editable_BL: Tensor | None = None,
        denoise: float = 1.0,
        on_step: Callable[[Trace], None] | None = None,
    ) -> Result:
        """Make codes. Arguments as for `generate.generate`; branches of weight 0 are left out."""
        conditions, guidance = needed_branches(conditions, settings.guidance)
        model = self.model.on_grid(*grid, is_sequential=self.is_sequential)
        lengths = [model.sequence_length(condition) for condition in conditions]

        if doubt := doubt_of_size(self.model_file, grid, self.downscale):
            logger.warning("%s.", doubt)

        def needed(num_images: int) -> float:
            run = run_bytes(
                *(self.accelerator_name, model, self.head, num_images, lengths),
                is_sequential=self.is_sequential,
            )
            # of a recording its own, and its warm-up's
            return run if self.recordings is None else 2 * run

        at_once = images_at_once(needed, len(image_indices), self.device)
        if (num_idle := len(self.copies) + 1 - len(conditions)) > 0:
            logger.warning(
                "%d of the devices stay idle: the run has %d guidance branches, and a branch takes one.",
                *(num_idle, len(conditions)),
            )
        start = unrecorded
        if self.recordings is not None and on_step is None and not settings.is_one_step:
            start = self.recordings.start(
                (id(self.model), id(self.head), self.accelerator_name, self.is_sequential)
            )
        with advice_on_memory():
            return generate(
                model,
                conditions,
                replace(settings, guidance=guidance),
                self.architecture.rules,
                seed=seed,
                image_indices=image_indices,
                num_tokens=grid[0] * grid[1],
                accelerator=self.accelerator,
                known_codes_BL=known_codes_BL,
                is_editable_BL=is_editable_BL,
                denoise=denoise,
                images_at_once=at_once,
                device=self.device,
                copies=[
                    Copy(copy.on_grid(*grid, is_sequential=self.is_sequential), device)
                    for copy, device in self.copies
                ],
                on_step=on_step,
                start=start,
            )

    @torch.no_grad()
    def encode(self, pixels_BCYX: Tensor) -> Tensor:
        """Return codes (B, h, w) on the CPU of RGB pixels in [-1, 1]."""
        return self._by_vq(self.vq.encode, pixels_BCYX)

    @torch.no_grad()
    def decode(self, codes_Bhw: Tensor) -> Tensor:
        """Return pixels (B, 3, Y, X) on the CPU."""
        return self._by_vq(self.vq.decode, codes_Bhw)

    def _by_vq(self, make: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Apply a method of the VQ model to images one at a time, so that its memory does not grow with the batch.

        Where a device has no room for it beside the model, the VQ model moves to the CPU, and stays there.
        """
        place = next(self.vq.parameters()).device
        try:
            with advice_on_memory():
                return torch.cat([make(image.to(place)).cpu() for image in images.split(1)])
        except RuntimeError as error:
            if place.type == "cpu" or not is_out_of_memory(error):
                raise
        logger.warning(
            "%s has no room for the VQ model's work: it moves to the CPU, and is slower", place
        )
        self.vq.cpu()
        return self._by_vq(make, images)


def default_dtype(model: Checkpoint) -> torch.dtype:
    """Return float32, or the file's own type where float32 would be large."""
    return model.dtype if 4 * model.num_parameters > LARGE else torch.float32


def conditioner_of(model: Checkpoint) -> Conditioner:
    """Return the conditioner of a model's file."""
    with placed(model) as path:
        return model.architecture.conditioner(model.config, model.metadata.class_names, path)
