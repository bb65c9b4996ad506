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
from PIL import Image, ImageDraw

Array = NDArray[Any]
Rng = np.random.Generator

LEVELS = ("whole", "part", "subpart")

OUTLINE_POINTS = 72  # corners of a drawn outline: smooth at 1024 px, quick to fill at 256 px
SUPERSAMPLE = 2  # outlines are filled at twice the size and averaged, which gives soft edges
SHADOW_STRENGTH = 0.45
TEXTURE_KINDS = ("plain", "stripes", "dots", "checks", "rings", "noise", "gradient")


@dataclass(frozen=True)
class Scene:
    """Hold one picture and, for each level, which region every visible pixel belongs to.

    Shapes: image (H, W, 3) uint8; ids (3, H, W) uint8 in the order of LEVELS, 0 where there is no region.
    An id is unique over the scene, so a sub-part's pixels have a part id and a whole id as well.
    """

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
    return Scene(image, canvas.ids)


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


@dataclass(frozen=True)
class Texture:
    """Describe how a region is painted: two colours and the pattern that mixes them."""

    kind: str
    colours: Array
    frequency: float
    angle: float
    phase: float
    tiles: Array


@dataclass(frozen=True)
class Shape:
    """Describe one region: a closed outline in picture units, its paint and the regions inside it."""

    outline: Array
    centre: tuple[float, float]
    radius: float
    texture: Texture
    children: tuple[Shape, ...] = ()


