"""Read and write the files of judges: weights in half precision, what they read, how they were trained.

The judges of this folder are used by the tables; `python -m experiments judge` and `text-judge` make them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from shortcut.files import read
from shortcut.writing import written_whole

FOLDER = Path(__file__).parent
JUDGE = FOLDER / "scenes-judge.safetensors"
TEXT_JUDGE = FOLDER / "scenes-text-judge.safetensors"
VERSION = "1"
Widths = tuple[int, ...]
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class JudgeFile(Generic[Network]):
    """A kind of judge: how its files describe themselves and which network they hold."""

    format: str
    command: str  # of `python -m experiments` that makes it
    subject: str  # name of the list of what it reads, in the file and in messages
    reads: Mapping[str, Any]
    network: Callable[[Widths], Network]  # channels of the levels -> network

    def initialised(self, seed: int, widths: Widths) -> Network:
        """Return a network with torch's initial weights; the global random state is left alone."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.network(widths)

    def save(self, path: Path, network: Any, trained: Mapping[str, Any]) -> None:
        """Write a safetensors file; `trained` says how and with what result."""
        tensors = {n: tensor.half().contiguous() for n, tensor in network.state_dict().items()}
        about = {
            "format": self.format,
            "version": VERSION,
            "config": json.dumps({"widths": network.widths, self.subject: self.reads}),
            "trained": json.dumps(trained),
        }
        with written_whole(path) as partial:
            save_file(tensors, partial, about)

    def load(self, path: Path) -> Network:
        """Return the network of a file made by `save`, in float32 and eval mode.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is another kind of file, or a judge that reads other things.
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
        network = self.initialised(0, tuple(config["widths"]))
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return network.eval().requires_grad_(False)
