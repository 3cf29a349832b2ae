"""The command line with a text model: text to image, changes to a picture, tasks that start from one, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.image import to_pixels
from shortcut_pack.shortcut.models.lumina_dimoo.tokenizer import copy_tokenizer
from shortcut_pack.shortcut.models.lumina_dimoo.transformer import OnGrid
from test_lumina_prompts import real_words, save_tokenizer, tags_of
from torch import Tensor

DOWNSCALE = 2
Run = Callable[..., tuple[int, Any, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    folder = builders.write_text(tmp_path_factory.mktemp("text"))
    builders.write(folder / "classes.safetensors", builders.model())
    builders.write(folder / "classes-head.safetensors", builders.head())
    small = builders.vq(replace(builders.VQ_CONFIG, num_codes=8))
    builders.write(folder / "other" / "vq8.safetensors", small)
    picture(folder / "picture.png", 12, 8)
    picture(folder / "odd.png", 13, 8)
    picture(folder / "style.png", 8, 8, seed=1)
    mask(folder / "mask.png", 12, 8, (0, 0, 5, 4))
    mask(folder / "empty.png", 12, 8, (0, 0, 1, 1))
    mask(folder / "square.png", 8, 8, (0, 0, 4, 4))
    (folder / "words.png").write_text("no picture")
    return folder


def picture(path: Path, width: int, height: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
    Image.fromarray(values.numpy()).save(path)


def mask(path: Path, width: int, height: int, white: tuple[int, int, int, int]) -> None:
    image = Image.new("L", (width, height))
    image.paste(255, white)
    image.save(path)


@pytest.fixture
def run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `generate`; returns exit status, codes (B, h, w) if there are any, stdout and stderr.

    Arguments that name a file of `folder` stand for its path.
    """

    def call(*arguments: str, model: str = "model.safetensors", steps: str = "6"):
        tokens = tmp_path / "tokens.safetensors"
        tokens.unlink(missing_ok=True)
        files = ["--model", str(folder / model), "--vq", str(folder / "vq.safetensors")]
        common = ["--out", str(tmp_path / "a.png"), "--save-tokens", str(tokens)]
        if steps:
            common += ["--steps", steps]
        given = [
            str(folder / a) if Path(a).suffix in (".png", ".safetensors") else a for a in arguments
        ]
        status = main(["generate", *files, *common, *given])
        codes = load_file(tokens)["codes"] if tokens.exists() else None
        said = capsys.readouterr()
        return status, codes, said.out, said.err

    return call


def encoded(folder: Path, name: str = "picture.png") -> Tensor:
    """Codes (h, w) of a picture."""
    vq: Any = checkpoints.build(checkpoints.load(folder / "vq.safetensors"), dtype=torch.float32)
    with Image.open(folder / name) as image:
        return vq.encode(to_pixels(image))[0]


def settings_inside(tmp_path: Path) -> dict[str, Any]:
    with Image.open(tmp_path / "a.png") as image:
        return json.loads(image.info["shortcut"])


PROMPT = ("--prompt", "a red house")


def test_a_picture_of_a_text_in_any_size(run: Run, tmp_path: Path) -> None:
    head = ("--head", "head.safetensors", "--full-steps", "2")
    size = ("--width", "12", "--height", "6")
    status, codes, out, error = run(*PROMPT, *size, *head, "--seed", "5", "--json")
    assert (status, error) == (0, "")
    assert codes.shape == (1, 3, 6) and codes.min() >= 0 and codes.max() < 16
    report = json.loads(out)
    assert (report["steps"], report["full_steps"], report["seeds"]) == (6, 2, [[5, 0]])
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (12, 6)
    inside = settings_inside(tmp_path)
    assert (inside["prompt"], inside["full_steps"], inside["guidance"]) == ("a red house", 2, [4.0])
    assert inside["model_fingerprint"] == builders.text_model().fingerprint


def test_words_that_the_shipped_model_never_saw_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("transformers")
    line = ["generate", "--out", str(tmp_path / "a.png"), "--steps", "1", "--cfg", "0"]

    def warnings(*options: str) -> list[str]:
        caplog.clear()
        assert main([*line, *options]) == 0
        return [record.getMessage() for record in caplog.records]

    (said,) = warnings("--prompt", "Two red houses and a dragon under a pink moon")
    assert "never saw these words" in said and said.endswith(": dragon, pink.")
    (said,) = warnings("--prompt", "", "--negative", "a zebra")
    assert said.endswith(": zebra.")
    assert warnings("--prompt", "two red houses") == []


