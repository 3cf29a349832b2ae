"""Print quality tables as Markdown and draw them as charts. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from statistics import mean
from typing import Any

TITLES = {"vq": "real scenes through the VQ"}
# Kind of row -> its colour in a chart.
COLOURS = {
    "vanilla": "#606879",
    "head": "#d6542c",
    "reuse": "#9678be",
    "partial": "#2c7fd6",
    "partial+neighbours": "#1d9a6c",
    "partial+head": "#c2a21d",
    "ml-cache": "#c0569c",
    "taylor": "#7a5c3e",
}
MARKERS = {"": "o-", "halton": "D:", "corrected": "s:"}  # by order
# What a panel of a chart shows: its title, and of a row the least, middle and greatest value.
Panel = tuple[str, Callable[[Any], Sequence[float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Hold what a row of a table takes for one image; subclasses add measures of quality."""

    kind: str  # vq | vanilla | an accelerator
    num_steps: int  # 0: a reference, nothing was sampled
    num_full: int
    seconds: float  # mean over the seeds
    flops: int
    order: str = ""  # of revealing; "" = the usual one

    @property
    def cost_cells(self) -> tuple[str, ...]:
        """Return name, steps, full passes and seconds."""
        if not self.num_steps:
            return (TITLES[self.kind], "", "", "")
        steps = str(self.num_steps), str(self.num_full)
        return (
            ", ".join(filter(None, (self.kind, self.order))),
            *steps,
            f"{self.seconds:.3f}",
        )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first hold numbers."""
    lines = [columns, ("---", *["---:"] * (len(columns) - 1)), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def draw_chart(path: Path, rows: Sequence[Any], panels: Sequence[Panel]) -> None:
    """Draw quality against FLOPs: a line for each kind of row, each point with its number of full passes.

    Args:
        rows: of one subclass of `Cost`. One whose quality in a panel is NaN is not in it.

    Raises:
        ValueError: there are no rows.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not rows:
        raise ValueError("a chart needs at least one sampled row, got references. Add vanilla-8.")
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(8.8 * len(panels), 6.4), layout="constrained", squeeze=False
    )
    for panel, (title, quality) in zip(axes[0], panels, strict=True):
        panel.set_xscale("log")
        _draw_panel(panel, rows, quality)
        ticks = (10, 20, 50, 100, 200, 500, 1000)
        panel.set(xlabel="GFLOP per image, number of full passes in the points", ylabel=title)
        panel.set_xticks(ticks, labels=map(str, ticks))
        panel.minorticks_off()
        low, high = panel.dataLim.intervalx
        panel.set_xlim(0.9 * low, 1.1 * high)
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _draw_panel(axes: Any, rows: Sequence[Any], quality: Callable[[Any], Sequence[float]]) -> None:
    known = [row for row in rows if not isnan(mean(quality(row)))]
    for kind, order in dict.fromkeys((row.kind, row.order) for row in known):
        shown = [row for row in known if (row.kind, row.order) == (kind, order)]
        shown.sort(key=lambda row: row.flops)
        x, y = [row.flops / 1e9 for row in shown], [mean(quality(row)) for row in shown]
        low = [m - min(quality(row)) for m, row in zip(y, shown, strict=True)]
        high = [max(quality(row)) - m for m, row in zip(y, shown, strict=True)]
        name = f"{kind}, {order}" if order else kind
        look = {"color": COLOURS.get(kind, "0.3"), "markersize": 11, "linewidth": 1}
        axes.errorbar(x, y, (low, high), fmt=MARKERS.get(order, "^:"), label=name, **look)
        for row, point in zip(shown, zip(x, y, strict=True), strict=True):
            where = {"ha": "center", "va": "center_baseline", "zorder": 4}
            axes.text(*point, row.num_full, fontsize=7, color="white", **where)
