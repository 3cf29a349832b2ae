"""Draw a scene: sky, far land, water with what it mirrors, near land, things, weather.

B  images    Y, X  pixel rows, columns
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.scenes.canvas import SNOW, SUPERSAMPLE, Canvas, Colour, mix
from experiments.scenes.scene import BODIES, HORIZON, Scene, Thing
from experiments.scenes.things import draw_thing

SIZE = 128  # pixels a side
_SHINE: dict[str, Colour] = {
    "dawn": (255, 246, 214),
    "day": (255, 250, 222),
    "dusk": (255, 222, 128),
    "night": (246, 241, 214),
}
_GLOW = {"dawn": 0.55, "day": 0.45, "dusk": 0.55, "night": 0.28}
# Far, middle, near land of each place.
_LAND: dict[str, tuple[Colour, Colour, Colour]] = {
    "forest": ((96, 132, 168), (74, 146, 118), (118, 186, 92)),
    "desert": ((204, 112, 82), (226, 152, 92), (244, 200, 128)),
    "snow": ((112, 142, 186), (184, 208, 232), (240, 246, 252)),
    "coast": ((92, 150, 150), (92, 150, 150), (248, 220, 162)),
    "lake": ((112, 136, 172), (92, 152, 104), (112, 172, 88)),
    "town": ((120, 140, 170), (150, 158, 150), (118, 122, 134)),
}
_WATER: Colour = (48, 142, 190)
_SHORE = {"lake": 0.625, "coast": HORIZON}


def draw(scene: Scene, size: int = SIZE) -> Image.Image:
    """Return the scene as an anti-aliased RGB picture of size x size pixels."""
    canvas = Canvas(scene, size)
    canvas.fill(_sky(canvas, scene))
    if scene.dots:
        for x, y in scene.dots:
            canvas.pen.ellipse(
                [(v + d) * canvas.side for d in (-0.006, 0.006) for v in (x, y)],
                fill=(255, 252, 236),
            )
    for thing in scene.sky:
        _stand(canvas, thing, scene)
    _draw_far(canvas, scene)
    for thing in scene.back:
        _stand(canvas, thing, scene)
    if scene.place in _SHORE:
        _draw_water(canvas, scene, _SHORE[scene.place])
    if scene.weather in ("fog", "rain"):
        _veil(canvas, 0.5 if scene.weather == "fog" else 0.2)
    _draw_ground(canvas, scene)
    for thing in scene.front:
        _stand(canvas, thing, scene)
    if scene.weather == "fog":
        _veil(canvas, 0.2)
    _draw_drops(canvas, scene)
    return canvas.image.reduce(SUPERSAMPLE)


def pixels_of(scenes: Iterable[Scene]) -> Tensor:
    """Return the pictures (B, 3, Y, X) of scenes, in [-1, 1]."""
    pixels_BYXC = torch.from_numpy(np.stack([np.asarray(draw(scene)) for scene in scenes]))
    return pixels_BYXC.movedim(-1, 1).float().div(127.5).sub(1)


def _stand(canvas: Canvas, thing: Thing, scene: Scene) -> None:
    is_near = thing in scene.front and thing.kind != "fence"
    if is_near:
        x, y, reach = thing.x + 0.01, thing.base, 0.46 * thing.width
        shade = mix(canvas.lit(_LAND[scene.place][2]), (30, 30, 70), 0.25)
        side = canvas.side
        canvas.pen.ellipse(
            [(x - reach) * side, (y - 0.012) * side, (x + reach) * side, (y + 0.012) * side],
            fill=shade,
        )
    with canvas.on(thing):
        draw_thing(canvas, thing, scene.place)


def _sky(canvas: Canvas, scene: Scene, grid: int = 64) -> np.ndarray:
    """Return the sky (Y, X, 3) with the glow of sun or moon."""
    rows = (np.arange(grid, dtype=np.float32) + 0.5) / grid
    stops = np.asarray(canvas.sky, dtype=np.float32)
    column = np.stack([np.interp(rows, (0.0, 0.32, 0.62), stops[:, i]) for i in range(3)], axis=1)
    sky = np.repeat(column[:, None, :], grid, axis=1)
    if scene.sky and scene.sky[0].kind in BODIES:
        body = scene.sky[0]
        fall_x, fall_y = (np.exp(-(((rows - at) / 0.19) ** 2)) for at in (body.x, body.base))
        glow = (fall_y[:, None] * fall_x[None, :])[:, :, None] * _GLOW[scene.time]
        sky += (np.asarray(_SHINE[scene.time]) - sky) * glow
    return sky


def _draw_far(canvas: Canvas, scene: Scene) -> None:
    """Draw mountains, dunes or an island, and the land of the back row."""
    far, middle, _ = _LAND[scene.place]
    colour = mix(canvas.lit(far), canvas.haze, 0.3)
    for x, y in scene.backdrop:
        if scene.place in ("forest", "snow", "lake"):
            _draw_peak(canvas, x, y, colour)
        elif scene.place == "desert":
            canvas.poly([(x - 0.28, 0.7), (x, y), (x + 0.28, 0.7)], colour)
            canvas.poly([(x, y), (x + 0.28, 0.7), (x + 0.08, 0.7)], mix(colour, (60, 20, 40), 0.2))
        elif scene.place == "town":
            canvas.oval(x, 0.78, 0.4, 0.78 - y, mix(canvas.lit((96, 150, 110)), canvas.haze, 0.35))
        else:
            canvas.oval(x, HORIZON, 0.3, HORIZON - y, colour)
    if scene.place != "coast":
        canvas.poly([(0, 1), *scene.hills, (1, 1)], mix(canvas.lit(middle), canvas.haze, 0.15))


def _draw_peak(canvas: Canvas, x: float, y: float, colour: Colour) -> None:
    reach = 0.78 - y
    canvas.poly([(x, y), (x + reach, 0.78), (x - reach, 0.78)], colour)
    canvas.poly([(x, y), (x + reach, 0.78), (x + 0.02, 0.78)], mix(colour, (20, 24, 60), 0.14))
    foot = [(1.0, 1.0), (0.45, 0.72), (0.1, 1.08), (-0.4, 0.75), (-1.0, 1.0)]
    snow = [(x + 0.09 * u, y + 0.09 * v) for u, v in foot]
    canvas.poly([(x, y), *snow], mix(canvas.lit(SNOW, 0.7), canvas.haze, 0.15))


def _draw_water(canvas: Canvas, scene: Scene, shore: float) -> None:
    """Mirror what stands above the shore in still water; then boats and bridge with their reflections."""
    side = canvas.side
    top = round(shore * side)
    water = mix(canvas.lit(_WATER, 0.9), canvas.haze, 0.25)
    mirrored = canvas.image.crop((0, 2 * top - side, side, top)).transpose(
        Image.Transpose.FLIP_TOP_BOTTOM
    )
    amount = 0.5 if scene.place == "lake" else 0.72
    surface = Image.new("RGB", mirrored.size, water)
    canvas.image.paste(Image.blend(mirrored, surface, amount), (0, top))
    for i, y in enumerate((0.03, 0.07, 0.12, 0.18)):
        half = 0.2 + 0.06 * i
        x = (0.3, 0.75, 0.45, 0.6)[i]
        canvas.pen.rectangle(
            [(x - half) * side, (shore + y) * side, (x + half) * side, (shore + y + 0.006) * side],
            fill=mix(water, SNOW, 0.22),
        )
    for thing in scene.water:
        with canvas.on(thing, mirror=thing.base + 0.004, tint=water):
            draw_thing(canvas, thing, scene.place)
        _stand(canvas, thing, scene)


def _draw_ground(canvas: Canvas, scene: Scene) -> None:
    colour = canvas.lit(_LAND[scene.place][2])
    if scene.place == "coast":
        foam = [(x, y - 0.014) for x, y in scene.ground]
        canvas.poly([(0, 1), *foam, (1, 1)], mix(canvas.lit(SNOW, 0.7), canvas.haze, 0.1))
    canvas.poly([(0, 1), *scene.ground, (1, 1)], colour)
    if scene.place == "town":
        pavement = mix(canvas.lit((196, 192, 188)), canvas.haze, 0.05)
        canvas.box(-0.02, 0.735, 1.02, 0.83, pavement)
        for i in range(6):
            canvas.box(i / 5 - 0.06, 0.955, i / 5 + 0.06, 0.968, canvas.lit((238, 232, 214)))
        return
    swell = [(1 - x, 0.96 + 1.2 * (y - scene.ground[0][1])) for x, y in scene.ground]
    canvas.poly([(1, 1), *swell, (0, 1)], mix(colour, (60, 70, 60), 0.12))


def _veil(canvas: Canvas, amount: float) -> None:
    canvas.replace(
        Image.blend(canvas.image, Image.new("RGB", canvas.image.size, canvas.haze), amount)
    )


def _draw_drops(canvas: Canvas, scene: Scene) -> None:
    side = canvas.side
    for x, y in scene.drops:
        if scene.weather == "rain":
            line = [x * side, y * side, (x - 0.012) * side, (y + 0.06) * side]
            canvas.pen.line(line, fill=mix(canvas.haze, SNOW, 0.5), width=SUPERSAMPLE)
        else:
            canvas.pen.ellipse([(v + d) * side for d in (-0.009, 0.009) for v in (x, y)], fill=SNOW)
