"""The pictures of the second base: scenes, captions, edits, their judge, and the stages that train on them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from experiments import __main__ as commands
from experiments.judges import reader, world_reader
from experiments.scenes.facts import Claim, holds
from experiments.training import patches, world, world_base, world_vq
from experiments.training.muon import orthogonalised
from experiments.world.captions import describe
from experiments.world.drawing import draw
from experiments.world.edits import altered, instruction, kept
from experiments.world.facts import LABELS, facts_of, labels_of, seen_facts, visible_groups
from experiments.world.kinds import KINDS
from experiments.world.scene import CLASSES, SKY_KINDS, compose
from shortcut import checkpoint
from shortcut.models.maskgit import transformer as maskgit
from shortcut.models.maskgit import vqgan
from shortcut.models.maskgit.vqgan import VQGAN
from shortcut.train.fit import fit

SCENES = [compose(seed) for seed in range(300)]


def test_a_scene_follows_from_its_seed_and_shows_what_it_holds() -> None:
    assert SCENES[7] == compose(7) and {s.class_id for s in SCENES} == set(range(len(CLASSES)))
    assert {thing.kind for scene in SCENES for thing in scene.things} == set(KINDS)
    for scene in SCENES:
        standing = [thing for thing in scene.front if thing.kind != "fence"]
        for left, right in pairwise(standing):
            assert right.x - left.x > 0.4 * (left.width + right.width)


def test_a_lake_mirrors_what_stands_behind_it() -> None:
    lake = next(s for s in SCENES if s.place == "lake" and not s.water and s.back)
    whole, bare = (np.asarray(draw(s)).astype(int) for s in (lake, replace(lake, back=())))
    assert whole.shape == (128, 128, 3)
    changed = (whole != bare).any(2)
    shore = 80
    assert changed[shore + 1 : shore + 8].any() and changed[shore - 8 : shore - 1].any()
    assert not changed[:, ~changed[:shore].any(0)].any(), "only below what stands there"


def test_all_that_a_caption_says_is_true() -> None:
    said: list[Claim] = []
    for seed, scene in enumerate(SCENES):
        claims = describe(scene, seed).claims
        for facts in (facts_of(scene), seen_facts(scene)):
            assert all(holds(claim, facts) for claim in claims), describe(scene, seed).text
        said += claims
    wanted = {"time", "biome", "weather", "style", "count", "each", "place", "left of"}
    assert wanted <= {claim.what for claim in said}
    assert {group for claim in said for group in claim.of} == set(KINDS)


def test_an_edit_changes_one_thing_and_its_words_are_true_of_the_result() -> None:
    tasks = set()
    for seed in range(200):
        before, after = facts_of(compose(seed)), facts_of(altered(seed))
        asked = instruction(before, after, seed)
        tasks.add(asked.task)
        assert all(holds(claim, after) for claim in asked.words.claims)
        assert not all(holds(claim, before) for claim in asked.words.claims)
        assert len(kept(before, after)) >= len(KINDS) + 4 - 3  # the hour may take sun or moon along
    assert tasks == {"time of day", "remove", "colour", "style"}


def test_tokens_are_labelled_by_what_stands_on_them() -> None:
    for scene in SCENES[:40]:
        if not scene.front:
            continue
        thing = scene.front[-1]
        label_YX = labels_of(scene, (16, 16)).view(16, 16)
        row, column = int((thing.base - thing.height / 2) * 16), min(15, int(thing.x * 16))
        assert LABELS[int(label_YX[row, column])] == (thing.kind, thing.colour)


def test_right_answers_of_the_judge_give_the_facts_back() -> None:
    facts = [seen_facts(scene) for scene in SCENES[:60]]

    def oracle(pixels_BCYX: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {}
        for name, wanted in reader.targets(facts, world_reader.SIGHT).items():
            size = len(world_reader.FILE.reads[name]) + (wanted.ndim - 1)
            known = wanted.clamp(min=0)
            found[name] = torch.nn.functional.one_hot(known, size).float().movedim(-1, 1) * 9
        return found

    read = reader.read(oracle, torch.zeros(60, 3, 8, 8), 60, world_reader.SIGHT)  # pyright: ignore
    for scene, found, wanted in zip(SCENES, read, facts, strict=False):
        assert (found.weather, found.style) == (wanted.weather, wanted.style)
        for group in set(visible_groups(scene)) - set(SKY_KINDS):
            assert found.kinds(group) == wanted.kinds(group)


def test_crops_lie_on_the_grid_of_codes() -> None:
    part = world_vq.crops(3, 64, torch.Generator().manual_seed(0))
    again = world_vq.crops(3, 64, torch.Generator().manual_seed(0))
    assert part.shape == (3, 3, 64, 64) and torch.equal(part, again)


def test_the_encoder_gives_the_codes_of_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_vq, "CONFIG", replace(world_vq.CONFIG, num_codes=64))
    found = world_vq.measured(20)
    network = world_vq.started(found)
    pixels = world_vq.crops(4, 128, torch.Generator().manual_seed(1))
    wanted = found.project(pixels).view(4, 16, 16, -1).movedim(-1, 1)
    assert torch.nn.functional.mse_loss(network.latents(pixels), wanted) < 1e-3 * wanted.var()
    assert (network.encode(pixels) == found.codes(pixels)).float().mean() > 0.98
    before = network.decode(found.codes(pixels))
    patches.scale_codebook(network, 1 / found.scale_C)
    assert torch.allclose(network.decode(found.codes(pixels)), before, atol=1e-4)


def test_steps_of_convolutions_have_singular_values_near_one() -> None:
    weight = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0)).flatten(1)
    values = torch.linalg.svdvals(orthogonalised(weight))
    assert values.min() > 0.6 and values.max() < 1.3


def test_a_training_with_muon_resumes_exactly(tmp_path: Path) -> None:
    def train(iterations: int, name: str) -> torch.Tensor:
        def draw(generator: torch.Generator) -> torch.Tensor:
            if draws.pop() == "stop":
                raise KeyboardInterrupt
            return torch.randn(4, 3, generator=generator)

        draws = ["go"] * iterations if iterations == 4 else ["stop", "go", "go"]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = torch.nn.Linear(3, 2)
        fit(
            network,
            draw,
            lambda network, x: (network(x).square().mean(), {}),
            replace(world_base.RECIPE, iterations=4),
            checkpoint=tmp_path / name,
            make_optimizer=world_base.OPTIMIZER,
        )
        return network.weight.detach()

    with pytest.raises(KeyboardInterrupt):
        train(2, "ended.ckpt")
    assert torch.equal(train(4, "ended.ckpt"), train(4, "whole.ckpt"))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_the_stages_leave_models_that_load_and_are_not_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")

    def vq(directory: Path) -> VQGAN:
        with torch.random.fork_rng():
            return VQGAN(tiny.VQ)

    monkeypatch.setattr(world_vq, "train", vq)
    monkeypatch.setattr(world_vq, "NUM_MEASURED", 4)
    monkeypatch.setattr(world_vq, "CONFIG", replace(world_vq.CONFIG, num_codes=16))
    small = {"width": 32, "depth": 1, "num_heads": 2, "num_codes": 16}
    sizes = {
        "CONFIG": replace(world_base.CONFIG, mlp_width=32, **small),
        "TEXT_CONFIG": replace(world_base.TEXT_CONFIG, mlp_width=32, num_kv_heads=2, **small),
        "RECIPE": replace(world_base.RECIPE, iterations=2),
        "STAGE": replace(world_base.STAGE, recipe=replace(world_base.RECIPE, iterations=2)),
        **{"NUM_PICTURES": 8, "NUM_EDITS": 4, "CHUNK": 4},
    }
    for name, value in sizes.items():
        monkeypatch.setattr(world_base, name, value)
    for name, value in {"NUM_COLOURED": 4, "NUM_CAPTIONS": 300}.items():
        monkeypatch.setattr(world, name, value)
    stages = ("vq", "codes", "class-model", "text-model")
    command = ["world", "--work", str(tmp_path), "--stage", *stages]
    assert commands.main(command) == 0
    made = {name: world.file_of(tmp_path, name) for name in (world.MODEL, world.TEXT_MODEL)}
    model_file, text_file = (checkpoint.load(path, kind="model") for path in made.values())
    assert len(model_file.metadata.class_names) == 24 and text_file.metadata.grid == (16, 16)
    assert world_base.load_codes(tmp_path, "pictures").shape == (8, 256)
    monkeypatch.setattr(world_vq, "train", None)
    assert commands.main(command) == 0


def test_the_table_of_a_class_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"{name}.safetensors" for name in ("model", "vq", "judge")}
    config = replace(tiny.MODEL, grid=16, num_classes=24)
    model = tiny.checkpoint(maskgit.LAYOUT, config, 0, defaults={"guidance": [2.0]})
    checkpoint.save(files["model"], model)
    checkpoint.save(files["vq"], tiny.checkpoint(vqgan.LAYOUT, tiny.VQ, 2))
    judge = world_reader.FILE.initialised(0, (8,) * 5)
    world_reader.FILE.save(files["judge"], judge, {})
    sizes = ["--num", "6", "--references", "8", "--batch", "4", "--dtype", "float32"]
    work = ["--work", str(tmp_path), "--rows", "real", "vq", "vanilla-3"]
    assert commands.main(["world-quality", *tiny.arguments(files), *sizes, *work]) == 0
    said = capsys.readouterr().out
    assert "| real scenes through the VQ |" in said and "| vanilla | 3 | 3 |" in said
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 6
