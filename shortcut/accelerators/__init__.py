"""Ways to get the features of a step without a full pass, a file each. The protocol is `denoiser.Accelerator`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..denoiser import Accelerator, Conditions, MaskedImageModel

# (model, conditions of the run) -> its accelerator
MakeAccelerator = Callable[[MaskedImageModel, Sequence[Conditions]], Accelerator]
