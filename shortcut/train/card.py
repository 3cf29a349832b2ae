"""A trained head on disk: its file, and beside it a card that people can read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import weights
from ..checkpoint import Checkpoint
from ..files import written_whole


def save_head(path: Path, head: Checkpoint, model_file: Checkpoint) -> None:
    """Writes the head to `path`, a .safetensors file, and its card to the same name with .md.

    Raises:
        ValueError: another suffix.
    """
    weights.save(path, head)
    with written_whole(path.with_suffix(".md")) as partial:
        partial.write_text(card(path.name, head, model_file), encoding="utf-8")


def card(name: str, head: Checkpoint, model_file: Checkpoint) -> str:
    """What the head's file says of itself, as Markdown.

    Args:
        head: as `learn` made it.
        model_file: the model that it belongs to.
    """
    trained, config = head.metadata.trained, head.config
    steps = trained["teaching"]["steps"]
    starts = "the last full pass" if config.from_full else "the step before"
    return "\n".join(
        [
            f"# {name}",
            "",
            f"A {head.format.title} for `{model_file.name}` ({head.metadata.model_fingerprint}) and no other model. It "
            f"predicts the features of a step from those of {starts} and the tokens revealed since.",
            "",
            f"{head.num_parameters:,} parameters: width {config.width} of {config.model_width}, {config.num_blocks} "
            "blocks.",
            "",
            f"    python -m shortcut generate --model {model_file.name} --head {name} --steps {max(steps)} "
            "--full-steps N",
            "",
            "## Training",
            "",
            f"Data: {trained['data'] or 'runs of the model, made meanwhile'}.",
            "",
            *table(
                ("", ""), _flat({k: trained[k] for k in ("recipe", "teaching", "loss", "last")})
            ),
            "",
            "## On runs that it never saw",
            "",
            "Of the positions still masked: squared error as a share of that of keeping the features, cosine with the "
            "model's features, divergence of the guided codes from the model's, and that of keeping the features.",
            "",
            *table(
                ("run", "steps in a row", "error", "cosine", "KL", "KL of keeping"),
                _held_out(trained),
            ),
            "",
        ]
    )


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a Markdown table; numbers to four digits."""

    def line(cells: Iterable[Any]) -> str:
        texts = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
        return f"| {' | '.join(texts)} |"

    return [line(header), line("---" for _ in header), *(line(row) for row in rows)]


def _flat(sections: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Any]]:
    return [
        (f"{section}: {name.replace('_', ' ')}", value)
        for section, fields in sections.items()
        for name, value in fields.items()
    ]


def _held_out(trained: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    names = ("chain", "error", "cosine", "kl", "kl_reuse")
    return [
        (run, *(row[name] for name in names))
        for run, rows in trained["held_out"].items()
        for row in rows
    ]
