"""The options of `generate`, on the command line and in the lines of a file of prompts.

Which options say what to make depends on the model's architecture (`Architecture.takes`).
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ..accelerators.choice import NAMES as ACCELERATORS
from ..guard import MAX_IMAGES, check_whole, parse_json
from ..models import tasks, text_tasks
from ..models.architecture import ONE_STEP, PRESET_NAMES, Architecture
from ..schedule import ORDERS, SCHEDULES
from ..writing import check_name, check_writable
from .output import paths_of

# Option -> the field of `Request` that it fills or needs. Architectures differ in what they take.
FIELDS = {
    "class_": "label",
    "prompt": "prompt",
    "negative": "negative",
    "task": "task",
    "style_image": "sources",
    "cfg_image": "sources",
}
DTYPES = ("float32", "bfloat16", "float16")
NAME = "name"  # in a line of a file of prompts: of the picture, without .png


def add_files(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which files to use and where to write."""
    files = parser.add_argument_group("files: published ones, folders with one, or ours")
    files.add_argument(
        "--model",
        type=Path,
        help="default: the shipped model that takes what is asked for, with its VQ model and head; of --prompts the "
        "text model: for classes give scenes",
    )
    files.add_argument("--vq", type=Path, help="VQ model; default: the one beside the model")
    files.add_argument(
        "--head", help="shortcut head, or none; default: none with --model, else the shipped one"
    )
    files.add_argument("--out", type=Path, help="PNG; several images get -0, -1, ... before .png")
    files.add_argument(
        "--save-tokens", type=Path, help="safetensors with `codes` (images, rows, columns)"
    )
    files.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE.jsonl",
        help="instead of --out: many pictures. A line is a JSON object whose keys are options of the next two groups "
        f'without --, such as {{"prompt": "a fox", "seed": 5}}, and "{NAME}" of the file; what it leaves out is as on '
        "the command line. Run again, it goes on where it stopped. Under torchrun the lines are shared out",
    )
    files.add_argument("--out-dir", type=Path, help="folder for --prompts")


