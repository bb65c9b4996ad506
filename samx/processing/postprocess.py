"""Postprocessing: low-resolution logits to masks at picture size, their selection and their stability. NumPy only.

Letters in the shape comments: N prompts, M masks per prompt, S mask pixels per side, H x W picture pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from samx.errors import ParityError, UsageError
from samx.models.session import FloatArray, Outputs
from samx.models.spec import DecoderSpec
from samx.processing.frames import Frame

BoolArray = NDArray[np.bool_]
PixelBox = tuple[int, int, int, int]

STABILITY_DELTA = 1.0  # logits
BEST, ALL = "best", "all"  # of a prompt's masks

ROUNDING = 1e-3  # of logits, and of what they are mixed with: a thousand times float32's
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

    def cut(self, part: slice) -> Taps:
        """Describe a part of the output."""
        return Taps(self.index[:, part], self.weight[:, part])

    def reached(self, inputs: BoolArray) -> slice:
        """Return the part of the output that hangs on any of these inputs. Shapes: (length in)."""
        outputs = np.flatnonzero(inputs[self.index].any(axis=0))
        return slice(int(outputs[0]), int(outputs[-1]) + 1) if len(outputs) else slice(0, 0)


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


def _picture_taps(low_res: FloatArray, frame: Frame) -> tuple[Taps, Taps]:
    """Go from a mask's pixels to the picture's, along y and x."""
    height, width = low_res.shape
    how = frame.keeps_aspect, frame.cubic_masks
    y = _frame_taps(height, frame.size_px, frame.valid_height_px, frame.height_px, *how)
    return y, _frame_taps(width, frame.size_px, frame.valid_width_px, frame.width_px, *how)


def _rows(low_res: FloatArray, y: Taps, x: Taps) -> Iterator[tuple[slice, FloatArray]]:
    """Resize one mask, a block of rows at a time."""
    wide = np.ascontiguousarray(_blend(np.ascontiguousarray(low_res.T, np.float32), x).T)
    count = y.index.shape[1]
    for start in range(0, count, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, count))
        yield rows, _blend(wide, y.cut(rows))


def _picture_rows(low_res: FloatArray, frame: Frame) -> Iterator[tuple[slice, FloatArray]]:
    """Resize one mask to picture size, a block of rows at a time."""
    return _rows(low_res, *_picture_taps(low_res, frame))


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


@dataclass(frozen=True, eq=False)
class Resized:
    """Hold what a mask is at picture size: the part around its pixels, and how many exceed its threshold by an offset,
    or miss it by no more.

    Shapes: part (h, w), corner (x, y) of the part in the picture. Units: px.
    """

    part: BoolArray
    corner: tuple[int, int]
    sure_px: int
    possible_px: int

    @property
    def box(self) -> PixelBox:
        """Return left, top, right and bottom pixel; zeros without pixels. Source: Meta's batched_mask_to_box."""
        (x, y), (height, width) = self.corner, self.part.shape
        return (x, y, x + width - 1, y + height - 1) if self.part.size else (0, 0, 0, 0)


def resized_part(low_res: FloatArray, frame: Frame, threshold: float, offset: float) -> Resized:
    """Resize as much of one mask as comes near its threshold. Shapes: (S, S).

    A linear filter gives nothing beyond the values that it mixes, but for their rounding.
    """
    y, x = _picture_taps(low_res, frame)
    near: BoolArray = low_res > threshold - offset - ROUNDING * (1 + abs(threshold) + offset)
    if frame.cubic_masks:
        near = np.ones_like(near)
    rows, columns = y.reached(np.any(near, axis=1)), x.reached(np.any(near, axis=0))
    mask = np.empty((rows.stop - rows.start, columns.stop - columns.start), np.bool_)
    sure = possible = 0
    for block, logits in _rows(low_res, y.cut(rows), x.cut(columns)):
        np.greater(logits, threshold, out=mask[block])
        sure += np.count_nonzero(logits > threshold + offset)
        possible += np.count_nonzero(logits > threshold - offset)
    box = mask_box(mask)
    if box is None:
        return Resized(mask[:0, :0], (0, 0), sure, possible)
    left, top, right, bottom = box
    return Resized(mask[top:bottom, left:right], (columns.start + left, rows.start + top), sure, possible)


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


def check_choice(choice: str, spec: DecoderSpec) -> None:
    """Refuse a choice of masks that the export has not.

    Raises: UsageError.
    """
    numbers = [str(number) for number in range(spec.masks_out)]
    if choice not in (BEST, ALL, *numbers):
        raise UsageError("no such mask", found=repr(choice), expected=f"best, all or {' or '.join(numbers)}")


def segment(outputs: Outputs, frame: Frame, spec: DecoderSpec, choice: str = BEST) -> Iterator[SegmentedMask]:
    """Yield each prompt's best mask, all that are chosen among, or that of a number; one at a time.

    Many masks of a large picture do not fit in memory.
    Raises: ParityError on outputs that are not finite; UsageError for a number that there is not.
    """
    check_choice(choice, spec)
    if choice == BEST:
        places = list(enumerate(best_indices(outputs, spec)))
    else:
        numbers = range(first_choice(spec), spec.masks_out) if choice == ALL else [int(choice)]
        places = [(n, index) for n in range(len(outputs["iou_predictions"])) for index in numbers]
    for prompt, index in places:
        yield _segmented(outputs, prompt, int(index), frame, spec.mask_threshold)


def _segmented(outputs: Outputs, prompt: int, index: int, frame: Frame, threshold: float) -> SegmentedMask:
    """Make one mask of the outputs at picture size."""
    logits = picture_logits(_finite(outputs, "low_res_masks", prompt, index), frame)
    mask = logits > threshold
    return SegmentedMask(
        mask=mask,
        predicted_iou=float(outputs["iou_predictions"][prompt, index]),
        stability=float(stability_scores(logits, threshold, STABILITY_DELTA)),
        prompt=prompt,
        index=index,
        area_px=int(np.count_nonzero(mask)),
        box=mask_box(mask),
    )


def _finite(outputs: Outputs, name: str, *place: int) -> FloatArray:
    """Take an output, or a part of it, and refuse values that would be chosen or drawn as if they meant something."""
    values: FloatArray = outputs[name][place]
    if not np.isfinite(values).all():
        raise ParityError(
            f"decoder output '{name}' has values that are not finite",
            fix="Validate the artifact; at fp16 or int8, try a higher precision.",
        )  # fmt: skip
    return values
