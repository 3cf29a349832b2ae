"""The head: new tokens are added where they stand, then a perceptron on each position's features.

B  images    L  image tokens    D  width    K  new tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch.nn.functional as F
from shortcut_pack.shortcut.denoiser import Conditions, Features, MaskedImageModel, Revealed
from shortcut_pack.shortcut.gather import added_at
from shortcut_pack.shortcut.models.architecture import HeadSize
from shortcut_pack.shortcut.models.layers import Attention, BaseNetwork
from shortcut_pack.shortcut.models.layout import Layout, Tensors, sizes
from torch import Tensor, nn

from .transformer import Config as ModelConfig
from .transformer import OnGrid


@dataclass(frozen=True)
class Config:
    """Sizes."""

    model_width: int
    width: int

    @property
    def num_blocks(self) -> int:
        return 1

    @property
    def from_full(self) -> bool:
        return True


class MoodHead(BaseNetwork):
    """The network."""

    config: Config

    def build(
        self, config: Config, operations: Any, attention: Attention, tensor: dict[str, Any]
    ) -> None:
        self.new = operations.Linear(config.model_width, config.model_width, **tensor)
        self.mean = operations.Linear(config.model_width, config.width, **tensor)
        self.up = operations.Linear(config.model_width, config.width, **tensor)
        self.down = operations.Linear(config.width, config.model_width, **tensor)

    def next_features(
        self,
        model: MaskedImageModel,
        features: Features,
        conditions: Sequence[Conditions],
        revealed: Revealed,
        mask_ratio: float,
        wanted_BM: Tensor | None = None,
    ) -> Features:
        view = cast(OnGrid, model)
        new_BKD = view.embed(revealed.codes_BK, revealed.index_BK).to(self.compute_dtype)
        return tuple(
            self(f.to(self.compute_dtype), new_BKD, revealed.index_BK).to(f.dtype) for f in features
        )

    def forward(self, features_BLD: Tensor, new_BKD: Tensor, index_BK: Tensor) -> Tensor:
        x = added_at(features_BLD, index_BK, self.new(new_BKD))
        mean_B1W = self.mean(x.mean(1, keepdim=True))
        return features_BLD + self.down(F.gelu(self.up(x) + mean_B1W))

    def output_layers(self) -> Sequence[nn.Module]:
        return (self.down,)

    def token_projections(self) -> Sequence[nn.Module]:
        return ()

    def saved_values_per_position(self) -> int:
        return 4 * self.config.model_width

    def pass_values_per_position(self) -> int:
        return self.config.model_width


def read_config(tensors: Tensors, known: Mapping[str, Any]) -> Config:
    model_width, width = sizes(tensors, "down.weight", 2)
    return Config(model_width, width)


def new_head(model: ModelConfig, asked: HeadSize) -> Config:
    return Config(model.width, asked.width)


LAYOUT = Layout(
    name="mood-head",
    kind="head",
    title="Mood shortcut head",
    filenames=("mood-head.safetensors",),
    marks=("shortcut.down.weight", "shortcut.mean.weight"),
    table={"shortcut.*": "*"},
    config=Config,
    read_config=read_config,
    network=MoodHead,
)