def add_what(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what a picture shows."""
    what = parser.add_argument_group("what to make")
    what.add_argument(
        "--class", dest="class_", metavar="N", help="class number or name; default: 0"
    )
    what.add_argument("--prompt", metavar="TEXT", help="of a text model; '' = anything")
    what.add_argument("--negative", metavar="TEXT", help="what to guide away from")
    what.add_argument(
        "--task",
        choices=[*tasks(), *text_tasks()],
        help="what a text model is asked to do; all but text_to_image, the default, start from --image. understand: "
        "answer --prompt about it. reasoned_edit: edit it, and say why",
    )
    what.add_argument("--seed", type=int, default=0)
    what.add_argument("--batch-size", type=int, default=1, help="number of images")
    what.add_argument(
        "--width", type=int, help="pixels; default: of --image, else of the model's training"
    )
    what.add_argument("--height", type=int, help="pixels; likewise")
    what.add_argument(
        "--image",
        type=Path,
        metavar="PICTURE",
        help="what a task starts from; or with --mask, --outpaint or --denoise the picture to change",
    )
    what.add_argument(
        "--style-image", type=Path, metavar="PICTURE", help="of the task style: whose style to take"
    )
    what.add_argument(
        "--mask",
        type=Path,
        metavar="PICTURE",
        help="of the size of --image: what is white is made anew, the other tokens stay exactly",
    )
    what.add_argument(
        "--outpaint",
        metavar="LEFT,TOP,RIGHT,BOTTOM",
        help="pixels to add around --image and to fill",
    )
    what.add_argument(
        "--denoise", type=float, help="share of the tokens of --image (or its mask) made anew"
    )


def add_how(parser: argparse.ArgumentParser) -> None:
    """Add the options that trade speed for quality."""
    how = parser.add_argument_group("speed against quality")
    how.add_argument(
        "--preset",
        choices=(*PRESET_NAMES, ONE_STEP),
        help="steps and full passes, of MaskGIT and Lumina-DiMOO those that the paper measured with a head; "
        "one_step is for one-step students of MaskGIT and Meissonic",
    )
    how.add_argument(
        "--accelerator",
        choices=ACCELERATORS,
        metavar="NAME",
        help="what answers steps that are not full passes: %(choices)s; default: the head, if there is one, else "
        "partial with --preset or --full-steps; partial for the shipped class model",
    )
    how.add_argument("--steps", type=int, help="sampling steps")
    how.add_argument(
        "--full-steps",
        help="full passes: how many, or which (0,4,9); default: as the preset balanced; all without an accelerator",
    )
    how.add_argument(
        "--cfg",
        type=float,
        help="cond + cfg * (cond - uncond); where it rises from step to step, the last one's; 0 = off",
    )
    how.add_argument(
        "--cfg-image", type=float, help="the same with the images that a task starts from"
    )
    how.add_argument(
        "--order",
        choices=ORDERS,
        help="which tokens come first: those the model is surest of; the same, and full passes take unlikely ones back "
        "(corrected); or by a Halton sequence, far from each other",
    )
    how.add_argument("--spread", type=int, help="of earlier versions; no effect")
    add_draws(how)


def add_text(parser: argparse.ArgumentParser) -> None:
    """Add the options of the tasks whose answer has a text."""
    text = parser.add_argument_group("text, of the tasks understand and reasoned_edit")
    text.add_argument("--max-tokens", type=int, help="most tokens of the text; default: 128, 256")
    text.add_argument("--text-steps", type=int, help="passes that make the text; default: 128")
    text.add_argument(
        "--block-length", type=int, help="of understand: tokens made together; default: 32"
    )
    text.add_argument(
        "--text-temperature", type=float, help="of the words; 0, the default, = the most likely"
    )


def add_draws(group: Any) -> None:
    """Add the options that say how codes and positions are drawn."""
    group.add_argument("--temperature", type=float, help="of the codes; 0 = the most likely code")
    group.add_argument("--choice-temperature", type=float, help="noise on the confidence; 0 = none")
    group.add_argument("--schedule", choices=list(SCHEDULES), help="how the number of tokens grows")


def add_device(group: Any) -> None:
    """Add the options that say where and in which type to compute."""
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the weights; default: float32, or the file's own if that would take more than 8 GB",
    )
    group.add_argument(
        "--sequential",
        action="store_true",
        help="one guidance branch at a time: less memory, slower",
    )


def add_where(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where to compute and what to report."""
    where = parser.add_argument_group("where")
    add_device(where)
    where.add_argument(
        "--more-devices",
        nargs="+",
        metavar="DEVICE",
        help="hold the model too, and run guidance branches side by side: cuda:1",
    )
    where.add_argument(
        "--compile",
        action="store_true",
        help="compile the model's blocks by torch.compile in the first run, which takes a minute or so, for faster "
        "runs after it. Rounds differently",
    )
    where.add_argument(
        "--cuda-graph",
        action="store_true",
        help="of --prompts, on an NVIDIA GPU: record a run, and start those of the same plan from the recording. Meant "
        "for small models",
    )
    where.add_argument(
        "--json",
        action="store_true",
        help="one JSON line last: seconds, steps, FLOPs, seeds; with --prompts: what was made and what failed",
    )


TEXT_OPTIONS = ("max_tokens", "text_steps", "block_length", "text_temperature")


def check_no_text(options: argparse.Namespace) -> None:
    """Raise ValueError for an option of text, which the task has none of."""
    for name in TEXT_OPTIONS:
        if getattr(options, name) is not None:
            raise ValueError(
                f"{flag(name)} is for {' and '.join(f'--task {task}' for task in text_tasks())}. Leave it out."
            )


def check_effect(options: argparse.Namespace, names: Collection[str], what: str) -> None:
    """Raise ValueError for an option that was given and is not among `names`, those that have an effect with `what`."""
    parser = argparse.ArgumentParser(add_help=False)
    for add in (add_files, add_what, add_how, add_text, add_where):
        add(parser)
    for action in parser._actions:
        if action.dest not in names and getattr(options, action.dest) != action.default:
            raise ValueError(f"{flag(action.dest)} has no effect with {what}. Leave it out.")


def check_outputs(options: argparse.Namespace) -> None:
    """Check before a long run that its results have a place.

    Raises:
        ValueError: the options do not say where to write, or say it twice.
        OSError: nothing can be written there.
    """
    if options.prompts is None:
        if options.out is None:
            raise ValueError("nothing says where to write. Add --out FILE.png.")
        if options.out_dir is not None:
            raise ValueError("--out-dir is for --prompts. Give --out FILE.png instead.")
        if options.cuda_graph:
            raise ValueError(
                "--cuda-graph is for --prompts: a run alone takes longer to record than to make. Leave it out."
            )
        if options.out.suffix.lower() != ".png":
            raise ValueError(
                f"--out {options.out} is no PNG: pictures are PNG files. Name it .png."
            )
        check_whole("batch size", options.batch_size, 1, MAX_IMAGES)
        pictures = paths_of(options.out, options.batch_size)
        if (tokens := options.save_tokens) is not None and any(_same(p, tokens) for p in pictures):
            raise ValueError(
                f"--out and --save-tokens name the same file, {tokens}. Give two names."
            )
        first, *_, last = pictures * 2
        for path in filter(None, (first, last, options.save_tokens)):
            check_writable(path)
    else:
        if options.out_dir is None:
            raise ValueError("--prompts needs a folder to write to. Add --out-dir DIR.")
        for name in ("out", "save_tokens"):
            if getattr(options, name) is not None:
                raise ValueError(f"{flag(name)} does not go with --prompts. Leave it out.")
        if options.out_dir.exists() and not options.out_dir.is_dir():
            raise NotADirectoryError(f"--out-dir {options.out_dir} is a file, not a folder.")
        check_writable(options.out_dir / "00001.png")


def _same(one: Path, other: Path) -> bool:
    return one.absolute() == other.absolute()


def fields_given(options: argparse.Namespace) -> frozenset[str]:
    """Return the fields of `Request` that the options fill or need."""
    given = [field for name, field in FIELDS.items() if getattr(options, name) is not None]
    return frozenset(given if options.prompts is None else [*given, "prompt"])


def check_taken(options: argparse.Namespace, architecture: Architecture) -> None:
    """Raise ValueError for an option or a task that models of this architecture do not take."""
    title = architecture.title
    for name, field in FIELDS.items():
        if field not in architecture.takes and getattr(options, name) is not None:
            taken = ", ".join(flag(n) for n, f in FIELDS.items() if f in architecture.takes)
            raise ValueError(f"{flag(name)} is not for a {title}. It takes {taken}.")
    architecture.check_task(options.task)


def flag(name: str) -> str:
    """Return an option as it is typed."""
    return "--" + name.rstrip("_").replace("_", "-")


def with_line(options: argparse.Namespace, text: str) -> argparse.Namespace:
    """Return the options with those of a line of a file of prompts in their place, and `name` (None = not given).

    Raises:
        ValueError: the line is no JSON object of options.
    """
    line = parse_json(text)
    if not isinstance(line, Mapping):
        raise ValueError(f"it is {text[:80]!r}, expected a JSON object with a prompt.")
    parser = _LineParser(allow_abbrev=False, add_help=False)
    add_what(parser)
    add_how(parser)
    if unknown := [key for key in line if key != NAME and flag(key) not in parser.flags]:
        known = ", ".join((NAME, *(known.lstrip("-") for known in parser.flags)))
        raise ValueError(f"it has {unknown[0]!r}, which is no option. Known are: {known}.")
    if len({flag(key) for key in line}) < len(line):
        raise ValueError(f"it says an option twice, as {', '.join(line)}. Leave one out.")
    # pandas and jq write null, or NaN, where nothing is given.
    line = {key: value for key, value in line.items() if value is not None and value == value}
    name = line.pop(NAME, None)
    if name is not None:
        name = _checked_name(name)
    arguments = [f"{flag(key)}={_argument(key, value)}" for key, value in line.items()]
    # What the namespace holds already stays where the line says nothing.
    return parser.parse_args(arguments, argparse.Namespace(**{**vars(options), NAME: name}))


def _checked_name(name: Any) -> str:
    """Return the name of a picture in a line. Raises ValueError if some system cannot hold it."""
    if isinstance(name, int | float) and not isinstance(name, bool):
        name = _argument(NAME, name)
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"its name is {name!r}, expected that of a file, without a folder.")
    check_name(name)
    check_name(f"{name}.png")
    return name


def _argument(key: str, value: Any) -> str:
    """Return a value of a line as it would be typed."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(v, str | int | float) and not isinstance(v, bool) for v in values):
        raise ValueError(f"its {key} is {value!r}, expected a text, a number or a list of numbers.")
    # pandas writes 5.0 for 5 in a column where some rows have nothing.
    is_whole = [isinstance(v, float) and v.is_integer() for v in values]
    text = ",".join(str(int(v) if whole else v) for v, whole in zip(values, is_whole, strict=True))
    # One number alone would be how many, not which.
    is_list_of_one = isinstance(value, list) and len(value) == 1 and flag(key) == "--full-steps"
    return f"{text}," if is_list_of_one else text


class _LineParser(argparse.ArgumentParser):
    """A parser whose errors are exceptions."""

    @property
    def flags(self) -> list[str]:
        """Return its options as they are typed."""
        return list(self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)
