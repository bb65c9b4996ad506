"""Masks of one picture: of prompts, or of everything, with what is known of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from samx.errors import ImageError, UsageError, doubt
from samx.models.session import FloatArray
from samx.predictor import Predictor
from samx.processing.automatic import Kept
from samx.processing.frames import Frame
from samx.processing.images import RgbArray, read_image
from samx.processing.postprocess import BoolArray, SegmentedMask, mask_box
from samx.processing.prompts import Prompt, mask_logits
from samx.processing.regions import regions_library, without_small_holes, without_small_islands
from samx.processing.results import Segments
from samx.processing.rle import Rle
from samx.processing.settings import Settings
from samx.progress import Progress, silent

# Of an earlier mask: how many pixels soft edges take, how many levels of grey they have at least, and how far a level's
# channels may be apart in a file with losses.
MOST_BETWEEN, SOFT_LEVELS, MOST_COLOUR = 0.02, 16, 16
LEAST_IOU = 0.5  # predicted: the model itself expects more wrong pixels than right ones


@dataclass(frozen=True)
class Asked:
    """Say which masks are wanted: of these prompts, or with `everything` of all that is there, with these settings.

    masks: of each prompt the best, all, or that number; refine_from: a picture of an earlier mask, white on black.
    max_hole_area_px: holes up to this are filled; min_region_area_px: islands below this are removed.
    """

    prompts: tuple[Prompt, ...] = ()
    everything: Mapping[str, Any] | None = None
    masks: str = "best"
    refine_from: Path | None = None
    max_hole_area_px: int = 0
    min_region_area_px: int = 0

    def check(self) -> None:
        """Refuse what does not go together.

        Raises: UsageError, MissingExtraError.
        """
        if self.everything is not None and self != Asked((), self.everything):
            raise UsageError("prompts and their options are not for --everything", fix="Ask for one or the other.")
        if self.everything is None and not self.prompts and self.refine_from is None:
            Prompt()  # says what is missing
        if self.refine_from is not None and len(self.prompts) > 1:
            raise UsageError("--refine-from is of one object", found=f"{len(self.prompts)} objects", expected="one")
        if min(self.max_hole_area_px, self.min_region_area_px) < 0:
            raise UsageError("an area is below 0", found=min(self.max_hole_area_px, self.min_region_area_px))
        if self.max_hole_area_px or self.min_region_area_px:
            regions_library()


def segmented(
    predictor: Predictor, picture: RgbArray, name: str, asked: Asked, embedding: Path | None = None,
    progress: Progress = silent,
) -> Segments:  # fmt: skip
    """Find the masks that are asked for on a picture, or on its embedding. Shapes: picture (H, W, 3).

    Raises: ImageError, PromptError, ParityError; UsageError for what the export has not.
    """
    if asked.everything is not None:
        return _of_everything(predictor, picture, name, asked.everything, embedding, progress)
    predictor.set_image(picture, embedding=embedding)
    return _of_prompts(predictor, picture, name, asked)


def _of_prompts(predictor: Predictor, picture: RgbArray, name: str, asked: Asked) -> Segments:
    prompts = asked.prompts
    if asked.refine_from is not None:
        earlier = _earlier(asked.refine_from, predictor, picture)
        prompts = tuple(replace(prompt, mask=earlier) for prompt in prompts) or (Prompt(mask=earlier),)
    found = [_mended(mask, asked) for mask in predictor.segment(prompts, asked.masks)]
    for mask in found:
        _doubt(mask)
    facts = [
        {"prompt": mask.prompt, "mask": mask.index, "predicted_iou": mask.predicted_iou,
         "stability_score": mask.stability} for mask in found
    ]  # fmt: skip
    return Segments(name, picture.shape[1], picture.shape[0], [Rle.of(mask.mask) for mask in found], facts)


def _of_everything(
    predictor: Predictor, picture: RgbArray, name: str, settings: Mapping[str, Any], embedding: Path | None,
    progress: Progress,
) -> Segments:  # fmt: skip
    checked = Settings.of(predictor.spec, settings)
    if checked.tile_px is not None:
        doubt(f"what is wider than {checked.shared_px} px, which tiles share, may be missing: masks that a tile cuts "
              "off are left out; --tile-overlap-px takes more")  # fmt: skip
    if embedding is not None:
        predictor.set_image(picture, embedding=embedding)
    found: Kept = predictor.look_over(None if embedding is not None else picture, checked, progress)
    if not found.rles:
        doubt("no masks were found: none was sure and stable enough; lower --pred-iou-thresh or "
              "--stability-score-thresh, or take more points")  # fmt: skip
    facts = [found.facts(place) for place in range(len(found.rles))]
    for one in facts:
        del one["bbox"]  # files have boxes as their formats count them
    return Segments(name, picture.shape[1], picture.shape[0], found.rles, facts)


def _earlier(file: Path, predictor: Predictor, picture: RgbArray) -> FloatArray:
    """Read an earlier mask as the decoder takes it."""
    seen = read_image(file)
    if seen.shape != picture.shape:
        what = f"mask '{file}' is not of this picture's size"
        raise ImageError(what, found=seen.shape[:2], expected=picture.shape[:2])
    mask = _black_and_white(seen)
    if mask is None:
        what, found = f"'{file}' is no mask of one object", f"{len(np.unique(seen))} levels"
        raise ImageError(what, found=found, expected="white where the object is, black elsewhere")
    frame = Frame.of(predictor.spec, picture.shape[1], picture.shape[0])
    return mask_logits(mask, frame, predictor.spec)


def _black_and_white(seen: RgbArray) -> BoolArray | None:
    """Return where a picture is white; None where it is not black and white, but for soft edges.

    A few levels are objects by number, and colours are objects by colour.
    """
    drawn, white = seen.max(axis=-1), int(seen.max())
    mask, between = drawn > white / 2, (drawn > white / 4) & (drawn < white * 3 / 4)
    levels = len(np.unique(drawn))
    is_grey = bool(np.all(drawn - seen.min(axis=-1) <= MOST_COLOUR))
    is_clear = not between.any() if levels == 2 else levels >= SOFT_LEVELS and between.mean() <= MOST_BETWEEN
    return mask if is_grey and is_clear and mask.any() else None


def _mended(found: SegmentedMask, asked: Asked) -> SegmentedMask:
    """Fill small holes and remove small islands of a mask."""
    mask = found.mask
    if asked.max_hole_area_px:
        mask, _ = without_small_holes(mask, asked.max_hole_area_px + 1)
    if asked.min_region_area_px:
        mask, _ = without_small_islands(mask, asked.min_region_area_px)
    return replace(found, mask=mask, area_px=int(np.count_nonzero(mask)), box=mask_box(mask))


def _doubt(mask: SegmentedMask) -> None:
    """Warn of a mask that the model itself does not believe in."""
    if not mask.area_px:
        doubt(f"the mask of prompt {mask.prompt} is empty: nothing was found there")
    elif mask.predicted_iou < LEAST_IOU:
        doubt(
            f"the model does not trust the mask of prompt {mask.prompt}: it predicts an IoU of {mask.predicted_iou:.2f}"
        )
