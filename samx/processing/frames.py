"""Frames: how a picture maps to the square that the decoder sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samx.errors import ImageError
from samx.models.session import FloatArray
from samx.models.spec import DecoderSpec


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
    resizes_floats: bool = False  # pixels are resized as numbers, or rounded to 8 bits
    antialiases: bool = True  # pixels that get smaller are resized with a wider filter
    cubic_masks: bool = False  # logits are resized with a bicubic filter

    @classmethod
    def of(cls, spec: DecoderSpec, width_px: int, height_px: int, size_px: int | None = None) -> Frame:
        """Place a picture in the frame of a decoder, or in the smaller one that some encoders take.

        Raises: ImageError on a picture without pixels, or so thin that resizing leaves none.
        """
        size, keeps_aspect = size_px or spec.image_size, spec.keeps_aspect
        found = f"{width_px} x {height_px} px"
        if min(width_px, height_px) < 1:
            raise ImageError("picture has no pixels", found=found, expected="at least 1 x 1 px")
        scale = size / max(width_px, height_px)
        valid = [int(side * scale + 0.5) if keeps_aspect else size for side in (width_px, height_px)]
        if min(valid) < 1:
            fix = "Crop it along its long side."
            raise ImageError(f"picture is too thin to be resized to {size} px", found=found, fix=fix)
        rules = spec.rules
        return cls(
            width_px, height_px, size, valid[0], valid[1], keeps_aspect, rules.resizes_floats, rules.antialiases,
            rules.cubic_masks,
        )  # fmt: skip

    @property
    def scale(self) -> tuple[float, float]:
        """Return frame pixels per picture pixel, along x and y."""
        return self.valid_width_px / self.width_px, self.valid_height_px / self.height_px

    @property
    def limits(self) -> str:
        """Return in words which coordinates are in the picture; the right and lower border count."""
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
