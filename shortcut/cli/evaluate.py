"""The command `evaluate`: options -> teacher and heads -> a verdict as a table, JSON and a chart.

What is asked is how near a head keeps to its model, which needs no judge: with the same tokens and the same noise, how
many tokens would the model have decided alike? For text models, packages of others can score the pictures too.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .. import shipped, weights
from ..checkpoint import Checkpoint
from ..distributed import World, meeting
from ..files import check_writable, written_whole
from ..grid import usual_grid
from ..models.lumina_dimoo import prompts
from ..models.lumina_dimoo.tokenizer import tokenizer_folder
from ..pipeline import advice_on_memory, checked_device
from ..schedule import Settings
from ..train.dataset import GB
from ..train.judging import (
    Score,
    Trial,
    Verdict,
    judge,
)
from ..train.judging_report import markdown, quality_chart
from ..train.pictures import Quality, measure_quality
from ..train.progress import progress_bar
from ..train.recording import num_bytes
from ..train.scorers import SCORERS, Scores, score_of_codes
from ..train.teacher import Teacher
from .train_options import (
    add_model,
    add_sampling,
    add_where,
    load_teacher,
    read_prompts,
)

logger = logging.getLogger(__name__)

BATCH_BYTES = 2 * GB  # that the record of a batch takes at most unless --batch-size says otherwise


def add_parser(commands: Any) -> None:
    """Adds `evaluate` to the command line."""
    parser = commands.add_parser(
        "evaluate",
        help="how near shortcut heads keep to their model, and what they save",
        description=f"{__doc__} Under torchrun the batches are shared out.",
    )
    parser.add_argument(
        "--head",
        type=Path,
        nargs="+",
        metavar="HEAD",
        help="files of heads for the model; default: the shipped head of the shipped model",
    )
    parser.add_argument(
        "--full-steps",
        type=int,
        nargs="+",
        metavar="N",
        help="numbers of full passes, a row for each; default: the shares of the paper's presets",
    )
    parser.add_argument(
        "--spread",
        type=int,
        metavar="N",
        help="between full passes keep N codes away from tokens that the last one did not see; default: as the "
        "model's file says",
    )
    parser.add_argument(
        "--num",
        "--num-images",  # torchrun, which reads all options, takes --num for the begin of one of its own
        type=int,
        default=16,
        metavar="N",
        help="images of each seed; default: 16. Under torchrun --num-images",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument(
        "--batch-size", type=int, help="images at a time; default: 8, or what takes 2 GB"
    )
    parser.add_argument(
        "--scorer",
        choices=list(SCORERS),
        help="of a text model: score the pictures with a package installed beside this one",
    )
    parser.add_argument(
        "--quality",
        nargs="?",
        type=int,
        const=500,
        metavar="NUM",
        help="of the shipped class model: look at NUM pictures of each row and seed too; default: %(const)s",
    )
    parser.add_argument("--vq", type=Path, help="for --scorer; default: the one beside the model")
    parser.add_argument(
        "--json",
        nargs="?",
        const="",
        metavar="FILE",
        help="all figures as JSON: as the last line, or into FILE",
    )
    parser.add_argument(
        "--chart",
        type=Path,
        metavar="FILE.png",
        help="draw quality against operations: with --quality the distance, with --scorer the score, else the tokens "
        "decided as the model decides them",
    )
    add_model(parser)
    add_sampling(parser)
    add_where(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Judges. Returns the exit status; errors are exceptions whose text is for the user."""
    for path in filter(None, (options.json, options.chart)):
        check_writable(Path(path))
    check_quality(options)
    world = World.here()
    with meeting(world) as gather:
        scores = load_scorer(options)
        teacher, model_file = load_teacher(options)
        trial = trial_of(options, teacher, model_file)
        files, heads = load_heads(options, teacher, model_file)
        with progress_bar(is_shown=world.rank == 0, unit="run") as bar, advice_on_memory():

            def on_run(done: int, num_runs: int) -> None:
                bar.total = num_runs
                bar.update(done - bar.n)

            verdict = judge(
                teacher,
                model_file,
                heads,
                trial,
                options.grid or usual_grid(model_file),
                score=scores and score_of(options, teacher, model_file, scores),
                world=world,
                gather=gather,
                on_run=on_run,
            )
    if world.rank == 0:
        quality = None
        if options.quality is not None:
            with advice_on_memory():
                quality = measure_quality(teacher, heads, trial, options.quality)
        report(options, verdict, setting_of(options, teacher, model_file, files, trial), quality)
    return 0


