"""aMUSEd and Meissonic from a folder as published: pictures, sizes, pictures to change, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import builders
import golden_sets
import pytest
import torch
import uvit_folder
import uvit_sets
from PIL import Image
from safetensors.torch import load_file, save_file
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import models
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.cli import contents
from shortcut_pack.shortcut.generate import generate
from shortcut_pack.shortcut.models import meissonic
from shortcut_pack.shortcut.models.amused import ARCHITECTURE
from shortcut_pack.shortcut.models.architecture import Architecture, Request
from shortcut_pack.shortcut.models.layers import Bare
from shortcut_pack.shortcut.models.uvit_parts import TextCondition, micro_conditions
from shortcut_pack.shortcut.pipeline import Pipeline, conditioner_of
from shortcut_pack.shortcut.schedule import plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small pixels: 4 to a code."""
    return uvit_folder.write(tmp_path_factory.mktemp("published") / "amused-tiny")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return Pipeline.load(folder)


def test_a_picture_tells_apart_what_it_was_asked_for(pipeline: Pipeline) -> None:
    of = [
        contents.of_conditions(pipeline.conditions(Request(prompt=text), 2)) for text in ("a", "b")
    ]
    assert len({*of, contents.of_conditions(())}) == 3
    assert contents.of_conditions(pipeline.conditions(Request(prompt="a"), 1)) == of[0]


def test_a_training_encodes_each_text_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conditioner, texts = conditioner_of(checkpoints.load(folder, kind="model")), []
    encode = conditioner.encoder

    def counted(text: str) -> TextCondition:
        texts.append(text)
        return encode(text)

    monkeypatch.setitem(vars(conditioner), "encoder", counted)
    draw = conditioner.draw([Request(prompt="a"), Request(prompt="b")])
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        found, _ = draw(8, generator)
    assert sorted(texts) == ["", "a", "b"]
    assert len({tuple(row.tolist()) for row in found.pooled_BC}) == 2


def test_a_published_folder_is_a_model(folder: Path, tmp_path: Path) -> None:
    whole = checkpoints.load(folder, kind="model")
    assert (whole.architecture, whole.name) == (ARCHITECTURE, "amused-tiny")
    assert checkpoints.load(folder).fingerprint == whole.fingerprint  # not its VQ model
    in_parts = uvit_folder.write(tmp_path / "in-parts", shards=3, has_text=False)
    shards = checkpoints.load(in_parts, kind="model")
    assert (shards.fingerprint, shards.name) == (whole.fingerprint, "in-parts")


@pytest.mark.parametrize("name", ["meissonic_sampling_wide", "meissonic_sampling_512"])
def test_a_published_meissonic_makes_pictures(name: str, tmp_path: Path, capsys) -> None:
    folder = uvit_folder.write(tmp_path / "Meissonic", name, shards=2)
    pipeline = Pipeline.load(folder)
    assert pipeline.architecture is meissonic.ARCHITECTURE
    for width, height in ((24, 40), (32, 8)):
        (picture,) = pipeline.generate("a fox", seed=1, steps=4, width=width, height=height)
        assert picture.size == (width, height)
    out = tmp_path / "a.png"
    made(folder, out, "--steps", "4", "--width", "24", "--height", "24")
    about = json.loads(Image.open(out).text["shortcut"])
    assert about["negative"] == meissonic.NEGATIVE
    graph = json.loads(Image.open(out).text["prompt"])
    assert graph["4"]["inputs"] == {"clip": ["1", 2], "text": meissonic.NEGATIVE}
    assert graph["1"]["inputs"]["model_name"] == "Meissonic"


@pytest.mark.parametrize("size", ["amused-512", "meissonic-1024"])
def test_one_layer_at_the_published_width_makes_a_picture(size: str, tmp_path: Path) -> None:
    architecture = next(a for a in models.ARCHITECTURES if size in a.sizes)
    config = architecture.sizes[size].model
    less = {name: 1 for name in ("depth", "single_depth") if hasattr(config, name)}
    small = builders.random_checkpoint(architecture.model, replace(config, **less), seed=0)
    folder = tmp_path / "published"
    uvit_folder.write_weights(folder / "transformer", builders.published(small), 2)
    found = checkpoints.load(folder, kind="model")
    assert found.config == small.config
    network = checkpoints.build(found).on_grid(2, 4)
    text = TextCondition(
        torch.randn(1, 77, config.text_width, generator=torch.Generator().manual_seed(0)),
        torch.zeros(1, config.pooled_width),
        micro_conditions(),
    )
    settings = replace(architecture.settings, num_steps=2)
    result = generate(
        network,
        (text, text[torch.tensor([0])]),
        settings,
        architecture.rules,
        seed=0,
        image_indices=[0],
        num_tokens=8,
    )
    assert result.num_full == 2
    assert 0 <= int(result.codes_BL.min()) <= int(result.codes_BL.max()) < config.num_codes


