"""Print quality tables as Markdown and draw them as charts. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

COST_COLUMNS = ("", "steps", "full", "s / image", "GFLOP / image")
TITLES = {
    "real": "real scenes",
    "vq": "real scenes through the VQ",
    "vanilla": "vanilla",
    "shortcut": "shortcut",
    "reuse": "features reused, no head",
}
# Kind of row -> its name in a chart, and the sides of its labels.
LEGEND = {
    "vanilla": ("vanilla: steps", "#606879", -14),
    "shortcut": ("shortcut: steps/full", "#d6542c", 8),
    "reuse": ("reused: steps/full", "#9678be", 8),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a row of a table takes for one image; subclasses add a measure of quality."""

    kind: str  # real | vq | vanilla | shortcut | reuse
    num_steps: int  # 0: a reference, nothing was sampled
    num_full: int
    seconds: float  # mean over the seeds
    flops: int
    flops_full: int
    flops_head: int

    @property
    def cost_cells(self) -> tuple[str, ...]:
        """Return the row's text, by COST_COLUMNS."""
        if not self.num_steps:
            return (TITLES[self.kind], "", "", "", "")
        steps = str(self.num_steps), str(self.num_full)
        return (TITLES[self.kind], *steps, f"{self.seconds:.3f}", f"{self.flops / 1e9:.2f}")

    @property
    def head_share(self) -> float:
        """Return the FLOPs of a pass of the head as a share of a full pass; 0 if there is no head."""
        if not self.flops_head:
            return 0.0
        head = self.flops_head / (self.num_steps - self.num_full)
        return head / (self.flops_full / self.num_full)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first hold numbers."""
    lines = [columns, ("---", *["---:"] * (len(columns) - 1)), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def head_share(rows: Sequence[Cost]) -> str:
    """Return a sentence about the cost of a pass of the head; empty if no row has one."""
    share = next((row.head_share for row in rows if row.head_share), 0.0)
    return f"A pass of the head takes {share:.1%} of the FLOPs of a full pass." if share else ""


def draw_chart(
    path: Path, rows: Sequence[Any], quality: Callable[[Any], list[float]], title: str
) -> None:
    """Draw quality against FLOPs: vanilla as a line, other kinds as points, references as levels.

    Args:
        rows: of one subclass of `Cost`.
        quality: the measure of a row, one value for each seed.

    Raises:
        ValueError: no row was sampled.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not any(row.num_steps for row in rows):
        raise ValueError("a chart needs at least one sampled row, got references. Add vanilla-8.")
    figure, axes = pyplot.subplots(figsize=(8.8, 5.2), layout="constrained")
    for kind, (name, colour, offset) in LEGEND.items():
        shown = sorted((row for row in rows if row.kind == kind), key=lambda row: row.flops)
        if not shown:
            continue
        x, y = [row.flops / 1e9 for row in shown], [mean(quality(row)) for row in shown]
        low = [m - min(quality(row)) for m, row in zip(y, shown, strict=True)]
        high = [max(quality(row)) - m for m, row in zip(y, shown, strict=True)]
        form = "o-" if kind == "vanilla" else "o"
        axes.errorbar(x, y, (low, high), fmt=form, color=colour, label=name)
        for row, point in zip(shown, zip(x, y, strict=True), strict=True):
            text = f"{row.num_steps}" + (f"/{row.num_full}" if kind != "vanilla" else "")
            axes.annotate(
                text, point, (7, offset), textcoords="offset points", color=colour, fontsize=10
            )
    for row in rows:
        if not row.num_steps:
            level = mean(quality(row))
            axes.axhline(level, color="0.5", linestyle="--", linewidth=1)
            axes.annotate(
                TITLES[row.kind],
                (1, level),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=9,
            )
    axes.set(xlabel="GFLOP per image", ylabel=title, xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
