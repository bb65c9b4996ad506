"""How far a candidate may be from the reference, by precision. Data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from samx.errors import UsageError


@dataclass(frozen=True)
class Bounds:
    """Bound every metric; the names are those of metrics.py. None: not judged at this precision, only reported."""

    precision: str
    mask_iou_min: float | None  # of each mask
    mask_iou_case: float | None  # of each case: all its masks together
    mask_iou_mean: float
    mask_iou_p05: float
    flipped_share: float
    logit_error: float | None
    logit_error_relative: float
    iou_prediction_error: float
    object_score_error: float
    object_score_flips: float = 0.0
    best_mask_changes: float = 0.0
    forgiven_pixels: float = 0  # of each mask, in mask_iou_min: a mask of 16 pixels cannot be resolved to 0.99

    def violations(self, values: Mapping[str, float]) -> list[str]:
        """Return which values are not on the good side of their bound. NaN is on no side."""
        limits = asdict(self)
        return [
            f"{name} is {value:.6g}, must be {'at least' if name in AT_LEAST else 'at most'} {limits[name]:g}"
            for name, value in values.items()
            if limits[name] is not None and not _is_good(name, value, limits[name])
        ]


AT_LEAST = ("mask_iou_min", "mask_iou_case", "mask_iou_mean", "mask_iou_p05")


def _is_good(name: str, value: float, limit: float) -> bool:
    return value >= limit if name in AT_LEAST else value <= limit


# Starting points of the design (mask IoU, logit and predicted-IoU error), to be tightened when devices are measured.
# The others follow from them:
# - flipped_share: a mask IoU of 1 - e flips e of the pixels at most.
# - logit_error_relative: error over the largest logit. fp32: float32 sums over 256 channels in another order differ by
#   about 1e-6; TF32 (10 bits of mantissa, 1e-3) must show. fp16, int8: loose; they catch rescaled logits, which no
#   thresholded mask shows.
# - object_score_error: a logit of about 10, so as the mask logits.
# bf16 has three bits of mantissa less than fp16, and is held to int8's mask IoU on the prompts that int8 is judged
# on: with masks of ten pixels, which the other precisions' random prompts make, no eight bits reach a p05 of 0.95.
BOUNDS: Mapping[str, Bounds] = {
    bounds.precision: bounds
    for bounds in (
        Bounds(
            precision="fp32",
            mask_iou_min=0.9999,
            mask_iou_case=0.9999,
            mask_iou_mean=0.9999,
            mask_iou_p05=0.9999,
            flipped_share=1e-4,
            logit_error=1e-3,
            logit_error_relative=1e-4,
            iou_prediction_error=1e-4,
            object_score_error=1e-3,
        ),
        Bounds(
            precision="fp16",
            mask_iou_min=0.9,
            mask_iou_case=0.99,
            mask_iou_mean=0.998,
            mask_iou_p05=0.99,
            flipped_share=2e-3,
            logit_error=None,
            logit_error_relative=0.05,
            iou_prediction_error=0.01,
            object_score_error=0.1,
            forgiven_pixels=1,
        ),
        Bounds(
            precision="bf16",
            mask_iou_min=None,
            mask_iou_case=None,
            mask_iou_mean=0.98,
            mask_iou_p05=0.95,
            flipped_share=0.02,
            logit_error=None,
            logit_error_relative=0.05,
            iou_prediction_error=0.03,
            object_score_error=0.5,
        ),
        Bounds(
            precision="int8",
            mask_iou_min=None,  # a mask of ten pixels may lose two
            mask_iou_case=None,
            mask_iou_mean=0.98,
            mask_iou_p05=0.95,
            flipped_share=0.02,
            logit_error=None,
            logit_error_relative=0.5,
            iou_prediction_error=0.03,
            object_score_error=0.5,
        ),
    )
}


def bounds_for(precision: str, options: Mapping[str, Any] | None = None) -> Bounds:
    """Look a precision's bounds up; weights that are stored in 8 bits or less are held to int8's.

    Raises: UsageError for a precision without bounds.
    """
    if precision not in BOUNDS:
        raise UsageError("no parity bounds for this precision", found=precision, expected=" or ".join(BOUNDS))
    return BOUNDS["int8" if (options or {}).get("weights") else precision]
