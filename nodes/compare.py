"""Speed against Quality: the same pictures with fewer and fewer full passes, side by side, with what each took."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from comfy_api.latest import io
from comfy_execution.utils import get_executing_context

from ..shortcut.accelerators.choice import HEAD
from ..shortcut.checkpoint import Checkpoint
from ..shortcut.guard import shown
from ..shortcut.models.architecture import Conditioning
from ..shortcut.schedule import Settings
from ..shortcut.settings import usual_settings
from . import drawing
from .accelerate import Accelerated
from .condition import checked_vae
from .drawing import Cell, Column
from .host import NodeText
from .latents import latent_of
from .load import Head
from .native import head_of, model_of
from .patches import lines_without_effect
from .run import Job, job_of, run

NAME = "Speed against Quality"
MOST_CELLS = 256  # of a sheet
KEPT_SHEETS = 4  # nodes whose cells are kept
# (name of the accelerator, its head, full steps, steps, seed)
Key = tuple[str | None, weakref.ref[Any] | None, int | None, int, int]


@dataclass(slots=True)
class Sheet:
    """The cells that a node has made of the same inputs. It keeps no model alive.

    Attributes:
        owners: MODEL and VAE.
        given: the other inputs that decide every cell.
    """

    owners: tuple[weakref.ref[Any], ...]
    given: tuple[Any, ...]
    cells: dict[Key, Cell] = field(default_factory=dict)

    def is_of(self, owners: Sequence[Any], given: Sequence[Any]) -> bool:
        """Return whether these very objects made the cells: ComfyUI keeps them while what made them is unchanged."""
        mine = (*(owner() for owner in self.owners), *self.given)
        return all(a is b for a, b in zip(mine, (*owners, *given), strict=True))


SHEETS: dict[str, Sheet] = {}  # by node


class SpeedQuality(io.ComfyNode):
    """One grid of pictures: a row for each seed, a column for each number of full steps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShortcutSpeedQuality",
            display_name=NAME,
            category="shortcut",
            description="Makes the same pictures with all steps full and with fewer, side by side, "
            "with the seconds of each and how many times as fast it was. What was made before is "
            "kept: one more column costs one column.",
            search_aliases=["compare", "xy plot", "benchmark", "grid", "maskgit", "migm shortcut"],
            inputs=[
                io.Model.Input("model", tooltip="From Load MIGM."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="From Text Condition, CLIP Text Encode or Class Condition.",
                ),
                io.Latent.Input(
                    "latent_image", tooltip="From Empty Latent Image, of one image: the size."
                ),
                io.Vae.Input("vae", tooltip="From Load MIGM: it makes the pictures."),
                io.String.Input(
                    "full_steps",
                    default="16, 8, 4",
                    tooltip="How many steps are full passes, a column for each. A column where all "
                    "are full comes first by itself: it is what the others are compared with.",
                ),
                io.String.Input(
                    "seeds",
                    default="1, 2, 3",
                    tooltip="A row for each. Differences between rows are chance: look at several.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="In how many steps each image is revealed. 0: as many as the model is "
                    "used with. All else is as the model is used with, too.",
                ),
                Head.Input(
                    "head",
                    optional=True,
                    tooltip="What answers the steps that are not full passes: from Load Shortcut "
                    "Head or Accelerator.",
                ),
                Head.Input(
                    "other_head",
                    optional=True,
                    tooltip="Another, to compare: it has columns of its own.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What to guide away from, as for the Shortcut Masked Sampler.",
                ),
            ],
            outputs=[
                io.Image.Output("grid", display_name="grid", tooltip="The pictures, labelled."),
                io.Image.Output(
                    "chart",
                    display_name="chart",
                    tooltip="How far pictures are from vanilla's, by how many times as fast.",
                ),
                io.String.Output(
                    "table", display_name="table", tooltip="The figures, for Preview as Text."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        latent_image: dict[str, Any],
        vae: Any,
        full_steps: str,
        seeds: str,
        steps: int,
        head: Any = None,
        other_head: Any = None,
        negative: Conditioning | None = None,
    ) -> io.NodeOutput:
        checked_vae(vae, model_of(model).checkpoint)
        wanted_seeds, counts = numbers("seeds", seeds), numbers("full_steps", full_steps)
        heads = _named(head, other_head)
        settings = [("vanilla", None, None)]
        settings += [(name, wired, count) for name, wired in heads.items() for count in counts]
        if len(settings) * len(wanted_seeds) > MOST_CELLS:
            raise ValueError(
                f"full_steps and seeds ask for {len(settings)} x {len(wanted_seeds)} pictures, expected at most "
                f"{MOST_CELLS}. Leave some out."
            )
        sheet = _sheet((model, vae), (positive, negative, latent_image))
        jobs = {
            _key(wired, count, steps, seed): job_of(
                model,
                positive,
                negative,
                latent_image,
                head=wired,
                settings=partial(_settings, num_steps=steps, full_steps=count),
                seed=seed,
            )
            for _, wired, count in settings
            for seed in wanted_seeds
        }
        text = NodeText()
        text.keep(lines_without_effect(model, NAME))
        _fill(sheet.cells, jobs, vae, latent_image, text)
        _forget(sheet.cells, jobs)
        num_steps = next(iter(jobs.values())).settings.num_steps
        columns = [
            Column(
                name,
                count or num_steps,
                num_steps,
                [sheet.cells[_key(wired, count, steps, seed)] for seed in wanted_seeds],
            )
            for name, wired, count in settings
        ]
        made = (drawing.grid(columns, wanted_seeds), drawing.chart(columns), drawing.table(columns))
        return io.NodeOutput(*made)


def numbers(name: str, text: str) -> list[int]:
    """Return the whole numbers that a widget lists, each once. Raise ValueError if there is none, or something else."""
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(
            f"{name} must be whole numbers with commas between them, such as 16, 8, 4, got {shown(text)}."
        )
    return list(dict.fromkeys(map(int, words)))


def _key(wired: Any, full_steps: int | None, steps: int, seed: int) -> Key:
    """Return what tells the cells of a sheet apart."""
    given = Accelerated.of(wired)
    head = None if given.head is None else weakref.ref(given.head)
    return given.name, head, full_steps, steps, seed


def _named(*heads: Any) -> dict[str, Any]:
    """Return the heads that are wired, by their names. Raise ValueError if there is none."""
    wired = [head for head in heads if head is not None]
    if not wired:
        raise ValueError(
            "head is not connected, so there is nothing to compare with vanilla. Wire Load Shortcut "
            "Head or Accelerator."
        )
    given = map(Accelerated.of, wired)
    names = [Path(head_of(a.head)[1].name).stem if a.name == HEAD else str(a.name) for a in given]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return dict(zip(names, wired, strict=True))


def _settings(
    checkpoint: Checkpoint,
    num_guided: int,
    has_head: bool,
    has_mask: bool,
    *,
    num_steps: int,
    full_steps: int | None,
) -> Settings:
    """Return the model's usual settings with as many full passes. Raise ValueError if there are more than steps."""
    usual = usual_settings(checkpoint, num_guided=num_guided, has_mask=has_mask)
    settings = replace(usual, num_steps=num_steps or usual.num_steps, full_steps=full_steps)
    settings.check()
    return settings


def _sheet(owners: Sequence[Any], given: tuple[Any, ...]) -> Sheet:
    """Return the cells that the running node has made of the same inputs; a new sheet if they are others."""
    context = get_executing_context()
    node = "" if context is None else context.node_id
    found = SHEETS.pop(node, None)
    if found is None or not found.is_of(owners, given):
        found = Sheet(tuple(map(weakref.ref, owners)), given)
    SHEETS[node] = found  # as the last
    gone = [name for name, sheet in SHEETS.items() if None in [owner() for owner in sheet.owners]]
    oldest = [name for name in SHEETS if name not in gone][:-KEPT_SHEETS]
    for name in (*gone, *oldest):
        del SHEETS[name]
    return found


def _fill(
    cells: dict[Key, Cell], jobs: dict[Key, Job], vae: Any, latent: dict[str, Any], text: NodeText
) -> None:
    """Make the cells that are not there yet. An interrupt keeps those that were made."""
    missing = {key: job for key, job in jobs.items() if key not in cells}
    before, total = 0, sum(job.num_steps for job in missing.values())
    for number, (key, job) in enumerate(missing.items(), 1):
        if len(job.start["image_indices"]) != 1:
            raise ValueError(
                f"LATENT holds {len(job.start['image_indices'])} images, expected one. Set batch_size 1, and list "
                "more seeds."
            )
        prefix = f"picture {number} of {len(missing)}: "
        result, speed = run(job, text, NAME, prefix=prefix, before=before, total=total)
        before += job.num_steps
        pixels_1YX3 = vae.decode(latent_of(result.codes_BL, job.grid, latent)["samples"])
        seconds, ratio = (speed.seconds, speed.ratio) if speed else (result.seconds, 1.0)
        bytes_YX3 = (pixels_1YX3[0].detach().cpu().clamp(0, 1) * 255).round().byte()
        cells[key] = Cell(bytes_YX3, seconds, ratio)


def _forget(cells: dict[Key, Cell], wanted: Collection[Key]) -> None:
    """Drop the oldest cells above MOST_CELLS, but none that is wanted now."""
    others = [key for key in cells if key not in wanted]
    for key in others[: max(0, len(cells) - MOST_CELLS)]:
        del cells[key]
