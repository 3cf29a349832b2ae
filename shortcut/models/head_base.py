"""What shortcut heads share: the sizes of any, and the way into a narrower width and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .layers import BaseNetwork, MaskRatioModulation


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseConfig:
    """Sizes of any head. All but `num_heads` can be read from the tensors."""

    model_width: int
    width: int  # model_width / bottleneck, rounded; equal to it = no bottleneck and no projections
    num_blocks: int
    num_heads: int
    has_time: bool  # True: modulated by the mask ratio
    from_full: bool = False  # True: predicts from the last full pass. False: from the step before


class BottleneckHead(BaseNetwork):
    """A head between a projection of features and new tokens, and one back."""

    new_token_proj_in: Any  # None: the head is blind to the tokens just revealed
    time: MaskRatioModulation | None

    def build_projections(
        self, config: BaseConfig, operations: Any, tensor: dict[str, Any], *, sees_new: bool = True
    ) -> None:
        """Make the projections; nothing is projected where the head is as wide as its model."""

        def projection(num_in: int, num_out: int) -> nn.Module:
            if config.width == config.model_width:
                return nn.Identity()
            return operations.Linear(num_in, num_out, **tensor)

        self.proj_in = projection(config.model_width, config.width)
        self.new_token_proj_in = projection(config.model_width, config.width) if sees_new else None
        self.proj_out = projection(config.width, config.model_width)

    def last_norm(self) -> nn.Module:
        """Return the norm before the modulation by the mask ratio, or before the projection back."""
        raise NotImplementedError

    @property
    def hidden_width(self) -> int:
        """The width of the MLPs' hidden layer."""
        raise NotImplementedError

    def saved_values_per_position(self) -> int:
        """Return how many values the backward pass keeps for each position of a sequence."""
        config = self.config
        of_blocks = config.num_blocks * 2 * (8 * config.width + 4 * self.hidden_width)
        return of_blocks + 6 * config.model_width

    def pass_values_per_position(self) -> int:
        """Return how many values a block has alive for each position of the sequences that run at once."""
        return 4 * self.config.width + 2 * self.hidden_width

    def output_layers(self) -> list[nn.Module]:
        """Return the layers that make the head pass its input through where they are zero."""
        if isinstance(self.proj_out, nn.Linear):
            return [self.proj_out]
        return [self.last_norm(), *([] if self.time is None else [self.time.modulation])]
