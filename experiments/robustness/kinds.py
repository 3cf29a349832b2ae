"""The kinds of cases: which input is damaged how, and what then reads it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from experiments.robustness import mutations
from experiments.robustness.samples import QUANTIZED, TRAIN
from shortcut import Pipeline
from shortcut.__main__ import main

Damage = Callable[[Random, bytes], bytes]
# What the published files of the samples do not say.
SIZES = {"model": "--num-heads 4 --num-codes 16", "head": "--num-heads 4", "vq": ""}
CLASSES = "generate --model model.safetensors --vq vq.safetensors --head head.safetensors --steps 3 --out o.png"
TEXT = f"{CLASSES} --prompt tree"
EDIT = f"{TEXT} --task edit --image picture.png"
CLIP = "generate --model . --prompt fox --steps 3 --width 16 --height 16 --out o.png"


@dataclass(frozen=True, slots=True)
class Case:
    """A case that is ready to run in its folder."""

    words: list[str]  # the command, for people
    action: Callable[[], int]
    names: tuple[str, ...]  # a refusal must hold one of them


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of input."""

    name: str
    sample: str  # folder of the samples
    damage: Callable[[Random, bytes], bytes] | None  # None: not a file; `make` makes the case
    files: tuple[str, ...] = ()  # those of the sample that are damaged, one in a case
    commands: tuple[str, ...] = ()  # FILE = the damaged one
    names: tuple[str, ...] = ()  # that a refusal may name in place of the file itself
    make: Callable[[Random], Case] | None = None

    def prepare(self, samples: Path, folder: Path, random: Random) -> Case:
        """Fill the empty `folder` and return the case that runs there."""
        shutil.copytree(samples / self.sample, folder, copy_function=os.link, dirs_exist_ok=True)
        if self.damage is None:
            assert self.make is not None
            return self.make(random)
        file = random.choice(self.files)
        content = self.damage(random, (folder / file).read_bytes())
        (folder / file).unlink()
        (folder / file).write_bytes(content)
        return self.case(random.choice(self.commands), file)

    def case(self, command: str, file: str) -> Case:
        """Return the case of a command."""
        sizes = SIZES.get(file.split(".")[0], "")
        words = command.replace("FILE", file).replace("SIZES", sizes).split()
        return Case(words, lambda: main(words), (Path(file).name, *self.names))

    def sound(self) -> list[Case]:
        """Return cases with nothing damaged, which must all be accepted."""
        return [self.case(command, file) for command in self.commands for file in self.files]


def json_file(random: Random, data: bytes) -> bytes:
    """Damage a JSON file."""
    return mutations.write_text(mutations.damaged_json(random, json.loads(data)))


def metadata(random: Random, data: bytes) -> bytes:
    """Damage what one of our files says of itself."""
    return mutations.damaged_metadata(random, data, lambda name: name.startswith("shortcut."))


def defaults(random: Random, data: bytes) -> bytes:
    """Damage the sampler settings that a model states."""
    return mutations.damaged_metadata(random, data, lambda name: name == "shortcut.defaults")


def yaml_file(random: Random, data: bytes) -> bytes:
    """Damage a YAML file, or make a bomb of it."""
    kind = random.randrange(6)
    if kind < 3:
        return json_file(random, data)
    if kind == 3:
        return mutations.damaged_bytes(random, data)
    value = json.loads(data)
    params = value["model"]["params"]
    place = random.choice([value, value["model"], params, params["ddconfig"]])
    place[random.choice([*place, "x"])] = "@@"
    text = json.dumps(value)
    if kind == 4:
        tag = random.choice(("os.system", "subprocess.check_call", "builtins.exec"))
        return text.replace('"@@"', f"!!python/object/apply:{tag} [touch canary]").encode()
    levels = random.choice((3, 9, 30))
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, levels)
    )
    body = text.replace('"@@"', f"*a{levels - 1}").removeprefix("{").removesuffix("}")
    return f"{bomb}{body}\n".encode()


def tokenizer(random: Random, data: bytes) -> bytes:
    """Damage tokenizer.json, or make a bomb of it."""
    bombs: list[dict[str, Any]] = [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
        {"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}] * 34}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(e|e|e)*(e|e)*(t|t)*(e|e|e)*x$"},
                           "behavior": "Isolated", "invert": False}},
        {"post_processor": {"type": "TemplateProcessing", "single": [], "pair": [],
                            "special_tokens": {}}},
        {"decoder": {"type": "Strip", "content": "x", "start": 2**31, "stop": 2**31}},
        {"truncation": {"max_length": 0, "strategy": "LongestFirst", "stride": 5, "direction": "Right"}},
        {"padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None,
                     "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}},
    ]  # fmt: skip
    if random.random() < 0.25:
        return json.dumps(json.loads(data) | random.choice(bombs)).encode()
    return json_file(random, data)


