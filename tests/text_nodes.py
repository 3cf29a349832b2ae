"""Runs of the nodes with a tiny model of text, for the tests that need them.

    model, head, vae, class_model             fixtures: MODELs, a head and a VAE that fit each other
    conditioner                               fixture: what turns prompts into conditions
    files                                     fixture: ComfyUI's models folder, empty, listed as ComfyUI lists
    asked                                     fixture: what the sampler hands to the pipeline; nothing is made
    build(conditioner, checkpoint)            -> MODEL
    run(model, latent, head, positive, ...)   -> the LATENT that the sampler makes
    cond, empty, image, pixels, put           -> CONDITIONING, LATENTs, IMAGE, files

Import it after ComfyUI, or what stands in for it, is importable.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import builders
import folder_paths
import pytest
import torch
from shortcut_pack.nodes import folders, native
from shortcut_pack.nodes import run as runs
from shortcut_pack.nodes.condition import TextCondition
from shortcut_pack.nodes.sample import FlatMaskedSampler
from shortcut_pack.shortcut import shipped
from shortcut_pack.shortcut.models.lumina_dimoo.conditioner import PromptConditioner
from shortcut_pack.shortcut.models.lumina_dimoo.prompts import load_tokenizer
from shortcut_pack.shortcut.models.lumina_dimoo.tokenizer import copy_tokenizer
from shortcut_pack.shortcut.models.maskgit.classes import ClassConditioner

GRID = (3, 5)  # rows, columns
PIXELS = (6, 10)
NUM_CODES = 16
WIDGETS = {
    "seed": 3,
    "steps": 6,
    "full_steps": 2,
    "cfg": 1.5,
    "cfg_ramp": False,
    "schedule": "lumina",
    "temperature": 1.0,
    "choice_temperature": 1.0,
    "denoise": 1.0,
    "cfg_image": 2.0,
    "spread": 0,
}
TEXT = "a red house under a full moon"


@pytest.fixture(scope="module")
def conditioner():
    tokenizer = load_tokenizer(shipped.TEXT_FOLDER, builders.TEXT_CONFIG)
    return PromptConditioner(builders.TEXT_CONFIG, tokenizer, "tiny.safetensors")


@pytest.fixture
def model(conditioner):
    return build(conditioner)


def build(conditioner, checkpoint=None, weight_dtype="float32"):
    colours_V3 = torch.linspace(-1, 1, NUM_CODES).unsqueeze(1).expand(-1, 3)
    latent_format = native.CodeIds(2, colours_V3)
    return native.build_model(
        checkpoint or builders.text_model(), weight_dtype, latent_format, conditioner
    )


@pytest.fixture
def head(model):
    fingerprint = model.model.checkpoint.fingerprint
    return native.build_head(builders.text_head(model_fingerprint=fingerprint), "float32")


@pytest.fixture
def vae():
    return native.CodeVAE(builders.vq())


@pytest.fixture
def class_model():
    latent_format = native.CodeIds(2, torch.zeros(NUM_CODES, 3))
    return native.build_model(builders.model(), "float32", latent_format, ClassConditioner(3, ()))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """ComfyUI's models folder in `tmp_path`, listed as ComfyUI does."""

    def names(category):
        root = tmp_path / category
        found = [path for path in root.rglob("*") if path.suffix in folders.EXTENSIONS]
        return sorted(str(path.relative_to(root)) for path in found)

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "get_filename_list", names)
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda c: [str(tmp_path / c)])
    monkeypatch.setattr(folder_paths, "get_full_path_or_raise", partial(existing, tmp_path))
    return tmp_path


def existing(models_dir, category, name):
    path = models_dir / category / name
    if not path.is_file():
        raise FileNotFoundError(name)
    return str(path)


def put(folder, *, vq=True, checkpoint=None, tokenizer=True):
    """Writes the tiny text model into models/migm as NAME.safetensors with what belongs beside it."""
    file = builders.write(folder / "migm" / "tiny.safetensors", checkpoint or builders.text_model())
    if tokenizer:
        copy_tokenizer(shipped.TEXT_FOLDER, file)
    if vq:
        builders.write(folder / "migm" / "vq" / "vq.safetensors", builders.vq())
    return file


def empty(num_images=1, grid=GRID):
    return {"samples": torch.zeros(num_images, 1, *grid)}


def image(num_images=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randint(NUM_CODES, (num_images, 1, *GRID), generator=generator)
    return {"samples": samples.float()}


def pixels(num_images=1, size=PIXELS, seed=0):
    return torch.rand(num_images, *size, 3, generator=torch.Generator().manual_seed(seed))


def cond(model, text=TEXT, task="text_to_image", **others):
    return TextCondition.execute(model, text, task, **others).result[0]


def run(model, latent=None, head=None, positive=None, **changes):
    sockets = {"model": model, "latent_image": empty() if latent is None else latent}
    sockets["positive"] = cond(model) if positive is None else positive
    if head is not None:
        sockets["head"] = head
    return FlatMaskedSampler.execute(**sockets, **(WIDGETS | changes)).result[0]


@pytest.fixture
def asked(monkeypatch):
    """What the sampler hands to the pipeline; nothing is made."""
    calls = []

    def record(network, conditions, settings, rules, **what):
        call = {"network": network, "conditions": conditions, "settings": settings, "rules": rules}
        calls.append(SimpleNamespace(**call))
        shape = (len(conditions[0]), what["num_tokens"])
        return SimpleNamespace(codes_BL=torch.zeros(shape, dtype=torch.long), num_steps=0)

    monkeypatch.setattr(runs, "generate", record)
    return calls
