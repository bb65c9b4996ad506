"""Postprocessing: low-resolution logits to masks at picture size, their selection and their stability. NumPy only.

Letters in the shape comments: N prompts, M masks per prompt, S mask pixels per side, H x W picture pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from samx.errors import ParityError
from samx.models.session import FloatArray, Outputs
from samx.models.spec import DecoderSpec
from samx.processing.frames import Frame

BoolArray = NDArray[np.bool_]
PixelBox = tuple[int, int, int, int]

# Defaults of Meta's SamAutomaticMaskGenerator.
AUTOMATIC_PREDICTED_IOU = 0.88
AUTOMATIC_STABILITY = 0.95
AUTOMATIC_BOX_IOU = 0.7  # of two masks whose boxes overlap more, the surer one stays
STABILITY_DELTA = 1.0  # logits

BLOCK_ROWS = 64  # rows resized together: the working set stays in the processor's cache (measured on 1024 to 4096 px)


@dataclass(frozen=True)
class Taps:
    """Describe resizing along one axis: each output pixel is a weighted sum of a few input pixels.

    Shapes: index and weight (K, length out).
    """

    index: NDArray[np.intp]
    weight: FloatArray

    def then(self, following: Taps) -> Taps:
        """Chain two resizings into one, without the pixels in between."""
        index = self.index[:, following.index]  # (K1, K2, out)
        weight = self.weight[:, following.index] * following.weight
        length = index.shape[-1]
        return Taps(index.reshape(-1, length), weight.reshape(-1, length))


def bilinear_taps(length_in: int, length_out: int) -> Taps:
    """Interpolate linearly between pixel centres, without antialiasing, the border repeated.

    Source: torch's interpolate(mode="bilinear", align_corners=False). Like there, ratio and position are float32, and
    the multiplication and subtraction between them are fused (not rounded): other roundings move the position by up to
    1e-5 px, which shows in the logits at a steep edge.
    """
    ratio = np.float32(length_in) / np.float32(length_out)
    centres = np.arange(length_out, dtype=np.float64) + 0.5
    position = np.maximum(ratio * centres - 0.5, 0).astype(np.float32)
    left = np.minimum(position.astype(np.intp), length_in - 1)
    right = np.minimum(left + 1, length_in - 1)
    share = position - left.astype(np.float32)
    return Taps(np.stack([left, right]), np.stack([1 - share, share]))


def bicubic_taps(length_in: int, length_out: int) -> Taps:
    """Interpolate with cubic polynomials between pixel centres, without antialiasing, the border repeated.

    Source: torch's interpolate(mode="bicubic", align_corners=False), its numbers float32 as above.
    """
    ratio = np.float32(length_in) / np.float32(length_out)
    position = (ratio * (np.arange(length_out, dtype=np.float64) + 0.5) - 0.5).astype(np.float32)
    left = np.floor(position)
    share = position - left
    index = np.clip(left.astype(np.intp) + np.arange(-1, 3)[:, None], 0, length_in - 1)
    near, far = (_cubic(np.stack([share, 1 - share]) + np.float32(beyond), beyond) for beyond in (0, 1))
    return Taps(index, np.stack([far[0], near[0], near[1], far[1]]))


def _cubic(distance: FloatArray, beyond: int) -> FloatArray:
    """Weigh pixels at a distance of 0 to 1, or beyond that."""
    sharpness = np.float32(-0.75)  # torch's
    if beyond:
        return ((distance - 5) * distance + 8) * (sharpness * distance) - 4 * sharpness
    return ((sharpness + 2) * distance - (sharpness + 3)) * distance * distance + 1


@lru_cache(maxsize=16)
def _frame_taps(
    length_in: int, frame_px: int, valid_px: int, picture_px: int, through_frame: bool, cubic: bool
) -> Taps:
    """Go from mask pixels to picture pixels along one axis.

    SAM 1 resizes to the frame, cuts off the padding and resizes again; SAM 2 resizes once.
    """
    if cubic:
        return bicubic_taps(length_in, picture_px)
    if not through_frame:
        return bilinear_taps(length_in, picture_px)
    to_picture = bilinear_taps(valid_px, picture_px)  # reads the valid part only, which is the cut
    return bilinear_taps(length_in, frame_px).then(to_picture)


def _blend(image: FloatArray, taps: Taps) -> FloatArray:
    """Resize the first axis. Shapes: (in, ...) -> (out, ...)."""
    out: FloatArray = image[taps.index[0]]
    out *= taps.weight[0][:, None]
    for index, weight in zip(taps.index[1:], taps.weight[1:], strict=True):
        part = image[index]
        part *= weight[:, None]
        out += part
    return out


def _picture_rows(low_res: FloatArray, frame: Frame) -> Iterator[tuple[slice, FloatArray]]:
    """Resize one mask to picture size, a block of rows at a time."""
    height, width = low_res.shape
    how = frame.keeps_aspect, frame.cubic_masks
    x = _frame_taps(width, frame.size_px, frame.valid_width_px, frame.width_px, *how)
    y = _frame_taps(height, frame.size_px, frame.valid_height_px, frame.height_px, *how)
    wide = np.ascontiguousarray(_blend(np.ascontiguousarray(low_res.T, np.float32), x).T)
    for start in range(0, frame.height_px, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, frame.height_px))
        yield rows, _blend(wide, Taps(y.index[:, rows], y.weight[:, rows]))


def picture_logits(low_res: FloatArray, frame: Frame) -> FloatArray:
    """Resize one mask's logits to picture size as the family's predictor does. Shapes: (S, S) -> (H, W)."""
    logits = np.empty((frame.height_px, frame.width_px), np.float32)
    for rows, block in _picture_rows(low_res, frame):
        logits[rows] = block
    return logits


def picture_mask(low_res: FloatArray, frame: Frame, threshold: float = 0.0) -> BoolArray:
    """Resize one mask's logits to picture size and threshold them. Shapes: (S, S) -> (H, W)."""
    mask = np.empty((frame.height_px, frame.width_px), np.bool_)
    for rows, block in _picture_rows(low_res, frame):
        np.greater(block, threshold, out=mask[rows])
    return mask


