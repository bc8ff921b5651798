"""Flappy Bird's pictures: simple shapes of our own, drawn with NumPy.

A shape is a signed distance d from its edge (negative inside, in pixels) on a grid of points; each
pixel takes the share clip(0.5 - d, 0, 1) of the shape's colour, which makes edges smooth.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from upslope.envs.flappy_rules import (
    BIRD_HEIGHT,
    BIRD_WIDTH,
    BIRD_X,
    GROUND,
    HEIGHT,
    PIPE_GAP,
    PIPE_SPEED,
    PIPE_WIDTH,
    WIDTH,
)

Image = NDArray[np.float32]
Colour = tuple[int, int, int]

OUTLINE, WHITE = (52, 49, 62), (255, 255, 255)
SKY_TOP, SKY_LOW = (74, 158, 222), (214, 241, 247)
FAR_HILLS, NEAR_HILLS = (150, 206, 196), (104, 184, 142)
BODY, BELLY, WING, BEAK = (250, 196, 48), (255, 232, 150), (255, 246, 214), (240, 110, 52)
PIPE_DARK, PIPE_MIDDLE, PIPE_LIGHT = (62, 126, 54), (112, 186, 72), (196, 240, 138)
GRASS, GRASS_LIGHT, SOIL, SOIL_DARK = (
    (112, 190, 80),
    (156, 222, 106),
    (226, 206, 154),
    (212, 188, 132),
)
TILT_LIMIT, CAP_HEIGHT, STRIPE, REPEAT = 20, 24, 24, 144
LAND = int(GROUND)

DIGITS = """
.####. ..##.. .####. .####. ...##. ###### .####. ###### .####. .####.
##..## .###.. ##..## ##..## ..###. ##.... ##..## ....## ##..## ##..##
##..## ..##.. ....## ....## .####. #####. ##.... ...##. ##..## ##..##
##..## ..##.. ...##. ..###. ##.##. ....## #####. ...##. .####. .#####
##..## ..##.. ..##.. ....## ###### ....## ##..## ..##.. ##..## ....##
##..## ..##.. .##... ##..## ...##. ##..## ##..## ..##.. ##..## ##..##
.####. .####. ###### .####. ...##. .####. .####. ..##.. .####. .####.
"""


def _paint(
    image: Image, distance: NDArray[np.floating], colour: Colour, opacity: float = 1
) -> None:
    share = np.clip(0.5 - distance, 0, 1)[..., None] * np.float32(opacity)
    image += share * (np.array(colour, np.float32) - image)


def _ellipse(
    x: NDArray[np.floating], y: NDArray[np.floating], width: float, height: float
) -> NDArray[np.floating]:
    """Approximate the distance from an ellipse around (0, 0), to first order near its edge."""
    level = np.hypot(x / width, y / height)
    slope = np.hypot(x / width**2, y / height**2)
    return level * (level - 1) / np.maximum(slope, 1e-6)


def _blend(low: Colour, high: Colour, share: NDArray[np.floating]) -> Image:
    ends = np.array(low, np.float32), np.array(high, np.float32)
    return ends[0] + share[..., None].astype(np.float32) * (ends[1] - ends[0])


@cache
def _scenery() -> Image:
    """Draw all that stands still: sky, sun, clouds and hills."""
    y, x = np.mgrid[0.5:HEIGHT, 0.5:WIDTH]
    image = _blend(SKY_TOP, SKY_LOW, np.clip(y / 330, 0, 1))
    for radius, opacity in ((58, 0.10), (44, 0.16), (31, 0.75)):
        _paint(image, np.hypot(x - 222, y - 92) - radius, (255, 248, 214), opacity)
    for left, top, size, opacity in (
        (18, 128, 1.0, 0.75),
        (182, 190, 0.8, 0.6),
        (96, 50, 0.6, 0.5),
    ):
        puffs = [
            _ellipse(x - left - size * dx, y - top - size * dy, size * w, size * h)
            for dx, dy, w, h in (
                (18, 6, 24, 12),
                (42, -4, 22, 20),
                (64, 4, 24, 14),
                (40, 10, 40, 9),
            )
        ]
        base = y - top - size * 14  # clouds are flat below
        _paint(image, np.maximum(np.minimum.reduce(puffs), base), WHITE, opacity)
    far = 330 + 16 * np.sin(x / 34 + 0.6) + 9 * np.sin(x / 13)
    _paint(image, far - y, FAR_HILLS)
    bushes = [
        np.hypot(x - centre, (y - 404)) - size
        for centre, size in (
            (-4, 40),
            (44, 30),
            (88, 42),
            (136, 32),
            (178, 44),
            (226, 34),
            (272, 42),
        )
    ]
    _paint(image, np.minimum.reduce(bushes), NEAR_HILLS)
    return image


@cache
def _pipe() -> tuple[Image, Image]:
    """Return one row of a pipe's body, narrower than its cap and with an outline, and the cap."""

    def column(inset: int) -> Image:
        across = np.linspace(0, 1, PIPE_WIDTH - 2 * inset)
        anchors = np.array(
            [PIPE_MIDDLE, PIPE_LIGHT, PIPE_LIGHT, PIPE_MIDDLE, PIPE_DARK], np.float32
        )
        stops = [0.0, 0.18, 0.28, 0.5, 1.0]
        row = np.stack([np.interp(across, stops, anchors[:, c]) for c in range(3)], axis=-1)
        row[:2] = row[-2:] = OUTLINE
        return row.astype(np.float32)

    cap = np.repeat(column(0)[None], CAP_HEIGHT, axis=0)
    cap[2:5, 2:-2] += 0.35 * (255 - cap[2:5, 2:-2])
    cap[-5:-2, 2:-2] *= 0.85
    cap[:2] = cap[-2:] = OUTLINE
    return column(3), cap


