"""The nodes that make heads: a MODEL's own runs -> a trained SHORTCUT_HEAD and the chart of its loss -> a file.

ComfyUI runs nodes in inference mode, where nothing can be learned: a training is outside of it. What ComfyUI does with
the model's weights stays in it: a weight that was made there and moved outside is of no more use, to any node.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import comfy.model_management as mm
import comfy.utils
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..shortcut import checkpoint as checkpoints
from ..shortcut.grid import usual_grid
from ..shortcut.models.architecture import HeadNetwork, ModelNetwork, Request
from ..shortcut.sampler import Trace
from ..shortcut.settings import usual_settings
from ..shortcut.train.chart import loss_chart
from ..shortcut.train.learn import HeadPlan, learn
from ..shortcut.train.log import Figures, read_log, time_left
from ..shortcut.train.teacher import RUNS, Teacher, teacher_of
from ..shortcut.values import fingerprint
from ..shortcut.writing import check_writable
from . import folders
from .accelerate import Accelerated
from .drawing import image_of
from .host import NodeText, advice_on_memory
from .load import Head
from .native import MARGIN, MaskedImageModel, build_head, head_of, model_of
from .patches import lines_without_effect
from .progress import PREVIEW_SIZE, TEXT_INTERVAL, Preview
from .widgets import seed_widget

MEMORY_ADVICE = (
    "A training needs the model, its passes and the head's gradients at once. Set weight_dtype of "
    "Load MIGM to bfloat16 or float8_e4m3fn, or train on the command line with smaller images: "
    "python -m shortcut train --grid."
)


class TrainHead(io.ComfyNode):
    """A shortcut head, learned from runs that the model makes meanwhile."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShortcutTrainHead",
            display_name="Train Shortcut Head",
            category="shortcut",
            description="Makes a shortcut head for the loaded model, such as a fine-tune: the "
            "model makes pictures, and the head learns to predict their steps. Interrupt it "
            "whenever you like; queued again, it goes on.",
            search_aliases=["train", "learn", "fine-tune", "migm shortcut", "accelerate", "head"],
            inputs=[
                io.Model.Input("model", tooltip="From Load MIGM: the model to accelerate."),
                io.Int.Input(
                    "iterations",
                    default=1000,
                    min=1,
                    max=1_000_000,
                    tooltip="How often the head is improved. More: better, slower. 300 give a "
                    "first impression; the shipped head took 1,500, large models take more.",
                ),
                io.Int.Input(
                    "teacher_steps",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Steps of the pictures that the head learns from: those that you will "
                    "use it with. 0: as many as the model is used with.",
                ),
                seed_widget(
                    "Decides every random choice of the training. On a CPU the same seed "
                    "gives the same head.",
                    control=False,
                ),
                io.String.Input(
                    "checkpoint_name",
                    default="my_head",
                    tooltip="The training is kept under this name in output/shortcut_training, so "
                    "that it can go on after an interrupt or a restart. Another name starts "
                    "another training; other settings need one.",
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    optional=True,
                    tooltip="What a text model shows meanwhile, one prompt a line, such as you "
                    "will ask for later; a hundred are better than a few. Not for models "
                    "of classes.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.00001,
                    display_name="learning_rate (0 = automatic)",
                    optional=True,
                    advanced=True,
                    tooltip="How far an iteration moves the weights at most. 0: what suits the "
                    "head's width. Halve it if the loss is not finite.",
                ),
            ],
            outputs=[
                Head.Output(
                    "head",
                    display_name="head",
                    tooltip="For the Shortcut Masked Sampler with this model, and for Save "
                    "Shortcut Head.",
                ),
                io.Image.Output(
                    "loss_chart",
                    display_name="loss_chart",
                    tooltip="The loss over the iterations. The same is shown on the node meanwhile.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        iterations: int,
        teacher_steps: int,
        seed: int,
        checkpoint_name: str,
        prompts: str = "",
        learning_rate: float = 0.0,
    ) -> io.NodeOutput:
        masked_model, kept = model_of(model), folders.training_file(checkpoint_name)
        if not _is_finished(kept, iterations):  # that is only read
            check_writable(kept)  # told before hours of training
        text = NodeText()
        text.keep(lines_without_effect(model, "Train Shortcut Head"))
        requests = _requests(masked_model, prompts)
        with torch.inference_mode(False):
            plan = _plan(masked_model, iterations, teacher_steps, seed % 2**64, learning_rate)
            teacher = _loaded_teacher(model, plan, requests)
            colours_V3 = model.get_model_object("latent_format").colours_V3
            grid = usual_grid(masked_model.checkpoint)
            report = TrainingReport(iterations, kept, Preview(grid, colours_V3), text)
            with (
                masked_model.running(model),
                _gradients_pass(masked_model.network),
                advice_on_memory(MEMORY_ADVICE),
            ):
                trained = learn(
                    replace(teacher, on_step=report.on_step),
                    masked_model.checkpoint,
                    plan,
                    checkpoint=kept,
                    about=_changes(model),
                    on_iteration=report.on_iteration,
                    on_log=report.on_log,
                )
        on_cpu = {name: tensor.cpu() for name, tensor in trained.tensors.items()}
        head = build_head(replace(trained, tensors=on_cpu), "default")
        return io.NodeOutput(head, image_of(report.chart()))


def _is_finished(kept: Path, iterations: int) -> bool:
    """Return whether a training is kept that has all its iterations."""
    log = read_log(kept) if kept.is_file() else []
    return bool(log) and log[-1]["iteration"] >= iterations


class SaveHead(io.ComfyNode):
    """A head to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShortcutSaveHead",
            display_name="Save Shortcut Head",
            category="shortcut",
            description="Writes a shortcut head to models/migm_heads, where Load Shortcut Head "
            "finds it after R.",
            search_aliases=["save head", "export", "migm shortcut"],
            is_output_node=True,
            inputs=[
                Head.Input("head", tooltip="From Train Shortcut Head."),
                io.String.Input(
                    "filename_prefix",
                    default="my_head",
                    tooltip="The file is NAME_00001_.safetensors; the number rises, so nothing is "
                    "overwritten. Folders and ComfyUI's %year%, %month%, %day% work.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        try:
            if filename_prefix is not None:  # as it is of a link, and where a graph has none
                folders.checked_name(filename_prefix)
        except ValueError:  # told before hours of training, in words without what the page escapes
            return (
                "filename_prefix is no name for a file. Give one such as my_head, without a dot in "
                "front and inside of its folder."
            )
        return True

    @classmethod
    def execute(cls, head: Any, filename_prefix: str) -> io.NodeOutput:
        path = folders.new_head_file(filename_prefix)
        saved = Accelerated.of(head).head
        if saved is None:
            raise ValueError(
                "head comes from an Accelerator without a head. Connect Train Shortcut Head."
            )
        network, described = head_of(saved)
        tensors = network.state_dict()
        checkpoints.save(path, replace(described, tensors=tensors), dtype=described.dtype)
        logging.info("Save Shortcut Head: wrote %s", path)
        return io.NodeOutput()


class TrainingReport:
    """The hooks of a training: interruption, progress bar, live chart of the loss, line of text with the time left.

    Until there is a loss, what the model makes is shown.
    """

    def __init__(self, iterations: int, kept: Path, preview: Preview, text: NodeText):
        self.iterations, self.kept = iterations, kept
        self.preview, self.text, self.said_at = preview, text, -math.inf
        self.has_begun = self.is_learning = False  # True: from the first, the second iteration on
        self.logged: list[Figures] = []  # for the chart, should there be no file of them
        self.bar = comfy.utils.ProgressBar(iterations)

    def chart(self, iterations: int | None = None) -> Image.Image:
        return loss_chart(read_log(self.kept) or self.logged, iterations)

    def on_step(self, trace: Trace) -> None:
        """Show a step of the model's runs: the runs before the first iteration take minutes."""
        mm.throw_exception_if_processing_interrupted()
        if not self.has_begun or self.is_learning:
            return
        self.bar.update_absolute(0, self.iterations, self.preview.of(trace))
        now = time.perf_counter()
        if now - self.said_at >= TEXT_INTERVAL and not self.kept.exists():
            self.said_at = now
            self.text.show(
                f"pictures to learn from, step {trace.step.index + 1}. Interrupted before the first "
                "iteration, nothing is kept."
            )

    def on_iteration(self, done: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        self.is_learning, self.has_begun = self.has_begun, True
        self.bar.update_absolute(done, self.iterations, None)

    def on_log(self, figures: Figures) -> None:
        self.logged.append(figures)
        chart = ("JPEG", self.chart(self.iterations), PREVIEW_SIZE)
        self.bar.update_absolute(int(figures["iteration"]), self.iterations, chart)
        self.text.show(
            f"iteration {figures['iteration']:.0f} of {self.iterations}, loss {figures['loss']:.4g}, "
            f"{time_left(figures, self.iterations)}"
        )


def _requests(model: MaskedImageModel, prompts: str) -> list[Request]:
    """Return the requests that the model answers in a training. Raise ValueError if it needs some and has none."""
    lines = filter(None, map(str.strip, prompts.splitlines()))
    requests = [Request(prompt=line) for line in lines]
    if requests and "prompt" not in model.checkpoint.architecture.takes:
        raise ValueError(
            f"prompts holds {len(requests)} lines, but {model.checkpoint.name} learns from its classes. Leave it empty."
        )
    if not requests:
        try:
            model.conditioner.draw(requests)
        except ValueError as error:
            raise ValueError(
                f"{model.checkpoint.name} needs prompts to show what it does. Write some into prompts, one a line."
            ) from error
    return requests


def _changes(model: Any) -> dict[str, str]:
    """Return what tells the weights of a MODEL from those of its file, as LoRA loaders change them; empty = nothing."""
    digest = hashlib.sha256()
    for weight, patches in sorted(model.patches.items()):
        for strength, patch, strength_model, *_ in patches:
            leaves = tree_leaves(getattr(patch, "weights", patch))
            tensors = {f"{i}": leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
            digest.update(f"{weight} {strength} {strength_model} {fingerprint(tensors)}".encode())
    return {"changes of weights": digest.hexdigest()[:16]} if model.patches else {}


def _plan(
    model: MaskedImageModel, iterations: int, teacher_steps: int, seed: int, learning_rate: float
) -> HeadPlan:
    """Return what suits the model, but for what the widgets say."""
    settings = replace(usual_settings(model.checkpoint), full_steps=None)
    if teacher_steps > 0:
        settings = replace(settings, num_steps=teacher_steps)
    plan = HeadPlan.default(model.checkpoint, runs=(settings,), iterations=iterations, seed=seed)
    is_float32 = model.network.compute_dtype == torch.float32
    recipe = replace(
        plan.recipe,
        lr=learning_rate or plan.recipe.lr,
        autocast=None if is_float32 else torch.bfloat16,
    )
    return replace(plan, recipe=recipe)


def _loaded_teacher(model: Any, plan: HeadPlan, requests: Sequence[Request]) -> Teacher:
    """Return the MODEL as a teacher, loaded with room for the training beside it."""
    masked_model, device = model_of(model), model.load_device
    network, checkpoint = masked_model.network, masked_model.checkpoint
    masked_model.requires_grad_(False)
    runs, num_images = plan.rollouts.runs, plan.rollouts.images_per_run
    teacher = teacher_of(
        checkpoint,
        network,
        masked_model.conditioner,
        requests,
        settings=runs[0],
        device=device,
    )
    _, conditions, _ = teacher.draw(runs, num_images, (plan.recipe.seed, RUNS))
    grid = usual_grid(checkpoint)
    head = cast(HeadNetwork, plan.layout.network(plan.config, device="meta"))
    needed = masked_model.run_bytes(grid, num_images, conditions) + training_memory(
        head,
        plan.rollouts.images_per_window,
        checkpoint.config.num_codes,
        teacher.num_tokens,
        [teacher.model.sequence_length(condition) for condition in conditions],
    )
    with torch.inference_mode():
        mm.load_models_gpu([model], memory_required=needed)
    if len(conditions) > 1 and model.get_free_memory(device) < needed:
        logging.info("Train Shortcut Head: memory is short, one guidance branch at a time")
        return replace(teacher, model=network.on_grid(*grid, is_sequential=True))
    return teacher


def training_memory(
    head: HeadNetwork,
    images_per_window: int,
    num_codes: int,
    num_tokens: int,
    lengths: Sequence[int],
) -> float:
    """Return the bytes that a head, its optimizer and a window of its training take.

    Args:
        head: needs no weights.
        num_codes, num_tokens: of the model and of one image.
        lengths: sequence length of each guidance branch.
    """
    num_parameters = sum(parameter.numel() for parameter in head.parameters())
    # In float32: weights, gradient, two moments, average.
    state = 5 * 4 * num_parameters
    of_branches = 4 * sum(lengths) * head.saved_values_per_position()
    # Guided logits of head and teacher, as they are and normalised, with their gradients.
    logits = 4 * 8 * num_tokens * num_codes
    return state + MARGIN * images_per_window * (of_branches + logits)


@contextlib.contextmanager
def _gradients_pass(network: ModelNetwork) -> Iterator[None]:
    """Let gradients pass through the layers that logits come from, to the head's features.

    For that, autograd keeps the layers' weights. It must not keep what was loaded in inference mode, nor what dynamic
    VRAM may take back meanwhile: in here the layers work with copies, by the means that ComfyUI has for patches.
    """
    layers: list[Any] = list(network.layers_to_logits())
    before = [layer.weight_function for layer in layers]
    for layer in layers:
        layer.weight_function = [*layer.weight_function, torch.clone]
    try:
        yield
    finally:
        for layer, functions in zip(layers, before, strict=True):
            layer.weight_function = functions
