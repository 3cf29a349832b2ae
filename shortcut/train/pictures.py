"""Quality of the pictures of the shipped class model, by the judge that knows its scenes.

It is measured as `experiments quality` does. That package is loaded only when it is asked for this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from PIL import Image

from .. import shipped, weights
from ..chart import chart
from .judging import REUSE, VANILLA, Trial
from .judging_report import series_of
from .progress import progress_bar
from .teacher import Teacher

NUM_REFERENCE = 6000  # fresh scenes to compare with
BATCH_SIZE = 50


@dataclass(frozen=True, slots=True)
class Quality:
    """The table: names of rows and their lines."""

    num_images: int  # of each row and seed
    num_reference: int
    names: list[str]
    lines: list[Any]

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        rows = [{"name": n, **asdict(line)} for n, line in zip(self.names, self.lines, strict=True)]
        return {"images": self.num_images, "reference": self.num_reference, "rows": rows}

    def chart(self) -> Image.Image:
        """Distance against operations: vanilla, reuse and every head, with numbers of full passes at the points."""
        points = [
            (name, line.operations / 1e9, line.num_full, line.vq_distances)
            for name, line in zip(self.names, self.lines, strict=True)
        ]
        title = "Frechet distance in codes (lower is better); at the points: full passes"
        return chart(series_of(points), "operations per image (GFLOP)", title, y_low=None)

    def markdown(self) -> str:
        """For people."""
        from experiments.quality_report import COLUMNS, explained, table

        cells = [(n, *line.cells[1:]) for n, line in zip(self.names, self.lines, strict=True)]
        return (
            f"{table(COLUMNS, cells)}\n\n{explained(self.num_reference)} {self.num_images} pictures per row and seed, "
            "as many of every class."
        )


def measure_quality(
    teacher: Teacher, heads: Mapping[str, Any], trial: Trial, num_images: int
) -> Quality:
    """Vanilla at the steps and in as few steps as there are full passes; reuse and every head at those.

    Args:
        num_images: of each row and seed.
    """
    from experiments import classifier
    from experiments.quality import parse_rows, summary
    from experiments.quality_measure import measure, references
    from experiments.quality_rows import Kit

    kit = Kit(
        model=teacher.model,
        head=None,
        vq=weights.build(
            weights.load(shipped.VQ, "vq"), dtype=torch.float32, device=teacher.device
        ),
        judge=classifier.load(shipped.JUDGE).to(teacher.device),
        defaults=trial.settings,
        device=teacher.device,
        batch_size=BATCH_SIZE,
    )
    steps, budgets = trial.settings.num_steps, trial.full_steps
    wanted = [(VANILLA, None, f"vanilla-{n}") for n in (steps, *budgets)]
    for n in budgets:
        wanted.append((REUSE, None, f"reuse-{steps}-{n}"))
        wanted += [(name, head, f"shortcut-{steps}-{n}") for name, head in heads.items()]
    rows = parse_rows([row for _, _, row in wanted], kit)
    compared_with = references(kit, NUM_REFERENCE)
    lines = []
    with progress_bar(is_shown=True, unit="row", total=len(rows)) as bar:
        for row, (_, head, _) in zip(rows, wanted, strict=True):
            tried = replace(kit, head=head)
            figures = [measure(row, seed, num_images, tried, compared_with) for seed in trial.seeds]
            lines.append(summary(row, figures, tried))
            bar.update()
    return Quality(num_images, NUM_REFERENCE, [name for name, _, _ in wanted], lines)