def lines(random: Random, data: bytes) -> bytes:
    """Damage a file of prompts."""
    kind = random.randrange(5)
    if kind == 0:
        return mutations.damaged_bytes(random, data)
    if kind == 1:
        encoding = random.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "utf-32"))
        return data.decode().encode(encoding) + random.choice((b"", b"\xff", b"\0"))
    found = data.decode().splitlines()
    at = random.randrange(len(found))
    value = json.loads(found[at])
    extra = ("width", "height", "batch-size", "full-steps", "temperature", "denoise", "outpaint",
             "mask", "image", "name", "schedule", "preset", "spread", "cfg", "choice-temperature",
             "style-image", "seed", "steps")  # fmt: skip
    for _ in range(random.choice((0, 1, 2))):
        value[random.choice(extra)] = random.choice(mutations.HOSTILE)
    found[at] = mutations.damaged_json(random, value)
    return mutations.write_text("\n".join(found))


def text_lines(random: Random, data: bytes) -> bytes:
    """Damage a file of plain prompts."""
    if random.random() < 0.5:
        return mutations.damaged_bytes(random, data)
    return random.choice((b"", b"\xff\xfe", b"x" * 200_000, b"\0\n", "\u2028é".encode("latin-1", "replace"),
                          "a tree\n".encode("utf-16"), b"caf\xe9\n", b"\n" * 1000))  # fmt: skip


def picture(random: Random, data: bytes) -> bytes:
    """Damage a picture, or put another format in its place."""
    if random.random() < 0.75:
        return mutations.damaged_bytes(random, data)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"
    others = (eps, b"", b"GIF89a", b"P6 32 32 255\n" + bytes(3072), b"P6 99999 99999 255\n", b"8BPS\0\1",
              b"II*\0\x08\0\0\0", b"BM" + b"\xff" * 60, b"RIFF\x10\0\0\0WEBPVP8 ", b"\0\0\1\0\1\0",
              b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\2\0\0\0")  # fmt: skip
    return random.choice(others) + random.choice((b"", random.randbytes(200)))


def log(random: Random, data: bytes) -> bytes:
    """Damage the log of a training."""
    if random.random() < 0.5:
        return mutations.damaged_bytes(random, data)
    line = random.choice(mutations.HOSTILE)
    changed = random.choice(
        (
            line,
            {"prompt": "a"},
            {"iteration": line},
            {"iteration": 1, "loss": line},
        )
    )
    return data + mutations.write_text(mutations.to_json(changed)) + b"\n"


OPTIONS = ("steps", "full-steps", "cfg", "cfg-image", "temperature", "choice-temperature", "seed",
           "batch-size", "width", "height", "denoise", "outpaint", "class", "spread", "preset",
           "schedule", "device", "dtype", "save-tokens", "out", "mask", "image", "head", "vq")  # fmt: skip


def _text(value: Any) -> str:
    text = value.removeprefix(mutations.RAW) if isinstance(value, str) else str(value)
    return text[:50_000].replace("\0", "0")  # what a system passes on


def options(random: Random) -> Case:
    """Return a command with wrong values."""
    chosen = random.sample(OPTIONS, random.choice((1, 1, 2, 3)))
    words = CLASSES.split() + [
        f"--{name}={_text(random.choice(mutations.HOSTILE))}" for name in chosen
    ]
    return Case(words, lambda: main(words), ())


# What a link to an input of that type can bring, whatever the range of the widget.
INTS = tuple(v for v in mutations.HOSTILE if type(v) is int)
FLOATS = (*mutations.FLOATS, float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e4)
TEXTS = tuple(v for v in mutations.HOSTILE if type(v) is str)
INPUTS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("seed", "num_images", "width", "height", "steps", "full_steps", "spread"), INTS
    ),
    **dict.fromkeys(("cfg", "temperature", "choice_temperature"), FLOATS),
    **dict.fromkeys(("preset", "label", "schedule", "negative", "prompt"), TEXTS),
}


def values(random: Random) -> Case:
    """Return a call of the library with wrong values, as a workflow's linked inputs hand them on."""
    names = random.sample(list(INPUTS), random.choice((1, 1, 2)))
    found = {name: random.choice(INPUTS[name]) for name in names}

    def action() -> int:
        pipeline = Pipeline.load("model.safetensors", "vq.safetensors", "head.safetensors")
        try:
            pipeline.generate(**found)
        except (ValueError, OSError) as error:
            print(f"error: {error}")
            return 1
        return 0

    return Case(["Pipeline.generate", f"{found!r:.2000}"], action, ())


