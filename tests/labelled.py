"""Labelled pictures: the demo's scenes, whose masks are known exactly, in every kind of label file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.demo.scenes import LEVELS, generate_scene
from samx.evaluation.label_files import open_labels
from samx.evaluation.labels import Labels, Truth
from samx.processing.images import write_png
from samx.processing.rle import Rle
from samx.progress import silent

Mask = NDArray[np.bool_]
SIZES = ((320, 240), (200, 300))


def scenes(folder: Path, seeds: Iterable[int] = range(2), levels: Sequence[str] = LEVELS) -> Path:
    """Write scenes with a COCO file, masks packed and not packed in turn; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for seed in seeds:
        size = SIZES[seed % len(SIZES)]
        scene = generate_scene(seed, size)
        write_png(folder / f"scene{seed}.png", scene.image, overwrite=True)
        images.append({"id": seed, "file_name": f"scene{seed}.png", "width": size[0], "height": size[1]})
        for level in levels:
            for mask in scene.masks(level):
                annotations.append(annotation(len(annotations) + 1, seed, LEVELS.index(level), mask))
    names = [{"id": number, "name": name} for number, name in enumerate(LEVELS)]
    return coco(folder / "labels.json", images, annotations, names)


def annotation(number: int, image: int, category: int, mask: Mask, **more: Any) -> dict[str, Any]:
    """Return an annotation as COCO has it."""
    rle = Rle.of(mask)
    segmentation = rle.coco() if number % 2 else rle.uncompressed()
    return {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "area": rle.area_px,
            "bbox": [0, 0, 1, 1], "iscrowd": 0, **more}  # fmt: skip


def coco(file: Path, images: list[Any], annotations: list[Any], categories: list[Any]) -> Path:
    """Write a COCO file."""
    document = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(document))
    return file


def blank(folder: Path, name: str = "photo.png", size: tuple[int, int] = (40, 30)) -> Path:
    """Write a grey picture."""
    folder.mkdir(parents=True, exist_ok=True)
    write_png(folder / name, np.full((size[1], size[0], 3), 90, np.uint8), overwrite=True)
    return folder / name


def square(size: tuple[int, int] = (40, 30), corner: tuple[int, int] = (5, 6), side: int = 9) -> Mask:
    """Draw a square mask. Shapes: -> (H, W)."""
    mask = np.zeros(size[::-1], np.bool_)
    mask[corner[1] : corner[1] + side, corner[0] : corner[0] + side] = True
    return mask


def read(data: Path, pictures: Path | None = None, skip: bool = False) -> tuple[Labels, list[Truth]]:
    """Read labels, and all objects of them."""
    labels = open_labels(data, pictures).present(skip)
    return labels, [truth for _, truths in labels.truths(silent) for truth in truths]