def test_pictures_of_any_size_that_can_be_halved(pipeline: Pipeline) -> None:
    (tall,) = pipeline.generate("a fox", seed=1, width=24, height=40)
    assert tall.size == (24, 40)
    two = pipeline.generate("a fox", seed=1, width=24, height=40, num_images=2)
    assert two[0].tobytes() == tall.tobytes() != two[1].tobytes()
    for change in ({"prompt": "a cat"}, {"negative": "blurry"}, {"cfg": 2.0}):
        given = {"prompt": "a fox", **change}
        (other,) = pipeline.generate(seed=1, width=24, height=40, **given)
        assert other.tobytes() != tall.tobytes(), change
    with pytest.raises(ValueError, match=r"multiples of 32 pixels, got 80 x 96\. .* 96 x 96"):
        pipeline.generate("a fox", width=20, height=24)


def test_one_branch_at_a_time_gives_the_same_picture(folder: Path, pipeline: Pipeline) -> None:
    request = Request(prompt="a fox")
    conditions = pipeline.conditioner.conditions(request, 2)
    codes_BL = torch.arange(48).repeat(2, 1)
    is_masked_BL = codes_BL % 2 == 0
    step = plan(ARCHITECTURE.settings, 48, 48)[0]
    views = [pipeline.model.on_grid(6, 8, is_sequential=value) for value in (False, True)]
    together, in_turn = (view.features(codes_BL, is_masked_BL, conditions, step) for view in views)
    for one, other in zip(together, in_turn, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def made(folder: Path, out: Path, *options: str) -> Image.Image:
    command = ["generate", "--model", str(folder), "--prompt", "a fox", "--seed", "1"]
    assert main([*command, "--out", str(out), *options]) == 0
    return Image.open(out).convert("RGB")


def test_a_share_of_a_picture_takes_as_large_a_share_of_the_schedule(
    folder: Path, tmp_path: Path, capsys
) -> None:
    first = tmp_path / "first.png"
    made(folder, first, "--width", "32", "--height", "24")
    for denoise, num_steps in (("1", 12), ("0.7", 6), ("0.2", 2)):
        capsys.readouterr()
        made(folder, tmp_path / "b.png", "--image", str(first), "--denoise", denoise, "--json")
        assert json.loads(capsys.readouterr().out)["steps"] == num_steps


def test_painting_keeps_what_is_not_masked_and_takes_the_linear_schedule(
    folder: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    first = tmp_path / "first.png"
    made(folder, first, "--width", "32", "--height", "24")
    mask = Image.new("L", (32, 24))
    mask.paste(255, (0, 0, 16, 24))
    mask.save(tmp_path / "mask.png")
    options = ("--image", str(first), "--mask", str(tmp_path / "mask.png"))
    painted = made(folder, tmp_path / "a.png", *options)
    assert "amused-linear" in Image.open(tmp_path / "a.png").text["shortcut"]
    chosen = made(folder, tmp_path / "b.png", *options, "--schedule", "amused")
    assert painted.tobytes() != chosen.tobytes()
    linear = made(folder, tmp_path / "c.png", *options, "--schedule", "amused-linear")
    assert painted.tobytes() == linear.tobytes()


def test_a_missing_text_encoder_is_named_with_its_place(folder: Path, tmp_path: Path) -> None:
    bare = uvit_folder.write(tmp_path / "bare", has_text=False)
    conditioner = conditioner_of(checkpoints.load(bare, kind="model"))
    with pytest.raises(FileNotFoundError) as told:
        conditioner.conditions(Request(prompt="a fox"), 1)
    assert "text_encoder/model.safetensors" in str(told.value)
    assert str(bare) in str(told.value)
    uvit_folder.write_text_encoder(bare, 28, 20)
    (bare / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"merges\.txt is missing"):
        conditioner.conditions(Request(prompt="a fox"), 1)


def test_a_text_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    folder = uvit_folder.write(tmp_path / "other", has_text=False)
    uvit_folder.write_text_encoder(folder, 16, 20)
    conditioner = conditioner_of(checkpoints.load(folder, kind="model"))
    with pytest.raises(ValueError, match=r"width 16 with 20 .* needs 28 with 20"):
        conditioner.conditions(Request(prompt="a fox"), 1)


NOT_FINITE = "not finite"


def changed(file: Path, **entries: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def without(tensors: dict[str, torch.Tensor], *endings: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if not name.endswith(endings)}


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"num_attention_heads": 10**12}, "num_attention_heads must be at most 28"),
        ("config.json", {"num_attention_heads": 5}, "5 heads do not divide its width 28"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act = 'relu', expected 'quick_gelu'"),
        ("config.json", {"eos_token_id": -1}, "eos_token_id must be a whole number"),
        ("model.safetensors", "text_projection.weight", "no text_projection.weight, which this"),
        ("model.safetensors", "1.mlp.fc2.bias", "it has no .*layers.1.mlp.fc2.bias"),
        ("model.safetensors", "0.mlp.fc1.weight", "it is damaged .*fc1.weight"),
        ("model.safetensors", NOT_FINITE, "gives numbers for a text that are not finite"),
        ("tokenizer_config.json", {"model_max_length": "x"}, "fails at a text"),
        ("vocab.json", {"b": 10**6}, "it makes the id 1000000, but the model has 54"),
        ("vocab.json", {"b": -1}, "holds a tokenizer that cannot be read"),
    ],
)
def test_a_damaged_text_encoder_is_named(
    file: str, change: object, message: str, tmp_path: Path
) -> None:
    folder = uvit_folder.write(tmp_path / "damaged")
    part = folder / (
        "text_encoder" if file in ("config.json", "model.safetensors") else "tokenizer"
    )
    if isinstance(change, dict):
        changed(part / file, **change)
    else:
        tensors = without(load_file(part / file), str(change))
        if change == NOT_FINITE:
            tensors["text_projection.weight"].fill_(torch.nan)
        save_file(tensors, part / file, {"format": "pt"})
    conditioner = conditioner_of(checkpoints.load(folder, kind="model"))
    with pytest.raises(ValueError, match=message) as told:
        conditioner.conditions(Request(prompt="a fox"), 1)
    assert str(part) in str(told.value)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("transformer/config.json", {"use_bias": True}, "use_bias = True, expected False"),
        ("transformer/config.json", {"_class_name": "Other"}, "another network than aMUSEd"),
        ("transformer/config.json", {"num_attention_heads": 5}, "divisor of the width 48"),
        ("transformer/config.json", {"cond_embed_dim": 19}, "pooled_width is 20"),
        (
            "transformer/config.json",
            {"micro_cond_encode_dim": False},
            "micro_width must be a whole",
        ),
        (
            "transformer/config.json",
            {"micro_cond_encode_dim": 7},
            "micro_width is 7, expected an ev",
        ),
        ("transformer/config.json", {"upsample": False}, "upsample = False, expected True"),
        ("scheduler/scheduler_config.json", {"mask_token_id": 60}, "mask_id is 63"),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    file: str, change: dict, message: str, tmp_path: Path
) -> None:
    folder = uvit_folder.write(tmp_path / "changed", has_text=False)
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        checkpoints.load(folder, kind="model")


