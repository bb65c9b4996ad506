"""How the automatic mode looks for masks, under the names of Meta's generators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from samx.errors import UsageError
from samx.models.families.base import Family
from samx.models.spec import DecoderSpec
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
        settings.grids()
        settings.check_libraries()
        return settings

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
