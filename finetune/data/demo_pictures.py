"""Drawn pictures in eight classes, for the demo set.

Each picture is one figure on a busy background. Colours, paint, place, size, tilt, clutter, blur
and noise are drawn the same way for every class, so that only the figure tells the class.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from finetune.data.demo_figures import FIGURES, Figure, Outline

IMAGE_SIZE = 96

# Drawn larger, then averaged down: Pillow's polygons have no smooth edges.
_OVERSAMPLING = 2
_CANVAS = IMAGE_SIZE * _OVERSAMPLING

# How hard the set is: tuned so that pretrained features, even frozen, tell the classes apart and
# random ones do not. Lengths are relative to the picture's side.
_SIZE = (0.38, 0.44)  # half the figure's side
_MARGIN = 0.02  # least distance of a figure's frame to the border, unless it is as large
_TILT_DEG = 10.0
_MIN_CONTRAST = 120.0  # of figure and ground, in luma
_CLUTTER_COUNT = (0, 4)
_CLUTTER_STRENGTH = (0.15, 0.4)
_PATTERN_STRENGTH = 0.25
_STYLES = ("filled", "filled", "rimmed")
_BLUR = (0.0, 0.6)  # standard deviation in pixels
_NOISE = (0.01, 0.06)  # share of noise in the blend

Color = tuple[int, int, int]


def draw_picture(class_name: str, rng: Random) -> Image.Image:
    """One RGB picture of ``IMAGE_SIZE`` pixels a side."""
    ground, paint = _contrasting_colors(rng)
    picture = _background(rng, ground)
    _scatter_clutter(picture, rng, ground, paint)
    _paint_figure(picture, FIGURES[class_name](rng), rng, ground=ground, paint=paint)
    picture = picture.reduce(_OVERSAMPLING)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(*_BLUR)))
    return _add_noise(picture, rng)


def _random_color(rng: Random) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(
        rng.random(), rng.uniform(0.15, 0.85), rng.uniform(0.25, 1.0)
    )
    return round(red * 255), round(green * 255), round(blue * 255)


def _luma(color: Color) -> float:
    """Perceived brightness in [0, 255], by the weights of ITU-R BT.601."""
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def _contrasting_colors(rng: Random) -> tuple[Color, Color]:
    """Two colours whose lumas lie apart; either may be the lighter one."""
    while True:
        # Both anew each time: next to a medium ground hardly any colour would do.
        ground, paint = _random_color(rng), _random_color(rng)
        if abs(_luma(ground) - _luma(paint)) >= _MIN_CONTRAST:
            return ground, paint


def _mix(first: Color, second: Color, share: float) -> Color:
    """The first colour with a share of the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _gradient(rng: Random, first: Color, second: Color) -> Image.Image:
    """A straight blend of two colours in a random direction, as large as the canvas."""
    # Turned and coloured small, then enlarged, which costs a tenth. The inner 32 of 48 pixels are
    # filled at every angle.
    ramp = Image.linear_gradient("L").resize((48, 48))
    ramp = ramp.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR)
    blend = Image.composite(
        Image.new("RGB", ramp.size, second), Image.new("RGB", ramp.size, first), ramp
    )
    return blend.resize((_CANVAS, _CANVAS), Image.Resampling.BILINEAR, box=(8, 8, 40, 40))


def _background(rng: Random, ground: Color) -> Image.Image:
    """A gradient about one colour, at times under stripes or dots."""
    picture = _gradient(rng, ground, _mix(ground, _random_color(rng), 0.3))
    pattern = rng.choice(("plain", "stripes", "dots"))
    if pattern == "plain":
        return picture
    mask = Image.new("L", picture.size)
    draw = ImageDraw.Draw(mask)
    pitch = rng.uniform(0.09, 0.2) * _CANVAS
    angle = rng.uniform(0, math.pi)
    along, across = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    reach = int(_CANVAS / pitch) + 1
    center = _CANVAS / 2
    for row in range(-reach, reach + 1):
        x, y = center + row * pitch * across[0], center + row * pitch * across[1]
        if pattern == "stripes":
            far_x, far_y = _CANVAS * along[0], _CANVAS * along[1]
            ends = [(x - far_x, y - far_y), (x + far_x, y + far_y)]
            draw.line(ends, fill=255, width=round(pitch * 0.45))
            continue
        for column in range(-reach, reach + 1):
            dot = (x + column * pitch * along[0], y + column * pitch * along[1])
            draw.circle(dot, pitch * 0.24, fill=255)
    picture.paste(_mix(ground, _random_color(rng), _PATTERN_STRENGTH), mask=mask)
    return picture


