"""Overlay: masks, points and boxes drawn over the picture they belong to."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

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
SUPERSAMPLE = 4  # markers are drawn larger and shrunk, which smooths their edges


def overlay(image: RgbArray, masks: Sequence[BoolArray], prompts: Sequence[Prompt] = ()) -> Image.Image:
    """Draw masks in colours of their own, with outlines, and over them the prompts' points and boxes.

    Shapes: image (H, W, 3), masks (H, W).
    """
    line = max(1.5, min(image.shape[:2]) * LINE_SHARE)
    canvas = _dimmed(image, masks)
    for index, mask in enumerate(masks):
        _paint_mask(canvas, image, mask, mask_colour(index), line)
    picture = Image.fromarray(canvas)
    for prompt in prompts:
        if prompt.box is not None:
            _draw_box(picture, prompt.box, line)
        for point, label in zip(prompt.points, prompt.labels, strict=True):
            _draw_point(picture, point, bool(label), 4 * line)
    return picture


def mask_colour(index: int) -> Rgb:
    """Give the n-th mask a colour unlike the ones before it."""
    red, green, blue = colorsys.hsv_to_rgb((FIRST_HUE + GOLDEN_RATIO * index) % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _dimmed(image: RgbArray, masks: Sequence[BoolArray]) -> RgbArray:
    """Take light from what no mask covers. Shapes: (H, W, 3) -> (H, W, 3), a copy."""
    canvas = image.copy()
    if len(masks):
        uncovered = ~np.logical_or.reduce(list(masks))
        canvas[uncovered] = (canvas[uncovered] * np.float32(1 - DIMMING)).astype(np.uint8)
    return canvas


def _paint_mask(canvas: RgbArray, image: RgbArray, mask: BoolArray, colour: Rgb, line: float) -> None:
    """Tint the inside of a mask and trace its outline, touching only the part of the canvas around it."""
    box = mask_box(mask)
    if box is None:
        return
    part = _widened(box, round(3 * line), mask.shape)
    region = canvas[part]
    inside = mask[part][..., None]
    tinted = image[part] * np.float32(1 - TINT) + np.float32(TINT) * np.array(colour, np.float32)
    painted = np.where(inside, tinted, region)
    edge = _outline(mask[part], line)[..., None]
    region[:] = (painted * (1 - edge) + np.array(_lighter(colour), np.float32) * edge + 0.5).astype(np.uint8)


def _widened(box: PixelBox, margin: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    x0, y0, x1, y1 = box
    rows = slice(max(y0 - margin, 0), min(y1 + margin, shape[0]))
    return rows, slice(max(x0 - margin, 0), min(x1 + margin, shape[1]))


def _outline(mask: BoolArray, line: float) -> NDArray[np.float32]:
    """Trace where a blurred mask passes one half: a smooth line along its border. Shapes: (H, W) -> (H, W) in 0..1."""
    blurred = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(line))
    distance = np.abs(np.asarray(blurred, np.float32) / 255 - 0.5)  # about 0.4 / line per pixel near the border
    return np.clip((0.2 - distance) * (2.5 * line), 0, 1)


def _lighter(colour: Rgb) -> Rgb:
    red, green, blue = ((channel + 2 * 255) // 3 for channel in colour)
    return red, green, blue


def _draw_box(picture: Image.Image, box: Box, line: float) -> None:
    """Outline a box in green between two white rims."""
    draw = ImageDraw.Draw(picture)
    width = max(1, round(line))
    x0, y0, x1, y1 = (round(side) for side in box)
    draw.rectangle((x0 - width, y0 - width, x1 + width, y1 + width), outline=WHITE, width=3 * width)
    draw.rectangle((x0, y0, x1, y1), outline=FOREGROUND, width=width)


def _draw_point(picture: Image.Image, point: Point, foreground: bool, radius: float) -> None:
    """Set a disc with a white rim on a point: green with a plus, or red with a minus."""
    side = 2 * round(radius) + 3
    tile = Image.new("RGBA", (side * SUPERSAMPLE,) * 2)
    draw = ImageDraw.Draw(tile)
    centre, unit = side * SUPERSAMPLE / 2, radius * SUPERSAMPLE
    for reach, colour in ((unit, WHITE), (0.78 * unit, FOREGROUND if foreground else BACKGROUND)):
        draw.ellipse((centre - reach, centre - reach, centre + reach, centre + reach), fill=colour)
    arm, half = 0.45 * unit, 0.1 * unit
    draw.rectangle((centre - arm, centre - half, centre + arm, centre + half), fill=WHITE)
    if foreground:
        draw.rectangle((centre - half, centre - arm, centre + half, centre + arm), fill=WHITE)
    small = tile.resize((side, side), Image.Resampling.BOX)
    x, y = point
    picture.paste(small, (round(x - side / 2), round(y - side / 2)), small)
