"""Ways to get the features of a step without a full pass, a file each. The protocol is `denoiser.Accelerator`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..denoiser import Accelerator, Conditions
from ..models.architecture import GridModel

# (model, conditions of the run) -> its accelerator
MakeAccelerator = Callable[[GridModel, Sequence[Conditions]], Accelerator]