@pytest.mark.parametrize(
    ("family", "architecture", "other", "refusal"),
    [
        ("amused", ARCHITECTURE, "meissonic", "does not go with a Meissonic transformer"),
        ("meissonic", meissonic.ARCHITECTURE, "amused", "does not go with a aMUSEd transformer"),
    ],
)
def test_a_head_that_is_trained_for_it_lowers_the_divergence(
    family: str, architecture: Architecture, other: str, refusal: str, tmp_path: Path, capsys
) -> None:
    folder = uvit_folder.write_small(tmp_path / "small", family=family)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\na cat\nb d\n")
    out = tmp_path / "head.safetensors"
    command = ["train", "--model", str(folder), "--prompts", str(prompts), "--out", str(out)]
    assert main([*command, "--iterations", "60", "--steps", "4", "--grid", "4x4"]) == 0
    trained = checkpoints.load(out)
    assert trained.layout == architecture.head
    first, *_ = trained.metadata.trained["held_out"]["4 steps"]
    assert first["kl"] < first["kl_reuse"]  # of features kept as they are
    fast = Pipeline.load(folder, head=out)
    (picture,) = fast.generate("a fox", steps=4, full_steps=2, width=24, height=16)
    (vanilla,) = fast.generate("a fox", steps=4, full_steps=4, width=24, height=16)
    assert picture.tobytes() != vanilla.tobytes()
    with pytest.raises(ValueError, match=refusal):
        Pipeline.load(uvit_folder.write_small(tmp_path / "other", family=other), head=out)


@pytest.mark.parametrize("name", ["amused_sampling_cfg", "meissonic_sampling_1024"])
def test_a_host_can_move_and_cast_every_weight(name: str) -> None:
    """Each is in a layer of the namespace that the host gives; float16 and bfloat16 come near to float32."""
    golden = golden_sets.load(name)
    network, conditions = uvit_sets.network(golden), uvit_sets.conditions_of(golden)

    class Ours(Bare):
        pass

    made = {id(layer) for layer in vars(Bare).values() if isinstance(layer, type)}
    alone = type(network)(network.config, device="meta", operations=Ours)
    for module in alone.modules():
        if list(module.parameters(recurse=False)):
            assert id(type(module)) in made, type(module)
    tokens_Bhw = golden["x_before"][0]
    with torch.no_grad():
        exact = network.output.conv2(network(tokens_Bhw, conditions[0], 3))
        for dtype in (torch.float16, torch.bfloat16):
            half = type(network)(network.config, dtype=dtype, operations=Bare)
            half.load_state_dict(network.state_dict())
            found = half.output.conv2(half(tokens_Bhw, conditions[0], 3)).float()
            assert found.isfinite().all()
            correlation = torch.corrcoef(torch.stack([found.flatten(), exact.flatten()]))[0, 1]
            assert correlation > 0.99, dtype
