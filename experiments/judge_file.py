"""The file of a judge: its weights in half precision, what it reads, and how it was trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from torch import nn

from shortcut.files import read, written_whole

VERSION = "1"
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class JudgeFile:
    """What all files of one kind of judge say of themselves."""

    format: str
    command: str  # of `python -m experiments` that makes it
    subject: str  # what `reads` lists, for messages and as its name in the file
    reads: Mapping[str, Any]

    def save(self, path: Path, network: nn.Module, trained: Mapping[str, Any]) -> None:
        """Writes a safetensors file; `trained` says how and with what result.

        Args:
            network: with `widths`.
        """
        tensors = {
            name: tensor.half().contiguous() for name, tensor in network.state_dict().items()
        }
        about = {
            "format": self.format,
            "version": VERSION,
            "config": json.dumps({"widths": network.widths, self.subject: self.reads}),
            "trained": json.dumps(trained),
        }
        with written_whole(path) as partial:
            save_file(tensors, partial, about)

    def load(self, path: Path, make: Callable[[tuple[int, ...]], Network]) -> Network:
        """The network of a file made by `save`, in float32 and eval mode.

        Args:
            make: widths -> a network, whose weights do not matter.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is another kind of file, or a judge of other things.
        """
        tensors, about = read(path)
        advice = f"Make it with: python -m experiments {self.command}"
        if (about.get("format"), about.get("version")) != (self.format, VERSION):
            raise ValueError(
                f"{path} has format {about.get('format')!r} version {about.get('version')!r}, expected "
                f"{self.format!r} version {VERSION}. {advice}"
            )
        config = json.loads(about["config"])
        if config[self.subject] != json.loads(json.dumps(self.reads)):
            raise ValueError(
                f"{path} reads the {self.subject} {config[self.subject]}, but scenes have {self.reads}. {advice}"
            )
        network = make(tuple(config["widths"]))
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return network.eval().requires_grad_(False)
