"""Synthetic images in eight classes, for the demo set.

Each image is one figure on a busy background. Colours, paint, position, size, tilt, clutter, blur
and noise have the same distribution for every class, so that only the figure identifies the class.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter

IMAGE_SIZE = 96

# Images are drawn larger and averaged down, because Pillow does not antialias polygons.
_OVERSAMPLING = 2
_CANVAS = IMAGE_SIZE * _OVERSAMPLING

# Difficulty of the set, tuned so that pretrained features, even frozen, distinguish the classes and
# random features do not. Lengths are relative to the side of the image.
_SIZE = (0.38, 0.44)  # half the figure's side
_MARGIN = 0.02  # minimum distance of a figure's frame to the border, unless it is too large
_TILT_DEG = 10.0
_MIN_CONTRAST = 120.0  # between figure and ground, in luma
_CLUTTER_COUNT = (0, 4)
_CLUTTER_STRENGTH = (0.15, 0.4)
_PATTERN_STRENGTH = 0.25
_STYLES = ("filled", "filled", "rimmed")
_BLUR = (0.0, 0.6)  # standard deviation in pixels
_NOISE = (0.01, 0.06)  # share of noise in the blend

Color = tuple[int, int, int]


def draw_picture(class_name: str, rng: Random) -> Image.Image:
    """Draw one RGB image with sides of ``IMAGE_SIZE`` pixels."""
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
    """Return the luma in [0, 255], with the weights of ITU-R BT.601."""
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def _contrasting_colors(rng: Random) -> tuple[Color, Color]:
    """Return two colours with a luma difference of at least `_MIN_CONTRAST`, in either order."""
    while True:
        # Both are redrawn each time: few colours contrast with a medium ground.
        ground, paint = _random_color(rng), _random_color(rng)
        if abs(_luma(ground) - _luma(paint)) >= _MIN_CONTRAST:
            return ground, paint


def _mix(first: Color, second: Color, share: float) -> Color:
    """Blend the first colour with a share of the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _gradient(rng: Random, first: Color, second: Color) -> Image.Image:
    """Return a linear gradient of two colours in a random direction, of the size of the canvas."""
    # Rotated and coloured at a small size and then enlarged, at a tenth of the cost. The inner 32
    # of 48 pixels are filled at every angle.
    ramp = Image.linear_gradient("L").resize((48, 48))
    ramp = ramp.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR)
    blend = Image.composite(
        Image.new("RGB", ramp.size, second), Image.new("RGB", ramp.size, first), ramp
    )
    return blend.resize((_CANVAS, _CANVAS), Image.Resampling.BILINEAR, box=(8, 8, 40, 40))


def _background(rng: Random, ground: Color) -> Image.Image:
    """Return a gradient around one colour, sometimes with stripes or dots."""
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
    """Draw lines, discs, rings and shards on the canvas, fainter than the figure."""
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
    """Return a random transform from the figure's frame to the canvas.

    It mirrors, stretches, tilts, scales and shifts.
    """
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
    """Dilate a mask by about ``distance`` pixels, with a blur and a threshold."""
    blurred = mask.filter(ImageFilter.BoxBlur(distance))
    return blurred.point([255 if value > 20 else 0 for value in range(256)])


def _paint_figure(
    picture: Image.Image, figure: Figure, rng: Random, *, ground: Color, paint: Color
) -> None:
    """Paint the figure over a soft shadow, sometimes with a rim."""
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
    """Return masks of the silhouette and of the details on it."""
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
    # Image.effect_noise is not used because it draws from C's global generator.
    noise = Image.frombytes("RGB", picture.size, rng.randbytes(IMAGE_SIZE * IMAGE_SIZE * 3))
    return Image.blend(picture, noise, rng.uniform(*_NOISE))


Point = tuple[float, float]
Outline = list[Point]


@dataclass(frozen=True)
class Figure:
    """Shape of a class, in a frame of [-1, 1] in x and y with y pointing down."""

    bodies: Sequence[Outline]
    holes: Sequence[Outline] = ()
    details: Sequence[Outline] = ()
    """Outlines painted on the bodies in a second colour."""
    strokes: Sequence[Outline] = ()
    """Open lines, drawn with `stroke_width`."""
    stroke_width: float = 0.16


def _arc(
    center: Point, radius: Point, start_deg: float, stop_deg: float, *, steps: int = 24
) -> Outline:
    """Return points of an elliptic arc; angles run clockwise on screen from the right."""
    angles = (
        math.radians(start_deg + (stop_deg - start_deg) * step / steps) for step in range(steps + 1)
    )
    return [
        (center[0] + radius[0] * math.cos(angle), center[1] + radius[1] * math.sin(angle))
        for angle in angles
    ]


