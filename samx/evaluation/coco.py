"""COCO instance files and SA-1B's, one a picture: polygons, runs, packed runs.

Source: the format's pages of cocodataset.org, and pycocotools, which draws the polygons.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from samx.artifacts.strict_json import Positive, parse, refusal, take
from samx.errors import InputError
from samx.evaluation.labels import Labelled, Labels, LeftOut, Truth, field_of, label_errors
from samx.files import GIB, read_file
from samx.processing.rle import Rle, coco_library

LABELS_CAP_BYTES = GIB  # instances_train2017.json has 450 MB
LEAST_CORNERS = 3  # of a polygon with an area
ID = int | str
Rows = list[Any]
OBJECT = "object"  # what SA-1B's labels are of
EXPECTED = "a COCO instance file ('images', 'annotations', 'categories') or an SA-1B file ('image', 'annotations')"


def json_labels(file: Path, folder: Path) -> Labels:
    """Read a label file; its pictures lie in a folder.

    Raises: InputError where it is damaged, contradicts itself, or is of another kind.
    """
    with label_errors():
        document = parse(read_file(file, LABELS_CAP_BYTES, f"label file '{file}'"), f"'{file}'")
        if isinstance(document, list):
            raise InputError(f"'{file}' holds a list", found="perhaps detections, not labels", expected=EXPECTED)
        keys = set(take(dict[str, Any], document, f"'{file}'"))
        if {"images", "annotations"} <= keys:
            return Labels("coco", file, _coco_pictures(document, file, folder))
        if {"image", "annotations"} <= keys:
            return Labels("sa1b", file, [_sa1b_picture(document, file, folder)])
    found = ", ".join(sorted(keys)) or "nothing"
    raise InputError(f"'{file}' is no label file that samx reads", found=found, expected=EXPECTED)


def _coco_pictures(document: Any, file: Path, folder: Path) -> list[Labelled]:
    where = f"'{file}'"
    for kind in ("categories", "images", "annotations"):
        _check_ids(take(list[Any], document.get(kind, []), f"{where}: {kind}"), f"{where}: {kind}")
    names = {
        field_of(row, "id", ID, f"{where}: categories {i}"): field_of(row, "name", str, f"{where}: categories {i}")
        for i, row in enumerate(take(list[Any], document.get("categories", []), f"{where}: categories"))
    }
    images: dict[Any, tuple[Path, tuple[int, int]]] = {}
    for i, row in enumerate(field_of(document, "images", list[Any], where)):
        number = field_of(row, "id", ID, f"{where}: images {i}")
        images[number] = _image(row, f"{where}: images {i}", folder)
    by_image = _by_image(field_of(document, "annotations", list[Any], where), images, names, where)
    return [
        Labelled(path, file, partial(_truths, by_image[number], size, names, where))
        for number, (path, size) in images.items()
    ]


def _check_ids(rows: Rows, where: str) -> None:
    """Refuse a row with the id of another; annotations without one are known by their place."""
    seen: set[Any] = set()
    for i, row in enumerate(rows):
        if isinstance(row, dict) and "id" in row:
            number = take(ID, row["id"], f"{where} {i}: id")
            if number in seen:
                raise refusal(f"{where} {i} has the id of another", repr(number), "an id of its own")
            seen.add(number)


def _image(row: Any, where: str, folder: Path) -> tuple[Path, tuple[int, int]]:
    """Take a picture's file, which lies in the folder, and its size."""
    name = PurePosixPath(field_of(row, "file_name", str, where))
    if name.is_absolute() or ".." in name.parts:
        raise refusal(f"{where}: file_name leaves the folder", str(name), "a path inside it")
    return folder / name, (field_of(row, "width", Positive, where), field_of(row, "height", Positive, where))