def stability_scores(logits: FloatArray, threshold: float, delta: float) -> FloatArray:
    """Compare each mask's area at a threshold raised and lowered by delta; 1 for a mask that is empty at both.

    Shapes: (..., H, W) -> (...).
    """
    inner = np.count_nonzero(logits > threshold + delta, axis=(-1, -2))
    outer = np.count_nonzero(logits > threshold - delta, axis=(-1, -2))
    return np.where(outer > 0, inner / np.maximum(outer, 1), 1.0).astype(np.float32)


def mask_box(mask: BoolArray) -> PixelBox | None:
    """Find the box (x0, y0, x1, y1) around a mask, x1 and y1 just beyond its last pixels; None without pixels."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True, eq=False)
class SegmentedMask:
    """Hold one mask at picture size and what is known about it; prompt and index are its places in the outputs.

    Shapes: mask (H, W). Units: box and area in picture pixels.
    """

    mask: BoolArray
    predicted_iou: float
    stability: float
    prompt: int
    index: int
    area_px: int
    box: PixelBox | None


@dataclass(frozen=True, eq=False)
class Candidate:
    """Hold one mask as the decoder gave it. Shapes: low_res (S, S)."""

    low_res: FloatArray
    predicted_iou: float
    prompt: int
    index: int

    def segmented(self, frame: Frame, threshold: float) -> SegmentedMask:
        """Make the mask at picture size."""
        logits = picture_logits(self.low_res, frame)
        mask = logits > threshold
        return SegmentedMask(
            mask=mask,
            predicted_iou=self.predicted_iou,
            stability=float(stability_scores(logits, threshold, STABILITY_DELTA)),
            prompt=self.prompt,
            index=self.index,
            area_px=int(np.count_nonzero(mask)),
            box=mask_box(mask),
        )


def first_choice(spec: DecoderSpec) -> int:
    """Return the place of the first mask that is chosen among: of all four, Meta never picks the single-mask token."""
    return int(spec.masks == "all")


def best_indices(outputs: Outputs, spec: DecoderSpec) -> NDArray[np.intp]:
    """Pick each prompt's mask with the highest predicted IoU. Shapes: -> (N,)."""
    first = first_choice(spec)
    return np.asarray(first + np.argmax(_finite(outputs, "iou_predictions")[:, first:], axis=1))


