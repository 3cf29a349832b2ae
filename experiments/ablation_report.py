"""The table of the ablation as Markdown and as a chart. It measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from PIL import Image

from shortcut.chart import Level, Series, chart

from .quality_report import Work, table

CHAINS = (1, 3, 6)  # steps after a full pass at which a head is held against the model
COLUMNS = (
    "",
    *(f"error {n}" for n in CHAINS),
    *(f"divergence {n}" for n in CHAINS),
    "distance (each seed)",
    "full",
    "GFLOP / image",
    "head pass",
)
CHART_SIZE = (1100, 680)


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationLine(Work):
    """A row of the table."""

    name: str
    errors: list[float]  # by CHAINS, of reuse = 1; empty: the row's steps are all full passes
    divergences: list[float]  # likewise
    distances: list[float]  # of each seed; empty: no pictures were made

    @property
    def head_share(self) -> float:
        """Operations of a pass of the head as a share of those of a full pass; 0 = there is no head."""
        if not self.operations_head:
            return 0.0
        full = self.operations_full / self.num_full
        return self.operations_head / (self.num_steps - self.num_full) / full

    @property
    def distance(self) -> float:
        """Mean over the seeds."""
        return mean(self.distances)

    @property
    def cells(self) -> tuple[str, ...]:
        """The row's text, by COLUMNS."""
        followed = [f"{value:.3f}" for value in (*self.errors, *self.divergences)]
        seeds = ", ".join(f"{distance:.1f}" for distance in self.distances)
        distance = f"{self.distance:.1f} ({seeds})" if self.distances else ""
        return (
            self.name,
            *(followed or 2 * len(CHAINS) * [""]),
            distance,
            str(self.num_full),
            f"{self.operations / 1e9:.2f}",
            f"{self.head_share:.1%}" if self.head_share else "",
        )


def markdown(
    lines: Sequence[AblationLine], setting: dict[str, Any], used: Mapping[str, Sequence[float]]
) -> str:
    """The table, what its rows are, how it was measured; and the table of steps taught against steps at use.

    Args:
        used: name of a row -> errors by `setting["used_steps"]`; empty = no second table.
    """
    parts = [table(COLUMNS, [line.cells for line in lines]), _ROWS, _how(setting)]
    if used:
        columns = ("error at use in", *(f"{n} steps" for n in setting["used_steps"]))
        cells = [(name, *(f"{value:.3f}" for value in found)) for name, found in used.items()]
        parts += [table(columns, cells), _USED.format(**setting)]
    return "\n\n".join(parts)


# What the names of `ablation.CHANGES` and `ablation.REFERENCES` mean.
_ROWS = (
    "vanilla: the model alone, in as many steps; vanilla-N: in N steps; reuse: features of the last full pass, no "
    "head. base: the recipe of the shipped head (`experiments.train_head`): a neighbourhood of 7 x 7 of new tokens, "
    "and of features in place of self-attention, one block, with time embedding, from the last full pass, up to 6 "
    "steps from it (roll-out), squared error where tokens are masked + 4 x divergence of guided codes, teacher's runs "
    "of 32, 32, 16 and 24 steps. Each other row changes what its name says. another-seed: other random numbers; what "
    "differs no more than it does from base may be chance. stepwise-N: from the step before, in roll-outs of up to N "
    "of its own predictions; from-full-N: from the last full pass, up to N steps; student-...: in roll-outs the head "
    "draws the tokens; small-batches: a quarter of the batch, four times the iterations; all-positions: squared error "
    "also where tokens are known; no-kl: squared error alone; kl-0.3: with 0.3 x divergence; kl-alone: divergence "
    "alone, through the model's output rows; no-kernel: the paper's head; self-attention: only new tokens have a "
    "neighbourhood; kernel-3: one of 3 x 3; teacher-N: teacher's runs of N steps. text: the text model's head by its "
    "own recipe; text-blind: one that does not see the tokens just revealed (no "
    "cross-attention)."
)
_USED = (
    "Squared error of features as a share of that of keeping them, {used_chain} steps after a full pass, in runs of so "
    "many steps that no head saw. Left: the steps of the teacher's runs; base: 32, 32, 16 and 24."
)


def _how(setting: dict[str, Any]) -> str:
    sampler = ", ".join(f"{name} {value}" for name, value in setting["sampler"].items())
    steps = setting["num_steps"]
    return (
        f"Every head: {setting['iterations']} iterations. Error, divergence N steps after a full pass: on a run of "
        f"{setting['num_held_out']} images in {steps} steps that no head saw, where tokens are still masked, the "
        "squared error of features and the divergence of guided codes from the model's, each as a share of that of "
        f"keeping the features. Distance: Frechet distance in the judge's features from {setting['num_reference']} "
        f"fresh scenes, mean (each seed), lower is better; of {setting['num']} pictures per row and seed, as many of "
        f"every class, in {steps} steps, of which so many are full passes (full) that the operations of rows with a "
        f"head are as near as can be to those of vanilla-{setting['budget']}; seeds {setting['seeds']}. Head pass: its "
        f"operations as a share of a full pass. {sampler}. {setting['hardware']}; torch {setting['torch']}, pictures "
        f"in {setting['dtype']}, batch {setting['batch']}."
    )


def ablation_chart(lines: Sequence[AblationLine]) -> Image.Image:
    """Distance of the pictures against how much nearer to the model a head keeps than reuse: a dot for each head."""
    lines = [line for line in lines if line.distances]
    heads = [line for line in lines if line.operations_head]
    middle = len(CHAINS) // 2
    dots = Series(
        name="heads, by what was changed",
        points=[(100 * (1 - line.divergences[middle]), line.distance) for line in heads],
        labels=[line.name for line in heads],
        ranges=[(min(line.distances), max(line.distances)) for line in heads],
        is_joined=False,
    )
    return chart(
        [dots],
        f"part of the divergence of reuse that is gone, {CHAINS[middle]} steps after a full pass (%)",
        "Frechet distance (lower is better)",
        levels=[Level(line.name, line.distance) for line in lines if not line.operations_head],
        y_low=None,
        size=CHART_SIZE,
    )