def _by_image(
    rows: Rows, images: Mapping[Any, Any], names: Mapping[Any, str], where: str
) -> defaultdict[Any, list[tuple[int, Any]]]:
    """Sort annotations by picture, each with its place in the file."""
    found: defaultdict[Any, list[tuple[int, Any]]] = defaultdict(list)
    for i, row in enumerate(rows):
        for key, known in (("image_id", images), ("category_id", names)):
            number = field_of(row, key, ID, f"{where}: annotations {i}")
            if number not in known:
                wanted = "images" if key == "image_id" else "categories"
                raise refusal(f"{where}: annotations {i}: {key} is unknown", repr(number), f"an id of '{wanted}'")
        found[row["image_id"]].append((i, row))
    return found


def _truths(
    rows: Sequence[tuple[int, Any]], size: tuple[int, int], names: Mapping[Any, str], where: str, left_out: LeftOut
) -> list[Truth]:
    """Read the objects of one picture; those that cannot be asked about are counted."""
    found = []
    left_out["no_label"] += not rows
    with label_errors():
        for i, row in rows:
            here = f"{where}: annotations {i}"
            crowd = row.get("iscrowd")
            if crowd not in (None, 0, 1):
                raise refusal(f"{here}: iscrowd is neither 0 nor 1", repr(crowd), "1 for a crowd, 0 for an object")
            if crowd:
                left_out["crowd"] += 1
                continue
            rle = read_segmentation(row.get("segmentation"), size, here)
            if rle is None or not rle.area_px:
                left_out["empty"] += 1
                continue
            name = str(take(ID, row.get("id", i), f"{here}: id"))
            found.append(Truth(name, names[row["category_id"]] if names else OBJECT, rle))
    return found


def _sa1b_picture(document: Any, file: Path, folder: Path) -> Labelled:
    where = f"'{file}'"
    path, size = _image(document["image"], f"{where}: image", folder)
    rows = field_of(document, "annotations", list[Any], where)
    for i, row in enumerate(rows):
        take(dict[str, Any], row, f"{where}: annotations {i}")
    _check_ids(rows, f"{where}: annotations")
    return Labelled(path, file, partial(_truths, list(enumerate(rows)), size, {}, where))


def read_segmentation(value: Any, size: tuple[int, int], where: str) -> Rle | None:
    """Read an object's mask: polygons, runs or packed runs; None where there is none.

    Raises: ArtifactError for what is damaged, and for runs of a picture of another size.
    """
    if not value:
        return None
    if isinstance(value, list):
        return _of_polygons(value, size, f"{where}: segmentation")
    counts = field_of(value, "counts", list[int] | str, f"{where}: segmentation")
    (width, height), stated = size, field_of(value, "size", tuple[Positive, ...], f"{where}: segmentation")
    if stated != (height, width):
        raise refusal(
            f"{where}: segmentation is of another size", str(list(stated)), f"height and width [{height}, {width}]"
        )
    try:
        return Rle.packed(counts, height, width) if isinstance(counts, str) else Rle.read(counts, height, width)
    except ValueError as cause:
        raise refusal(f"{where}: segmentation has no runs of its size", str(cause)) from cause


def _of_polygons(polygons: Rows, size: tuple[int, int], where: str) -> Rle | None:
    """Draw polygons as COCO does, all together; those of fewer than three corners have no area."""
    drawn = [_corners(polygon, size, f"{where} {i}") for i, polygon in enumerate(polygons)]
    drawn = [corners for corners in drawn if len(corners) >= 2 * LEAST_CORNERS]
    if not drawn:
        return None
    library, (width, height) = coco_library(), size
    merged = library.merge(library.frPyObjects(drawn, height, width))
    return Rle.packed(str(merged["counts"], "ascii"), height, width)


def _corners(polygon: Any, size: tuple[int, int], where: str) -> list[float]:
    """Take a polygon's corners, x and y in turn."""
    corners = list(take(tuple[float, ...], polygon, where))
    if len(corners) % 2:
        raise refusal(f"{where} has half a corner", f"{len(corners)} numbers", "x and y of each")
    for i, value in enumerate(corners):
        if not -size[i % 2] <= value <= 2 * size[i % 2]:  # a polygon may reach over the border, but not so far
            raise refusal(f"{where} is far outside the picture", f"{value:g}", f"about 0 to {size[i % 2]}")
    return corners
