"""Prompts: the user's points, boxes and masks in picture pixels, turned into the decoder's inputs.

Letters in the shape comments: N prompts, P points and T tokens (points, corners, padding) per prompt, S mask pixels per
side.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samx.errors import PromptError, doubt
from samx.models.families.base import Family
from samx.models.session import Feed, FloatArray, Outputs, Session
from samx.models.spec import LABELS, DecoderSpec
from samx.processing.frames import Frame
from samx.processing.resize import resized

Point = tuple[float, float]
Box = tuple[float, float, float, float]
Table = NDArray[np.float64]

USER_LABELS = (LABELS["background"], LABELS["foreground"])
BOX_LABELS = (LABELS["box_top_left"], LABELS["box_bottom_right"])
SLACK_PX = 2.0  # beyond the picture, moved to its border
ROUNDING_PX = 1e-6  # of a coordinate on the border, that nobody has to hear of
SURE_LOGIT = 10.0  # of what is inside a mask. Source: sam2's _use_mask_as_output
BOX_FORM = "x0,y0,x1,y1 with x0 < x1 and y0 < y1"


@dataclass(frozen=True, eq=False)
class Prompt:
    """Ask for one object: points (label 1: on it, 0: not on it), a box, the logits of a previous mask, or several.

    Shapes: points (P, 2), labels (P,), box (x0, y0, x1, y1), mask (S, S) or (1, S, S). Units: picture pixels; logits.
    Raises: PromptError when it cannot be meant.
    """

    points: Sequence[Point] = ()
    labels: Sequence[int] = ()
    box: Box | None = None
    mask: FloatArray | None = None

    def __post_init__(self) -> None:
        PromptBatch.of([self])

    @classmethod
    def of_clicks(
        cls, foreground: Sequence[Point] = (), background: Sequence[Point] = (), box: Box | None = None
    ) -> Prompt:
        """Ask for what the foreground clicks hit and the background clicks miss."""
        labels = [LABELS["foreground"]] * len(foreground) + [LABELS["background"]] * len(background)
        return cls([*foreground, *background], labels, box)


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Hold N checked prompts on one picture: the same number of points in each, a box in all or in none.

    Shapes: points (N, P, 2), labels (N, P), boxes (N, 4), masks: nothing, or N times (S, S), (1, S, S) or None.
    Units: picture pixels; logits.
    Raises: PromptError when one of them cannot be meant.
    """

    points: Table
    labels: Table
    boxes: Table | None = None
    masks: Sequence[FloatArray | None] = ()

    def __post_init__(self) -> None:
        points = _table("points", self.points, (None, None, 2))
        n, count = points.shape[:2]
        masks = tuple(self.masks) or (None,) * n
        if n == 0:
            raise PromptError("no prompt given", fix="Give at least one point, box or mask.")
        if len(masks) != n:
            raise PromptError("masks do not match the prompts", found=len(masks), expected=n)
        checked = {
            "points": points,
            "labels": _checked_labels(self.labels, (n, count)),
            "boxes": None if self.boxes is None else _checked_boxes(self.boxes, n),
            "masks": tuple(None if mask is None else _checked_mask(mask, row) for row, mask in enumerate(masks)),
        }
        if count == 0 and self.boxes is None and any(mask is None for mask in masks):
            raise PromptError("a prompt says nothing", fix="Give it at least one point, box or mask.")
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the checked copy, which nobody else can change

    def __len__(self) -> int:
        return len(self.points)

    @classmethod
    def of(cls, prompts: Sequence[Prompt]) -> PromptBatch:
        """Stack prompts of one kind (group_prompts takes mixed ones)."""
        kinds = {_kind(prompt) for prompt in prompts} or {(0, False)}
        if len(kinds) > 1:
            fix = "Sort them with group_prompts."
            raise PromptError("prompts of one batch differ in (points, box)", found=sorted(kinds), fix=fix)
        ((count, has_box),) = kinds
        n = len(prompts)
        return cls(
            points=_table("points", [prompt.points for prompt in prompts], (n, count, 2)),
            labels=_table("labels", [prompt.labels for prompt in prompts], (n, count)),
            boxes=_table("boxes", [() if p.box is None else p.box for p in prompts], (n, 4)) if has_box else None,
            masks=[prompt.mask for prompt in prompts],
        )

    def split(self, max_prompts: int) -> Iterator[PromptBatch]:
        """Cut into batches of at most so many prompts, so that the outputs of one fit in memory."""
        for start in range(0, len(self), max_prompts):
            rows = slice(start, start + max_prompts)
            boxes = None if self.boxes is None else self.boxes[rows]
            yield PromptBatch(self.points[rows], self.labels[rows], boxes, self.masks[rows])

    def feed(self, spec: DecoderSpec, frame: Frame) -> Feed:
        """Make the decoder's prompt inputs, the family's padding token included.

        Shapes: DecoderSpec.prompt_inputs.
        Raises: PromptError on coordinates outside the picture, and on a mask that the decoder does not take.
        """
        if frame != Frame.of(spec, frame.width_px, frame.height_px):
            raise PromptError("frame belongs to another decoder", found=frame, fix="Make it with Frame.of(spec, ...).")
        points = _inside("point", self.points, frame)
        corners = _inside("box corner", (np.zeros((len(self), 0, 4)) if self.boxes is None else self.boxes)
                          .reshape(len(self), -1, 2), frame)  # fmt: skip
        _doubt_shares(points, corners, frame)
        coords, labels = self._tokens(spec.rules, frame, points, corners)
        return {"point_coords": coords, "point_labels": labels, **self._mask_feed(spec)}

    def _tokens(self, rules: Family, frame: Frame, points: Table, corners: Table) -> tuple[FloatArray, FloatArray]:
        """Put points, box corners and padding in the family's order. Shapes: -> (N, T, 2), (N, T)."""
        n, count = self.labels.shape
        coords = np.concatenate([points, corners, np.zeros((n, 1, 2))], axis=1)
        codes = [*(BOX_LABELS if corners.size else ()), LABELS["padding"]]
        labels = np.concatenate([self.labels, np.tile(codes, (n, 1))], axis=1)
        rows = rules.rows(count, has_box=self.boxes is not None)
        return frame.to_frame(coords[:, rows]), labels[:, rows].astype(np.float32)

    def _mask_feed(self, spec: DecoderSpec) -> Feed:
        """Fill the mask inputs that the spec has, with zeros where a prompt brings no mask."""
        given = {row: mask for row, mask in enumerate(self.masks) if mask is not None}
        if given and not spec.mask_input:
            other = "Export it with mask input, or drop" if spec.rules.takes_masks else "Drop"
            raise PromptError("this decoder takes no mask prompt", fix=f"{other} the mask.")
        if not spec.mask_input:
            return {}
        shape = (spec.mask_size, spec.mask_size)
        feed = {
            "mask_input": np.zeros((len(self), 1, *shape), np.float32),
            "has_mask_input": np.zeros(len(self), np.float32),
        }
        for row, mask in given.items():
            if mask.shape != shape:
                raise PromptError(f"mask of prompt {row} has the wrong size", found=mask.shape, expected=shape)
            feed["mask_input"][row, 0], feed["has_mask_input"][row] = mask, 1
        return feed


