"""One worker's whole work on a picture: bytes -> picture -> features -> masks -> row."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samx.artifacts.store import Artifact
from samx.artifacts.strict_json import Document, Positive, short
from samx.datasets.pictures import Picture, Read, Row, failed, row_of
from samx.errors import Doubt, PromptError, SamxError
from samx.opening import open_predictor
from samx.processing.images import MAX_TILED_PX, decode_image
from samx.processing.object_groups import PARTS, parse_object
from samx.processing.prompts import Prompt
from samx.processing.results import Segments
from samx.processing.rle import coco_library
from samx.segmenting import Asked, segmented

MOST_NOTES = 8  # of one picture
SHOWN_CHARACTERS = 300  # of what nobody foresaw
PROMPT_FORMS = "a box [x0, y0, x1, y1], a point [x, y], or a text such as 'box=1,2,3,4 point=5,6'"


@dataclass(frozen=True)
class How(Document):
    """Say how a worker answers: with which model, where, and what is asked of each picture.

    everything: the automatic mode's settings, None where pictures come with prompts; levels: what becomes black and
    white of more than 8 bits.
    """

    model: str
    device: str
    threads: Positive
    everything: Mapping[str, Any] | None
    masks: str = "best"
    max_hole_area_px: int = 0
    min_region_area_px: int = 0
    encoder: str | None = None
    pixels: str | None = None
    levels: tuple[float, ...] | None = None

    def asked(self, picture: Picture) -> Asked:
        """Return what is asked of a picture.

        Raises: PromptError.
        """
        if self.everything is not None:
            return Asked(everything=self.everything)
        if picture.prompts is None:
            raise PromptError(f"there are no prompts for '{picture.name}'", expected="prompts, or an empty list")
        prompts = tuple(map(_prompt, picture.prompts))
        return Asked(prompts, None, self.masks, None, self.max_hole_area_px, self.min_region_area_px)


def _prompt(text: str) -> Prompt:
    """Read a prompt; what is none at all is shown as it stands in the table or file."""
    if text.partition("=")[0].strip() not in PARTS:
        raise PromptError("a prompt cannot be read", found=short(text), expected=PROMPT_FORMS)
    return parse_object(text)


class Segmenter:
    """Answer picture after picture with an artifact that is open, its encoder too.

    Raises: as open_predictor().
    """

    def __init__(self, how: How) -> None:
        artifact, encoder = Artifact.open(Path(how.model)), None if how.encoder is None else Path(how.encoder)
        self._how = how
        self._predictor = open_predictor(
            artifact, how.device, how.threads, encoder=encoder, pixels=how.pixels, prepare=True
        )

    def __call__(self, picture: Picture, read: Read) -> Row:
        """Return a picture's row, whatever happens: what stops one picture stops no other."""
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                found = self._found(picture, read(picture))
        except (SamxError, MemoryError) as error:
            return failed(picture, str(error) or "there is not enough memory for this picture")
        except Exception as error:  # of a library, on one picture of millions
            return failed(picture, f"{type(error).__name__}: {error}"[:SHOWN_CHARACTERS])
        notes = list(dict.fromkeys(str(one.message) for one in told if issubclass(one.category, Doubt)))
        return row_of(picture, found.width, found.height, _masks(found), notes[:MOST_NOTES])

    def _found(self, picture: Picture, data: bytes) -> Segments:
        levels = None if self._how.levels is None else (self._how.levels[0], self._how.levels[1])
        most_px = MAX_TILED_PX if (self._how.everything or {}).get("tile_px") else None
        asked, array = self._how.asked(picture), decode_image(io.BytesIO(data), picture.name, levels, most_px)
        if asked.everything is None and not asked.prompts:  # a detector found nothing
            return Segments(picture.name, array.shape[1], array.shape[0], [], [])
        return segmented(self._predictor, array, picture.name, asked)


def _masks(found: Segments) -> list[Row]:
    rows = []
    for rle, facts in zip(found.rles, found.facts, strict=True):
        packed = rle.coco()
        scores = {name: _finite(facts[name]) for name in ("predicted_iou", "stability_score")}
        places = {name: facts.get(name) for name in ("prompt", "mask")}
        box = [round(side) for side in coco_library().toBbox(packed).tolist()]
        rows.append({"segmentation": packed, "bbox": box, "area": rle.area_px, **scores, **places})
    return rows


def _finite(score: float) -> float | None:
    return float(score) if math.isfinite(score) else None  # an empty mask has no stability