class Canvas:
    """Collect painted pixels and region ids while a scene is drawn back to front."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height, self.scale = width, height, max(width, height)
        self.image: Array = np.zeros((height, width, 3), dtype=np.float32)
        self.ids: Array = np.zeros((3, height, width), dtype=np.uint8)
        self.next_id = 1

    def paint_background(self, texture: Texture) -> None:
        x, y = self._axes(0, 0, self.width, self.height)
        self.image[:] = _mix(texture, x, y)

    def paint_light(self, direction: float) -> None:
        """Brighten the picture towards one side, as a lamp would."""
        x, y = self._axes(0, 0, self.width, self.height)
        self.image *= (0.96 + 0.16 * ((x - 0.5) * math.cos(direction) + (y - 0.5) * math.sin(direction)))[..., None]

    def paint_object(self, shape: Shape) -> None:
        """Paint an object, its parts and their sub-parts, each clipped to what holds it."""
        self._paint_shadow(shape)
        self._paint(shape, 0, None)

    def _paint(self, shape: Shape, level: int, clip: Array | None) -> None:
        box = self._box(shape.outline, margin=2)
        if box is None:
            return
        left, top, right, bottom = box
        cover = self._cover(shape.outline, box)
        if clip is not None:
            cover = np.minimum(cover, clip[top:bottom, left:right])
        x, y = self._axes(*box)
        colour = _mix(shape.texture, x, y) * self._shading(shape, x, y, level)[..., None]
        region = self.image[top:bottom, left:right]
        region += (colour - region) * cover[..., None]
        self._mark(box, cover > 0.5, level)
        if shape.children:
            whole = np.zeros((self.height, self.width), dtype=np.float32)
            whole[top:bottom, left:right] = cover
            for child in shape.children:
                self._paint(child, level + 1, whole)

    def _mark(self, box: tuple[int, int, int, int], inside: Array, level: int) -> None:
        left, top, right, bottom = box
        self.ids[level, top:bottom, left:right][inside] = self.next_id
        self.ids[level + 1 :, top:bottom, left:right][:, inside] = 0
        self.next_id += 1

    def _paint_shadow(self, shape: Shape) -> None:
        """Darken what lies under an object, a little down and to the right."""
        offset = shape.outline + 0.1 * shape.radius
        box = self._box(offset, margin=2)
        if box is not None:
            left, top, right, bottom = box
            self.image[top:bottom, left:right] *= 1 - SHADOW_STRENGTH * self._cover(offset, box)[..., None]

    def _shading(self, shape: Shape, x: Array, y: Array, level: int) -> Array:
        """Shade a region round: lighter towards the top left, darker towards the rim."""
        dx, dy = (x - shape.centre[0]) / shape.radius, (y - shape.centre[1]) / shape.radius
        strength = (0.2, 0.14, 0.14)[level]
        return np.asarray(1.04 - strength * (0.5 * (dx + dy) + 0.7 * (dx * dx + dy * dy) ** 2), dtype=np.float32)

    def _axes(self, left: int, top: int, right: int, bottom: int) -> tuple[Array, Array]:
        x = (np.arange(left, right, dtype=np.float32) + 0.5) / self.scale
        y = (np.arange(top, bottom, dtype=np.float32) + 0.5) / self.scale
        return x[None, :], y[:, None]

    def _box(self, outline: Array, margin: int) -> tuple[int, int, int, int] | None:
        low = np.floor(outline.min(axis=0) * self.scale).astype(int) - margin
        high = np.ceil(outline.max(axis=0) * self.scale).astype(int) + margin
        left, top = max(int(low[0]), 0), max(int(low[1]), 0)
        right, bottom = min(int(high[0]), self.width), min(int(high[1]), self.height)
        return (left, top, right, bottom) if right > left and bottom > top else None

    def _cover(self, outline: Array, box: tuple[int, int, int, int]) -> Array:
        """Return how much of each pixel of a box the outline covers, 0 to 1."""
        left, top, right, bottom = box
        size = ((right - left) * SUPERSAMPLE, (bottom - top) * SUPERSAMPLE)
        drawing = Image.new("L", size)
        corners = (outline * self.scale - (left, top)) * SUPERSAMPLE - 0.5
        ImageDraw.Draw(drawing).polygon([(float(px), float(py)) for px, py in corners], fill=255)
        return np.asarray(drawing.reduce(SUPERSAMPLE), dtype=np.float32) / 255.0


def _mix(texture: Texture, x: Array, y: Array) -> Array:
    share = _pattern(texture, x, y)[..., None]
    return np.asarray(texture.colours[0] + (texture.colours[1] - texture.colours[0]) * share, dtype=np.float32)


def _pattern(texture: Texture, x: Array, y: Array) -> Array:
    """Return how much of the second colour each pixel gets, 0 to 1."""
    cos, sin = math.cos(texture.angle), math.sin(texture.angle)
    u = (x * cos + y * sin) * texture.frequency + texture.phase
    v = (y * cos - x * sin) * texture.frequency + texture.phase
    if texture.kind == "stripes":
        return _soft_step(np.abs((u % 1.0) - 0.5) - 0.25)
    if texture.kind == "checks":
        return _soft_step((np.abs((u % 1.0) - 0.5) - 0.25) * (np.abs((v % 1.0) - 0.5) - 0.25) * 6.0)
    if texture.kind == "dots":
        return _soft_step(0.09 - ((u % 1.0) - 0.5) ** 2 - ((v % 1.0) - 0.5) ** 2)
    if texture.kind == "rings":
        return _soft_step(np.abs((np.sqrt(u * u + v * v) % 1.0) - 0.5) - 0.25)
    if texture.kind == "noise":
        return _value_noise(texture.tiles, u, v)
    if texture.kind == "gradient":
        return np.asarray(0.5 + 0.5 * np.sin(u * 0.35), dtype=np.float32)
    return np.zeros(np.broadcast(x, y).shape, dtype=np.float32)


def _soft_step(distance: Array) -> Array:
    return np.clip(distance * 12.0 + 0.5, 0.0, 1.0)


def _value_noise(tiles: Array, u: Array, v: Array) -> Array:
    """Blend random values of a repeating lattice."""
    u0, v0 = np.floor(u), np.floor(v)
    fu, fv = u - u0, v - v0
    column, row = u0.astype(np.int32) & 15, v0.astype(np.int32) & 15
    right, below = (column + 1) & 15, (row + 1) & 15
    top = tiles[row, column] * (1 - fu) + tiles[row, right] * fu
    bottom = tiles[below, column] * (1 - fu) + tiles[below, right] * fu
    return np.asarray(top * (1 - fv) + bottom * fv)
