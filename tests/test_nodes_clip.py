"""The nodes with a model that reads text through CLIP: Load MIGM's third output, native CONDITIONING, the sampler.

They run on stand-ins for ComfyUI, and on the real one if COMFY_DIR names its folder (see comfy_stubs.py).
"""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first
# ruff: noqa: F811 - fixtures are imported and then named as arguments

from __future__ import annotations

import shutil
from pathlib import Path

import comfy_stubs
import pytest
import torch
import uvit_folder

comfy_stubs.install()
import folder_paths
from shortcut_pack.nodes import folders
from shortcut_pack.nodes.condition import TextCondition
from shortcut_pack.nodes.load import LoadMIGM
from shortcut_pack.nodes.native import model_of
from shortcut_pack.nodes.sample import FlatMaskedSampler
from shortcut_pack.shortcut.models.architecture import Request
from text_nodes import WIDGETS, files  # noqa: F401

TEXT = 64  # width of the text encoder, which ComfyUI's own class projects to as many values
NAME = "tiny"


@pytest.fixture(scope="module", params=["amused", "meissonic"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as published, with codes of 4 x 4 pixels and CLIP's vocabulary."""
    place = tmp_path_factory.mktemp("published") / NAME
    folder = uvit_folder.write_small(place, TEXT, request.param)
    uvit_folder.write_text_encoder(folder, TEXT, TEXT, vocabulary=49_408, length=77)
    return folder


@pytest.fixture
def folder(files: Path, published: Path) -> Path:
    """The same in models/migm."""
    return shutil.copytree(published, files / "migm" / NAME)


@pytest.fixture
def loaded(folder: Path) -> tuple:
    return LoadMIGM.execute(NAME, "auto", "float32").result


def clip_text(seed: int, size: int = TEXT, **entries: object) -> list:
    """CONDITIONING as CLIP Text Encode makes it."""
    generator = torch.Generator().manual_seed(seed)
    row, pooled = (torch.randn(1, *shape, size, generator=generator) for shape in ((77,), ()))
    return [[row, {"pooled_output": pooled, **entries}]]


NOT_FINITE = [[torch.full((1, 77, TEXT), torch.nan), {"pooled_output": torch.zeros(1, TEXT)}]]


def run(model, positive, negative, **changes):
    latent = changes.pop("latent", {"samples": torch.zeros(2, 1, 6, 8)})
    sockets = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    steps = {"steps": 4, "full_steps": 4, "schedule": "amused", "cfg": 9.0, "cfg_ramp": False}
    return FlatMaskedSampler.execute(**(sockets | WIDGETS | steps | changes)).result[0]


def test_the_third_output_is_a_clip_of_the_models_own_encoder(folder: Path) -> None:
    *_, clip = LoadMIGM.execute(NAME, "auto", "float32").result
    assert clip is not None
    assert LoadMIGM.execute("scenes (shipped)", "auto", "float32").result[2] is None
    assert (folder / "text_encoder").is_dir()


def test_it_runs_with_native_conditioning(loaded) -> None:
    model, vae, _ = loaded
    first = run(model, clip_text(0), clip_text(1))
    assert first["samples"].shape == (2, 1, 6, 8)
    assert vae.decode(first["samples"]).shape == (2, 24, 32, 3)
    again = run(model, clip_text(0), clip_text(1))
    assert torch.equal(first["samples"], again["samples"])
    for positive, negative in (
        (clip_text(2), clip_text(1)),
        (clip_text(0), clip_text(2)),
        (clip_text(0, aesthetic_score=2.0), clip_text(1)),
        (clip_text(0, width=64), clip_text(1, crop_w=64)),
    ):
        other = run(model, positive, negative)
        assert not torch.equal(first["samples"], other["samples"])
    long = clip_text(0)
    long[0][0] = torch.cat([long[0][0]] * 2, 1)  # a prompt of more than 77 tokens
    assert run(model, long, clip_text(1))["samples"].shape == (2, 1, 6, 8)


def test_a_text_for_each_image(loaded) -> None:
    """Of a CONDITIONING with a batch, as nodes of prompt schedules make it."""
    model, *_ = loaded
    a, b = clip_text(0)[0], clip_text(2)[0]
    pooled = torch.cat([entries["pooled_output"] for _, entries in (a, b)])
    rows = torch.cat([a[0], b[0]])
    found = run(model, [[rows, {"pooled_output": pooled}]], clip_text(1))["samples"]
    for image, alone in enumerate((a, b)):
        assert torch.equal(found[image], run(model, [alone], clip_text(1))["samples"][image])
    with pytest.raises(ValueError, match="holds 2 texts, but pooled values of 1"):
        run(model, [[rows, {"pooled_output": pooled[:1]}]], clip_text(1))


def test_a_mask_and_denoise_keep_the_rest(loaded) -> None:
    model, *_ = loaded
    samples = run(model, clip_text(0), clip_text(1))["samples"]
    mask = torch.zeros(1, 6, 8)
    mask[:, :, :4] = 1
    latent = {"samples": samples, "noise_mask": mask}
    painted = run(model, clip_text(2), clip_text(1), latent=latent)["samples"]
    assert torch.equal(painted[..., 4:], samples[..., 4:])
    assert not torch.equal(painted[..., :4], samples[..., :4])
    changed = run(model, clip_text(2), clip_text(1), latent={"samples": samples}, denoise=0.4)
    kept = (changed["samples"] == samples).flatten(1).sum(1)
    assert (kept >= 48 - 20).all()


def test_preset_and_custom_widgets_say_the_schedule_of_a_mask(loaded, caplog) -> None:
    model, *_ = loaded
    latent = {"samples": torch.zeros(1, 1, 6, 8), "noise_mask": torch.ones(1, 6, 8)}
    run(model, clip_text(0), clip_text(1), latent=latent)
    assert "schedule is amused, but tiny was made with amused-linear" in caplog.text


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        (clip_text(0), None, "negative is not connected"),
        (clip_text(0, 32), clip_text(1), "positive is 32 wide .* expected 64 with 64"),
        (clip_text(0), clip_text(1, 32), "negative is 32 wide .* expected 64 with 64"),
        (clip_text(0, aesthetic_score=11.0), clip_text(1), "aesthetic_score of positive .* 10"),
        (clip_text(0, height=-8), clip_text(1), "height of positive must be a finite number of at"),
        (clip_text(0, width=1e6), clip_text(1), "width of positive must be at most 16384"),
        (clip_text(0, area=(8, 8, 0, 0)), clip_text(1), "positive carries area"),
        ([[torch.zeros(1, 77, 64), {}]], clip_text(1), "64 wide with no pooled"),
        (clip_text(0), NOT_FINITE, "negative holds numbers that are not finite"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(positive, negative, message, loaded) -> None:
    with pytest.raises(ValueError, match=message):
        run(loaded[0], positive, negative)


def test_a_size_that_cannot_be_halved_is_refused(loaded) -> None:
    latent = {"samples": torch.zeros(1, 1, 5, 8)}
    with pytest.raises(ValueError, match="multiples of 32 pixels, got 128 x 80"):
        run(loaded[0], clip_text(0), clip_text(1), latent=latent)


def test_text_condition_names_the_right_node(loaded) -> None:
    with pytest.raises(ValueError, match="Use CLIP Text Encode, with the clip of Load MIGM"):
        TextCondition.execute(loaded[0], "a fox", "text_to_image")


def test_a_missing_text_encoder_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(FileNotFoundError) as told:
        LoadMIGM.execute(NAME, "auto", "float32")
    for part in ("text_encoder/model.safetensors", str(folder), "models/text_encoders", "clip_nam"):
        assert part in str(told.value)


def test_a_file_of_models_text_encoders_is_taken_or_refused(
    folder: Path, monkeypatch, caplog
) -> None:
    place = folder.parents[1] / "text_encoders"
    place.mkdir()
    shutil.move(folder / "text_encoder" / "model.safetensors", place / "clip.safetensors")
    shutil.rmtree(folder / "text_encoder")
    found = {"text_encoders": str(place)}
    monkeypatch.setattr(
        folder_paths,
        "get_full_path_or_raise",
        lambda category, name: str(Path(found.get(category, folder.parent), name)),
    )
    assert LoadMIGM.execute(NAME, "auto", "float32", "clip.safetensors").result[2] is not None
    assert "clip.safetensors comes without config.json" in caplog.text
    uvit_folder.write_text_encoder(place / "other", 32, 32)
    with pytest.raises(ValueError, match=r"width 32 with 32 .* needs 64 with 64"):
        LoadMIGM.execute(NAME, "auto", "float32", "other/text_encoder/model.safetensors")
    for file in ("vqvae/diffusion_pytorch_model.safetensors",):
        shutil.copy(folder / file, place / "vq.safetensors")
    with pytest.raises(ValueError, match="is no text encoder of CLIP"):
        LoadMIGM.execute(NAME, "auto", "float32", "vq.safetensors")


def test_a_published_folder_is_one_choice(monkeypatch) -> None:
    names = [
        f"{NAME}/transformer/diffusion_pytorch_model.safetensors",
        f"{NAME}/vqvae/diffusion_pytorch_model.safetensors",
        f"{NAME}/text_encoder/model.safetensors",
        "MaskGIT/model.pth",
        "model.pth",
    ]
    monkeypatch.setattr(folder_paths, "get_filename_list", lambda category: names)
    whole = str(Path(NAME) / "model_index.json")
    monkeypatch.setattr(
        folder_paths, "get_full_path", lambda category, name: name if name == whole else None
    )
    assert folders.choices("migm")[2:] == [NAME, "MaskGIT/model.pth", "model.pth"]


@comfy_stubs.needs_comfy
def test_comfyuis_own_node_encodes_as_the_command_line_does(folder: Path) -> None:
    """The same states and pooled vector as by transformers, and prompt weights besides."""
    import nodes

    model, _, clip = LoadMIGM.execute(NAME, "auto", "float32").result
    conditioner = model_of(model).conditioner
    for text in ("a fox", "", "abc " * 40):
        (conditioning,) = nodes.CLIPTextEncode().encode(clip, text)
        expected = conditioner.conditions(Request(prompt=text), 1)[0]
        states_BPC = conditioning[0][0]
        assert states_BPC.shape[1] % 77 == 0
        if states_BPC.shape[1] == 77:
            torch.testing.assert_close(states_BPC, expected.states_BPC, rtol=2e-2, atol=2e-2)
            pooled = conditioning[0][1]["pooled_output"]
            torch.testing.assert_close(pooled, expected.pooled_BC, rtol=2e-2, atol=2e-2)
    plain, weighted = (
        nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("a fox", "a (fox:1.4)")
    )
    assert not torch.equal(plain[0][0], weighted[0][0])
    assert run(model, plain, weighted)["samples"].shape == (2, 1, 6, 8)
