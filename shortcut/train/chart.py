"""The chart of a training: how the loss fell, and the error of the head against that of keeping the features."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from ..chart import Series, chart
from .log import Figures, time_left

SHOWN = {
    "loss": "loss",
    "mse": "squared error",
    "reuse": "squared error of keeping the features",
    "kl": "divergence",
    "guided_kl": "divergence of guided codes",
}


def loss_chart(logs: Sequence[Figures], iterations: int | None = None) -> Image.Image:
    """A picture of the figures that `fit` logged.

    Args:
        iterations: of a training that goes on, whose time left it then says; None = it has ended.

    Raises:
        ValueError: there are none.
    """
    if not logs:
        raise ValueError(
            "this training has no log to draw: the .jsonl beside its .ckpt is gone. Remove the .ckpt too to train anew."
        )
    series = [
        Series(
            name=title,
            points=[(figures["iteration"], figures[name]) for figures in logs],
            has_dots=len(logs) == 1,
        )
        for name, title in SHOWN.items()
        if name in logs[0]
    ]
    done, x_title = int(logs[-1]["iteration"]), "iterations"
    if iterations is not None:
        x_title = f"iterations: {done} of {iterations}, {time_left(logs[-1], iterations)}"
    return chart(series, x_title, "loss and its parts, mean since the point before", is_log=True)