def kinds() -> Sequence[Kind]:
    """Return all kinds."""
    info, convert = "info FILE", "convert FILE c.safetensors --dtype bfloat16"
    ours = ("model.safetensors", "vq.safetensors", "head.safetensors")
    theirs = ("info FILE SIZES", "convert FILE c.safetensors SIZES")
    zips, legacy = ("model.pth", "head.pth", "vq.pth"), ("model.ckpt", "head.ckpt", "vq.ckpt")
    index = "model.safetensors.index.json"
    parts = tuple(f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    batch = CLASSES.replace("--out o.png", "--prompts FILE --out-dir o")
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    tokens = tuple(f"model.tokenizer/{name}" for name in names)
    tokenizers = ("model.tokenizer", "model.safetensors")
    described = ("transformer/config.json", "vqvae/config.json", "scheduler/scheduler_config.json")
    models = ("config.json", "diffusion_pytorch_model.safetensors", "text_encoder")
    encoder = ("text_encoder/config.json", "text_encoder/model.safetensors")
    words = ("tokenizer/vocab.json", "tokenizer/tokenizer_config.json", "tokenizer/merges.txt")
    safetensors, pth, state = (
        mutations.damaged_safetensors,
        mutations.damaged_zip,
        ("h.safetensors",),
    )
    no_steps = CLASSES.replace(" --steps 3", "")
    narrow = CLASSES.replace("model.safetensors", "FILE")
    vq = ("diffusion_pytorch_model.safetensors",)
    published_vq = ("info vq.pth", "convert vq.pth c.safetensors")
    config = (f"info {index}", f"convert {index} c.safetensors")
    inpaint = f"{CLASSES} --image picture.png --mask FILE"
    change = f"{CLASSES} --image FILE --denoise 0.5"
    return (
        Kind("safetensors", "classes", safetensors, ours, (CLASSES, info, convert)),
        Kind("safetensors of text", "text", safetensors, ours, (TEXT, info, convert)),
        Kind("quantized", "classes", safetensors, tuple(QUANTIZED), (narrow, info)),
        Kind("metadata", "classes", metadata, ours, (CLASSES, info)),
        Kind("metadata of text", "text", metadata, ours, (TEXT, info)),
        Kind("defaults", "classes", defaults, ours[:1], (CLASSES, no_steps, info)),
        Kind("zip", "published", pth, zips, theirs),
        Kind("legacy pickle", "published", mutations.damaged_pickle, legacy, theirs),
        Kind("model.yaml", "published", yaml_file, ("model.yaml",), published_vq, ("vq.pth",)),
        Kind("index", "shards", json_file, (index,), (info, "info .")),
        Kind("shards", "shards", safetensors, parts, (f"info {index}",), (index,)),
        Kind("config.json", "shards", json_file, ("config.json",), config, (index,)),
        Kind("vqvae/config.json", "shards", json_file, ("vqvae/config.json",), ("info vqvae",), vq),
        Kind("tokenizer.json", "text", tokenizer, tokens[:1], (TEXT,), tokenizers),
        Kind("tokenizer settings", "text", json_file, tokens[1:], (TEXT,), tokenizers),
        Kind("diffusers", "clip", json_file, described, (CLIP, "info transformer"), models),
        Kind("text encoder", "clip", json_file, encoder[:1], (CLIP,), encoder),
        Kind("its weights", "clip", safetensors, encoder[1:], (CLIP,), encoder),
        Kind("its tokenizer", "clip", json_file, words[:2], (CLIP,), ("tokenizer", *words)),
        Kind("its merges", "clip", mutations.damaged_bytes, words[2:], (CLIP,), ("tokenizer",)),
        Kind("lines", "classes", lines, ("lines.jsonl",), (batch,), ("line ",)),
        Kind("lines of text", "text", lines, ("lines.jsonl",), (batch,), ("line ",)),
        Kind("training prompts", "text", text_lines, ("lines.txt",), (f"{TRAIN} --prompts FILE",)),
        Kind("pictures", "classes", picture, ("picture.png", "picture.jpg"), (change,)),
        Kind("masks", "classes", picture, ("mask.png",), (inpaint,)),
        Kind("sources", "text", picture, ("picture.png",), (EDIT,)),
        Kind("training state", "classes", pth, ("h.ckpt",), (TRAIN,), state),
        Kind("training log", "classes", log, ("h.jsonl",), (TRAIN,), state),
        Kind("options", "classes", None, make=options),
        Kind("workflow values", "classes", None, make=values),
    )
