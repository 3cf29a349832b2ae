"""The judge: a small network that reads from a picture what stands where.

A picture is read in columns: for each group of things and each of 32 columns, it says which colour of thing has its
centre there. Counts, colours and sides follow, as `Facts`, on which the claims of a caption are checked. Distributions
of pictures are compared in its last features, as photographs are in those of Inception (Heusel et al. 2017, 4.1).

    B  images    Y, X  pixel rows, columns    C  channels    K  nothing, then the colours of a group    W  columns read
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from experiments.scenes.claims import Facts, Thing
from experiments.scenes.facts import GROUPS
from experiments.scenes.scene import PLACES, STYLES, TIMES, WEATHERS
from shortcut.files import read as read_file
from shortcut.writing import written_whole

PATH = Path(__file__).with_name("judge.safetensors")
FORMAT, VERSION = "shortcut judge", "1"
CLASSES = {
    "time": TIMES,
    "place": PLACES,
    "weather": WEATHERS,
    "style": STYLES,
}  # of a whole picture
WIDTHS = (24, 48, 64, 96, 128)
STRIDES = ((2, 2), (2, 2), (2, 1), (2, 1), (2, 1))  # 128 x 128 pixels -> 4 rows, 32 columns
NUM_FEATURES, NUM_COLUMNS = 128, 32
PEAK_WINDOW = 5  # columns; two things of a group are farther apart than half of it
UNSURE = -100  # a column that may say nothing or the colour beside it


class Level(nn.Module):
    """A strided convolution, then a residual one."""

    def __init__(self, num_in: int, num_out: int, stride: tuple[int, int]):
        super().__init__()
        self.down = nn.Conv2d(num_in, num_out, 3, stride=stride, padding=1)
        self.norm_down = nn.GroupNorm(8, num_out)
        self.same = nn.Conv2d(num_out, num_out, 3, padding=1)
        self.norm_same = nn.GroupNorm(8, num_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_down(self.down(x)))
        return x + F.relu(self.norm_same(self.same(x)))


class Reader(nn.Module):
    """Pictures, a quarter as many columns -> logits of the classes and, for each group, of what stands where."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        self.widths = tuple(widths)
        steps = zip(pairwise((3, *widths)), STRIDES, strict=True)
        self.levels = nn.Sequential(*(Level(a, b, stride) for (a, b), stride in steps))
        self.columns = nn.Conv2d(widths[-1], NUM_FEATURES, (3, 5), padding=(0, 2))
        self.classes = nn.ModuleDict(
            {name: nn.Linear(NUM_FEATURES, len(values)) for name, values in CLASSES.items()}
        )
        self.groups = nn.ModuleDict(
            {
                group: nn.Conv1d(NUM_FEATURES, 1 + len(colours), 3, padding=1)
                for group, colours in GROUPS.items()
            }
        )

    @classmethod
    def initialised(cls, seed: int, widths: tuple[int, ...] = WIDTHS) -> Reader:
        """Return a network with torch's initial weights; the global random state is left alone."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return cls(widths)

    def forward(self, pixels_BCYX: Tensor) -> dict[str, Tensor]:
        """Return logits (B, K) of each class and (B, K, W) of each group, for RGB pixels in [-1, 1]."""
        x_BCW = self.seen(pixels_BCYX)
        found = {name: layer(x_BCW.mean(-1)) for name, layer in self.classes.items()}
        return found | {group: layer(x_BCW) for group, layer in self.groups.items()}

    def seen(self, pixels_BCYX: Tensor) -> Tensor:
        """Return features (B, C, W) of the columns."""
        x = self.levels(pixels_BCYX.contiguous(memory_format=torch.channels_last))
        return F.gelu(self.columns(x)).mean(2)


def save(path: Path, reader: Reader, trained: Mapping[str, Any]) -> None:
    """Write a safetensors file in half precision; `trained` says how and with what result."""
    tensors = {name: tensor.half().contiguous() for name, tensor in reader.state_dict().items()}
    about = {
        "format": FORMAT,
        "version": VERSION,
        "config": json.dumps({"widths": reader.widths, "reads": {**CLASSES, **GROUPS}}),
        "trained": json.dumps(trained),
    }
    with written_whole(path) as partial:
        save_file(tensors, partial, about)


def load(path: Path = PATH) -> Reader:
    """Return the network of a file made by `save`, in float32 and eval mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file, or a judge that reads other things.
    """
    tensors, about = read_file(path)
    advice = "Make it with: python -m experiments models --stage judge"
    if (about.get("format"), about.get("version")) != (FORMAT, VERSION):
        raise ValueError(
            f"{path} has format {about.get('format')!r} version {about.get('version')!r}, expected {FORMAT!r} version "
            f"{VERSION}. {advice}"
        )
    config, reads = json.loads(about["config"]), json.loads(json.dumps({**CLASSES, **GROUPS}))
    if config["reads"] != reads:
        raise ValueError(f"{path} reads {config['reads']}, but scenes have {reads}. {advice}")
    reader = Reader.initialised(0, tuple(config["widths"]))
    reader.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return reader.eval().requires_grad_(False)


@torch.no_grad()
def read(reader: Reader, pixels_BCYX: Tensor, batch_size: int = 50) -> list[Facts]:
    """Return what pictures of the size that the reader knows show, given RGB pixels in [-1, 1]."""
    found: list[Facts] = []
    for part in pixels_BCYX.split(batch_size):
        logits = {name: values.float().cpu() for name, values in reader(part.clamp(-1, 1)).items()}
        classes = {
            name: [values[n] for n in logits[name].argmax(-1).tolist()]
            for name, values in CLASSES.items()
        }
        things = {group: _things(logits[group], colours) for group, colours in GROUPS.items()}
        found += [
            Facts(
                things={group: things[group][i] for group in GROUPS},
                **{name: values[i] for name, values in classes.items()},
            )
            for i in range(len(part))
        ]
    return found


def _things(logits_BKW: Tensor, colours: tuple[str, ...]) -> list[tuple[Thing, ...]]:
    """Return the things of one group on each picture, from left to right."""
    size = logits_BKW.shape[-1]
    # How much more likely something is than nothing; a thing is where that is highest.
    score_BW = logits_BKW[:, 1:].logsumexp(1) - logits_BKW[:, 0]
    highest_BW = F.max_pool1d(score_BW, PEAK_WINDOW, stride=1, padding=PEAK_WINDOW // 2)
    is_thing_BW = (score_BW > 0) & (score_BW == highest_BW)
    colour_BW = logits_BKW[:, 1:].argmax(1)
    # Its centre lies between columns that both see it.
    weight_BW = F.pad(score_BW.sigmoid(), (1, 1))
    left_BW, at_BW, right_BW = (weight_BW[:, i : i + size] for i in range(3))
    offset_BW = (right_BW - left_BW) / (left_BW + at_BW + right_BW)
    x_BW = (torch.arange(size) + 0.5 + offset_BW) / size
    return [
        tuple(Thing(colours[c], x) for is_thing, c, x in zip(*row, strict=True) if is_thing)
        for row in zip(is_thing_BW.tolist(), colour_BW.tolist(), x_BW.tolist(), strict=True)
    ]


@torch.no_grad()
def features(reader: Reader, pixels_BCYX: Tensor) -> np.ndarray:
    """Return features (B, C) of pictures, means over the columns."""
    parts = [reader.seen(part.clamp(-1, 1)).mean(2) for part in pixels_BCYX.split(50)]
    return torch.cat(parts).double().cpu().numpy()


def targets(facts: Iterable[Facts]) -> dict[str, Tensor]:
    """Return what `Reader` should say: the number (B,) of each class, and of each group (B, W), or UNSURE."""
    facts = list(facts)
    wanted = {
        name: torch.tensor([values.index(getattr(fact, name)) for fact in facts])
        for name, values in CLASSES.items()
    }
    for group, colours in GROUPS.items():
        number_BW = torch.zeros(len(facts), NUM_COLUMNS, dtype=torch.long)
        for row_W, fact in zip(number_BW, facts, strict=True):
            for thing in fact.things[group]:
                at = thing.x * NUM_COLUMNS
                column = min(int(at), NUM_COLUMNS - 1)
                # At the border of two columns nobody can tell them apart.
                beside = column + (1 if at - column > 0.5 else -1)
                if 0 <= beside < NUM_COLUMNS:
                    row_W[beside] = UNSURE
                row_W[column] = 1 + colours.index(thing.colour)
        wanted[group] = number_BW
    return wanted
