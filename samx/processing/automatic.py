"""The automatic mode: clicks all over a picture, and of their masks the sure, stable and different ones.

Order, comparisons and roundings are those of Meta's SamAutomaticMaskGenerator and SAM2AutomaticMaskGenerator; the
family says which of the two does what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from samx.errors import UsageError
from samx.models.session import FloatArray, Session
from samx.models.spec import LABELS, DecoderSpec
from samx.processing.boxes import Boxes, crop_boxes, is_cut_off, suppress_overlaps, tile_boxes
from samx.processing.frames import Frame
from samx.processing.postprocess import BoolArray, Resized, mask_box, predicted_masks, resized_part
from samx.processing.prompts import PromptBatch, Table
from samx.processing.regions import mended_logits, without_small_holes, without_small_islands
from samx.processing.rle import Rle
from samx.processing.settings import Settings

Record = dict[str, Any]
Each = Callable[[Callable[[FloatArray], Resized], Iterable[FloatArray]], Iterable[Resized]]  # map, or a pool's

SEGMENTATIONS: Mapping[str, Callable[[Rle], Any]] = {
    "binary_mask": Rle.mask, "uncompressed_rle": Rle.uncompressed, "coco_rle": Rle.coco,
}  # fmt: skip


class Crop(NamedTuple):
    """A part of a picture that is asked about by itself. Shapes: box (4,) ends beyond its pixels; points (K, 2) in it.

    Units: px.
    """

    box: Boxes
    frame: Frame
    points: Table

    def cut(self, picture: NDArray[Any]) -> NDArray[Any]:
        """Cut it out of its picture. Shapes: (H, W, 3) -> (h, w, 3)."""
        left, top, right, bottom = self.box
        return picture[top:bottom, left:right]


class Kept(NamedTuple):
    """Masks that were kept, each with its scores, click and crop.

    Shapes: iou and stability (K,); boxes (K, 4) end at the last pixel; points (K, 2); crops (K, 4).
    """

    iou: FloatArray
    stability: FloatArray
    boxes: Boxes
    points: Table
    crops: Boxes
    rles: Sequence[Rle]

    def take(self, places: NDArray[np.intp]) -> Kept:
        """Keep those at these places, in this order."""
        iou, stability, boxes, points, crops, rles = self
        kept = [rles[place] for place in places]
        return Kept(iou[places], stability[places], boxes[places], points[places], crops[places], kept)

    @classmethod
    def joined(cls, parts: Sequence[Kept]) -> Kept:
        """Put parts one after the other."""
        *columns, rles = zip(*parts, strict=True)
        iou, stability, boxes, points, crops = map(np.concatenate, columns)
        return cls(iou, stability, boxes, points, crops, [rle for part in rles for rle in part])

    def records(self, output_mode: str) -> Iterator[Record]:
        """Return masks one by one, as Meta's generators do."""
        for place, rle in enumerate(self.rles):
            yield {"segmentation": SEGMENTATIONS[output_mode](rle), "area": rle.area_px, **self.facts(place)}

    def facts(self, place: int) -> Record:
        """Return what is known about a mask, under Meta's names."""
        return {
            "bbox": _sized(self.boxes[place]),
            "predicted_iou": float(self.iou[place]),
            "point_coords": [self.points[place].tolist()],
            "stability_score": float(self.stability[place]),
            "crop_box": _sized(self.crops[place]),
        }


def _sized(box: Boxes) -> list[int]:
    return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]


def plan(settings: Settings, spec: DecoderSpec, width_px: int, height_px: int) -> list[Crop]:
    """Say which parts of a picture are asked about, and where: the whole, then those of each layer; or its tiles.

    Raises: UsageError where there are more layers than pixels, or a layer has no points.
    """
    grids = settings.grids()
    found = []
    for layer, box in _parts(settings, width_px, height_px):
        width, height = box[2] - box[0], box[3] - box[1]
        if min(width, height) < 1:
            raise UsageError(
                "crop_n_layers cuts this picture into crops without pixels", found=settings.crop_n_layers,
                expected=f"fewer layers for {width_px} x {height_px} px",
            )  # fmt: skip
        found.append(Crop(np.array(box), Frame.of(spec, width, height), grids[layer] * (width, height)))
    return found


def _parts(settings: Settings, width_px: int, height_px: int) -> list[tuple[int, tuple[int, ...]]]:
    if settings.tile_px is None:
        return crop_boxes(width_px, height_px, settings.crop_n_layers, settings.crop_overlap_ratio)
    return [(0, box) for box in tile_boxes(width_px, height_px, settings.tile_px, settings.shared_px)]


