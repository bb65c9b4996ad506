"""What another image size changes: the same weights at their own size and at the one that was asked for, side by side.

Both answer the same prompts about the gate's pictures, and their masks are compared at the pictures' size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from samx.models.session import Feed, FloatArray, Session
from samx.models.spec import LABELS
from samx.processing.frames import Frame
from samx.processing.images import RgbArray
from samx.processing.postprocess import STABILITY_DELTA, picture_mask, stability_scores
from samx.validators.cases import Draw
from samx.validators.encoder_gate import steady_from
from samx.validators.encoder_suite import PROMPTS, pixels
from samx.validators.metrics import LOW_PERCENTILE, BoolArray, mask_iou
from samx.validators.pictures import frame_of, framed, package_pictures

NOTE = (
    "Built for {px} px instead of {own_px}: mean mask IoU {mask_iou_mean:.4f} with the masks at {own_px} px (5th "
    "percentile {mask_iou_p05:.4f}, {masks} steady masks on the gate's pictures; {mask_iou_mean_all:.4f} over all), "
    "and the encoder takes {seconds:.2f} s instead of {own_seconds:.2f} s in PyTorch here."
)


@dataclass(frozen=True)
class Sized:
    """Bring together a checkpoint's encoder and decoder, built for one size."""

    encode: Callable[[FloatArray], Feed]  # from normalised pixels
    session: Session
    picture_px: int

    def timed(self, photo: RgbArray, clock: Callable[[], float]) -> tuple[Feed, float]:
        """Encode a photo. Units: seconds, of the encoder alone."""
        spec = self.session.spec
        frame = frame_of(spec, self.picture_px, photo)
        prepared = pixels(framed(photo, frame), frame, spec)
        start = clock()
        features = self.encode(prepared)
        return features, clock() - start

    def masks(self, features: Feed, prompts: Feed, photo: RgbArray) -> tuple[BoolArray, FloatArray]:
        """Return masks at a photo's size, and how steady they are. Shapes: (masks, H * W), (masks,)."""
        spec, frame = self.session.spec, Frame.of(self.session.spec, photo.shape[1], photo.shape[0])
        self.session.set_image(features)
        low = self.session.decode(prompts)["low_res_masks"]
        found = [picture_mask(one, frame, spec.mask_threshold).ravel() for one in low.reshape(-1, *low.shape[-2:])]
        return np.stack(found), stability_scores(low, spec.mask_threshold, STABILITY_DELTA).ravel()


def compare_sizes(
    own: Sized,
    other: Sized,
    photos: Sequence[tuple[str, RgbArray]] | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Ask both about pictures, those of the gate by default; return the masks' IoU and the encoders' seconds a picture.

    Masks count that are steady at the checkpoint's own size. Times are medians, taken in turn.
    """
    iou, stability, seconds = [], [], []
    for i, (_, photo) in enumerate(photos or package_pictures(own.picture_px)):
        (features, spent), (smaller, spent_other) = own.timed(photo, clock), other.timed(photo, clock)
        seconds.append((spent, spent_other))
        for prompts, moved in _prompts(own, other, photo, np.random.default_rng([seed, i])):
            right, steady = own.masks(features, prompts, photo)
            iou.append(mask_iou(other.masks(smaller, moved, photo)[0], right))
            stability.append(steady)
    every, known = np.concatenate(iou), np.concatenate(stability)
    counted = every[known >= steady_from(known)]
    return {
        "own_px": own.session.spec.image_size, "px": other.session.spec.image_size, "masks": len(counted),
        "mask_iou_mean": float(counted.mean()), "mask_iou_p05": float(np.percentile(counted, LOW_PERCENTILE)),
        "mask_iou_mean_all": float(every.mean()), "own_seconds": median(spent for spent, _ in seconds),
        "seconds": median(spent for _, spent in seconds),
    }  # fmt: skip


def told(found: Mapping[str, Any]) -> str:
    """Return what was found as a line for people."""
    return NOTE.format(**found)


def _prompts(own: Sized, other: Sized, photo: RgbArray, rng: np.random.Generator) -> Iterator[tuple[Feed, Feed]]:
    """Draw points, and boxes, in one frame, and move them to the other."""
    spec = own.session.spec
    frame = Frame.of(spec, photo.shape[1], photo.shape[0])
    draw, scale = Draw(spec, rng, frame.valid_width_px, frame.valid_height_px), other.session.spec.image_size
    for prompts in (draw.points(PROMPTS, [LABELS["foreground"]]), draw.boxes(PROMPTS)):
        coords = prompts["point_coords"] * np.float32(scale / spec.image_size)
        moved = {**prompts, "point_coords": coords.astype(np.float32)}
        yield prompts, _without_mask(moved, other)


def _without_mask(prompts: Feed, model: Sized) -> Feed:
    """Give a mask prompt that is not used the size that a model takes."""
    side = model.session.spec.mask_size
    if "mask_input" not in prompts:
        return prompts
    return {**prompts, "mask_input": np.zeros((len(prompts["point_labels"]), 1, side, side), np.float32)}
