"""The contract between an architecture and everything else.

An architecture is a folder of this package that exports one object, ARCHITECTURE. `models/__init__.py` lists it. The
sampler, the accelerators, training, the command line and the nodes know architectures by this file only.

    B  images    S  sequence of one guidance branch    D  width    L  image tokens
    N  positions asked for    M  positions to predict    V  codebook size
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..denoiser import Conditions, Features, MaskedImageModel, Revealed
from ..guard import shown
from ..schedule import SamplerRules, Settings
from .layout import Layout
from .text_rules import Branches, TextRules

Grid = tuple[int, int]  # rows, columns of codes
PRESET_NAMES = ("quality", "balanced", "fast")
ONE_STEP = "one_step"  # the preset of one-step students


class Preset(NamedTuple):
    """A trade of speed against quality with a shortcut head."""

    num_steps: int
    num_full: int  # of them full passes


class ModelConfig(Protocol):
    """What every model's configuration states. An architecture's own fields are its own business."""

    @property
    def width(self) -> int: ...
    @property
    def num_codes(self) -> int: ...


class HeadConfig(Protocol):
    """What every head's configuration states."""

    @property
    def model_width(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def from_full(self) -> bool:
        """True: predicts from the last full pass. False: from the step before."""
        ...


class VQConfig(Protocol):
    """What every VQ model's configuration states."""

    @property
    def channels(self) -> int:
        """Width of the finest level."""
        ...

    @property
    def downscale(self) -> int:
        """Pixels per code along one side."""
        ...

    @property
    def num_codes(self) -> int: ...


class Network(Protocol):
    """What every network is: a torch module (see `layers.BaseNetwork`) of given sizes and types."""

    config: Any  # ModelConfig, HeadConfig or VQConfig
    dtype: torch.dtype  # of the weights
    compute_dtype: torch.dtype  # of the activations

    def state_dict(self) -> dict[str, Tensor]: ...
    def named_modules(self) -> Any: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def to(self, device: torch.device, /) -> Any: ...
    def requires_grad_(self, requires_grad: bool = True) -> Any: ...
    def load_state_dict(self, state_dict: Any, *, strict: bool, assign: bool) -> Any: ...
    def eval(self) -> Any: ...
    def get_submodule(self, target: str) -> nn.Module: ...


class ModelNetwork(Network, Protocol):
    """A masked image model of any image size that it makes."""

    in_order: Callable[[nn.ModuleList], Iterable[nn.Module]]  # as of `layers.BaseNetwork`

    def on_grid(self, rows: int, columns: int, *, is_sequential: bool = False) -> GridModel:
        """Return the model for images of `rows` x `columns` codes.

        Args:
            is_sequential: True: one guidance branch at a time, which needs less memory.

        Raises:
            ValueError: it does not make images of that size.
        """
        ...

    def layers_to_logits(self) -> Sequence[nn.Module]:
        """Return the layers that gradients pass from logits to features."""
        ...


class GridModel(MaskedImageModel, Protocol):
    """A model for images of one size: what the sampler calls, and what training and memory estimates ask."""

    @property
    def config(self) -> Any: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def sequence_length(self, condition: Conditions | None) -> int:
        """Return the positions (S) of a branch with that condition; None = the shortest condition there is.

        Where images differ, those of the longest.
        """
        ...

    def embed(self, codes_BN: Tensor, index_BN: Tensor) -> Tensor:
        """Return the network's input (B, N, D) for `codes_BN` at the image positions `index_BN`."""
        ...

    def activation_bytes(self, num_images: int, lengths: Sequence[int]) -> float:
        """Return the memory that a run needs above the weights.

        Args:
            lengths: sequence length of each guidance branch.
        """
        ...


class HeadNetwork(Network, Protocol):
    """A shortcut head."""

    def next_features(
        self,
        model: MaskedImageModel,
        features: Features,
        conditions: Sequence[Conditions],
        revealed: Revealed,
        mask_ratio: float,
        wanted_BM: Tensor | None = None,
    ) -> Features:
        """Return the features of the next step for all guidance branches.

        Args:
            features: of the last full pass, or of the step before; see `HeadConfig.from_full`.
            revealed: the tokens revealed since.
            mask_ratio: share still masked, in [0, 1], as `Step.mask_ratio`.
            wanted_BM: the image positions to predict, the others are passed through; None = all positions.
        """
        ...

    def output_layers(self) -> Sequence[nn.Module]:
        """Return the layers that make the head pass its input through where they are zero."""
        ...

    def token_projections(self) -> Sequence[nn.Module]:
        """Return the projections of new-token embeddings that no norm follows."""
        ...

    def saved_values_per_position(self) -> int:
        """Return how many values the backward pass keeps for each position of a sequence."""
        ...

    def pass_values_per_position(self) -> int:
        """Return how many values a block has alive for each position of the sequences that run at once."""
        ...


class VQNetwork(Network, Protocol):
    """Pixels -> code ids -> pixels."""

    def encode(self, pixels_BCYX: Tensor) -> Tensor:
        """Return code ids (B, rows, columns) of RGB pixels in [-1, 1]."""
        ...

    def decode(self, codes_Bhw: Tensor) -> Tensor:
        """Return RGB pixels (B, 3, Y, X), around [-1, 1] but not clipped."""
        ...

    def cpu(self) -> Any:
        """Move the weights to the CPU."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a user asks for. None = not given. `Architecture.takes` says which fields a model reads."""

    label: str | None = None  # a class by name or number
    prompt: str | None = None
    negative: str | None = None  # what to guide away from
    task: str | None = None  # one of `Architecture.tasks`
    sources: tuple[Tensor, ...] = ()  # codes (B, rows, columns) of the task's source images

    @property
    def given(self) -> frozenset[str]:
        """The fields that were given."""
        fields = {"label": self.label, "prompt": self.prompt, "negative": self.negative}
        fields |= {"task": self.task, "sources": self.sources or None}
        return frozenset(name for name, value in fields.items() if value is not None)


# ComfyUI's CONDITIONING: rows of (tensor, entries).
Conditioning = list[list[Any]]
# A node of a ComfyUI graph: its id and inputs. What Load MIGM gives is linked as LOADED_MODEL and LOADED_CLIP.
GraphNode = tuple[str, dict[str, Any]]
LOADED_MODEL, LOADED_CLIP = ["1", 0], ["1", 2]


class Conditioner(Protocol):
    """Turns what a user asks for into the conditions of one loaded model, and knows them."""

    def conditions(self, request: Request, num_images: int) -> Branches:
        """Return the conditions of each guidance branch, rows = images.

        Raises:
            ValueError: the request says something that the model does not know, or lacks something.
        """
        ...

    def draw(self, requests: Sequence[Request]) -> Callable[[int, torch.Generator], Branches]:
        """Return a function (number of images, generator) -> conditions of random ones of `requests`.

        The images of one call have conditions of equal length. No requests = anything, if the model allows that.

        Raises:
            ValueError: the model needs requests, or one of them is wrong.
        """
        ...

    def unknown_words(self, request: Request) -> tuple[str, ...]:
        """Return the words of the request that the model never saw and so passes over; () where it cannot tell."""
        ...

    def described(self, request: Request) -> dict[str, Any]:
        """Return the request as a picture's settings name it; JSON."""
        ...

    def graph_nodes(self, request: Request) -> Sequence[GraphNode]:
        """Return the nodes that make the request in ComfyUI: what is wanted, then what to guide away from, if said."""
        ...

    def to_conditioning(self, requests: Sequence[Request]) -> Conditioning:
        """Return ComfyUI's CONDITIONING of requests that differ in label or prompt alone: one row, a batch of them.

        Raises:
            ValueError: as `conditions`.
        """
        ...

    def from_conditioning(
        self, positive: Conditioning, negative: Conditioning | None, num_images: int
    ) -> Branches:
        """Return the conditions that two CONDITIONINGs hold. Images take those of a batch in turn.

        Raises:
            ValueError: one is not of this model, holds what cannot be honoured, or more conditions than images.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSize:
    """What is asked of a new shortcut head."""

    width: int  # that of its model = no bottleneck
    num_blocks: int
    num_heads: int
    is_large: bool  # True: as the paper's. False: small parts, as suits a small model
    from_full: bool  # True: predicts from the last full pass. False: from the step before
    kernel: int | None  # side of the neighbourhood it looks at; 0 = none, None = what suits


@dataclass(frozen=True, slots=True)
class PublishedSize:
    """The published networks of a model, to count operations and memory without weights."""

    model: Any
    head: Any
    vq: Any
    grid: Grid
    # tokens of a prompt, where it has one -> the conditions of one guided image, on the meta device
    conditions: Callable[[int], Branches]


@dataclass(frozen=True, slots=True)
class Download:
    """Files of a repository on huggingface.co, and the folder of the models folder that they belong in."""

    repository: str
    files: tuple[str, ...]  # paths in the repository, or patterns
    folder: str
    is_tree: bool = False  # True: paths are kept below `folder`. False: only names


def any_size(config: Any) -> Grid | None:
    """Return None: the model makes images of any size."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Everything that the rest of the package needs to know of a model family."""

    title: str
    model: Layout
    vqs: tuple[Layout, ...]  # layouts of the VQ models that go with it
    head: Layout | None = None  # None = no shortcut head
    settings: Settings  # of the original sampler
    rules: SamplerRules = field(default_factory=SamplerRules)
    # Weights of the original by the number of branches to guide away from, where not as in `settings`.
    guidance: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    presets: Mapping[str, Preset] = field(default_factory=dict)  # by PRESET_NAMES
    has_students: bool = False  # True: one-step students of it are published
    sizes: Mapping[str, PublishedSize] = field(default_factory=dict)  # by name
    downloads: Mapping[str, Download] = field(default_factory=dict)  # by name on the command line
    takes: frozenset[str] = frozenset()  # fields of `Request`
    tasks: Mapping[str, int] = field(default_factory=dict)  # task -> number of source images
    text: TextRules | None = (
        None  # of models that answer in text; their conditioner is a `TextConditioner`
    )
    # (configuration of the model, names of its classes, its file) -> conditioner
    conditioner: Callable[[Any, Sequence[str], Path | None], Conditioner]
    fixed_grid: Callable[[Any], Grid | None] = any_size  # of a model that makes images of one size
    # configuration of a model of any size -> what most of its kind were trained on
    usual_grid: Callable[[Any], Grid | None] = any_size
    num_heads: Callable[[Any], int] = lambda config: (
        1
    )  # configuration of the model -> its attention heads
    # (configuration of the model, what is asked) -> configuration of a head; raises ValueError
    new_head: Callable[[Any, HeadSize], Any] | None = None
    # (configuration of a head, iterations of its training) -> weight of the divergence of guided codes, beside 1 of
    # the squared error
    guided_kl: Callable[[Any, int], float] = lambda config, iterations: 0.3
    # (a model's file, new place of the weights) -> copies what belongs beside them, such as a tokenizer
    copy_companions: Callable[[Path, Path], None] | None = None
    # configuration of the model -> widths of the states and of the projection of its CLIP text encoder, which ComfyUI's
    # own nodes then run; None = it has none
    clip: Callable[[Any], tuple[int, int]] | None = None
    inpaint_schedule: str | None = None  # of a run with a mask, where it is not that of `settings`
    # A model's file -> {what: where it is, or what is missing}, for `info`
    companions: Callable[[Path], Mapping[str, str]] = lambda path: {}

    @property
    def all_tasks(self) -> Mapping[str, int]:
        """Return all tasks, with and without a text, and their numbers of source images."""
        return {**self.tasks, **({} if self.text is None else self.text.tasks)}

    def check_task(self, task: str | None) -> None:
        """Raise ValueError if the models do not know a task; None = none is given."""
        if task is not None and task not in self.all_tasks:
            raise ValueError(
                f"a {self.title} does not know the task {task!r}. It knows {', '.join(self.all_tasks)}."
            )

    def check(self, request: Request) -> None:
        """Raise ValueError if these models do not read a field or the task of a request, or a text is none."""
        for name in ("label", "prompt", "negative"):
            if not isinstance(text := getattr(request, name), str | None):
                raise ValueError(f"{name} must be a text, got {shown(text)}.")
        for name in sorted(request.given - self.takes):
            raise ValueError(
                f"{name} is not for a {self.title}. It takes {', '.join(sorted(self.takes))}."
            )
        self.check_task(request.task)