def test_the_size_and_settings_of_the_model_are_the_default(run: Run, tmp_path: Path) -> None:
    assert run(*PROMPT)[1].shape == (1, 4, 4), "what its file says it was trained on"
    inside = settings_inside(tmp_path)
    assert (inside["schedule"], inside["choice_temperature"]) == ("lumina", 1.0)
    assert inside["ratio_of_made"] and not inside["guidance_ramp"]


def test_a_folder_as_published_with_all_that_is_needed(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    config = builders.published_text(folder)
    save_tokenizer(folder, real_words(), tags_of(config))
    arguments = ["generate", "--model", str(folder), "--width", "8", "--height", "8", *PROMPT]
    assert main([*arguments, "--out", str(tmp_path / "b.png"), "--steps", "3"]) == 0
    with Image.open(tmp_path / "b.png") as image:
        assert image.size == (8, 8)


def test_float8_weights(run: Run, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    checkpoints.save(path, builders.text_model(), dtype=torch.float8_e4m3fn)
    copy_tokenizer(folder / "model.tokenizer", path)
    status, codes, _, error = run(*PROMPT, "--head", "none", model=str(path))
    assert (status, error) == (0, "") and codes.shape == (1, 4, 4)


def test_what_to_guide_away_from(run: Run) -> None:
    plain = run(*PROMPT)[1]
    assert not torch.equal(run(*PROMPT, "--negative", "snow")[1], plain)
    assert torch.equal(run(*PROMPT, "--negative", "")[1], plain)
    off = run(*PROMPT, "--cfg", "0")[1]
    assert torch.equal(run(*PROMPT, "--cfg", "0", "--negative", "snow")[1], off)
    assert not torch.equal(off, plain)


def test_guidance_that_is_off_costs_nothing(run: Run) -> None:
    def flops(cfg: str) -> int:
        return json.loads(run(*PROMPT, "--cfg", cfg, "--json")[2])["flops"]

    assert flops("0") < 0.6 * flops("4")


def test_no_noise_means_no_seed(run: Run) -> None:
    quiet = (*PROMPT, "--temperature", "0", "--choice-temperature", "0")
    assert torch.equal(run(*quiet, "--seed", "1")[1], run(*quiet, "--seed", "2")[1])
    assert not torch.equal(run(*PROMPT, "--seed", "1")[1], run(*PROMPT, "--seed", "2")[1])


def test_an_image_does_not_depend_on_its_batch_or_on_how_branches_are_run(run: Run) -> None:
    head = ("--head", "head.safetensors", "--full-steps", "2")
    alone, several = run(*PROMPT, *head)[1], run(*PROMPT, *head, "--batch-size", "3")[1]
    assert torch.equal(several[:1], alone)
    assert not torch.equal(several[1], several[0])
    assert torch.equal(run(*PROMPT, *head, "--sequential")[1], alone)


@pytest.mark.parametrize(("preset", "num_full"), [("quality", 14), ("balanced", 11), ("fast", 9)])
def test_presets_in_words(run: Run, tmp_path: Path, preset: str, num_full: int) -> None:
    head = ("--head", "head.safetensors", "--preset", preset)
    assert run(*PROMPT, *head, "--cfg", "0", steps="")[0] == 0
    inside = settings_inside(tmp_path)
    assert (inside["num_steps"], inside["full_steps"]) == (64, num_full)


@pytest.mark.parametrize("model", ["model.safetensors", "classes.safetensors"])
def test_inpainting_keeps_all_other_tokens(
    run: Run, folder: Path, tmp_path: Path, model: str
) -> None:
    what, start = PROMPT, "picture.png"
    if model == "classes.safetensors":
        what, start = ("--class", "1"), "style.png"
    mask(tmp_path / "m.png", *Image.open(folder / start).size, (0, 0, 5, 4))
    status, codes, out, _ = run(
        *what, "--image", start, "--mask", str(tmp_path / "m.png"), "--json", model=model
    )
    assert status == 0
    known = encoded(folder, start)
    is_kept = torch.ones_like(known, dtype=torch.bool)
    is_kept[:2, :2] = False  # the third column is white by half, which is not more than half
    assert torch.equal(codes[0][is_kept], known[is_kept])
    assert not torch.equal(codes[0], known)
    assert json.loads(out)["flops"] > 0


def test_outpainting_keeps_the_picture(run: Run, folder: Path) -> None:
    status, codes, _, _ = run(*PROMPT, "--image", "picture.png", "--outpaint", "2,0,4,6")
    assert status == 0 and codes.shape == (1, 4 + 3, 6 + 1 + 2)
    assert torch.equal(codes[0, :4, 1:7], encoded(folder))
    both = run(*PROMPT, "--image", "picture.png", "--outpaint", "2,0,4,6", "--mask", "mask.png")[1]
    assert torch.equal(both[0, 2:4, 1:7], encoded(folder)[2:])
    assert not torch.equal(both[0, :2, 1:3], encoded(folder)[:2, :2])


def test_denoise_makes_a_share_anew(run: Run, folder: Path) -> None:
    codes = run(*PROMPT, "--image", "picture.png", "--denoise", "0.25", "--batch-size", "2")[1]
    num_changed = (codes != encoded(folder)).sum((1, 2))
    assert (num_changed <= 6).all() and (num_changed > 0).all()


EDIT = (*PROMPT, "--task", "edit", "--image", "picture.png")


def test_a_task_that_starts_from_a_picture(run: Run, folder: Path, tmp_path: Path) -> None:
    status, codes, _, _ = run(*EDIT, "--head", "head.safetensors", "--full-steps", "2")
    assert status == 0 and codes.shape == (1, 4, 6), "the size of the picture"
    assert settings_inside(tmp_path)["guidance"] == [2.5, 4.0]
    plain = run(*EDIT)[1]
    assert not torch.equal(run(*EDIT, "--cfg-image", "0.5")[1], plain)
    assert not torch.equal(run(*EDIT, "--image", "odd.png")[1], plain)
    assert run(*EDIT, "--image", "odd.png")[1].shape == (1, 4, 6), "scaled to whole codes"
    assert run(*EDIT, "--width", "8")[1].shape == (1, 4, 4)
    masked = run(*EDIT, "--mask", "mask.png")[1]
    assert torch.equal(masked[0, 2:], encoded(folder)[2:])


def test_the_style_of_a_second_picture(run: Run) -> None:
    style = ("--task", "style", "--image", "picture.png", "--style-image")
    codes = run(*style, "style.png")[1]
    assert codes.shape == (1, 4, 6), "the size of the first"
    assert not torch.equal(run(*style, "picture.png")[1], codes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the task 'text_to_image' needs --prompt TEXT"),
        (
            (*PROMPT, "--class", "1"),
            "--class is not for a Lumina-DiMOO transformer. It takes --prompt,",
        ),
        ((*PROMPT, "--width", "13"), "The nearest sizes are 12 or 14 wide and 8 high"),
        ((*PROMPT, "--height", "0"), "The nearest sizes are 8 wide and 2 high"),
        ((*PROMPT, "--task", "edit"), "the task 'edit' starts from a picture. Add --image"),
        ((*PROMPT, "--mask", "mask.png"), "--mask needs the picture to change. Add --image"),
        ((*PROMPT, "--outpaint", "2,0,0,0"), "--outpaint needs the picture to change"),
        ((*PROMPT, "--denoise", "0.5"), "--denoise needs the picture to change"),
        ((*PROMPT, "--image", "picture.png"), "--image is of no use here"),
        (("--task", "style", "--image", "picture.png"), "Add --style-image PICTURE"),
        ((*EDIT, "--style-image", "style.png"), "takes no --style-image. Choose --task style"),
        ((*PROMPT, "--cfg-image", "2"), "--cfg-image is for a --task that starts from a picture"),
        ((*EDIT, "--mask", "square.png"), "square.png has 8 x 8 pixels, expected those of"),
        ((*EDIT, "--mask", "empty.png"), "empty.png covers no token"),
        ((*EDIT, "--image", "words.png"), "words.png cannot be read as a picture"),
        ((*EDIT, "--image", "nowhere.png"), "nowhere.png is not there or is not a file"),
        ((*EDIT, "--image", "odd.png", "--denoise", "0.5"), "12 or 14 wide and 8 high"),
        ((*EDIT, "--denoise", "0.5", "--width", "8"), "but --width and --height say 8 x 8"),
        ((*EDIT, "--denoise", "0"), "denoise must be above 0 and at most 1"),
        ((*EDIT, "--outpaint", "1,0,0,0"), "got 1 for left. The nearest are 0 and 2"),
        ((*EDIT, "--outpaint", "2,0"), "must be four numbers of pixels, left,top,right,bottom"),
        ((*EDIT, "--outpaint", "0,0,0,0"), "--outpaint adds nothing"),
        ((*EDIT, "--outpaint", "2,0,0,0", "--denoise", "0.5"), "added without a picture. Leave"),
        ((*PROMPT, "--preset", "fast"), "--preset sets --steps and --full-steps"),
        ((*PROMPT, "--head", "classes-head.safetensors"), "does not go with a Lumina-DiMOO"),
        ((*PROMPT, "--vq", "other/vq8.safetensors"), "has 8 codes, and model.safetensors makes 16"),
        (("--prompt", "tree " * 1030), "Shorten it by"),
        ((*PROMPT, "--out-dir", "x"), "--out-dir is for --prompts"),
    ],
)
def test_wrong_input_ends_in_a_clear_error(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    status, codes, _, error = run(*arguments)
    assert status == 1
    assert error.startswith("error: ") and message in error
    assert codes is None and not list(tmp_path.glob("*.png")), "nothing is written"


def test_pictures_that_pillow_does_not_open(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (12, 8)).save(folder / "damaged.png", exif=b"Exif\0\0no Exif")
    status, _, _, error = run(*EDIT, "--image", "damaged.png")
    assert (
        status == 1
        and "damaged.png cannot be read as a picture (SyntaxError: not a TIFF file" in error
    )
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12 * 8 // 3)
    status, _, _, error = run(*EDIT)
    assert (
        status == 1
        and "picture.png cannot be read as a picture (DecompressionBombError: Image size (96"
        in error
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (PROMPT, "--prompt is not for a MaskGIT transformer. It takes --class"),
        (("--negative", "x"), "--negative is not for a MaskGIT"),
        (("--task", "edit"), "--task is not for a MaskGIT"),
        (("--cfg-image", "1"), "--cfg-image is not for a MaskGIT"),
        (("--width", "12"), "makes images of 8 x 8 pixels only, got 12 x 8"),
        (("--head", "head.safetensors"), "does not go with a MaskGIT transformer"),
    ],
)
def test_options_of_text_with_a_model_of_classes(
    run: Run, arguments: tuple[str, ...], message: str
) -> None:
    status, _, _, error = run(*arguments, model="classes.safetensors")
    assert status == 1 and message in error


def test_a_preset_without_a_head(run: Run) -> None:
    status, _, out, _ = run(*PROMPT, "--preset", "fast", "--json", steps="")
    said = json.loads(out)
    assert status == 0 and said["accelerator"] == "partial"
    assert said["full_steps"] < said["steps"]


@pytest.mark.parametrize(
    "exhausted",
    [
        torch.OutOfMemoryError("tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 2 GiB"),
        RuntimeError("MPS backend out of memory (2 GiB)"),
        MemoryError("2 GiB"),
    ],
    ids=["cuda", "cpu", "mps", "python"],
)
def test_out_of_memory_in_the_middle_of_a_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, exhausted: Exception
) -> None:
    whole = run(*PROMPT)[1]
    calls = []
    features = OnGrid.features

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise exhausted
        return features(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(OnGrid, "features", failing)
        status, codes, _, error = run(*PROMPT)
    assert (status, codes, len(calls)) == (1, None, 3)
    assert "the device is out of memory. Use --sequential" in error and "2 GiB" in error
    assert torch.equal(run(*PROMPT)[1], whole)


def test_any_other_error_of_the_device_is_told_as_it_is(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any) -> None:
        raise RuntimeError("the device was unplugged")

    monkeypatch.setattr(OnGrid, "features", failing)
    assert run(*PROMPT)[3].strip() == "error: the device was unplugged"