def check_quality(options: argparse.Namespace) -> None:
    """Raises ValueError if pictures are to be looked at that the judge does not know."""
    if options.quality is None:
        return
    if options.quality < 2:
        raise ValueError(f"--quality needs at least 2 pictures, got {options.quality}.")
    for name in ("model", "prompts", "classes", "autocast"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"--quality is of the shipped class model as it is used, not with --{name}. Leave one of them out."
            )


def trial_of(options: argparse.Namespace, teacher: Teacher, model_file: Checkpoint) -> Trial:
    """What the options ask for.

    Raises:
        ValueError: a figure is out of range, or there are several numbers of steps.
    """
    if options.steps is not None and len(options.steps) > 1:
        raise ValueError(
            f"heads are judged at one number of steps at a time, got {list(options.steps)}. Give --steps "
            f"{options.steps[0]}."
        )
    settings = teacher.settings
    if options.spread is not None:
        settings = replace(settings, spread=options.spread)
        settings.check()
    trial = Trial(
        settings=settings,
        full_steps=tuple(
            dict.fromkeys(options.full_steps or usual_full_steps(model_file, settings))
        ),
        num_images=options.num,
        batch_size=images_at_once(teacher, options.num)
        if options.batch_size is None
        else options.batch_size,
        seeds=tuple(dict.fromkeys(options.seeds)),
    )
    trial.check()
    return trial


def usual_full_steps(model_file: Checkpoint, settings: Settings) -> list[int]:
    """As many full passes, in proportion to the steps, as the presets of the model have."""
    shares = [preset.num_full / preset.num_steps for preset in model_file.format.presets.values()]
    return sorted({max(1, round(share * settings.num_steps)) for share in shares})


