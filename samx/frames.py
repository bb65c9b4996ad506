"""Frames: how a picture maps to the square that the decoder sees, and what else a model family's predictor does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samx.decoders.session import FloatArray
from samx.decoders.spec import DecoderSpec, Family
from samx.errors import ImageError


@dataclass(frozen=True)
class FamilyRules:
    """Say how a family's predictor prepares pictures and prompts.

    Source: Meta's SamPredictor and PromptEncoder (SAM 1), SAM2Transforms and SAM2ImagePredictor (SAM 2).
    """

    keeps_aspect: bool  # longest side to the frame's size, zeros beside it; or both sides to the frame's size
    box_first: bool  # box corners before the points, or after them
    pads_boxes: bool  # a padding token after a box too, or only after points without a box; never for a mask alone
    mask_limit: float  # where low-resolution logits are cut off before they are handed back, to be given as a mask
    predicts_batches: bool  # predict() takes several prompts at once
    float_masks: bool  # predict() returns masks as float32, not as bool


RULES: Mapping[Family, FamilyRules] = {
    "sam1": FamilyRules(
        keeps_aspect=True, box_first=False, pads_boxes=False, mask_limit=float("inf"), predicts_batches=False,
        float_masks=False,
    ),
    "sam2": FamilyRules(
        keeps_aspect=False, box_first=True, pads_boxes=True, mask_limit=32.0, predicts_batches=True, float_masks=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """Map a picture to the decoder's square: resized into the top left part, zeros in the rest.

    Units: width_px and height_px are the picture's; size_px is the square's side, valid_*_px the part that is used.
    """

    width_px: int
    height_px: int
    size_px: int
    valid_width_px: int
    valid_height_px: int
    keeps_aspect: bool

    @classmethod
    def of(cls, spec: DecoderSpec, width_px: int, height_px: int) -> Frame:
        """Place a picture in the frame of a decoder.

        Raises: ImageError on a picture without pixels, or so thin that resizing leaves none.
        """
        size, keeps_aspect = spec.image_size, RULES[spec.family].keeps_aspect
        found = f"{width_px} x {height_px} px"
        if min(width_px, height_px) < 1:
            raise ImageError("picture has no pixels", found=found, expected="at least 1 x 1 px")
        scale = size / max(width_px, height_px)
        valid = [int(side * scale + 0.5) if keeps_aspect else size for side in (width_px, height_px)]
        if min(valid) < 1:
            fix = "Crop it along its long side."
            raise ImageError(f"picture is too thin to be resized to {size} px", found=found, fix=fix)
        return cls(width_px, height_px, size, valid[0], valid[1], keeps_aspect)

    @property
    def scale(self) -> tuple[float, float]:
        """Frame pixels per picture pixel, along x and y."""
        return self.valid_width_px / self.width_px, self.valid_height_px / self.height_px

    @property
    def limits(self) -> str:
        """Say in words which coordinates are in the picture; the right and lower border count."""
        return f"0 <= x <= {self.width_px} and 0 <= y <= {self.height_px}"

    def to_frame(self, xy: ArrayLike) -> FloatArray:
        """Move picture coordinates into the frame. Shapes: (..., 2) px -> (..., 2) px."""
        return (np.asarray(xy, dtype=np.float64) * self.scale).astype(np.float32)

    def to_picture(self, xy: ArrayLike) -> FloatArray:
        """Move frame coordinates into the picture. Shapes: (..., 2) px -> (..., 2) px."""
        return (np.asarray(xy, dtype=np.float64) / self.scale).astype(np.float32)

    def outside(self, xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Mark picture coordinates that are not in the picture. Shapes: (..., 2) -> (...)."""
        beyond = (xy < 0) | (xy > (self.width_px, self.height_px))
        return np.asarray(beyond.any(axis=-1))
