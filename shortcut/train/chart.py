"""A small picture of how the loss of a training fell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .log import Figures, time_left

SIZE, MARGIN = (640, 400), (64, 30, 16, 40)  # left, top, right, bottom
# Figure -> its name and colour.
LINES = {
    "loss": ("loss", "#222222"),
    "mse": ("squared error", "#1f77b4"),
    "reuse": ("squared error, features kept", "#aaaaaa"),
    "guided_kl": ("divergence of guided codes", "#d62728"),
}
NO_LOG = "The log of this training is gone: the .jsonl beside its .ckpt."


def loss_chart(logs: Sequence[Figures], iterations: int | None = None) -> Image.Image:
    """Draw the figures that `fit` logged, on a logarithmic scale.

    Args:
        iterations: of a training that goes on, whose time left is shown; None = it has ended.
    """
    if not logs:
        picture = Image.new("RGB", SIZE, "white")
        ImageDraw.Draw(picture).text(
            MARGIN[:2], NO_LOG, fill="black", font=ImageFont.load_default()
        )
        return picture
    left, top, right, bottom = MARGIN
    width, height = SIZE[0] - left - right, SIZE[1] - top - bottom
    shown = {name: [max(log[name], 1e-12) for log in logs] for name in LINES if name in logs[0]}
    values = [math.log10(value) for line in shown.values() for value in line]
    low, high = math.floor(min(values)), math.ceil(max(values) + 1e-9)
    last = logs[-1]["iteration"]
    picture = Image.new("RGB", SIZE, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()

    def at(iteration: float, exponent: float) -> tuple[float, float]:
        share = (exponent - low) / max(1, high - low)
        return left + width * iteration / last, top + height * (1 - share)

    for exponent in range(low, high + 1):
        _, y = at(0, exponent)
        draw.line((left, y, left + width, y), fill="#dddddd")
        draw.text((8, y - 6), f"{10.0**exponent:g}", fill="black", font=font)
    legend = float(left + 8)
    for name, line in shown.items():
        title, colour = LINES[name]
        points = [at(log["iteration"], math.log10(v)) for log, v in zip(logs, line, strict=True)]
        draw.line([at(0, math.log10(line[0])), *points], fill=colour, width=2)
        draw.text((legend, 8), title, fill=colour, font=font)
        legend += font.getlength(title) + 24
    caption = f"{last:.0f} iterations"
    if iterations is not None:
        caption = f"{last:.0f} of {iterations} iterations, {time_left(logs[-1], iterations)}"
    draw.text((left, SIZE[1] - 24), caption, fill="black", font=font)
    return picture
