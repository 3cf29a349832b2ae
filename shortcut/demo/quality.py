"""Measures the shipped demo model: speed against quality, one table. python -m shortcut.demo quality

Each row samples the same number of pictures of every class, decodes them and lets the judge look at them:
- seconds per image: the sampling loop alone, without decoding;
- operations per image: `operations.py`;
- Frechet distance, in the judge's features, from fresh scenes that no network was trained on: seeds 10,000,000 onwards,
  rendered on the fly, as many of every class;
- attribute accuracy: share of pictures in which the judge sees the time and the biome asked for.

Two reference rows need no sampling: other fresh scenes ("real"), and those after VQ encoding and decoding ("vq").

    B  images    L  image tokens    C  channels    Y, X  pixel rows, columns    h, w  rows, columns of codes    D  features
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import shipped, weights
from ..classes import class_branches
from ..files import written_whole
from ..operations import operations_by_part
from ..pipeline import PredictorOf, generate
from ..predictors.head import ShortcutPredictor
from ..predictors.reuse import Reuse
from ..schedule import Settings
from . import classifier
from .data import SIZE, to_network
from .frechet import Gaussian, frechet_distance
from .quality_report import Line, chart, markdown
from .scene_drawing import draw
from .scenes import BIOMES, TIMES, compose

logger = logging.getLogger(__name__)

ROWS = (
    *("real", "vq"),
    *("vanilla-8", "vanilla-12", "vanilla-16", "vanilla-32"),
    *("shortcut-32-6", "shortcut-32-8", "shortcut-32-12", "shortcut-16-5", "shortcut-16-8"),
    "reuse-32-8",
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIRST_REFERENCE_SEED = 10_000_000
FIRST_REAL_SEED = 20_000_000  # of the rows "real" and "vq", with a stride of REAL_STRIDE between runs
REAL_STRIDE = 1_000_000
DECODE_BATCH = 8  # larger batches leave the cache of a CPU and are slower
NUM_CLASSES = len(TIMES) * len(BIOMES)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table, by its name on the command line."""

    kind: str  # real | vq | vanilla | shortcut | reuse
    num_steps: int = 0
    full_steps: int = 0

    @classmethod
    def parse(cls, name: str) -> Row:
        """`real`, `vq`, `vanilla-STEPS`, `shortcut-STEPS-FULL` or `reuse-STEPS-FULL`; ValueError for anything else."""
        kind, *numbers = name.split("-")
        wanted = {"real": 0, "vq": 0, "vanilla": 1, "shortcut": 2, "reuse": 2}.get(kind)
        if wanted != len(numbers) or not all(number.isdecimal() for number in numbers):
            raise ValueError(
                f"there is no row {name!r}. Expected real, vq, vanilla-STEPS, shortcut-STEPS-FULL or reuse-STEPS-FULL, "
                "such as shortcut-32-8."
            )
        sizes = [int(number) for number in numbers]
        return cls(kind, *(sizes if len(sizes) != 1 else 2 * sizes))

    @property
    def name(self) -> str:
        """As on the command line."""
        numbers = {"real": (), "vq": (), "vanilla": (self.num_steps,)}.get(self.kind, (self.num_steps, self.full_steps))
        return "-".join(map(str, (self.kind, *numbers)))

    @property
    def is_sampled(self) -> bool:
        """False: a reference row."""
        return self.num_steps > 0


@dataclass(frozen=True, slots=True)
class Kit:
    """The networks under test, and how they are run."""

    model: Any
    head: Any
    vq: Any
    judge: Any
    defaults: Settings  # all but the steps
    device: torch.device
    batch_size: int

    def settings(self, row: Row) -> Settings:
        """The sampler settings of a row."""
        full_steps = None if row.kind == "vanilla" else row.full_steps
        return replace(self.defaults, num_steps=row.num_steps, full_steps=full_steps)

    def predictor(self, row: Row) -> PredictorOf | None:
        """What answers the row's other steps."""
        if row.kind == "shortcut":
            return partial(ShortcutPredictor, self.head)
        return (lambda model, conditions: Reuse()) if row.kind == "reuse" else None


