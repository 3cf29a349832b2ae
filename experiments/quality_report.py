"""Quality tables as Markdown and as a chart. It measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from PIL import Image

from shortcut.chart import (
    Colour,
    Level,
    Series,
    chart,
)

WORK_COLUMNS = ("", "steps", "full", "s / image", "GFLOP / image")
COLUMNS = (*WORK_COLUMNS, "distance", "distance in codes", "time", "biome", "both")
TITLES = {
    "real": "real scenes",
    "vq": "real scenes through the VQ",
    "vanilla": "vanilla",
    "shortcut": "shortcut",
    "reuse": "features reused, no head",
}

LEGEND = {
    "vanilla": "vanilla: steps",
    "shortcut": "shortcut: steps/full",
    "reuse": "reused: steps/full",
}
COLOURS: dict[str, Colour] = {
    "vanilla": (96, 104, 122),
    "shortcut": (214, 84, 44),
    "reuse": (150, 120, 190),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a row of a table takes, per image; a table adds its measure of quality."""

    kind: str  # real | vq | vanilla | shortcut | reuse
    num_steps: int  # 0: a reference, nothing was sampled
    num_full: int
    seconds: float  # mean over the seeds
    operations: int
    operations_full: int
    operations_head: int
    operations_logits: int

    @property
    def work_cells(self) -> tuple[str, ...]:
        """The row's text, by WORK_COLUMNS."""
        if not self.num_steps:
            return (TITLES[self.kind], "", "", "", "")
        steps, gigaflops = (str(self.num_steps), str(self.num_full)), self.operations / 1e9
        return (TITLES[self.kind], *steps, f"{self.seconds:.3f}", f"{gigaflops:.2f}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line(Work):
    """A row of the table of the class-conditional model. Figures are means over the seeds."""

    distance: float  # from fresh scenes
    distances: list[float]  # of each seed
    vq_distance: float  # from fresh scenes through the VQ
    vq_distances: list[float]
    time: float  # shares in [0, 1] of pictures that show what was asked for
    biome: float
    both: float

    @property
    def cells(self) -> tuple[str, ...]:
        """The row's text, by COLUMNS."""
        pairs = (self.distance, self.distances), (self.vq_distance, self.vq_distances)
        distances = (f"{mean:.1f} ({', '.join(f'{d:.1f}' for d in each)})" for mean, each in pairs)
        shares = (f"{share:.1%}" for share in (self.time, self.biome, self.both))
        return (*self.work_cells, *distances, *shares)


def markdown(lines: Sequence[Line], setting: dict[str, Any]) -> str:
    """The table, the share of the head in the work, and how it was measured."""
    rows = [line.cells for line in lines]
    return "\n\n".join(filter(None, (table(COLUMNS, rows), head_share(lines), _how(setting))))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first hold numbers."""
    lines = [columns, ("---", *["---:"] * (len(columns) - 1)), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def head_share(lines: Sequence[Work]) -> str:
    """What a pass of the head takes, as a sentence; empty if no row has one."""
    for line in lines:
        if line.kind == "shortcut" and line.operations_head:
            full = line.operations_full / line.num_full
            head = line.operations_head / (line.num_steps - line.num_full)
            return (
                f"A pass of the head takes {head / full:.1%} of the operations of a full pass "
                f"({full / 1e9:.2f} GFLOP)."
            )
    return ""


def _how(setting: dict[str, Any]) -> str:
    sampler = ", ".join(f"{name} {value}" for name, value in setting["sampler"].items())
    return (
        f"{explained(setting['num_reference'])} {setting['num']} pictures per row and seed, as many of every class; "
        f"seeds {setting['seeds']}; {sampler}. {setting['hardware']}; torch {setting['torch']}, "
        f"{setting['dtype']}, batch {setting['batch']}."
    )


def explained(num_reference: int) -> str:
    """What the columns of quality say."""
    return (
        f"Distance: Frechet distance in the judge's features from {num_reference} fresh scenes; in codes: from these "
        "through the VQ, which shows what the sampler does alone. Mean (each seed), lower is better. Time, biome, "
        "both: share of pictures that show what was asked for."
    )


def vq_distances(line: Line) -> list[float]:
    """The measure of the class-conditional model in charts."""
    return line.vq_distances


def quality_chart(
    lines: Sequence[Any],
    quality: Callable[[Any], list[float]] = vq_distances,
    title: str = "Frechet distance in codes (lower is better)",
    *,
    is_higher_better: bool = False,
) -> Image.Image:
    """Quality against operations: vanilla as a line, shortcut as points, references as levels.

    Args:
        lines: of one subclass of `Work`.
        quality: the measure of a line, of each seed.
    """
    sampled = sorted((line for line in lines if line.num_steps), key=lambda line: line.operations)
    if not sampled:
        raise ValueError(
            "a chart needs at least one sampled row, got references only. Add vanilla-8."
        )
    series = []
    for kind, name in LEGEND.items():
        of_kind = [line for line in sampled if line.kind == kind]
        is_vanilla = kind == "vanilla"
        if of_kind:
            series.append(
                Series(
                    name=name,
                    points=[(line.operations / 1e9, mean(quality(line))) for line in of_kind],
                    colour=COLOURS[kind],
                    labels=[
                        str(n) if is_vanilla else f"{n}/{full}"
                        for n, full in ((line.num_steps, line.num_full) for line in of_kind)
                    ],
                    ranges=[(min(quality(line)), max(quality(line))) for line in of_kind],
                    is_joined=is_vanilla,
                    # Vanilla gets better to the right: its labels fit on its worse side, the others' on the other.
                    is_below=is_vanilla == is_higher_better,
                )
            )
    levels = [Level(TITLES[line.kind], mean(quality(line))) for line in lines if not line.num_steps]
    return chart(series, "operations per image (GFLOP)", title, levels=levels)