def _scatter_clutter(picture: Image.Image, rng: Random, ground: Color, paint: Color) -> None:
    """Lines, discs and shards about the canvas, fainter than the figure."""
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(*_CLUTTER_COUNT)):
        other = rng.choice((paint, _random_color(rng)))
        color = _mix(ground, other, rng.uniform(*_CLUTTER_STRENGTH))
        x, y = rng.uniform(0, _CANVAS), rng.uniform(0, _CANVAS)
        radius = rng.uniform(0.03, 0.12) * _CANVAS
        kind = rng.choice(("line", "disc", "ring", "shard"))
        if kind == "line":
            angle, length = rng.uniform(0, math.tau), radius * rng.uniform(2, 5)
            end = (x + length * math.cos(angle), y + length * math.sin(angle))
            draw.line([(x, y), end], fill=color, width=rng.randint(3, 9))
        elif kind == "disc":
            draw.circle((x, y), radius * 0.7, fill=color)
        elif kind == "ring":
            draw.circle((x, y), radius, outline=color, width=rng.randint(3, 7))
        else:
            turns = sorted(rng.uniform(0, math.tau) for _ in range(rng.randint(3, 5)))
            shard = [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
            draw.polygon(shard, fill=color)


def _random_placement(rng: Random) -> Callable[[Outline], Outline]:
    """Mirror, stretch, tilt, size and shift from the figure's frame to the canvas."""
    size = rng.uniform(*_SIZE) * _CANVAS
    stretch = rng.uniform(0.88, 1.14)
    mirror = rng.choice((-1, 1))
    tilt = math.radians(rng.uniform(-_TILT_DEG, _TILT_DEG))
    reach = size * max(stretch, 1 / stretch)
    room = max(0.0, (0.5 - _MARGIN) * _CANVAS - reach)
    center_x = _CANVAS / 2 + rng.uniform(-room, room)
    center_y = _CANVAS / 2 + rng.uniform(-room, room)
    cosine, sine = math.cos(tilt) * size, math.sin(tilt) * size

    def place(outline: Outline) -> Outline:
        scaled = [(x * mirror * stretch, y / stretch) for x, y in outline]
        return [
            (center_x + x * cosine - y * sine, center_y + x * sine + y * cosine) for x, y in scaled
        ]

    return place


def _grow(mask: Image.Image, distance: float) -> Image.Image:
    """The mask widened by about ``distance`` pixels: a blur and a threshold."""
    blurred = mask.filter(ImageFilter.BoxBlur(distance))
    return blurred.point([255 if value > 20 else 0 for value in range(256)])


def _paint_figure(
    picture: Image.Image, figure: Figure, rng: Random, *, ground: Color, paint: Color
) -> None:
    """Paint the figure, at times with a rim, above a soft shadow."""
    place = _random_placement(rng)
    mask, details = _figure_masks(figure, place)
    style = rng.choice(_STYLES)
    shadow = ImageChops.offset(mask, rng.randint(-5, 5), rng.randint(2, 6))
    shadow = shadow.filter(ImageFilter.BoxBlur(4)).point([v * 2 // 5 for v in range(256)])
    picture.paste((0, 0, 0), mask=shadow)
    if style == "rimmed":
        rim = rng.choice((_mix(ground, (255, 255, 255), 0.8), _mix(paint, (0, 0, 0), 0.65)))
        picture.paste(rim, mask=_grow(mask, 4))
    picture.paste(_gradient(rng, paint, _mix(paint, _random_color(rng), 0.25)), mask=mask)
    picture.paste(_mix(paint, ground, 0.8), mask=details)


def _figure_masks(
    figure: Figure, place: Callable[[Outline], Outline]
) -> tuple[Image.Image, Image.Image]:
    """Masks of the silhouette and of the details upon it."""
    silhouette = _stroke_mask(figure, place)
    draw = ImageDraw.Draw(silhouette)
    for body in figure.bodies:
        draw.polygon(place(body), fill=255)
    for hole in figure.holes:
        draw.polygon(place(hole), fill=0)
    details = Image.new("L", silhouette.size)
    draw = ImageDraw.Draw(details)
    for detail in figure.details:
        draw.polygon(place(detail), fill=255)
    return silhouette, details


def _stroke_mask(figure: Figure, place: Callable[[Outline], Outline]) -> Image.Image:
    mask = Image.new("L", (_CANVAS, _CANVAS))
    draw = ImageDraw.Draw(mask)
    (left, y), (right, y2) = place([(0.0, 0.0), (1.0, 0.0)])
    width = round(figure.stroke_width * math.hypot(right - left, y2 - y))
    for stroke in figure.strokes:
        draw.line(place(stroke), fill=255, width=width, joint="curve")
    return mask


def _add_noise(picture: Image.Image, rng: Random) -> Image.Image:
    """Blend in independent noise for every pixel and channel."""
    # Not Image.effect_noise: it draws from C's global generator.
    noise = Image.frombytes("RGB", picture.size, rng.randbytes(IMAGE_SIZE * IMAGE_SIZE * 3))
    return Image.blend(picture, noise, rng.uniform(*_NOISE))