def predicted_masks(outputs: Outputs, spec: DecoderSpec, multimask: bool) -> tuple[FloatArray, FloatArray]:
    """Return the logits and predicted IoUs that Meta's predictor returns: of an export of all masks the multimask ones,
    of HQ-SAM the best of them; or the single one, for which SAM 2 puts the best of the others where it is unstable.

    Shapes: -> (N, M, S, S), (N, M).
    Raises: ParityError on outputs that are not finite.
    """
    logits, scores = _finite(outputs, "low_res_masks"), _finite(outputs, "iou_predictions")
    if spec.masks != "all":
        return logits, scores
    if multimask and not spec.rules.best_alone:
        return logits[:, 1:], scores[:, 1:]
    tokens = best_indices(outputs, spec) if multimask else np.zeros(len(scores), np.intp)
    if not multimask and spec.stability_fallback and not spec.settles_single:
        stable = stability_scores(logits[:, 0], 0.0, spec.stability_delta) >= spec.stability_threshold
        tokens = np.where(stable, 0, best_indices(outputs, spec))
    rows = np.arange(len(scores))
    return logits[rows, tokens][:, None], scores[rows, tokens][:, None]


def segment(outputs: Outputs, frame: Frame, spec: DecoderSpec) -> Iterator[SegmentedMask]:
    """Yield each prompt's best mask, one at a time: many masks of a large picture do not fit in memory.

    Raises: ParityError on outputs that are not finite.
    """
    for prompt, index in enumerate(best_indices(outputs, spec)):
        yield _candidate(outputs, prompt, int(index)).segmented(frame, spec.mask_threshold)


def segment_everything(parts: Iterable[Outputs], frame: Frame, spec: DecoderSpec) -> Iterator[SegmentedMask]:
    """Yield the automatic mode's masks, best first: sure, stable, not empty, no near-duplicates.

    The parts are the outputs of consecutive prompts (PromptBatch.split). Between them only low-resolution logits are
    kept, and a mask at picture size is made a second time when it is yielded.
    Raises: ParityError on outputs that are not finite.
    """
    candidates: list[Candidate] = []
    boxes: list[PixelBox] = []
    for candidate in _sure_candidates(parts, first_choice(spec)):
        found = candidate.segmented(frame, spec.mask_threshold)
        if found.stability >= AUTOMATIC_STABILITY and found.box is not None:
            candidates.append(candidate)
            boxes.append(found.box)
    scores = np.array([candidate.predicted_iou for candidate in candidates], np.float32)
    for kept in suppress_overlaps(np.array(boxes, np.float32).reshape(-1, 4), scores, AUTOMATIC_BOX_IOU):
        yield candidates[kept].segmented(frame, spec.mask_threshold)


def _sure_candidates(parts: Iterable[Outputs], first: int) -> Iterator[Candidate]:
    """Yield what passes the predicted-IoU filter, from mask `first` of each prompt on, prompts numbered throughout."""
    before = 0
    for outputs in parts:
        scores = _finite(outputs, "iou_predictions")
        for prompt, index in np.argwhere(scores[:, first:] >= AUTOMATIC_PREDICTED_IOU):
            candidate = _candidate(outputs, int(prompt), first + int(index))
            yield replace(candidate, prompt=before + candidate.prompt)
        before += len(scores)


def suppress_overlaps(boxes: FloatArray, scores: FloatArray, max_iou: float) -> list[int]:
    """Drop each box that overlaps a better one by more than max_iou; give the rest, best first.

    Shapes: (K, 4), (K,).
    """
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order):
        best, order = int(order[0]), order[1:]
        kept.append(best)
        order = order[_box_iou(boxes[best], boxes[order]) <= max_iou]
    return kept


def _box_iou(box: FloatArray, others: FloatArray) -> FloatArray:
    """Divide shared area by joint area. Shapes: (4,), (K, 4) -> (K,)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.prod(np.maximum(sides, 0), axis=1)
    joint = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - shared
    return np.asarray(shared / np.maximum(joint, 1), np.float32)


def _candidate(outputs: Outputs, prompt: int, index: int) -> Candidate:
    """Copy one mask out of the outputs, so that they can be freed."""
    low_res = _finite(outputs, "low_res_masks", prompt, index).copy()
    return Candidate(low_res, float(outputs["iou_predictions"][prompt, index]), prompt, index)


def _finite(outputs: Outputs, name: str, *place: int) -> FloatArray:
    """Take an output, or a part of it, and refuse values that would be chosen or drawn as if they meant something."""
    values: FloatArray = outputs[name][place]
    if not np.isfinite(values).all():
        raise ParityError(
            f"decoder output '{name}' has values that are not finite",
            fix="Validate the artifact; at fp16 or int8, try a higher precision.",
        )  # fmt: skip
    return values
