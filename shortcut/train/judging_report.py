"""A verdict for people: Markdown tables and a chart. It measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..chart import Series, chart
from .card import table
from .judging import (
    REUSE,
    VANILLA,
    Row,
    Verdict,
)
from .scorers import SCORERS


def markdown(verdict: Verdict, setting: dict[str, Any]) -> str:
    """How each way to sample does and what it takes, how the heads follow the model, and how that was measured.

    Args:
        setting: as `cli_evaluate.setting_of` gives it.
    """
    rows, seeds = verdict.rows, setting["seeds"]
    unit, size = _unit(rows)
    of_seeds = f" ({', '.join(f'seed {seed}' for seed in seeds)})" if len(seeds) > 1 else ""
    columns = ["", "steps", "full", f"{unit} / image", "of vanilla", "s / image"]
    columns += [f"tokens as the model's{of_seeds}", "in predicted steps", "cosine", "divergence"]
    if setting["scorer"] is not None:
        columns.append(SCORERS[setting["scorer"]].title + of_seeds)
    lines = [_cells(row, rows[0].operations, size) for row in rows]
    chains = [
        (name, *(entry[figure] for figure in ("chain", "error", "cosine", "kl")))
        for name, entries in verdict.chains.items()
        for entry in entries
    ]
    following = ("", "steps in a row", "error", "cosine", "divergence")
    parts = (table(columns, lines), table(following, chains))
    return "\n\n".join([*("\n".join(part) for part in parts), _how(setting)])


def quality_chart(verdict: Verdict, setting: dict[str, Any]) -> Image.Image:
    """Quality against operations: vanilla, reuse and every head, with numbers of full passes at the points."""
    unit, size = _unit(verdict.rows)
    title = "tokens decided as the model decides them (%)"
    if setting["scorer"] is not None:
        title = f"{SCORERS[setting['scorer']].title} (higher is better)"

    def quality(row: Row) -> list[float]:
        scores = row.score_of_seeds
        return scores if scores is not None else [100 * share for share in row.same_of_seeds]

    series = series_of(
        [(row.name, row.operations / size, row.num_full, quality(row)) for row in verdict.rows]
    )
    title += f"; at the points: full passes of {verdict.rows[0].num_steps} steps"
    return chart(series, f"operations per image ({unit})", title, y_low=None)


def series_of(points: Sequence[tuple[str, float, int, Sequence[float]]]) -> list[Series]:
    """A line for each name, with numbers of full passes at its points.

    Args:
        points: name, operations, full passes and quality for each seed.
    """
    series = []
    # Reuse comes last, as in the order of colours.
    for name in dict.fromkeys(name for name, *_ in sorted(points, key=lambda p: p[0] == REUSE)):
        of_name = sorted((p for p in points if p[0] == name), key=lambda p: p[1])
        series.append(
            Series(
                name=name,
                points=[(operations, sum(v) / len(v)) for _, operations, _, v in of_name],
                labels=[str(num_full) for _, _, num_full, _ in of_name],
                ranges=[(min(v), max(v)) for *_, v in of_name],
                is_below=name != VANILLA,
            )
        )
    return series


def _cells(row: Row, vanilla: int, size: float) -> tuple[Any, ...]:
    predicted = [
        "" if value is None else f"{value:{form}}"
        for value, form in (
            (row.same_of_predicted, ".1%"),
            (row.cosine, ".4f"),
            (row.divergence, ".4f"),
        )
    ]
    cells = (
        row.name,
        row.num_steps,
        row.num_full,
        f"{row.operations / size:.2f}",
        f"{row.operations / vanilla:.1%}",
        f"{row.seconds:.3f}",
        _of_seeds(row.same, row.same_of_seeds, ".1%"),
        *predicted,
    )
    if row.score is None or row.score_of_seeds is None:
        return cells
    return *cells, _of_seeds(row.score, row.score_of_seeds, ".3f")


def _of_seeds(mean: float, values: Sequence[float], form: str) -> str:
    if len(values) == 1:
        return f"{mean:{form}}"
    return f"{mean:{form}} ({', '.join(f'{value:{form}}' for value in values)})"


def _unit(rows: Sequence[Row]) -> tuple[str, float]:
    """The name and size of a readable unit of operations."""
    return ("TFLOP", 1e12) if rows[0].operations >= 1e13 else ("GFLOP", 1e9)


def _how(setting: dict[str, Any]) -> str:
    left_out = ("num_steps", "full_steps")
    sampler = ", ".join(
        f"{name} {value}" for name, value in setting["settings"].items() if name not in left_out
    )
    return (
        "Tokens as the model's: share of the tokens that the model too would have revealed in that step, there and "
        "with that code, given the same tokens and the same noise; full passes decide so by themselves. Cosine and "
        "divergence: of the features of predicted steps, and of the guided codes that they reveal, from the model's, "
        "likewise. Second table: predicted from a run of the model, where tokens are still masked: squared error as a "
        "share of that of keeping the features, cosine with the model's features, divergence of the guided codes from "
        "the model's."
        "\n\n"
        f"{setting['model']}, {setting['images']} images of {setting['grid'][0]} x {setting['grid'][1]} codes for each "
        f"seed {setting['seeds']}, {setting['batch_size']} at a time; {sampler}. {setting['device']}, "
        f"{setting['dtype']}, torch {setting['torch']}; processes: {setting['processes']}."
    )
