"""Overlay: masks, points and boxes drawn over the picture they belong to."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.models.session import FloatArray
from samx.processing.images import RgbArray
from samx.processing.postprocess import BoolArray, PixelBox, mask_box
from samx.processing.prompts import Box, Point, Prompt

Rgb = tuple[int, int, int]

FIRST_HUE = 0.58  # a clear blue; the golden ratio then keeps neighbouring colours apart
GOLDEN_RATIO = 0.618
TINT = 0.5  # share of the mask's colour inside it
DIMMING = 0.35  # share of light taken from what no mask covers
FOREGROUND: Rgb = (34, 197, 94)
BACKGROUND: Rgb = (239, 68, 68)
WHITE: Rgb = (255, 255, 255)
LINE_SHARE = 1 / 240  # line width as a share of the picture's shorter side


def overlay(image: RgbArray, masks: Sequence[BoolArray], prompts: Sequence[Prompt] = ()) -> RgbArray:
    """Draw masks in colours of their own, with outlines, and over them the prompts' points and boxes.

    Shapes: image (H, W, 3), masks (H, W) -> (H, W, 3).
    """
    line = max(1.5, min(image.shape[:2]) * LINE_SHARE)
    canvas = _dimmed(image, masks)
    for index, mask in enumerate(masks):
        _paint_mask(canvas, image, mask, mask_colour(index), line)
    for prompt in prompts:
        if prompt.box is not None:
            _draw_box(canvas, prompt.box, line)
        for point, label in zip(prompt.points, prompt.labels, strict=True):
            _draw_point(canvas, point, bool(label), 4 * line)
    return canvas


def mask_colour(index: int) -> Rgb:
    """Return a colour for the n-th mask that is unlike the ones before it."""
    red, green, blue = colorsys.hsv_to_rgb((FIRST_HUE + GOLDEN_RATIO * index) % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _dimmed(image: RgbArray, masks: Sequence[BoolArray]) -> RgbArray:
    """Take light from what no mask covers. Shapes: (H, W, 3) -> (H, W, 3), a copy."""
    canvas = image.copy()
    if len(masks):
        uncovered = np.ones(image.shape[:2], np.bool_)
        for mask in masks:
            uncovered &= ~mask
        canvas[uncovered] = (canvas[uncovered] * np.float32(1 - DIMMING)).astype(np.uint8)
    return canvas


def _paint_mask(canvas: RgbArray, image: RgbArray, mask: BoolArray, colour: Rgb, line: float) -> None:
    """Tint the inside of a mask and trace its outline, touching only the part of the canvas around it."""
    box = mask_box(mask)
    if box is None:
        return
    (x0, y0, x1, y1), margin = box, round(3 * line)
    part = slice(max(y0 - margin, 0), y1 + margin), slice(max(x0 - margin, 0), x1 + margin)
    region = canvas[part]
    inside = mask[part][..., None]
    tinted = image[part] * np.float32(1 - TINT) + np.float32(TINT) * np.array(colour, np.float32)
    painted = np.where(inside, tinted, region)
    edge = _outline(mask[part], line)[..., None]
    lighter = (np.array(colour, np.float32) + 2 * 255) // 3
    region[:] = (painted * (1 - edge) + lighter * edge + 0.5).astype(np.uint8)


def _outline(mask: BoolArray, line: float) -> FloatArray:
    """Trace where a blurred mask passes one half: a smooth line along its border. Shapes: (H, W) -> (H, W) in 0..1."""
    distance = np.abs(_blurred(mask, line) - 0.5)  # about 0.4 / line per pixel near the border
    return np.clip((0.2 - distance) * (2.5 * line), 0, 1)


def _blurred(mask: BoolArray, deviation: float) -> FloatArray:
    """Blur nearly as a Gaussian does: by three means over windows that have its variance together."""
    reach = max(1, round((math.sqrt(4 * deviation**2 + 1) - 1) / 2))
    width, found = 2 * reach + 1, mask.astype(np.float32)
    for axis in (0, 1) * 3:
        edges = [(reach + 1, reach) if each == axis else (0, 0) for each in (0, 1)]
        sums = np.cumsum(np.pad(found, edges, "edge"), axis=axis, dtype=np.float32)
        ends, starts = np.split(sums, [width], axis)[1], np.split(sums, [-width], axis)[0]
        found = (ends - starts) / np.float32(width)
    return found


def _draw_box(canvas: RgbArray, box: Box, line: float) -> None:
    """Outline a box in green between two white rims."""
    width = max(1, round(line))
    x0, y0, x1, y1 = (round(side) for side in box)
    _draw_sides(canvas, (x0 - width, y0 - width, x1 + width + 1, y1 + width + 1), 3 * width, WHITE)
    _draw_sides(canvas, (x0, y0, x1 + 1, y1 + 1), width, FOREGROUND)


def _draw_sides(canvas: RgbArray, box: PixelBox, width: int, colour: Rgb) -> None:
    """Fill the four sides of a box, as far as they lie in the picture; its second corner is outside."""
    x0, y0, x1, y1 = box
    sides = (x0, y0, x1, y0 + width), (x0, y1 - width, x1, y1), (x0, y0, x0 + width, y1), (x1 - width, y0, x1, y1)
    for left, top, right, bottom in sides:
        canvas[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = colour


def _draw_point(canvas: RgbArray, point: Point, foreground: bool, radius: float) -> None:
    """Set a disc with a white rim on a point: green with a plus, or red with a minus."""
    x, y = point
    reach = math.ceil(radius) + 1
    top, left = max(math.floor(y) - reach, 0), max(math.floor(x) - reach, 0)
    part = canvas[top : math.floor(y) + reach + 1, left : math.floor(x) + reach + 1]
    down, right = np.ogrid[: part.shape[0], : part.shape[1]]
    down, right = abs(down + top + 0.5 - y), abs(right + left + 0.5 - x)  # from the point to the pixel's centre
    arm, half = 0.45 * radius, 0.1 * radius
    bar = _inside(arm, right) * _inside(half, down)
    sign = np.maximum(bar, _inside(arm, down) * _inside(half, right)) if foreground else bar
    colour = FOREGROUND if foreground else BACKGROUND
    distance = np.hypot(down, right)
    layers = (_inside(radius, distance), WHITE), (_inside(0.78 * radius, distance), colour), (sign, WHITE)
    for share, paint in layers:
        part[:] = (part * (1 - share[..., None]) + np.array(paint) * share[..., None] + 0.5).astype(np.uint8)


def _inside(limit: float, distance: NDArray[Any]) -> NDArray[Any]:
    """Return the share of a pixel that lies within a distance, from 0 to 1."""
    return np.clip(limit - distance + 0.5, 0, 1)