def group_prompts(prompts: Sequence[Prompt]) -> list[tuple[list[int], PromptBatch]]:
    """Sort mixed prompts into batches, each with the places of its prompts in the list.

    Raises: PromptError when there are none.
    """
    groups: dict[tuple[int, bool], list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault(_kind(prompt), []).append(place)
    if not groups:
        raise PromptError("no prompt given", fix="Give at least one point, box or mask.")
    return [(places, PromptBatch.of([prompts[place] for place in places])) for places in groups.values()]


def decode_prompts(session: Session, prompts: Sequence[Prompt], frame: Frame) -> Outputs:
    """Decode mixed prompts on the session's image, in as few calls as their kinds allow; outputs keep their order.

    Shapes: DecoderSpec.outputs.
    """
    outputs: Outputs = {}
    for places, batch in group_prompts(prompts):
        for name, values in session.decode(batch.feed(session.spec, frame)).items():
            empty = np.empty((len(prompts), *values.shape[1:]), values.dtype)
            outputs.setdefault(name, empty)[places] = values
    return outputs


def mask_logits(mask: NDArray[np.bool_], frame: Frame, spec: DecoderSpec) -> FloatArray:
    """Turn a mask of the picture into what the decoder takes as a previous one: sure inside, sure of the rest.

    Shapes: (H, W) -> (S, S). Units: logits.
    """
    width, height = (max(1, round(side / spec.mask_px)) for side in (frame.valid_width_px, frame.valid_height_px))
    share = resized((mask * np.uint8(255))[..., None], width, height, floats=True)[..., 0] / 255
    logits = np.full((spec.mask_size, spec.mask_size), -SURE_LOGIT, np.float32)
    logits[:height, :width] = SURE_LOGIT * (2 * share - 1)
    return logits


def grid_shares(points_per_side: int) -> Table:
    """Spread points evenly, row by row, as shares of the picture: the clicks of the automatic mode.

    Shapes: -> (K, 2). Source: Meta's build_point_grid, to its rounding.
    """
    if points_per_side < 1:
        raise PromptError("point grid is empty", found=points_per_side, expected="at least 1 point per side")
    half = 1 / (2 * points_per_side)
    x, y = np.meshgrid(*[np.linspace(half, 1 - half, points_per_side)] * 2)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def point_grid(points_per_side: int, frame: Frame) -> PromptBatch:
    """Click on every point of a grid."""
    points = grid_shares(points_per_side)[:, None] * (frame.width_px, frame.height_px)
    return PromptBatch(points, np.full((len(points), 1), float(LABELS["foreground"])))


def parse_point(text: str) -> Point:
    """Read a point written as x,y."""
    x, y = _parse_numbers("point", text, "x,y")
    return x, y


def parse_box(text: str) -> Box:
    """Read a box written as x0,y0,x1,y1."""
    x0, y0, x1, y1 = _parse_numbers("box", text, "x0,y0,x1,y1")
    return x0, y0, x1, y1


def _parse_numbers(what: str, text: str, form: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(form.split(",")) or not all(map(math.isfinite, numbers)):
        raise PromptError(f"{what} cannot be read", found=repr(text), expected=f"{form} in picture pixels")
    return numbers


def _kind(prompt: Prompt) -> tuple[int, bool]:
    return len(prompt.points), prompt.box is not None


def _table(what: str, values: ArrayLike, shape: tuple[int | None, ...]) -> Table:
    """Copy numbers into an array of that shape (None: any length) and check that they are finite."""
    expected = "(" + ", ".join("any" if side is None else str(side) for side in shape) + ")"
    try:
        table = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        found = reprlib.repr(values)
        raise PromptError(f"{what} are no table of numbers", found=found, expected=f"shape {expected}") from error
    if table.size == 0 and 0 in shape:  # a list of empty lists does not know its last axis
        return np.zeros([side or 0 for side in shape])
    matches = len(table.shape) == len(shape)
    if not matches or any(want not in (None, have) for want, have in zip(shape, table.shape, strict=True)):
        raise PromptError(f"{what} have the wrong shape", found=table.shape, expected=expected)
    for index in np.argwhere(~np.isfinite(table)):
        raise PromptError(f"{what} of prompt {index[0]} are not finite", found=table[tuple(index)])
    return table


def _checked_labels(values: ArrayLike, shape: tuple[int, int]) -> Table:
    labels = _table("labels", values, shape)
    for prompt, point in np.argwhere(~np.isin(labels, USER_LABELS)):
        raise PromptError(
            f"label of point {point} of prompt {prompt} is unknown", found=f"{labels[prompt, point]:g}",
            expected="1 (foreground) or 0 (background)", fix="Give boxes as boxes; padding is added by itself.",
        )  # fmt: skip
    return labels


def _checked_boxes(values: ArrayLike, n: int) -> Table:
    boxes = _table("boxes", values, (n, 4))
    low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
    for row in np.flatnonzero((low == high).any(axis=1)):
        raise PromptError(f"box of prompt {row} has no area", found=_box_text(boxes[row]), expected=BOX_FORM)
    for row in np.flatnonzero((boxes[:, :2] != low).any(axis=1)):
        sized = [*boxes[row, :2], *(boxes[row, :2] + boxes[row, 2:])]
        fix = f"If it is x,y,width,height, give {_box_text(sized)}; if not, {_box_text([*low[row], *high[row]])}."
        what = f"box of prompt {row} has swapped corners"
        raise PromptError(what, found=_box_text(boxes[row]), expected=BOX_FORM, fix=fix)
    return boxes


def _box_text(box: Sequence[float] | Table) -> str:
    return ",".join(f"{side:.12g}" for side in box)


def _checked_mask(values: ArrayLike, row: int) -> FloatArray:
    given = np.asarray(values)
    if given.ndim == 3 and len(given) == 1:  # as Meta's predictors hand masks back and take them
        given = given[0]
    if given.ndim != 2 or given.dtype.kind != "f":
        raise PromptError(
            f"mask of prompt {row} is no low-resolution mask", found=f"{given.dtype} {given.shape}",
            expected="float logits (S, S) or (1, S, S)",
            fix="Give the low_res_masks of an earlier prompt, not a finished mask.",
        )  # fmt: skip
    with np.errstate(over="ignore"):  # a value beyond float32 becomes inf, which the next line refuses
        mask = np.array(given, dtype=np.float32)
    if not np.isfinite(mask).all():
        raise PromptError(f"mask of prompt {row} has logits that are not finite")
    return mask


def _inside(what: str, xy: Table, frame: Frame) -> Table:
    """Move what lies just beyond the picture onto its border: detectors produce such boxes.

    Shapes: (N, P, 2) -> the same.
    Raises: PromptError for what lies further out.
    """
    moved = np.clip(xy, 0, (frame.width_px, frame.height_px))
    beyond = np.abs(moved - xy).max(axis=-1, initial=0)
    for prompt, index in np.argwhere(beyond > SLACK_PX):
        x, y = xy[prompt, index]
        raise PromptError(
            f"{what} {index} of prompt {prompt} is outside the picture",
            found=f"({x:g}, {y:g})", expected=frame.limits,
        )  # fmt: skip
    if (beyond > ROUNDING_PX).any():
        doubt(
            f"{np.count_nonzero(beyond)} {what}(s) up to {beyond.max():.2g} px outside the picture: moved to its border"
        )
    return moved


def _doubt_shares(points: Table, corners: Table, frame: Frame) -> None:
    """Warn of coordinates that look like shares of the picture: all of them in its first pixel, some not whole."""
    given = np.concatenate([points.reshape(-1, 2), corners.reshape(-1, 2)])
    is_small = given.size and given.max() <= 1 and min(frame.width_px, frame.height_px) > 1
    if is_small and (given % 1).any():
        doubt(
            f"all coordinates lie in the picture's first pixel, between 0 and 1; if they are shares of it, "
            f"multiply them by its size, {frame.width_px} x {frame.height_px} px"
        )
