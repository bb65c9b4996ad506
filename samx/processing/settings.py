"""How the automatic mode looks for masks, under the names of Meta's generators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from samx.artifacts.strict_json import parse
from samx.errors import ArtifactError, UsageError
from samx.files import read_file
from samx.models.families.base import Family
from samx.models.spec import DecoderSpec
from samx.processing.images import MAX_PICTURE_PX, MAX_TILED_PX
from samx.processing.prompts import Table, grid_shares
from samx.processing.regions import regions_library
from samx.processing.rle import coco_library

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


class Span(NamedTuple):
    """What a number may be."""

    least: float
    most: float = math.inf
    whole: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        limits = [f"from {self.least:g}"] if math.isfinite(self.least) else []
        return " ".join([kind, *limits, *([f"to {self.most:g}"] if math.isfinite(self.most) else [])])

    def has(self, value: object) -> bool:
        """Tell whether a value is one of these numbers."""
        if isinstance(value, bool) or not isinstance(value, (Real, np.number)):
            return False
        number = float(value)
        return math.isfinite(number) and self.least <= number <= self.most and not (self.whole and number % 1)


GRIDS_CAP_BYTES = 16 * 1024 * 1024  # a grid of a million points
COUNT, SHARE = Span(1, whole=True), Span(0, 1)
SPANS: Mapping[str, Span] = {
    "points_per_side": COUNT,
    "points_per_batch": COUNT,
    "pred_iou_thresh": SHARE,
    "stability_score_thresh": SHARE,
    "stability_score_offset": Span(0),
    "mask_threshold": Span(-math.inf),
    "box_nms_thresh": SHARE,
    "crop_n_layers": Span(0, 8, whole=True),  # the last has 65,536 crops
    "crop_nms_thresh": SHARE,
    "crop_overlap_ratio": Span(0, 0.99),  # crops that overlap wholly are the same
    "crop_n_points_downscale_factor": COUNT,
    "min_mask_region_area": Span(0, whole=True),
    "tile_px": Span(64, whole=True),
    "tile_overlap_px": Span(0, whole=True),
}
REFINING = ("use_m2m", "multimask_output", "mask_threshold")  # what only some families' generators have


@dataclass(frozen=True)
class Settings:
    """Hold checked settings; points_per_side counts where there are no point_grids.

    Units: thresholds of scores and overlaps are shares, offset and mask_threshold logits, areas px: of the mask at
    picture size, or where the family mends low-resolution masks, of those.
    """

    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    mask_threshold: float
    box_nms_thresh: float
    points_per_side: int
    points_per_batch: int = 64
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    point_grids: Sequence[ArrayLike] | None = None
    min_mask_region_area: int = 0
    output_mode: str = "binary_mask"
    use_m2m: bool = False
    multimask_output: bool = True
    tile_px: int | None = None  # side of the tiles that the picture is looked at in; None: it is looked at whole
    tile_overlap_px: int | None = None  # None: a quarter of a tile

    @classmethod
    def of(cls, spec: DecoderSpec, given: Mapping[str, Any]) -> Settings:
        """Fill up what was given, None counting as nothing, with the family's values.

        Raises: UsageError for unknown names, for values out of range, and for what the family's generator has not.
        """
        asked = {name: value for name, value in given.items() if value is not None}
        _check_names(asked, spec.rules)
        for name in asked.keys() & SPANS.keys():
            if not SPANS[name].has(asked[name]):
                raise UsageError(f"{name} is out of range", found=repr(asked[name]), expected=SPANS[name])
        if {"points_per_side", "point_grids"} <= asked.keys():
            raise UsageError("points_per_side and point_grids are both given", expected="one of them")
        mode = asked.get("output_mode", OUTPUT_MODES[0])
        if mode not in OUTPUT_MODES:
            raise UsageError("output_mode is unknown", found=repr(mode), expected=" or ".join(OUTPUT_MODES))
        settings = cls(**{**_defaults(spec), **asked})
        settings.check_tiles()
        settings.grids()
        settings.check_libraries()
        return settings

    @property
    def shared_px(self) -> int:
        """Return how many pixels tiles that lie side by side share: what is wider may be in none of them whole."""
        return (self.tile_px or 0) // 4 if self.tile_overlap_px is None else self.tile_overlap_px

    @property
    def most_px(self) -> int:
        """Return how many pixels a picture may have."""
        return MAX_PICTURE_PX if self.tile_px is None else MAX_TILED_PX

    def check_tiles(self) -> None:
        """Refuse tiles that do not go with the other settings.

        Raises: UsageError.
        """
        if self.tile_px is None:
            if self.tile_overlap_px is not None:
                raise UsageError(
                    "tile_overlap_px is of tiles", fix="Say their side too: tile_px, in the shell --tile-px."
                )
        elif self.crop_n_layers:
            raise UsageError("tiles are not cut into crops", found="tile_px and crop_n_layers", expected="one of them")
        elif 2 * self.shared_px > self.tile_px:
            raise UsageError(
                "tiles share too much", found=f"{self.shared_px} of {self.tile_px} px", expected="half at most"
            )

    def check_libraries(self) -> None:
        """Import what these settings need.

        Raises: MissingExtraError.
        """
        if self.output_mode == "coco_rle":
            coco_library()
        if self.min_mask_region_area:
            regions_library()

    def grids(self) -> list[Table]:
        """Return each layer's points as shares of the crop. Shapes: (K, 2) each.

        Raises: UsageError for a layer without points.
        """
        layers = range(self.crop_n_layers + 1)
        if self.point_grids is not None:
            return _checked_grids(self.point_grids, len(layers))
        sides = [int(self.points_per_side / self.crop_n_points_downscale_factor**layer) for layer in layers]
        if not sides[-1]:
            raise UsageError(
                f"layer {sides.index(0)} of the crops has no points",
                found=f"points_per_side {self.points_per_side} / {self.crop_n_points_downscale_factor} a layer",
                fix="Take more points, fewer layers, or a smaller crop_n_points_downscale_factor.",
            )  # fmt: skip
        return [grid_shares(side) for side in sides]


def _check_names(asked: Mapping[str, Any], rules: Family) -> None:
    names = [field.name for field in fields(Settings)]
    for name in asked:
        if name not in names:
            raise UsageError("the automatic mode has no such setting", found=name, expected=", ".join(names))
        if name in REFINING and not rules.automatic_refines:
            raise UsageError(f"{rules.title}'s automatic mode has no {name}", fix="Leave it out; SAM 2's has it.")


def _defaults(spec: DecoderSpec) -> dict[str, Any]:
    rules = spec.rules
    return {
        "pred_iou_thresh": rules.automatic_iou,
        "stability_score_thresh": rules.automatic_stability,
        "stability_score_offset": rules.automatic_offset,
        "mask_threshold": spec.mask_threshold,
        "box_nms_thresh": rules.automatic_box_iou,
        "points_per_side": rules.automatic_points_per_side,
    }


def read_grids(path: Path) -> Sequence[ArrayLike]:
    """Read point_grids from a JSON file: lists of points [x, y], one for each layer of crops.

    Raises: UsageError.
    """
    try:
        found = parse(read_file(path, GRIDS_CAP_BYTES, f"'{path}'", UsageError), f"'{path}'")
    except ArtifactError as error:
        raise UsageError(error.what, found=error.found) from error
    if not isinstance(found, list) or not all(isinstance(grid, list) for grid in found):
        raise UsageError(f"'{path}' holds no point grids", expected="a list for each layer of crops, of points [x, y]")
    return found


def _checked_grids(grids: Sequence[ArrayLike], layers: int) -> list[Table]:
    expected = "for each layer of crops, points (x, y) as shares of the crop, shape (points, 2)"
    try:
        tables = [np.asarray(grid, np.float64) for grid in grids]
    except (TypeError, ValueError) as cause:
        raise UsageError("point_grids hold no numbers", expected=expected) from cause
    if len(tables) < layers:
        raise UsageError("point_grids are fewer than the layers", found=len(tables), expected=f"{layers}: {expected}")
    for table in tables[:layers]:
        if table.ndim != 2 or table.shape[1] != 2 or not len(table):
            raise UsageError("a grid of point_grids has the wrong shape", found=table.shape, expected=expected)
        if not ((table >= 0) & (table <= 1)).all():
            raise UsageError("a grid of point_grids has points outside", found=f"{table.min()} to {table.max()}",
                             expected=expected)  # fmt: skip
    return tables[:layers]
