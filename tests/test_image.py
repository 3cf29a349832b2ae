"""Pixels of a network become pictures, and pictures pixels."""

from __future__ import annotations

import pytest
import torch
from shortcut_pack.shortcut.image import to_pictures, to_pixels


@pytest.mark.parametrize(
    ("value", "byte"), [(-3.0, 0), (-1.0, 0), (0.0, 128), (1.0, 255), (1.01, 255), (3.0, 255)]
)
def test_pixels_beyond_the_range_are_clipped(value, byte):
    (picture,) = to_pictures(torch.full((1, 3, 1, 2), value))
    assert picture.size == (2, 1) and picture.getpixel((1, 0)) == (byte, byte, byte)


def test_a_picture_survives_the_way_to_pixels_and_back():
    pixels_BCYX = torch.arange(48).view(1, 3, 4, 4) * 5 / 127.5 - 1
    (picture,) = to_pictures(pixels_BCYX)
    assert torch.equal(to_pixels(picture), to_pixels(*to_pictures(to_pixels(picture))))
    torch.testing.assert_close(to_pixels(picture), pixels_BCYX)
