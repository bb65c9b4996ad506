"""Segment a picture with an artifact: picture -> features -> masks -> files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samx.artifacts.store import Artifact
from samx.commands.outputs import check_holds, check_outputs, write_outputs
from samx.errors import UsageError
from samx.opening import open_predictor
from samx.processing.embeddings import is_tagged
from samx.processing.images import MAX_TILED_PX, check_upright, read_image
from samx.processing.overlay import overlay
from samx.processing.rasters import Levels
from samx.processing.results import Segments, pixel_box
from samx.progress import Progress, silent
from samx.segmenting import Asked, segmented


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
    check_outputs(outputs, overwrite, [image, model, *filter(None, (embedding, encoder, asked.refine_from))])
    tiled = asked.everything is not None and asked.everything.get("tile_px") is not None
    if embedding is not None and not is_tagged(embedding):
        check_upright(image)
    picture = read_image(image, levels, MAX_TILED_PX if tiled else None)
    check_holds(outputs, picture)
    with open_predictor(Artifact.open(model), device, threads, encoder=encoder, pixels=pixels) as predictor:
        found = segmented(predictor, picture, image.name, asked, embedding, progress)
    progress("Writing")
    write_outputs(outputs, found, lambda: overlay(picture, found.masks, asked.prompts), overwrite)
    return found


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
