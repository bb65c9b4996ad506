"""Masks as files: COCO's JSON, polygons, a label map, one picture a mask, arrays."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from samx.errors import UsageError
from samx.extras import require
from samx.processing.postprocess import BoolArray, PixelBox
from samx.processing.rasters import png_bytes
from samx.processing.rle import RESULTS, Masks, Rle, coco_library

Facts = Mapping[str, Any]
Files = Iterator[tuple[str, bytes]]

MOST_LABELS = (1 << 16) - 1
MASK_NAME = "mask-{:04}.png"
NAME_PATTERN = "mask-*.png"  # of what a folder of ours holds


@dataclass(frozen=True, eq=False)
class Segments:
    """Hold the masks of one picture, and what is known of each: predicted_iou, stability_score and more.

    Units: px.
    """

    picture: str
    width: int
    height: int
    rles: Sequence[Rle]
    facts: Sequence[Facts]

    @property
    def masks(self) -> Masks:
        """Return the masks, decoded one at a time."""
        return Masks(self.rles)


class Kind(NamedTuple):
    """A kind of file: what it is called, what is missing to write it, and its content; of a folder, its files'."""

    words: str
    needs: Callable[[], object]
    write: Callable[[Segments], bytes]


def kind_of(path: Path) -> str:
    """Return the ending that says what a file is to hold; none for a folder.

    Raises: UsageError for an unknown one.
    """
    name = path.name.lower()
    for ending in ENDINGS:
        if ending and name.endswith(ending) and len(name) > len(ending):
            return ending
    if path.suffix:
        known = ", ".join(f"{ending or 'no ending'} ({words})" for ending, words in ENDINGS.items())
        raise UsageError(f"nothing says what '{path}' is to hold", found=path.suffix, expected=known)
    return ""


def check_kind(ending: str) -> None:
    """Import what a kind of file needs.

    Raises: MissingExtraError.
    """
    if ending in KINDS:
        KINDS[ending].needs()


def coco_json(found: Segments) -> bytes:
    """Write a COCO data set of one picture, masks as packed runs; boxes are x, y, width, height."""
    document = {
        "info": {"description": "Masks by samx"},
        "images": [{"id": 1, "file_name": found.picture, "width": found.width, "height": found.height}],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [_annotation(rle, facts, place) for place, (rle, facts) in enumerate(_pairs(found), 1)],
    }
    return _json_bytes(document)


def _annotation(rle: Rle, facts: Facts, number: int) -> dict[str, Any]:
    return {
        "id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": rle.coco(), "area": rle.area_px,
        "bbox": coco_library().toBbox(rle.coco()).tolist(), **facts,
    }  # fmt: skip


def geo_json(found: Segments) -> bytes:
    """Write polygons in picture pixels, y downwards; the centre of a pixel lies inside if the mask has the pixel."""
    features = [
        {
            "type": "Feature", "id": number, "properties": {"area": rle.area_px, **facts},
            "geometry": {"type": "MultiPolygon", "coordinates": polygons(*rle.part())},
        }
        for number, (rle, facts) in enumerate(_pairs(found), 1)
    ]  # fmt: skip
    return _json_bytes({"type": "FeatureCollection", "features": features})


def _contours() -> Any:
    return require("contourpy", RESULTS, "drawing masks as polygons")


def polygons(corner: tuple[int, int], part: BoolArray) -> list[list[list[list[float]]]]:
    """Trace a mask from the part that it is in: polygons of an outer ring and its holes, rings closed.

    Shapes: corner (x, y), part (h, w).
    """
    if not part.any():
        return []
    padded = np.pad(part, 1).astype(np.float32)
    lines = _contours().contour_generator(z=padded, fill_type="OuterOffset").filled(0.5, 2.0)
    moved = np.array(corner) - 0.5  # a padding pixel before the first, whose centre is half a pixel in
    return [
        [_ring(points[start:end] + moved) for start, end in pairwise(offsets)]
        for points, offsets in zip(*lines, strict=True)
    ]


def _ring(points: NDArray[np.float64]) -> list[list[float]]:
    """Leave out points on the line between their neighbours. Shapes: (K, 2), the last is the first."""
    ring = points[:-1]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    kept = ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    return [*kept.tolist(), kept[0].tolist()]


def label_map(found: Segments) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Number the masks from 1 on; where several lie, the smallest is on top. Shapes: -> (H, W).

    Raises: UsageError for more masks than there are numbers.
    """
    if len(found.rles) > MOST_LABELS:
        raise UsageError("too many masks for a label map", found=len(found.rles), expected=f"at most {MOST_LABELS}")
    labels = np.zeros((found.height, found.width), np.uint8 if len(found.rles) < 256 else np.uint16)
    for place in sorted(range(len(found.rles)), key=lambda place: -found.rles[place].area_px):
        labels[found.masks[place]] = place + 1
    return labels


def arrays(found: Segments) -> bytes:
    """Write masks (K, H, W) of bool, boxes (K, 4) that end beyond their last pixels, and each number that is known."""
    buffer = io.BytesIO()
    names = [name for name in _common(found.facts) if isinstance(found.facts[0][name], (int, float))]
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("masks.npy", "w", force_zip64=True) as file:
            shape = len(found.rles), found.height, found.width
            npy_format.write_array_header_1_0(file, {"descr": "|b1", "fortran_order": False, "shape": shape})
            for mask in found.masks:
                file.write(np.ascontiguousarray(mask).tobytes())
        columns = {name: np.array([facts[name] for facts in found.facts]) for name in names}
        columns["boxes"] = np.array([pixel_box(rle) or (0,) * 4 for rle in found.rles], np.int64).reshape(-1, 4)
        for name, column in columns.items():
            with archive.open(f"{name}.npy", "w") as file:
                npy_format.write_array(file, column, allow_pickle=False)
    return buffer.getvalue()


def _common(facts: Sequence[Facts]) -> list[str]:
    return [name for name in facts[0] if all(name in other for other in facts)] if facts else []


def pixel_box(rle: Rle) -> PixelBox | None:
    """Return the box around a mask, its second corner just beyond."""
    (x, y), part = rle.part()
    return (x, y, x + part.shape[1], y + part.shape[0]) if part.size else None


def pictures(found: Segments) -> Files:
    """Yield a picture for each mask, white on black."""
    for number, mask in enumerate(found.masks, 1):
        yield MASK_NAME.format(number), png_bytes(np.ascontiguousarray(mask) * np.uint8(255))


def _pairs(found: Segments) -> Iterator[tuple[Rle, Facts]]:
    return zip(found.rles, found.facts, strict=True)


def _json_bytes(document: Any) -> bytes:
    return (json.dumps(_without_nan(document), allow_nan=False) + "\n").encode()


def _without_nan(value: Any) -> Any:
    """Put null for what JSON has no number for: the stability of a mask that is empty."""
    if isinstance(value, Mapping):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


KINDS: Mapping[str, Kind] = {
    ".json": Kind("COCO", coco_library, coco_json),
    ".geojson": Kind("polygons", _contours, geo_json),
    ".labels.png": Kind("a label map", lambda: None, lambda found: png_bytes(label_map(found))),
    ".npz": Kind("arrays", lambda: None, arrays),
}
OVERLAY, FOLDER = ".png", ""
OF_RUNS = (".json", ".geojson")  # what is written without ever holding a whole mask
# Longer ones first: a label map is a PNG too.
ENDINGS = {
    **{ending: kind.words for ending, kind in sorted(KINDS.items(), key=lambda item: -len(item[0]))},
    OVERLAY: "the picture with its masks", FOLDER: "a folder of one PNG a mask",
}  # fmt: skip
