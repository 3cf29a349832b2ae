"""Ways to get the features of a step without a full pass, a file each. The protocol is `denoiser.Accelerator`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..denoiser import Accelerator, Conditions, MaskedImageModel
from ..models.architecture import GridModel


class MakeAccelerator(Protocol):
    """Makes the accelerator of a run."""

    def __call__(
        self,
        model: GridModel,
        conditions: Sequence[Conditions],
        passes: MaskedImageModel | None = None,
        /,
    ) -> Accelerator:
        """Make it.

        Args:
            conditions: of the run.
            passes: makes the passes of the run; None = `model`, which heads ask for embeddings, does so itself.
        """
        ...
