"""Pictures that users give: opened if they are of a documented format, and brought to 8 bits a channel.

format  PNG, JPEG, WebP, BMP, TIFF, GIF (its first picture); others would start programs or decoders that few need
range   more than 8 bits, and floating point, are scaled by the range of the values, never cut off
alpha   of a picture: it lies on white; of a mask: what is transparent is not painted, so it stays
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .guard import MAX_PIXELS, guarded

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_BYTES = 2**29  # of a file
SIGNED, BITS, SAMPLE_FORMAT = 2, 258, 339  # tags of TIFF
RANGES = (1.0, 255.0, 65535.0, 2.0**31 - 1, 2.0**32 - 1)  # largest values of usual types
ADVICE = "Give a PNG, JPEG, WebP, BMP, TIFF or GIF file, saved anew if it is damaged."


def open_picture(path: Path) -> Image.Image:
    """Return the picture in a file, upright, in RGB. What is transparent is white.

    Raises:
        OSError: there is none, or the system refuses to read it.
        ValueError: it is damaged, too large, or of a format that is not read.
    """
    picture = _opened(path)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def open_mask(path: Path) -> Image.Image:
    """Return the mask in a file, upright, in grey (L). What is transparent is black: it is not painted.

    Raises:
        OSError, ValueError: as `open_picture`.
    """
    picture = _opened(path)
    if not picture.has_transparency_data:
        return picture.convert("L")
    black = Image.new("RGBA", picture.size, "black")
    return Image.alpha_composite(black, picture.convert("RGBA")).convert("L")


def _opened(path: Path) -> Image.Image:
    """Return a picture, upright, with 8 bits a channel."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there or is not a file. Give a picture.")
    with (
        guarded(path, "cannot be read as a picture", ADVICE),
        _formatted(path) as picture,
    ):
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"it has {width} x {height} pixels, more than {MAX_PIXELS} in all")
        upright = ImageOps.exif_transpose(picture)
        if picture.mode.startswith(("I", "F")):
            return _in_8_bits(_values(picture, upright), _largest(picture))
        return upright


def _formatted(path: Path) -> Image.Image:
    """Open a picture. Of a file in memory a decoder gets no more than there is, however much it asks for."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    try:
        return Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError("it is damaged or of another format") from error


def _values(picture: Any, upright: Image.Image) -> np.ndarray:
    """Return the pixels of a picture of wide numbers."""
    values = np.asarray(upright)
    is_tiff = picture.format == "TIFF" and picture.mode == "I"
    if is_tiff and SIGNED not in picture.tag_v2.get(SAMPLE_FORMAT, ()):
        values = values.view(np.uint32)  # Pillow has no mode for it
    return values.astype(np.float64)


def _in_8_bits(values: np.ndarray, largest: float | None) -> Image.Image:
    """Return a picture in grey (L), scaled from 0 .. `largest`; None = the smallest of RANGES that holds the values."""
    if not np.isfinite(values).all() or values.min(initial=0) < 0:
        raise ValueError("it has values that are negative, infinite or NaN")
    top = values.max(initial=0)
    largest = largest or next((end for end in RANGES if top <= end), None)
    if largest is None:
        raise ValueError(f"it has values up to {top:g}")
    return Image.fromarray((values * (255 / largest)).round().clip(0, 255).astype(np.uint8))


def _largest(picture: Any) -> float | None:
    """Return the largest value that pixels of 9 to 16 bits can have; None = the format does not say."""
    if not picture.mode.startswith("I;16"):
        return None
    bits = picture.tag_v2.get(BITS, (16,))[0] if picture.format == "TIFF" else 16
    return 2.0 ** min(bits, 16) - 1
