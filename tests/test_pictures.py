"""Pictures that users give: formats, ranges of values, alpha."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shortcut_pack.shortcut import pictures
from shortcut_pack.shortcut.pictures import open_mask, open_picture

GREY = np.full((8, 8), 51, np.uint8)
GREY[:, 4:] = 255


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        (GREY, "png"),
        (GREY.astype(np.uint16) * 257, "png"),
        (GREY.astype(np.uint16) * 257, "tif"),
        (GREY.astype(np.int32) * 257, "tif"),
        (GREY.astype(np.int32), "tif"),
        (GREY.astype(np.int32) * ((2**31 - 1) // 255), "tif"),
        ((GREY / 255).astype(np.float32), "tif"),
        (GREY.astype(np.float32), "tif"),
        (GREY.astype(np.float32) * 257, "tif"),
    ],
)
def test_every_range_of_values_becomes_8_bits(
    values: np.ndarray, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path)
    assert (np.asarray(open_mask(path)) == GREY).all()
    assert (np.asarray(open_picture(path)) == GREY[..., None]).all()


def test_dark_16_bits_stay_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 257, np.uint16)).save(tmp_path / "a.png")
    assert (np.asarray(open_mask(tmp_path / "a.png")) == 1).all()


def test_unsigned_32_bits(tmp_path: Path) -> None:
    values = GREY.astype(np.uint32) * ((2**32 - 1) // 255)
    Image.fromarray(values.view(np.int32)).save(tmp_path / "a.tif", tiffinfo={339: 1})
    content = (tmp_path / "a.tif").read_bytes()
    signed = bytes.fromhex("530103000100000002000000")  # SampleFormat, a short, one of them: 2
    (tmp_path / "a.tif").write_bytes(content.replace(signed, signed[:8] + b"\1\0\0\0"))
    assert (np.asarray(open_mask(tmp_path / "a.tif")) == GREY).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e20])
def test_values_without_a_range_are_refused(value: float, tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), value, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a.tif cannot be read as a picture \(it has values"):
        open_mask(tmp_path / "a.tif")


def with_alpha(mode: str) -> Image.Image:
    """White where GREY is 255, transparent elsewhere."""
    alpha = Image.fromarray(np.where(GREY == 255, 255, 0).astype(np.uint8))
    if mode == "P":
        picture = Image.fromarray(np.where(GREY == 255, 1, 0).astype(np.uint8), "P")
        picture.putpalette([255] * 6)
        picture.info["transparency"] = 0
        return picture
    picture = Image.new(mode, (8, 8), "white")
    picture.putalpha(alpha)
    return picture


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_not_painted_in_a_mask_and_white_in_a_picture(
    mode: str, tmp_path: Path
) -> None:
    with_alpha(mode).save(tmp_path / "a.png")
    mask = np.asarray(open_mask(tmp_path / "a.png"))
    assert (mask == np.where(GREY == 255, 255, 0)).all()
    assert (np.asarray(open_picture(tmp_path / "a.png")) == 255).all()


def test_opaque_alpha_changes_nothing(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    picture = Image.fromarray(values)
    picture.save(tmp_path / "a.png")
    picture.putalpha(255)
    picture.save(tmp_path / "b.png")
    for read in (open_picture, open_mask):
        assert (np.asarray(read(tmp_path / "a.png")) == np.asarray(read(tmp_path / "b.png"))).all()
    assert (np.asarray(open_picture(tmp_path / "a.png")) == values).all()


@pytest.mark.parametrize("format", pictures.FORMATS)
def test_documented_formats_are_opened(format: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "a", format=format)
    assert open_picture(tmp_path / "a").getpixel((0, 0)) == (255, 255, 255)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 96\n%%EndComments\nshowpage\n%%EOF\n"


def test_other_formats_are_refused_and_no_program_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "a.png").write_bytes(EPS)
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png", format="PPM")
    for name in ("a.png", "b.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a picture .* Give a PNG"):
            open_picture(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_pipes_devices_and_folders_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "nothing.png"):
        with pytest.raises(FileNotFoundError, match="is not there or is not a file"):
            open_picture(path)


def test_very_large_and_damaged_pictures_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (80, 80)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.png cannot be read as a picture"):
        open_picture(tmp_path / "cut.png")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 6000)
    with pytest.raises(ValueError, match=r"a.png .*it has 80 x 80 pixels, more than 6000"):
        open_picture(tmp_path / "a.png")


def test_a_picture_that_asks_for_more_than_there_is(tmp_path: Path) -> None:
    """A chunk of 4 GB by its own words, of which the file has 100 bytes."""
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(path)
    content = path.read_bytes()
    at = content.index(b"IDAT")
    path.write_bytes(content[: at - 4] + b"\xff\xff\xff\xff" + content[at : at + 12])
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.png cannot be read as a picture"):
        open_picture(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**26