def _box(left: float, top: float, right: float, bottom: float) -> Outline:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _fish(rng: Random) -> Figure:
    height = rng.uniform(0.42, 0.58)
    tail = rng.uniform(0.4, 0.55)
    body = [
        *_arc((-0.2, 0.0), (0.75, height), 180, 360),
        *_arc((-0.2, 0.0), (0.75, height), 0, 180),
    ]
    fin = [(-0.45, -height * 0.8), (0.05, -height - 0.28), (0.2, -height * 0.7)]
    tail_fin = [(0.4, 0.0), (1.0, -tail), (0.82, 0.0), (1.0, tail)]
    eye = _arc((-0.6, -0.1), (0.11, 0.11), 0, 360, steps=12)
    gill = [*_arc((-0.5, 0.02), (0.28, 0.36), -50, 50), *_arc((-0.56, 0.02), (0.28, 0.36), 50, -50)]
    return Figure(bodies=[body, fin, tail_fin], details=[eye, gill])


def _heart(rng: Random) -> Figure:
    # The usual parametric heart curve, about 17 units tall and 16 wide.
    width = rng.uniform(0.88, 1.05) / 17
    outline = []
    for step in range(60):
        angle = math.tau * step / 60
        x = 16 * math.sin(angle) ** 3
        y = (
            13 * math.cos(angle)
            - 5 * math.cos(2 * angle)
            - 2 * math.cos(3 * angle)
            - math.cos(4 * angle)
        )
        outline.append((x * width, -(y + 2.5) / 16))
    return Figure(bodies=[outline])


def _house(rng: Random) -> Figure:
    wall = rng.uniform(0.6, 0.74)
    eaves = rng.uniform(-0.2, -0.05)
    roof = [(-wall - 0.24, eaves), (0.0, -0.98), (wall + 0.24, eaves)]
    chimney = _box(wall * 0.45, -0.9, wall * 0.45 + 0.22, eaves)
    door_left = rng.choice((-0.45, 0.08))
    window_left = -0.37 - door_left
    door = _box(door_left, 0.25, door_left + 0.34, 0.9)
    window = _box(window_left, 0.2, window_left + 0.34, 0.52)
    return Figure(
        bodies=[_box(-wall, eaves - 0.05, wall, 0.9), roof, chimney],
        details=[door, window],
    )


def _key(rng: Random) -> Figure:
    bow = rng.uniform(0.36, 0.44)
    thickness = rng.uniform(0.1, 0.13)
    teeth = [
        _box(right - 0.15, 0.0, right, thickness + rng.uniform(0.2, 0.34)) for right in (0.68, 0.96)
    ]
    return Figure(
        bodies=[
            _arc((-0.58, 0.0), (bow, bow), 0, 360),
            _box(-0.4, -thickness, 0.98, thickness),
            *teeth,
        ],
        holes=[_arc((-0.62, 0.0), (bow * 0.45, bow * 0.45), 0, 360, steps=16)],
    )


def _moon(rng: Random) -> Figure:
    horn_deg = rng.uniform(38, 58)
    horn_x, horn_y = math.cos(math.radians(horn_deg)), math.sin(math.radians(horn_deg))
    bite_x = rng.uniform(0.42, 0.6)
    bite = math.hypot(horn_x - bite_x, horn_y)
    bite_deg = math.degrees(math.atan2(horn_y, horn_x - bite_x))
    outline = [
        *_arc((0.0, 0.0), (1.0, 1.0), horn_deg, 360 - horn_deg, steps=40),
        *_arc((bite_x, 0.0), (bite, bite), 360 - bite_deg, bite_deg, steps=30),
    ]
    return Figure(bodies=[[(x + 0.25, y) for x, y in outline]])


def _spiral(rng: Random) -> Figure:
    turns = rng.uniform(2.1, 2.8)
    start = rng.uniform(0, math.tau)
    steps = 90
    line = []
    for step in range(steps + 1):
        share = step / steps
        angle = start + share * turns * math.tau
        radius = 0.04 + 0.9 * share
        line.append((radius * math.cos(angle), radius * math.sin(angle)))
    return Figure(bodies=[], strokes=[line], stroke_width=rng.uniform(0.15, 0.2))


def _star(rng: Random) -> Figure:
    inner = rng.uniform(0.38, 0.5)
    outline = []
    for corner in range(10):
        angle = math.tau * corner / 10 - math.pi / 2
        radius = inner if corner % 2 else 1.0
        outline.append((radius * math.cos(angle), radius * math.sin(angle)))
    return Figure(bodies=[outline])


def _umbrella(rng: Random) -> Figure:
    rim = rng.uniform(-0.08, 0.05)
    scallops = []
    for scallop in range(4):
        scallops += _arc((0.75 - 0.5 * scallop, rim), (0.25, 0.16), 0, -180, steps=8)
    canopy = [*_arc((0.0, rim), (1.0, 0.86 + rim), 180, 360), *scallops]
    stick = [(0.0, -0.98), (0.0, 0.68), *_arc((-0.2, 0.7), (0.2, 0.22), 0, 170, steps=10)]
    return Figure(bodies=[canopy], strokes=[stick], stroke_width=rng.uniform(0.11, 0.15))


FIGURES: dict[str, Callable[[Random], Figure]] = {
    "fish": _fish,
    "heart": _heart,
    "house": _house,
    "key": _key,
    "moon": _moon,
    "spiral": _spiral,
    "star": _star,
    "umbrella": _umbrella,
}
