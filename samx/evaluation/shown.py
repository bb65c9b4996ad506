"""Shown: the objects that a page shows, because the artifact lost most there or the masks are worst."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from samx.evaluation.report import ObjectRow
from samx.processing.images import RgbArray
from samx.processing.overlay import overlay
from samx.processing.postprocess import BoolArray, mask_box
from samx.processing.prompts import Prompt
from samx.processing.rasters import png_bytes
from samx.processing.resize import resized

MOST = 6  # of each list
MARGIN, LEAST_PX, LONGEST_PX = 0.3, 48, 300  # around an object, as a share of its sides; of what is drawn
LEAST_DROP = 1e-3  # of IoU, that is worth a picture
CAPTIONS: Mapping[str, str] = {"truth": "label", "pytorch": "PyTorch", "artifact": "artifact"}


@dataclass(frozen=True)
class Example:
    """Hold an object and its drawings, as data that a page embeds."""

    row: ObjectRow
    drawings: Mapping[str, str]  # caption: data URL


@dataclass
class Shown:
    """Keep the worst objects while a measurement goes on, at most one a picture, drawn when they come.

    wanted: whether a page is to be made of them at all.
    """

    wanted: bool
    lost: list[Example] = field(default_factory=list)
    low: list[Example] = field(default_factory=list)

    def offer(self, row: ObjectRow, picture: RgbArray, prompt: Prompt, masks: Mapping[str, BoolArray]) -> None:
        """Take an object, if it is worse than one that is kept."""
        if not self.wanted:
            return
        if row.drop >= LEAST_DROP:
            self.lost = _with(self.lost, row, lambda one: -one.drop, picture, prompt, masks)
        self.low = _with(self.low, row, lambda one: one.artifact.iou, picture, prompt, masks)


def _with(
    kept: list[Example], row: ObjectRow, rank: Callable[[ObjectRow], float], picture: RgbArray, prompt: Prompt,
    masks: Mapping[str, BoolArray],
) -> list[Example]:  # fmt: skip
    """Add an object to a list of the worst, first the worst of all."""
    same = [one for one in kept if one.row.picture == row.picture]
    rival = same[0] if same else kept[-1] if len(kept) >= MOST else None
    if rival is not None and rank(rival.row) <= rank(row):
        return kept
    others = [one for one in kept if one is not rival]
    return sorted([*others, Example(row, drawings(picture, prompt, masks))], key=lambda one: rank(one.row))


def drawings(picture: RgbArray, prompt: Prompt, masks: Mapping[str, BoolArray]) -> dict[str, str]:
    """Draw the part of a picture around an object, once with each mask."""
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = mask_box(np.logical_or.reduce(list(masks.values()))) or (0, 0, width, height)
    across, down = (max(LEAST_PX, round(MARGIN * side)) for side in (x1 - x0, y1 - y0))
    left, top = max(x0 - across, 0), max(y0 - down, 0)
    part = slice(top, y1 + down), slice(left, x1 + across)
    moved = _moved(prompt, left, top)
    return {CAPTIONS[name]: _data(overlay(picture[part], [mask[part]], [moved])) for name, mask in masks.items()}


def _moved(prompt: Prompt, left: int, top: int) -> Prompt:
    points = [(x - left, y - top) for x, y in prompt.points]
    if prompt.box is None:
        return Prompt(points, prompt.labels)
    x0, y0, x1, y1 = prompt.box
    return Prompt(points, prompt.labels, (x0 - left, y0 - top, x1 - left, y1 - top))


def _data(drawn: RgbArray) -> str:
    """Return a drawing as a data URL, made smaller where it is large."""
    height, width = drawn.shape[:2]
    scale = min(1.0, LONGEST_PX / max(height, width))
    sides = max(1, round(width * scale)), max(1, round(height * scale))
    small = drawn if scale == 1 else resized(drawn, *sides, floats=False).astype(np.uint8)
    return f"data:image/png;base64,{base64.b64encode(png_bytes(np.ascontiguousarray(small))).decode()}"
