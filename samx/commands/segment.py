"""Segment a picture with an artifact: picture -> features -> masks -> files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from samx.artifacts.store import Artifact
from samx.commands.outputs import check_holds, check_outputs, write_outputs
from samx.errors import ImageError, UsageError, doubt
from samx.models.session import FloatArray
from samx.opening import open_predictor
from samx.predictor import Predictor
from samx.processing.automatic import Kept
from samx.processing.embeddings import is_tagged
from samx.processing.frames import Frame
from samx.processing.images import MAX_TILED_PX, RgbArray, check_upright, read_image
from samx.processing.overlay import overlay
from samx.processing.postprocess import SegmentedMask, mask_box
from samx.processing.prompts import Prompt, mask_logits
from samx.processing.rasters import Levels
from samx.processing.regions import regions_library, without_small_holes, without_small_islands
from samx.processing.results import Segments, pixel_box
from samx.processing.rle import Rle
from samx.processing.settings import Settings
from samx.progress import Progress, silent

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


def segment_picture(
    image: Path, model: Path, asked: Asked, outputs: Sequence[Path], *, embedding: Path | None = None,
    encoder: Path | None = None, pixels: str | None = None, levels: Levels | None = None, device: str = "cpu",
    threads: int | None = None, overwrite: bool = False, progress: Progress = silent,
) -> Segments:  # fmt: skip
    """Find masks on a picture and write them to files, of the kinds that their endings say; return them.

    The picture's features come from the artifact's own encoder, an encoder ONNX, or an embedding file.
    Raises: ArtifactError, ImageError, PromptError, WriteError, MissingExtraError; UsageError when there is no encoder.
    """
    if embedding is not None and encoder is not None:
        raise UsageError("two sources of features", found="--embedding and --encoder", expected="one of them")
    asked.check()
    check_outputs(outputs, overwrite)
    tiled = asked.everything is not None and asked.everything.get("tile_px") is not None
    if embedding is not None and not is_tagged(embedding):
        check_upright(image)
    picture = read_image(image, levels, MAX_TILED_PX if tiled else None)
    check_holds(outputs, picture)
    with open_predictor(Artifact.open(model), device, threads, encoder=encoder, pixels=pixels) as predictor:
        if asked.everything is None:
            predictor.set_image(picture, embedding=embedding)
            found = _of_prompts(predictor, picture, image.name, asked)
        else:
            found = _of_everything(predictor, picture, image.name, asked.everything, embedding, progress)
    progress("Writing")
    write_outputs(outputs, found, lambda: overlay(picture, found.masks, asked.prompts), overwrite)
    return found


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
    drawn = read_image(file).max(axis=-1)
    if drawn.shape != picture.shape[:2]:
        raise ImageError(f"mask '{file}' is not of this picture's size", found=drawn.shape, expected=picture.shape[:2])
    mask = drawn > drawn.max() / 2
    if not mask.any():
        raise ImageError(f"mask '{file}' is empty", expected="white where the object is, black elsewhere")
    frame = Frame.of(predictor.spec, picture.shape[1], picture.shape[0])
    return mask_logits(mask, frame, predictor.spec)


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


def mask_rows(found: Segments) -> list[dict[str, Any]]:
    """Return what a command tells of each mask."""
    renamed = {"stability_score": "stability"}
    return [
        {
            **{renamed.get(name, name): value for name, value in facts.items()},
            "area_px": rle.area_px,
            "box": pixel_box(rle),
        }
        for rle, facts in zip(found.rles, found.facts, strict=True)
    ]