@cache
def _ground() -> Image:
    """Return the ground, wider than the screen by the distance after which it repeats."""
    y, x = np.mgrid[0.5 : HEIGHT - LAND, 0.5:REPEAT]
    image = np.empty((*y.shape, 3), np.float32)
    image[:] = SOIL
    rng = np.random.default_rng(4)
    for down, across, size in zip(
        rng.uniform(34, 104, 30),
        rng.uniform(6, REPEAT - 6, 30),
        rng.uniform(1.5, 5, 30),
        strict=True,
    ):
        _paint(image, _ellipse(x - across, y - down, size, 0.6 * size), SOIL_DARK)
    image[18:22] = SOIL_DARK
    image[2:16] = GRASS
    _paint(image[2:16], (np.abs((x + y) % STRIPE - STRIPE / 2) - STRIPE / 4)[2:16], GRASS_LIGHT)
    image[:2] = image[16:18] = OUTLINE
    return np.tile(image, (1, 1 + -(-WIDTH // REPEAT), 1))


@cache
def _bird(tilt: int, wing: int) -> tuple[Image, Image]:
    """Return the bird's colours and its opacity on a square, tilted upwards by `tilt` degrees."""
    size, finer = 48, 3
    points = (np.arange(size * finer) + 0.5) / finer - size / 2
    down, right = np.meshgrid(points, points, indexing="ij")
    angle = np.deg2rad(tilt)
    x = right * np.cos(angle) - down * np.sin(angle)
    y = right * np.sin(angle) + down * np.cos(angle)

    beak_top, beak_low = _ellipse(x - 12, y - 2.6, 6.2, 3.2), _ellipse(x - 10.5, y - 6.2, 5.4, 2.6)
    tail = _ellipse(x + 14.5, y + 1.5, 4.5, 3.4)
    body, eye = _ellipse(x + 0.5, y, 14.5, 11.2), np.hypot(x - 7.2, y + 4.4) - 5.2
    lift = (-3.2, 0.0, 3.2)[wing]
    feathers = _ellipse(x + 8.5, y - 2.2 - lift, 6.8, 4.6 - 0.5 * abs(lift) / 3.2)

    outer = np.minimum.reduce([body, beak_top, beak_low, tail, eye, feathers]) - 1.4
    image = np.empty((*x.shape, 3), np.float32)
    image[:] = OUTLINE
    _paint(image, tail * finer, BODY)
    _paint(image, body * finer, BODY)
    _paint(image, np.maximum(body, _ellipse(x + 1, y - 8.5, 12.5, 6.5)) * finer, BELLY)
    _paint(image, np.maximum(body, _ellipse(x + 1, y + 9.5, 9, 3.2)) * finer, (255, 224, 110))
    for part in (beak_low, beak_top):
        _paint(image, (part - 1.2) * finer, OUTLINE)
        _paint(image, part * finer, BEAK)
    _paint(image, (eye - 1.2) * finer, OUTLINE)
    _paint(image, eye * finer, WHITE)
    _paint(image, _ellipse(x - 9.2, y + 4.2, 1.9, 2.5) * finer, OUTLINE)
    _paint(image, (np.hypot(x - 9.9, y + 5.1) - 0.8) * finer, WHITE)
    _paint(image, (feathers - 1.2) * finer, OUTLINE)
    _paint(image, feathers * finer, WING)
    opacity = np.clip(0.5 - outer * finer, 0, 1).astype(np.float32)[..., None]

    def shrink(fine: Image) -> Image:
        return fine.reshape(size, finer, size, finer, -1).mean(axis=(1, 3), dtype=np.float32)

    share = shrink(opacity)
    return (shrink(image * opacity) / np.maximum(share, 1e-6)).astype(np.float32), share


@cache
def _digit(value: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return where a digit is white, and where it or its outline is."""
    rows = [line.split()[value] for line in DIGITS.split("\n") if line]
    pixels = np.array([[mark == "#" for mark in row] for row in rows])
    pixels = pixels[:, pixels.any(axis=0)]
    fill = np.pad(np.kron(pixels, np.ones((4, 4), np.bool_)), ((2, 4), (2, 2)))
    edge = fill.copy()
    for dy in (-2, -1, 0, 1, 2, 3, 4):  # lower down it is a shadow
        for dx in (-2, -1, 0, 1, 2):
            edge |= np.roll(fill, (dy, dx), axis=(0, 1))
    return fill, edge


def _draw_pipe(image: Image, x: float, gap: float) -> None:
    body, cap = _pipe()
    left, top, bottom = round(x), int(gap), int(gap) + PIPE_GAP
    for piece, rows, inset in (
        (body[None], slice(0, top - CAP_HEIGHT), 3),
        (cap, slice(top - CAP_HEIGHT, top), 0),
        (cap, slice(bottom, bottom + CAP_HEIGHT), 0),
        (body[None], slice(bottom + CAP_HEIGHT, LAND), 3),
    ):
        first, last = max(left + inset, 0), min(left + PIPE_WIDTH - inset, WIDTH)
        if first < last:
            image[rows, first:last] = piece[:, first - left - inset : last - left - inset]
    shadow = slice(bottom + CAP_HEIGHT, bottom + CAP_HEIGHT + 4)
    image[shadow, max(left + 5, 0) : max(left + PIPE_WIDTH - 5, 0)] *= 0.8


def _draw_score(image: Image, score: int) -> None:
    digits = [_digit(int(character)) for character in str(score)]
    x = (WIDTH - sum(fill.shape[1] for fill, _ in digits)) // 2
    for fill, edge in digits:
        height, width = fill.shape
        area = image[40 : 40 + height, max(x, 0) : x + width]
        if area.shape[:2] == fill.shape:  # else it is a score of 12 digits
            area[edge], area[fill] = OUTLINE, WHITE
        x += width


def draw(
    bird_y: float,
    rotation: float,
    pipes: Iterable[tuple[float, float]],
    frame: int,
    score: int,
) -> NDArray[np.uint8]:
    """Draw one moment of a game: 512 x 288 x 3.

    `bird_y` is the bird's upper edge, `rotation` its rotation in degrees (shown up to 20), `pipes`
    the left edges and the upper edges of the gaps; `frame`, the age, moves the ground and the wing.
    """
    image = _scenery().copy()
    for x, gap in pipes:
        _draw_pipe(image, float(x), float(gap))
    slide = frame * PIPE_SPEED % REPEAT
    image[LAND:] = _ground()[:, slide : slide + WIDTH]
    _draw_score(image, score)

    colours, share = _bird(round(min(rotation, TILT_LIMIT)), (0, 1, 2, 1)[frame // 3 % 4])
    size = len(colours)
    top = round(bird_y) + BIRD_HEIGHT // 2 - size // 2
    left = BIRD_X + BIRD_WIDTH // 2 - size // 2
    first, last = max(top, 0), min(top + size, HEIGHT)
    if first < last:
        area, rows = image[first:last, left : left + size], slice(first - top, last - top)
        area += share[rows] * (colours[rows] - area)
    return image.round().astype(np.uint8)
