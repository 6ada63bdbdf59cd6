"""The eight figures of the demo set, as outlines drawn at random within their class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

Point = tuple[float, float]
Outline = list[Point]


@dataclass(frozen=True)
class Figure:
    """What a class looks like, in a frame of [-1, 1] in x and y with y pointing down."""

    bodies: Sequence[Outline]
    holes: Sequence[Outline] = ()
    details: Sequence[Outline] = ()
    """Painted in a second colour upon the bodies."""
    strokes: Sequence[Outline] = ()
    """Open lines."""
    stroke_width: float = 0.16


def _arc(
    center: Point, radius: Point, start_deg: float, stop_deg: float, *, steps: int = 24
) -> Outline:
    """Points of an elliptic arc; angles run clockwise on screen from the right."""
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
    # The well-known curve of cosines, about 17 units tall and 16 wide.
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
