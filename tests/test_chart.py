"""Charts: what is drawn, and where."""

from __future__ import annotations

import math

import pytest
from PIL import Image, ImageChops
from shortcut_pack.shortcut.chart import (
    PALETTE,
    PAPER,
    SIZE,
    Level,
    Series,
    chart,
    log_ticks,
    ticks,
)

RED, BLUE = (220, 30, 30), (30, 30, 220)


def places(
    picture: Image.Image, colour: tuple[int, int, int], top: int = 80
) -> list[tuple[int, int]]:
    """Pixels of a colour below the legend."""
    width, height = picture.size
    pixels = picture.load()
    assert pixels is not None
    return [(x, y) for y in range(top, height) for x in range(width) if pixels[x, y] == colour]


def heights(y: float, **options) -> float:
    """Where the dot at `y` is, as a share of the way from the dot at 1 up to the dot at 100."""
    dots = Series(name="a", points=[(1, 1), (9, 100)], colour=BLUE, is_joined=False)
    dot = Series(name="b", points=[(5, y)], colour=RED)
    picture = chart([dots, dot], "x", "y", **options)
    blue, red = places(picture, BLUE), places(picture, RED)
    low, high = max(y for _, y in blue), min(y for _, y in blue)
    return (low - 6 - sum(y for _, y in red) / len(red)) / (low - high - 12)


def test_a_point_stands_at_its_value_on_either_axis():
    assert heights(10) == pytest.approx(9 / 99, abs=0.02)
    assert heights(10, is_log=True) == pytest.approx(0.5, abs=0.02)
    assert heights(50.5) == pytest.approx(0.5, abs=0.02)


def test_every_series_has_its_name_and_colour():
    names = [f"head {i}" for i in range(len(PALETTE))]
    series = [Series(name=name, points=[(i, i), (i + 5, i)]) for i, name in enumerate(names)]
    picture = chart(series, "x", "y")
    assert picture.size == SIZE
    found = {colour for _, colour in picture.getcolors(1 << 20)}
    assert set(PALETTE) <= found
    assert chart(series[:3], "x", "y", size=(512, 320)).size == (512, 320)


def test_labels_do_not_cover_each_other():
    def ink(labels: tuple[str, ...]) -> int:
        dots = [(5, 5), (5.2, 5.1), (5.3, 4.9)]
        series = [
            Series(name=str(i), points=[dot], labels=[label], colour=colour, is_joined=False)
            for i, (dot, label, colour) in enumerate(zip(dots, labels, (RED,) * 3, strict=True))
        ]
        far = Series(name="far", points=[(10, 10)], colour=BLUE)
        return len(places(chart([*series, far], "x", "y"), RED))

    alone = [ink(labels) for labels in (("8/2", "", ""), ("", "8/2", ""), ("", "", "8/2"))]
    without = ink(("", "", ""))
    assert ink(("8/2", "8/2", "8/2")) - without == pytest.approx(sum(alone) - 3 * without, abs=8)


def test_values_that_cannot_be_drawn_are_left_out():
    bad = [(1, math.nan), (2, math.inf), (math.inf, 1)]
    good = [(3, 1.0), (4, 2.0)]
    for is_log, more in ((False, []), (True, [(5, 0.0), (6, -1.0)])):
        found = chart([Series(name="a", points=[*bad, *more, *good])], "x", "y", is_log=is_log)
        clean = chart([Series(name="a", points=good)], "x", "y", is_log=is_log)
        assert found.tobytes() == clean.tobytes()
        with pytest.raises(ValueError, match="chart of 'loss' has no points"):
            chart([Series(name="a", points=[*bad, *more])], "x", "loss", is_log=is_log)


def test_a_single_point_and_a_flat_line_are_seen():
    for points in ([(50, 0.3)], [(50, 0.3), (100, 0.3)], [(0, 0), (1, 0)]):
        for is_log in {False, points[0][1] > 0}:
            series = Series(name="a", points=points, colour=RED, has_dots=False)
            assert places(chart([series], "x", "y", is_log=is_log), RED)


def test_a_level_is_dashed_across_and_named():
    series = Series(name="a", points=[(1, 1), (2, 2)])
    picture, plain = (
        chart([series], "x", "y", levels=levels) for levels in ([Level("real", 1.5)], [])
    )
    changed = ImageChops.difference(picture, plain).getbbox()
    assert changed is not None and changed[2] - changed[0] > 0.8 * SIZE[0]
    assert picture.getpixel((0, 0)) == PAPER


@pytest.mark.parametrize("top", [0.0007, 0.3, 0.9, 1.0, 6.9, 7.0, 58.6, 1234.0])
def test_an_axis_ends_at_its_greatest_value_or_just_above(top):
    values = ticks(0, top)
    assert values[0] == 0 and values[-2] < top <= values[-1]
    assert 3 <= len(values) <= 8


@pytest.mark.parametrize(("low", "high"), [(0.62, 0.97), (-3, 12), (98.2, 98.9), (-2e-3, -1e-3)])
def test_an_axis_may_begin_anywhere(low, high):
    values = ticks(low, high)
    assert values[0] <= low < values[1] and values[-2] < high <= values[-1]
    assert 3 <= len(values) <= 8


@pytest.mark.parametrize(
    ("low", "high"), [(0.3, 0.3), (1, 1), (0.06, 1.2), (1e-5, 3e2), (1e-9, 1e9)]
)
def test_a_logarithmic_axis_has_few_round_values_around_all(low, high):
    values = log_ticks(low, high)
    assert values[0] <= low and high <= values[-1]
    assert 2 <= len(values) <= 8
    assert all(f"{value:.0e}"[0] in "125" for value in values)