def add_parser(steps: Any) -> None:
    """Adds `quality` to the command line."""
    parser = steps.add_parser("quality", help="measure speed and quality: a table", description=__doc__.split("\n")[0])
    parser.add_argument("--num", type=int, default=2000, help="pictures per row and seed")
    parser.add_argument("--num-reference", type=int, default=6000, help="fresh scenes to compare with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=50, help="pictures sampled at a time")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="of model and head")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), metavar="ROW", help=f"default: {' '.join(ROWS)}")
    parser.add_argument("--cfg", type=float, help="default of this and the next two: as the model's file says")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--choice-temperature", type=float)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help="draw distance against operations")
    parser.add_argument("--work", type=Path, default=Path("output/quality"), help="finished rows, to resume from")
    for name in ("model", "head", "vq", "judge"):
        parser.add_argument(f"--{name}", type=Path, default=getattr(shipped, name.upper()), help="default: shipped")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measures what is not measured yet, prints the table, writes JSON and chart. Returns 0."""
    rows = [Row.parse(name) for name in options.rows]
    kit = load_kit(options)
    for row in rows:
        if row.is_sampled:
            kit.settings(row).check()
    measured = measure_all(options, rows, kit)
    lines = [summary(row, [measured[row.name, seed] for seed in options.seeds], kit) for row in rows]
    setting = setting_of(options, kit)
    print(markdown(lines, setting))
    if options.json is not None:
        with written_whole(options.json) as partial_path:
            partial_path.write_text(json.dumps({"setting": setting, "rows": [asdict(line) for line in lines]}, indent=1))
    if options.chart is not None:
        with written_whole(options.chart) as partial_path:
            chart(lines).save(partial_path, format="PNG")
    return 0


def load_kit(options: argparse.Namespace) -> Kit:
    """The networks that `options` name, on its device."""
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    model_file, head_file = weights.load(options.model, kind="model"), weights.load(options.head, kind="head")
    weights.check_head(head_file, model_file)
    if model_file.config.num_classes != NUM_CLASSES:
        raise ValueError(
            f"{options.model} has {model_file.config.num_classes} classes, expected the {NUM_CLASSES} of the scenes. "
            "Only models of the scenes can be judged."
        )
    vq = weights.build(weights.load(options.vq, kind="vq"), dtype=torch.float32, device=device)
    defaults = weights.settings(model_file)
    given = {name: getattr(options, name) for name in ("temperature", "choice_temperature")}
    given |= {"guidance": None if options.cfg is None else (options.cfg,) if options.cfg else ()}
    return Kit(
        model=weights.build(model_file, dtype=dtype, device=device),
        head=weights.build(head_file, dtype=dtype, device=device),
        vq=vq.to(memory_format=torch.channels_last),
        judge=classifier.load(options.judge).to(device),
        defaults=replace(defaults, **{name: value for name, value in given.items() if value is not None}),
        device=device,
        batch_size=options.batch,
    )


def measure_all(options: argparse.Namespace, rows: list[Row], kit: Kit) -> dict[tuple[str, int], dict[str, float]]:
    """The figures of every row and seed. Each is kept in `options.work` as soon as it is known and not measured again."""
    setup = setup_of(options, kit)
    path = options.work / "rows.jsonl"
    measured = finished(path, setup)
    todo = [(row, seed) for row in rows for seed in options.seeds if (row.name, seed) not in measured]
    if not todo:
        return measured
    options.work.mkdir(parents=True, exist_ok=True)
    reference = Gaussian.of(judge_scenes(kit, FIRST_REFERENCE_SEED, options.num_reference)[0])
    for row, seed in todo:
        figures = measure(row, seed, options.num, kit, reference)
        _append(path, {"setup": setup, "row": row.name, "seed": seed, "figures": figures})
        measured[row.name, seed] = figures
        logger.info("%s seed %d: %s", row.name, seed, figures)
    return measured


def finished(path: Path, setup: str) -> dict[tuple[str, int], dict[str, float]]:
    """The figures in `path` that were measured under the same setup. A line that was cut off is skipped."""
    found = {}
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["setup"] == setup:
            found[line["row"], line["seed"]] = line["figures"]
    return found


def _append(path: Path, line: dict[str, Any]) -> None:
    """Adds a JSON line. If the last one was cut off, it is closed first, so that this one stays readable."""
    with path.open("a+b") as file:
        file.seek(max(0, file.tell() - 1))
        is_closed = file.read() in (b"", b"\n")
        file.write((b"" if is_closed else b"\n") + json.dumps(line).encode() + b"\n")


def setup_of(options: argparse.Namespace, kit: Kit) -> str:
    """A short hash of everything that figures depend on besides row and seed."""
    digest = hashlib.sha256()
    for path in (options.model, options.head, options.vq, options.judge):
        digest.update(Path(path).read_bytes())
    what = (options.num, options.num_reference, options.batch, options.dtype, str(kit.device), torch.get_num_threads())
    digest.update(repr((what, kit.defaults)).encode())
    return digest.hexdigest()[:16]


def measure(row: Row, seed: int, num: int, kit: Kit, reference: Gaussian) -> dict[str, float]:
    """The figures of one row and seed: seconds per image, Frechet distance, accuracies."""
    seconds = 0.0
    if row.is_sampled:
        features_BD, predicted, seconds = judge_samples(kit, row, seed, num)
    else:
        through = partial(through_vq, kit.vq) if row.kind == "vq" else None
        features_BD, predicted = judge_scenes(kit, FIRST_REAL_SEED + REAL_STRIDE * seed, num, through)
    class_B = np.arange(num) % NUM_CLASSES
    has_time = predicted["time"] == class_B // len(BIOMES)
    has_biome = predicted["biome"] == class_B % len(BIOMES)
    return {
        "seconds": seconds / num,
        "distance": frechet_distance(Gaussian.of(features_BD), reference),
        "time": float(has_time.mean()),
        "biome": float(has_biome.mean()),
        "both": float((has_time & has_biome).mean()),
    }


def judge_samples(kit: Kit, row: Row, seed: int, num: int) -> tuple[np.ndarray, dict[str, np.ndarray], float]:
    """Features and predicted attributes of `num` samples, image i of class i mod 16, and the seconds of sampling."""
    sample = partial(sample_codes, kit, row, seed)
    sample(range(min(num, 2)))  # the first call of a kernel is slower; it is not in the figures
    parts, seconds = [], 0.0
    for start in range(0, num, kit.batch_size):
        codes_Bhw, taken = sample(range(start, min(start + kit.batch_size, num)))
        parts.append(_judge(kit, decoded(kit.vq, codes_Bhw)))
        seconds += taken
    return *_joined(parts), seconds


def sample_codes(kit: Kit, row: Row, seed: int, images: range) -> tuple[Tensor, float]:
    """Codes (B, h, w) of the images numbered `images`, and the seconds that they took."""
    config, settings = kit.model.config, kit.settings(row)
    class_B = torch.tensor(images) % NUM_CLASSES
    result = generate(
        kit.model,
        class_branches(class_B, config.num_classes, len(settings.guidance)),
        settings,
        seed=seed,
        image_indices=images,
        num_tokens=config.num_tokens,
        predictor=kit.predictor(row),
        device=kit.device,
    )
    return result.codes_BL.unflatten(1, (config.grid, -1)), result.seconds


def judge_scenes(
    kit: Kit, first_seed: int, num: int, through: Callable[[Tensor], Tensor] | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features and predicted attributes of `num` fresh scenes, scene i of class i mod 16, optionally changed."""
    parts = []
    for start in range(0, num, kit.batch_size):
        pixels = np.stack([_scene(first_seed, i) for i in range(start, min(start + kit.batch_size, num))])
        pixels_BCYX = to_network(torch.from_numpy(pixels)).to(kit.device)
        parts.append(_judge(kit, through(pixels_BCYX) if through else pixels_BCYX))
    return _joined(parts)


@torch.no_grad()
def through_vq(vq: Any, pixels_BCYX: Tensor) -> Tensor:
    """Pictures after encoding and decoding."""
    return decoded(vq, torch.cat([vq.encode(part) for part in pixels_BCYX.split(DECODE_BATCH)]))


@torch.no_grad()
def decoded(vq: Any, codes_Bhw: Tensor) -> Tensor:
    """Pictures (B, 3, Y, X) of codes."""
    return torch.cat([vq.decode(part) for part in codes_Bhw.split(DECODE_BATCH)])


def summary(row: Row, figures: list[dict[str, float]], kit: Kit) -> Line:
    """One line of the table from the figures of each seed."""
    operations = None
    if row.is_sampled:
        head = kit.head if row.kind == "shortcut" else None
        operations = operations_by_part(kit.model, head, kit.settings(row), predictor=kit.predictor(row))
    mean = {name: float(np.mean([figure[name] for figure in figures])) for name in figures[0]}
    return Line(
        kind=row.kind,
        num_steps=row.num_steps,
        num_full=row.full_steps,
        seconds=mean["seconds"],
        operations=operations.total if operations else 0,
        operations_full=operations.full if operations else 0,
        operations_head=operations.head if operations else 0,
        operations_logits=operations.logits if operations else 0,
        distance=mean["distance"],
        distances=[figure["distance"] for figure in figures],
        time=mean["time"],
        biome=mean["biome"],
        both=mean["both"],
    )


def setting_of(options: argparse.Namespace, kit: Kit) -> dict[str, Any]:
    """What the figures were measured with, for the line under the table."""
    if kit.device.type == "cuda":
        hardware = torch.cuda.get_device_name(kit.device)
    else:
        hardware = f"{_cpu_name()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return {
        "hardware": hardware,
        "torch": torch.__version__,
        "dtype": options.dtype,
        "batch": options.batch,
        "num": options.num,
        "num_reference": options.num_reference,
        "seeds": options.seeds,
        "sampler": {k: v for k, v in asdict(kit.defaults).items() if k not in ("num_steps", "full_steps")},
    }


def _scene(first_seed: int, index: int) -> np.ndarray:
    time, biome = divmod(index % NUM_CLASSES, len(BIOMES))
    return np.asarray(draw(compose(first_seed + index, time=TIMES[time], biome=BIOMES[biome]), SIZE))


def _judge(kit: Kit, pixels_BCYX: Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    features_BD, predicted = classifier.judged(kit.judge, pixels_BCYX)
    return features_BD.cpu().numpy(), {name: value_B.cpu().numpy() for name, value_B in predicted.items()}


def _joined(parts: list[tuple[np.ndarray, dict[str, np.ndarray]]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    predicted = {name: np.concatenate([p[name] for _, p in parts]) for name in parts[0][1]}
    return np.concatenate([features for features, _ in parts]), predicted


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.processor())
