"""What is measured of a case: what users see (masks, best mask, scores), next to the raw errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samx.models.session import FloatArray, Outputs
from samx.models.spec import DecoderSpec
from samx.validators.bounds import Bounds

BoolArray = NDArray[np.bool_]
# Float32 rounding alone moves logits by about 1e-6 of the largest one and so flips, in a few hundred masks, about one
# pixel that lies exactly on the threshold; one such pixel in a small mask costs more IoU than fp32 may lose. Pixels
# this close to the threshold, relative to the mask's largest logit, have no side: neither mask's IoU counts them.
TIE_BAND = 1e-5
LOW_PERCENTILE = 5


@dataclass(frozen=True)
class Expected:
    """Keep what the reference computed for a case: thresholded masks in full, logits at some or all pixels.

    Shapes: logits (N, M, K); pixels (K,), positions in a flattened mask; above, undecided (N, M, H*W).
    """

    logits: FloatArray
    pixels: NDArray[np.int64]
    above: BoolArray
    undecided: BoolArray
    scores: Outputs


@dataclass(frozen=True)
class CaseMetrics:
    """Record a case's measurements."""

    values: Mapping[str, float]  # what is judged case by case
    mask_iou: tuple[float, ...]  # of each prompt's each mask
    pixels: int
    flipped: int
    undecided: int


def suite_values(cases: Sequence[CaseMetrics]) -> dict[str, float]:
    """Return what is judged over all cases together."""
    mask_iou = np.array([iou for case in cases for iou in case.mask_iou])
    return {
        "mask_iou_mean": float(mask_iou.mean()),
        "mask_iou_p05": float(np.percentile(mask_iou, LOW_PERCENTILE)),
        "flipped_share": sum(case.flipped for case in cases) / sum(case.pixels for case in cases),
    }


def expect(spec: DecoderSpec, outputs: Outputs) -> Expected:
    """Return a reference's outputs in full."""
    logits = outputs["low_res_masks"].reshape(*outputs["low_res_masks"].shape[:2], -1)
    margin = np.abs(logits - np.float32(spec.mask_threshold))
    return Expected(
        logits=logits,
        pixels=np.arange(logits.shape[-1]),
        above=logits > spec.mask_threshold,
        undecided=margin <= TIE_BAND * margin.max(axis=-1, keepdims=True),
        scores={name: value for name, value in outputs.items() if name != "low_res_masks"},
    )


def measure(spec: DecoderSpec, expected: Expected, outputs: Outputs, bounds: Bounds) -> CaseMetrics:
    """Compare a candidate's outputs, already checked for shape and finiteness, with the reference's."""
    logits = outputs["low_res_masks"].reshape(expected.above.shape)
    decided = ~expected.undecided
    candidate, reference = (logits > spec.mask_threshold) & decided, expected.above & decided
    error = float(np.abs(logits[..., expected.pixels].astype(np.float64) - expected.logits).max())
    iou_pair = expected.scores["iou_predictions"], outputs["iou_predictions"]
    values = {
        "mask_iou_min": float(mask_iou(candidate, reference, bounds.forgiven_pixels).min()),
        "mask_iou_case": float(mask_iou(candidate.ravel(), reference.ravel())),
        "logit_error": error,
        "logit_error_relative": error / float(np.abs(expected.logits).max()),
        "iou_prediction_error": _largest_error(*iou_pair),
        "best_mask_changes": float(best_mask_changes(*iou_pair, bounds.iou_prediction_error)),
    }
    if spec.object_score:
        score_pair = expected.scores["object_score_logits"], outputs["object_score_logits"]
        values["object_score_error"] = _largest_error(*score_pair)
        values["object_score_flips"] = float(sign_flips(*score_pair, bounds.object_score_error))
    return CaseMetrics(
        values=values,
        mask_iou=tuple(float(iou) for iou in mask_iou(candidate, reference).ravel()),
        pixels=candidate.size,
        flipped=int((candidate != reference).sum()),
        undecided=int(expected.undecided.sum()),
    )


def mask_iou(a: BoolArray, b: BoolArray, forgiven_pixels: float = 0) -> FloatArray:
    """Divide common area by joint area; two empty masks agree. Shapes: (..., H*W) x 2 -> (...).

    Up to `forgiven_pixels` on which a mask pair differs count as common.
    """
    common, joint = (a & b).sum(-1), (a | b).sum(-1)
    common = common + np.minimum(joint - common, forgiven_pixels)
    iou: FloatArray = np.where(joint == 0, 1.0, common / np.maximum(joint, 1))
    return iou


def best_mask_changes(reference: FloatArray, candidate: FloatArray, allowed_error: float) -> int:
    """Count prompts whose best mask changed although the reference's choice was clear. Shapes: (N, M) x 2."""
    if reference.shape[1] == 1:
        return 0
    ranked = np.sort(reference, axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > allowed_error
    return int((clear & (reference.argmax(axis=1) != candidate.argmax(axis=1))).sum())


def sign_flips(reference: FloatArray, candidate: FloatArray, allowed_error: float) -> int:
    """Count objects that are in the picture for one side only, although the reference was clear."""
    clear = np.abs(reference) > allowed_error
    return int((clear & ((reference > 0) != (candidate > 0))).sum())


def _largest_error(reference: FloatArray, candidate: FloatArray) -> float:
    return float(np.abs(candidate.astype(np.float64) - reference).max())
