"""Paints textured shapes on a canvas and keeps the books on which pixel belongs to which of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[Any]

SUPERSAMPLE = 2  # outlines are filled at twice the size and averaged, which gives soft edges
SHADOW_STRENGTH = 0.45
TEXTURE_KINDS = ("plain", "stripes", "dots", "checks", "rings", "noise", "gradient")


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
