"""Segment a picture with an artifact: picture -> features -> masks -> overlay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samx.artifacts.store import Artifact
from samx.errors import UsageError, doubt
from samx.opening import open_predictor
from samx.processing.embeddings import is_tagged
from samx.processing.images import check_upright, read_image
from samx.processing.overlay import overlay
from samx.processing.postprocess import SegmentedMask
from samx.processing.prompts import Prompt
from samx.processing.rasters import Levels

LEAST_IOU = 0.5  # predicted: the model itself expects more wrong pixels than right ones


def segment_picture(
    image: Path, model: Path, prompts: Sequence[Prompt], *,
    embedding: Path | None = None, encoder: Path | None = None, pixels: str | None = None,
    levels: Levels | None = None, device: str = "cpu", threads: int | None = None,
) -> tuple[NDArray[np.uint8], Sequence[SegmentedMask]]:  # fmt: skip
    """Find the best mask for each prompt on a picture; return the picture with masks and prompts drawn, and the masks.

    The picture's features come from the artifact's own encoder, an encoder ONNX, or an embedding file.
    Raises: ArtifactError, ImageError, PromptError; UsageError when there is no encoder.
    """
    if embedding is not None and encoder is not None:
        raise UsageError("two sources of features", found="--embedding and --encoder", expected="one of them")
    if embedding is not None and not is_tagged(embedding):
        check_upright(image)
    picture = read_image(image, levels)
    with open_predictor(Artifact.open(model), device, threads, encoder=encoder, pixels=pixels) as predictor:
        predictor.set_image(picture, embedding=embedding)
        masks = predictor.segment(prompts)
    for mask in masks:
        _doubt(mask)
    return overlay(picture, [mask.mask for mask in masks], prompts), masks


def _doubt(mask: SegmentedMask) -> None:
    """Warn of a mask that the model itself does not believe in."""
    if not mask.area_px:
        doubt(f"the mask of prompt {mask.prompt} is empty: nothing was found there")
    elif mask.predicted_iou < LEAST_IOU:
        doubt(
            f"the model does not trust the mask of prompt {mask.prompt}: it predicts an IoU of {mask.predicted_iou:.2f}"
        )
