"""Write the files of trained networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shortcut import checkpoint as checkpoints
from shortcut import colours
from shortcut.models.layout import Layout
from shortcut.models.maskgit.vqgan import VQGAN


def ship(
    network: Any, path: Path, layout: Layout, dtype: torch.dtype = torch.float16, **metadata: Any
) -> None:
    """Write `network` to `path`, in half precision unless `dtype` says otherwise."""
    checkpoints.save(path, checkpoints.pack(network, layout, dtype=dtype, **metadata))


@torch.no_grad()
def code_colours(network: VQGAN, pixels_BCYX: Tensor) -> str:
    """Return the mean colour of each code in pictures, as files state it."""
    codes_Bhw = torch.cat([network.encode(part) for part in pixels_BCYX.split(50)])
    return colours.to_text(colours.measured(codes_Bhw, pixels_BCYX, network.config.num_codes))