def images_at_once(teacher: Teacher, num_images: int) -> int:
    """Images in a batch: what fits BATCH_BYTES, at most 8."""
    _, conditions, _ = teacher.draw((teacher.settings,), 1, (0,))
    one = num_bytes(teacher, conditions, teacher.settings.num_steps)
    return max(1, min(8, num_images, BATCH_BYTES // one))


def load_heads(
    options: argparse.Namespace, teacher: Teacher, model_file: Checkpoint
) -> tuple[dict[str, Checkpoint], dict[str, Any]]:
    """The files of the heads and their networks, by name; of the files the tensors are not kept.

    Raises:
        FileNotFoundError, ValueError: there is none, or as `weights.load`, `check_head`.
    """
    paths = options.head
    if paths is None:
        if options.model is not None:
            raise ValueError(
                f"there is no head to judge: give --head FILE, one made for {model_file.name}. To make one: python -m "
                f"shortcut train --model {options.model} --out HEAD.safetensors"
            )
        is_text = model_file.format.conditioning == "text"
        paths = [shipped.TEXT_FOLDER if is_text else shipped.HEAD]
    loaded = [weights.load(path, kind="head") for path in paths]
    names = [file.name for file in loaded]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"--head names a file twice: {', '.join(names)}. Give each once.")
    for file in loaded:
        unverified = weights.check_head(file, model_file)
        if unverified:
            logger.warning(unverified)
    networks = [
        weights.build(file, dtype=teacher.model.dtype, device=teacher.device) for file in loaded
    ]
    files = [file.without_tensors() for file in loaded]
    return dict(zip(names, files, strict=True)), dict(zip(names, networks, strict=True))


def load_scorer(options: argparse.Namespace) -> Scores | None:
    """The scorer that the options name, before anything large is loaded.

    Raises:
        ValueError: its package is missing, or there are no prompts for it.
    """
    if options.scorer is None:
        return None
    if options.prompts is None:
        raise ValueError(
            f"--scorer {options.scorer} compares pictures with what was asked for: give --prompts FILE and a text "
            "model."
        )
    return SCORERS[options.scorer].load(checked_device(options.device))


def score_of(
    options: argparse.Namespace, teacher: Teacher, model_file: Checkpoint, scores: Scores
) -> Score:
    """The scorer for conditions and codes in place of prompts and pictures.

    Raises:
        FileNotFoundError, ValueError: there is no VQ model, or another's.
    """
    assert model_file.path is not None
    usual = model_file.path.parent if options.model is not None else shipped.VQ
    vq_file = weights.load(options.vq or usual, kind="vq")
    if vq_file.config.num_codes != model_file.config.num_codes:
        raise ValueError(
            f"{vq_file.name} has {vq_file.config.num_codes} codes, and {model_file.name} makes "
            f"{model_file.config.num_codes}. Give the VQ model that belongs to it as --vq."
        )
    vq: Any = weights.build(vq_file, dtype=torch.float32, device=teacher.device)
    tokenizer = prompts.load_tokenizer(tokenizer_folder(model_file.path), model_file.config)
    texts = {
        tuple(prompts.prompt_tokens(tokenizer, "text_to_image", text)): text
        for text in read_prompts(options.prompts)
    }
    return score_of_codes(scores, texts, vq, options.grid or usual_grid(model_file))


def setting_of(
    options: argparse.Namespace,
    teacher: Teacher,
    model_file: Checkpoint,
    files: Mapping[str, Checkpoint],
    trial: Trial,
) -> dict[str, Any]:
    """What the figures were measured with."""
    return {
        "model": model_file.name,
        "model_fingerprint": model_file.fingerprint,
        "heads": {name: file.fingerprint for name, file in files.items()},
        "grid": list(options.grid or usual_grid(model_file)),
        "settings": asdict(trial.settings),
        "full_steps": list(trial.full_steps),
        "images": trial.num_images,
        "seeds": list(trial.seeds),
        "batch_size": trial.batch_size,
        "scorer": options.scorer,
        "dtype": str(teacher.model.dtype).removeprefix("torch."),
        "device": device_name(teacher.device),
        "torch": torch.__version__,
        "processes": World.here().size,
    }


def device_name(device: torch.device) -> str:
    """What computed."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return (
        f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
    )


def report(
    options: argparse.Namespace,
    verdict: Verdict,
    setting: dict[str, Any],
    quality: Quality | None = None,
) -> None:
    """Prints the tables; writes JSON and chart where they were asked for."""
    if options.chart is not None:
        with written_whole(options.chart) as partial:
            picture = quality_chart(verdict, setting) if quality is None else quality.chart()
            picture.save(partial, format="PNG")
    figures = {"setting": setting, **asdict(verdict)}
    if quality is not None:
        figures["quality"] = quality.dump()
    if options.json == "":
        print(json.dumps(figures))
        return
    if options.json is not None:
        with written_whole(Path(options.json)) as partial:
            partial.write_text(json.dumps(figures, indent=1))
    print(markdown(verdict, setting))
    if quality is not None:
        print(f"\n{quality.markdown()}")
    elif options.model is None:
        print("\nQuality of the pictures, by judges that know the scenes:\n")
        for command in quality_commands(options, setting):
            print(f"    {command}")


def quality_commands(options: argparse.Namespace, setting: dict[str, Any]) -> list[str]:
    """What measures pictures of the shipped models, for each head."""
    num_steps = setting["settings"]["num_steps"]
    table = "quality" if options.prompts is None else "text-quality"
    rows = [f"shortcut-{num_steps}-{n}" for n in setting["full_steps"]]
    named = [f" --head {path}" for path in options.head or ()] or [""]
    return [
        f"python -m experiments {table}{head} --rows vanilla-{num_steps} {' '.join(rows)}"
        for head in named
    ]