def calls(crops: Sequence[Crop], settings: Settings) -> int:
    """Return in how many batches of clicks the crops are asked about."""
    return sum(-(-len(crop.points) // settings.points_per_batch) for crop in crops)


def masks_of(
    session: Session, crop: Crop, size: tuple[int, int], settings: Settings, tick: Callable[[], None], each: Each = map
) -> Kept:
    """Find a crop's masks, the surest first; the session has its features. size: (W, H) of the picture.

    Raises: ParityError on outputs that are not finite.
    """
    batches = []
    for start in range(0, len(crop.points), settings.points_per_batch):
        tick()
        points = crop.points[start : start + settings.points_per_batch]
        batches.append(_batch(session, crop, points, size, settings, each))
    found = Kept.joined(batches)
    found = found.take(suppress_overlaps(found.boxes, found.iou, settings.box_nms_thresh))
    corner = crop.box[:2]
    return found._replace(boxes=found.boxes + np.tile(corner, 2), points=found.points + corner)


def settled(parts: Sequence[Kept], settings: Settings, spec: DecoderSpec) -> Kept:
    """Put the crops' masks together, without what several of them have; mend them where the family does so now.

    Of what several have, that of the smallest crop stays, as Meta's; of tiles, which are of one size, the surest.
    """
    found = Kept.joined(parts)
    if len(parts) > 1:
        sides = found.crops[:, 2:] - found.crops[:, :2]
        small_first = np.float32(1) / np.prod(sides, axis=1).astype(np.float32)
        first = small_first if settings.tile_px is None else found.iou
        found = found.take(suppress_overlaps(found.boxes, first, settings.crop_nms_thresh))
    if settings.min_mask_region_area and not spec.rules.automatic_mends_logits:
        return _mended(found, settings)
    return found


def _batch(session: Session, crop: Crop, points: Table, size: tuple[int, int], settings: Settings, each: Each) -> Kept:
    """Ask with a batch of clicks and sift what comes."""
    logits, scores = _asked(session, points, crop.frame, settings.multimask_output)
    points = points.repeat(scores.shape[1], axis=0)
    logits, scores = logits.reshape(-1, *logits.shape[2:]), scores.reshape(-1)
    if settings.use_m2m:
        logits, scores = _refined(session, points, logits, crop.frame, settings)
    return _sifted(logits, scores, points, session.spec, crop, size, settings, each)


def _asked(
    session: Session, points: Table, frame: Frame, multimask: bool, masks: Sequence[FloatArray] = ()
) -> tuple[FloatArray, FloatArray]:
    batch = PromptBatch(points[:, None], np.full((len(points), 1), float(LABELS["foreground"])), masks=masks)
    return predicted_masks(session.decode(batch.feed(session.spec, frame)), session.spec, multimask)


def _refined(
    session: Session, points: Table, logits: FloatArray, frame: Frame, settings: Settings
) -> tuple[FloatArray, FloatArray]:
    """Ask again with every mask fed back. Shapes: (K, 2), (K, S, S) -> (K, S, S), (K,)."""
    limit, found = session.spec.rules.mask_limit, []
    for start in range(0, len(points), settings.points_per_batch):
        part = slice(start, start + settings.points_per_batch)
        fed_back = list(np.clip(logits[part], -limit, limit))
        found.append(_asked(session, points[part], frame, False, fed_back))
    masks, scores = (np.concatenate(column)[:, 0] for column in zip(*found, strict=True))
    return masks, scores


def _sifted(
    logits: FloatArray, scores: FloatArray, points: Table, spec: DecoderSpec, crop: Crop, size: tuple[int, int],
    settings: Settings, each: Each,
) -> Kept:  # fmt: skip
    """Keep sure, stable masks that no crop cuts off. Shapes: (K, S, S), (K,), (K, 2)."""
    places = np.flatnonzero(_passes(scores, settings.pred_iou_thresh, np.greater))
    measure = partial(_measured, spec=spec, frame=crop.frame, settings=settings)
    masks = list(each(measure, (logits[place] for place in places)))
    sure, possible = (np.array(column, np.float32) for column in _columns(masks))
    with np.errstate(invalid="ignore"):  # nothing of nothing is no number, and passes no threshold
        stability = sure / possible
    boxes = np.array([mask.box for mask in masks], np.int64).reshape(-1, 4)
    stable = _passes(stability, settings.stability_score_thresh, np.greater_equal)
    kept = np.flatnonzero(stable & ~is_cut_off(boxes, crop.box, size))
    rles = [_encoded(masks[place], crop, size) for place in kept]
    crops = np.tile(crop.box, (len(kept), 1))
    return Kept(scores[places[kept]], stability[kept], boxes[kept], points[places[kept]], crops, rles)


def _columns(masks: Sequence[Resized]) -> tuple[list[int], list[int]]:
    return [mask.sure_px for mask in masks], [mask.possible_px for mask in masks]


def _passes(scores: FloatArray, threshold: float, compare: Callable[[Any, Any], Any]) -> BoolArray:
    """Compare in float32; a threshold of 0 lets everything through."""
    return compare(scores, np.float32(threshold)) if threshold > 0 else np.ones(len(scores), np.bool_)


def _measured(low_res: FloatArray, spec: DecoderSpec, frame: Frame, settings: Settings) -> Resized:
    if settings.min_mask_region_area and spec.rules.automatic_mends_logits:
        low_res = mended_logits(low_res, spec.mask_threshold, settings.min_mask_region_area)
    return resized_part(low_res, frame, settings.mask_threshold, settings.stability_score_offset)


def _encoded(mask: Resized, crop: Crop, size: tuple[int, int]) -> Rle:
    x, y = (mask.corner + crop.box[:2]).tolist()
    return Rle.of_part(mask.part, (x, y), size)


def _mended(found: Kept, settings: Settings) -> Kept:
    """Fill small holes, remove small islands, and what became the same by that; untouched masks go first.

    Source: SamAutomaticMaskGenerator.postprocess_small_regions.
    """
    area = settings.min_mask_region_area
    rles, boxes, untouched = list(found.rles), found.boxes.copy(), np.ones(len(found.rles), np.float32)
    for place, rle in enumerate(found.rles):
        mask, had_holes = without_small_holes(rle.mask(), area)
        mask, had_islands = without_small_islands(mask, area)
        if had_holes or had_islands:
            untouched[place], rles[place], boxes[place] = 0, Rle.of(mask), _box(mask)
    overlap = max(settings.box_nms_thresh, settings.crop_nms_thresh)
    return found._replace(boxes=boxes, rles=rles).take(suppress_overlaps(boxes, untouched, overlap))


def _box(mask: BoolArray) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = mask_box(mask) or (0, 0, 1, 1)
    return x0, y0, x1 - 1, y1 - 1
