"""Draws pictures of nested, textured things (whole, part, sub-part) together with their exact masks.

A scene is made of numbers between 0 and 1 only, so the same seed gives the same scene at every size.
NumPy and Pillow are all it needs.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.demo.painting import TEXTURE_KINDS, Canvas, Shape, Texture

Array = NDArray[Any]
Rng = np.random.Generator

LEVELS = ("whole", "part", "subpart")

OUTLINE_POINTS = 72  # corners of a drawn outline: smooth at 1024 px, quick to fill at 256 px


@dataclass(frozen=True)
class Scene:
    """Hold one picture and, for each level, which region every visible pixel belongs to.

    Shapes: image (H, W, 3) uint8; ids (3, H, W) uint8 in the order of LEVELS, 0 where there is no region.
    An id is unique over the scene, so a sub-part's pixels have a part id and a whole id as well.
    """

    seed: int
    image: Array
    ids: Array

    def masks(self, level: str) -> Array:
        """Return one visible mask a region of a level, as (K, H, W) bool."""
        plane = self.ids[LEVELS.index(level)]
        regions = [region for region in np.unique(plane) if region != 0]
        return np.stack([plane == region for region in regions]) if regions else np.zeros((0, *plane.shape), bool)


def generate_scene(seed: int, size_px: int | tuple[int, int]) -> Scene:
    """Draw the scene of a seed, square at `size_px` or at (width, height)."""
    width, height = (size_px, size_px) if isinstance(size_px, int) else size_px
    rng = np.random.default_rng(seed)
    canvas = Canvas(width, height)
    canvas.paint_background(_texture(rng, _background_colours(rng)))
    aspect = (width / max(width, height), height / max(width, height))
    for shape in _layout(rng, aspect):
        canvas.paint_object(shape)
    canvas.paint_light(rng.uniform(0, 2 * math.pi))
    image = (np.clip(canvas.image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return Scene(seed, image, canvas.ids)


def _layout(rng: Rng, aspect: tuple[float, float]) -> list[Shape]:
    """Place a few objects, back to front, with room for some of them to cover others."""
    hues = (rng.uniform() + np.arange(6) / 6.0 + rng.uniform(-0.04, 0.04, 6))[rng.permutation(6)]
    placed: list[tuple[float, float, float]] = []
    shapes = []
    for hue in hues[: int(rng.integers(2, 5))]:
        spot = _free_spot(rng, placed, aspect)
        if spot is None:
            continue
        placed.append(spot)
        shapes.append(_object(rng, spot, float(hue % 1.0)))
    return shapes


def _free_spot(
    rng: Rng, placed: list[tuple[float, float, float]], aspect: tuple[float, float]
) -> tuple[float, float, float] | None:
    for _ in range(12):
        radius = float(rng.uniform(0.19, 0.34))
        x, y = (float(rng.uniform(0.6 * radius, side - 0.6 * radius)) for side in aspect)
        if all(math.hypot(x - px, y - py) > 0.72 * (radius + pr) for px, py, pr in placed):
            return x, y, radius
    return None


def _object(rng: Rng, spot: tuple[float, float, float], hue: float) -> Shape:
    """Build an object with one to three parts, most of them with one or two sub-parts, in one family of colours."""
    x, y, radius = spot
    light = bool(rng.uniform() < 0.5)
    parts = tuple(
        _nest(rng, inside, hue + rng.uniform(0.06, 0.12) * rng.choice((-1, 1)), not light, hue)
        for inside in _inner_spots(rng, x, y, radius, int(rng.choice((1, 2, 2, 3) if radius > 0.26 else (1, 2))))
    )
    outline = _outline(rng, x, y, radius)
    return Shape(outline, (x, y), radius, _texture(rng, _colours(rng, hue, light)), parts)


def _nest(rng: Rng, spot: tuple[float, float, float], hue: float, light: bool, family: float) -> Shape:
    x, y, radius = spot
    wanted = int(rng.choice((0, 1, 1, 1, 2) if radius > 0.11 else (0, 1, 1, 1, 1)))
    inner = tuple(
        Shape(_outline(rng, sx, sy, sr), (sx, sy), sr, _texture(rng, _colours(rng, family + 0.5, not light)))
        for sx, sy, sr in _inner_spots(rng, x, y, radius, wanted)
    )
    return Shape(_outline(rng, x, y, radius), (x, y), radius, _texture(rng, _colours(rng, hue, light)), inner)


def _inner_spots(rng: Rng, x: float, y: float, radius: float, count: int) -> list[tuple[float, float, float]]:
    """Spread regions inside a region so that they keep clear of each other and of its border."""
    turn = rng.uniform(0, 2 * math.pi)
    share = {1: (0.5, 0.62), 2: (0.38, 0.44), 3: (0.33, 0.37)}
    spots = []
    for index in range(count):
        size = float(rng.uniform(*share[count])) * radius
        away = float(rng.uniform(0.0, 0.2) if count == 1 else rng.uniform(0.44, 0.5)) * radius
        angle = turn + 2 * math.pi * index / max(count, 1)
        spots.append((x + away * math.cos(angle), y + away * math.sin(angle), size))
    return spots


def _outline(rng: Rng, x: float, y: float, radius: float) -> Array:
    """Return a closed curve round a point: blob, rounded polygon, star or ellipse.

    Shapes: (OUTLINE_POINTS, 2), in units of the longer picture side.
    """
    angles = np.linspace(0, 2 * math.pi, OUTLINE_POINTS, endpoint=False)
    kind = rng.integers(0, 4)
    corners, turn = int(rng.integers(3, 7)), rng.uniform(0, 2 * math.pi)
    if kind == 0:
        reach = 1 + 0.13 * np.sin(2 * angles + turn) + 0.1 * np.sin(3 * angles + 2 * turn)
    elif kind == 1:
        step = 2 * math.pi / corners
        reach = math.cos(step / 2) / np.cos((angles % step) - step / 2)
        reach = 0.75 * reach + 0.35
    elif kind == 2:
        reach = 1 + 0.16 * np.cos(corners * angles)
    else:
        reach = np.ones_like(angles)
    stretch = float(rng.uniform(0.82, 1.0))
    points = np.stack([np.cos(angles) * reach, np.sin(angles) * reach * stretch], axis=1)
    points *= radius / np.abs(reach).max()
    spin = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    outline: Array = points @ spin.T + (x, y)
    return outline


def _hsv(hue: float, saturation: float, value: float) -> list[float]:
    return list(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def _colours(rng: Rng, hue: float, light: bool) -> Array:
    """Pick the two colours of a region: bright and pale, or deep and saturated."""
    saturation = rng.uniform(0.3, 0.5) if light else rng.uniform(0.75, 1.0)
    value = rng.uniform(0.88, 1.0) if light else rng.uniform(0.5, 0.75)
    nudge = rng.uniform(0.1, 0.22) * (-1 if light else 1)
    second = _hsv(hue + rng.uniform(-0.03, 0.03), saturation, value + nudge)
    return np.array([_hsv(hue, saturation, value), second], dtype=np.float32)


def _background_colours(rng: Rng) -> Array:
    hue, value = rng.uniform(), rng.uniform(0.25, 0.9)
    first = _hsv(hue, rng.uniform(0.03, 0.18), value)
    return np.array([first, _hsv(hue, 0.1, value + rng.uniform(-0.12, 0.12))], dtype=np.float32)


def _texture(rng: Rng, colours: Array) -> Texture:
    kind = TEXTURE_KINDS[int(rng.integers(len(TEXTURE_KINDS)))]
    frequency, angle, phase = rng.uniform(9, 22), rng.uniform(0, math.pi), rng.uniform(0, 1)
    tiles = rng.uniform(0, 1, (16, 16)).astype(np.float32)
    return Texture(kind, colours, float(frequency), float(angle), float(phase), tiles)
