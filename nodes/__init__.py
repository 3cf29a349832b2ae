"""The list of nodes. This folder is the only one that imports ComfyUI; what can do without it is in shortcut/."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import lora
from .accelerate import Accelerator
from .answer import DescribeImage, ReasonedEdit
from .compare import SpeedQuality
from .condition import ClassCondition, TextCondition
from .folders import register_folders
from .load import LoadHead, LoadMIGM
from .sample import FlatMaskedSampler, MaskedSampler
from .train import SaveHead, TrainHead

NODES: list[type[io.ComfyNode]] = [
    LoadMIGM,
    LoadHead,
    Accelerator,
    ClassCondition,
    TextCondition,
    MaskedSampler,
    FlatMaskedSampler,
    DescribeImage,
    ReasonedEdit,
    TrainHead,
    SaveHead,
    SpeedQuality,
]


class ShortcutExtension(ComfyExtension):
    """The extension that ComfyUI loads."""

    async def on_load(self) -> None:
        register_folders()
        lora.install()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
