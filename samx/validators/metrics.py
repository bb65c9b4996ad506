"""What is measured of a case (what users see, next to the raw errors), and how far it may be from the reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.errors import UsageError
from samx.models.session import FloatArray, Outputs
from samx.models.spec import DecoderSpec

BoolArray = NDArray[np.bool_]
Row = tuple[int, int]  # a prompt: case of the suite, and row in it
# Float32 rounding alone moves logits by about 1e-6 of the largest one and so flips, in a few hundred masks, about one
# pixel that lies exactly on the threshold; one such pixel in a small mask costs more IoU than fp32 may lose. Pixels
# this close to the threshold, relative to the mask's largest logit, have no side: neither mask's IoU counts them.
TIE_BAND = 1e-5
LOW_PERCENTILE = 5
TINY = float(np.finfo(np.float32).tiny)
# A stored code of a logit counts steps from its mask's largest logit below zero to the same above: 0 to 2 * CODE_STEPS.
CODE_STEPS = 31
CODE_REACH = np.float32(0.5001)  # steps from a code that are its own; the rest is float32 rounding
AT_LEAST = ("mask_iou_min", "mask_iou_case", "mask_iou_mean", "mask_iou_p05", "mask_iou_mean_all", "mask_iou_p05_all")
# Starting points of the design (mask IoU, logit and predicted-IoU error), to be tightened when devices are measured.
# The others follow from them:
# - flipped_share: a mask IoU of 1 - e flips e of the pixels at most.
# - logit_error_relative: error over the largest logit. fp32: float32 sums over 256 channels in another order differ by
#   about 1e-6; TF32 (10 bits of mantissa, 1e-3) must show. fp16, int8: loose; they catch rescaled logits, which no
#   thresholded mask shows.
# - object_score_error: a logit of about 10, so as the mask logits.
# - object_pointer_error: error over the largest value, so as logit_error_relative, of prompts whose object is clearly
#   there or clearly not.
# bf16 has three bits of mantissa less than fp16, and is held to int8's mask IoU on the prompts that int8 is judged
# on: with masks of ten pixels, which the other precisions' random prompts make, no eight bits reach a p05 of 0.95.
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
LIMITS: Mapping[str, tuple[Any, ...]] = {
    "mask_iou_min":         (0.9999, 0.9,   None, None),  # a mask of ten pixels may lose two
    "mask_iou_case":        (0.9999, 0.99,  None, None),
    "mask_iou_mean":        (0.9999, 0.998, 0.98, 0.98),
    "mask_iou_p05":         (0.9999, 0.99,  0.95, 0.95),
    "flipped_share":        (1e-4,   2e-3,  0.02, 0.02),
    "logit_error":          (1e-3,   None,  None, None),
    "logit_error_relative": (1e-4,   0.05,  0.05, 0.5),
    "iou_prediction_error": (1e-4,   0.01,  0.03, 0.03),
    "object_score_error":   (1e-3,   0.1,   0.5,  0.5),
    "object_pointer_error": (1e-4,   0.05,  0.05, 0.5),
    "forgiven_pixels":      (0,      1,     0,    0),
}  # fmt: skip

# Of an image encoder, from a picture's bytes to the masks. The masks decide; at 8 bits nearly alone.
# - feature_error: of an output's values together, by their squares. Wrong pixels cost more than any precision: another
#   resizer 0.65, BGR 0.77, black padding 1.0, x - mean / std 1.15 (by the cosines that ViT-B gave); bf16 0.01 to 0.12.
# - feature_error_largest: of what a single value shows, over the output's largest one. 128 errors of 5e-3 of the root
#   mean square add up to 0.3 of it now and then, and the largest value is at least four times that.
# - mask_iou_*: of masks that are steady; _case: of one picture's; _all: of all masks, only reported.
ENCODER_LIMITS: Mapping[str, tuple[Any, ...]] = {
    "feature_error":         (1e-5,   5e-3,  0.25, 0.25),
    "feature_error_largest": (1e-4,   0.1,   None, None),
}  # fmt: skip
ENCODER_MASK_LIMITS: Mapping[str, tuple[Any, ...]] = {
    "mask_iou_case":         (0.9999, None,  None, None),
    "mask_iou_mean":         (0.9999, 0.997, 0.98, 0.98),
    "mask_iou_p05":          (0.9999, 0.98,  0.95, 0.95),
    "iou_prediction_error":  (1e-3,   0.05,  None, None),
}  # fmt: skip


class Limits:
    """Judge values by the bounds of the same names. None: not judged at this precision, only reported."""

    def violations(self, values: Mapping[str, float]) -> list[str]:
        """Return which values are not on the good side of their bound. NaN is on no side."""
        limits = asdict(self)  # type: ignore[call-overload]  # of dataclasses
        return [
            f"{name} is {value:.6g}, must be {'at least' if name in AT_LEAST else 'at most'} {limits[name]:g}"
            for name, value in values.items()
            if limits[name] is not None and not _is_good(name, value, limits[name])
        ]


@dataclass(frozen=True)
class EncoderBounds(Limits):
    """Bound every metric of an image encoder; the names are those of encoder_gate.py."""

    precision: str
    feature_error: float
    feature_error_largest: float | None
    mask_iou_case: float | None
    mask_iou_mean: float
    mask_iou_p05: float
    iou_prediction_error: float | None
    mask_iou_mean_all: float | None = None
    mask_iou_p05_all: float | None = None


@dataclass(frozen=True)
class Bounds(Limits):
    """Bound every metric; the names are those of measure(). None: not judged at this precision, only reported."""

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
    object_pointer_error: float | None = None  # 0.1.0 had no pointers
    object_score_flips: float = 0.0
    best_mask_changes: float = 0.0
    forgiven_pixels: float = 0  # of each mask, in mask_iou_min: a mask of 16 pixels cannot be resolved to 0.99


def _is_good(name: str, value: float, limit: float) -> bool:
    return value >= limit if name in AT_LEAST else value <= limit


BOUNDS: Mapping[str, Bounds] = {
    precision: Bounds(precision, **{name: limits[i] for name, limits in LIMITS.items()})
    for i, precision in enumerate(PRECISIONS)
}


def bounds_for(precision: str, options: Mapping[str, Any] | None = None) -> Bounds:
    """Look a precision's bounds up; weights that are stored in 8 bits or less are held to int8's.

    Raises: UsageError for a precision without bounds.
    """
    if precision not in BOUNDS:
        raise UsageError("no parity bounds for this precision", found=precision, expected=" or ".join(BOUNDS))
    return BOUNDS["int8" if (options or {}).get("weights") else precision]


def encoder_bounds(precision: str, decoder: str) -> EncoderBounds:
    """Return the bounds of an encoder whose features a decoder of another precision may take.

    The masks are held to what the less exact of the two is held to.
    """
    own, looser = PRECISIONS.index(precision), max(map(PRECISIONS.index, (precision, decoder)))
    limits = {name: row[own] for name, row in ENCODER_LIMITS.items()}
    return EncoderBounds(precision, **limits, **{name: row[looser] for name, row in ENCODER_MASK_LIMITS.items()})


@dataclass(frozen=True)
class Expected:
    """Keep what the reference computed for a case: thresholded masks in full, logits at some or all pixels.

    Where logits are kept at some pixels only, `codes` say roughly what each one is; earlier suites have none.
    Shapes: logits (N, M, K); pixels (K,), positions in a flattened mask; above, undecided, codes (N, M, H*W);
    peaks (N, M), the largest logit of each mask.
    """

    logits: FloatArray
    pixels: NDArray[np.int64]
    above: BoolArray
    undecided: BoolArray
    scores: Outputs
    codes: NDArray[np.uint8] | None = None
    peaks: FloatArray | None = None

    def arrays(self) -> Iterator[NDArray[Any]]:
        """List the arrays that an answer must not be made of."""
        yield from (self.logits, *self.scores.values())

    def rows(self, rows: Sequence[int]) -> Expected:
        """Return the answers to some of the prompts."""
        per_prompt = ("logits", "above", "undecided", "codes", "peaks")
        kept = {name: value[rows] for name in per_prompt if (value := getattr(self, name)) is not None}
        scores = {name: value[rows] for name, value in self.scores.items()}
        return replace(self, **kept, scores=scores)


def joined(parts: Sequence[Expected]) -> Expected:
    """Return the answers to several calls as those to one."""
    names = ("logits", "above", "undecided", "codes", "peaks")
    kept = {name: np.concatenate([getattr(part, name) for part in parts])
            for name in names if getattr(parts[0], name) is not None}  # fmt: skip
    scores = {name: np.concatenate([part.scores[name] for part in parts]) for name in parts[0].scores}
    return replace(parts[0], **kept, scores=scores)


def encode(logits: FloatArray) -> tuple[NDArray[np.uint8], FloatArray]:
    """Return a coarse code of every logit, and each mask's largest logit. Shapes: (N, M, K) -> (N, M, K), (N, M)."""
    peaks = np.abs(logits).max(axis=-1)
    scale = CODE_STEPS / np.maximum(peaks, np.finfo(np.float32).tiny)[..., None]
    return np.rint(logits * scale + CODE_STEPS).astype(np.uint8), peaks


def code_error(logits: FloatArray, codes: NDArray[np.uint8], peaks: FloatArray) -> float:
    """Return the largest distance of a logit from what its code stands for. Shapes: as encode()'s."""
    step = peaks / np.float32(CODE_STEPS)
    distance = codes.astype(np.float32)
    distance -= np.float32(CODE_STEPS)
    distance *= step[..., None]
    distance -= logits
    largest = np.abs(distance, out=distance).max(axis=-1)
    return max(float((largest - step * CODE_REACH).max()), 0.0)


@dataclass(frozen=True)
class CaseMetrics:
    """Record a case's measurements."""

    values: Mapping[str, float]  # what is judged case by case
    mask_iou: tuple[float, ...]  # of each prompt's each mask
    pixels: int
    flipped: int
    undecided: int
    prompts: tuple[Row | None, ...]  # which these are; None: not counted in the suite's mean


def suite_values(cases: Sequence[CaseMetrics]) -> dict[str, float]:
    """Return what is judged over all cases together. A prompt counts once, at its worst, however often it was asked."""
    worst: dict[tuple[Row, int], float] = {}
    for case in cases:
        masks = len(case.mask_iou) // len(case.prompts)
        for i, iou in enumerate(case.mask_iou):
            if (prompt := case.prompts[i // masks]) is not None:
                worst[prompt, i % masks] = min(iou, worst.get((prompt, i % masks), iou))
    mask_iou = np.array([*worst.values()] or [np.nan])
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


def measure(
    spec: DecoderSpec, expected: Expected, outputs: Outputs, bounds: Bounds,
    prompts: Sequence[Row | None] | None = None,
) -> CaseMetrics:  # fmt: skip
    """Compare a candidate's outputs, already checked for shape and finiteness, with the reference's.

    prompts: which these are, for suite_values(); None: the first case's.
    """
    logits = outputs["low_res_masks"].reshape(expected.above.shape)
    decided = ~expected.undecided
    candidate, reference = (logits > spec.mask_threshold) & decided, expected.above & decided
    error = float(np.abs(logits[..., expected.pixels].astype(np.float64) - expected.logits).max())
    largest = float(np.abs(expected.logits).max())
    if expected.codes is not None and expected.peaks is not None:
        error = max(error, code_error(logits, expected.codes, expected.peaks))
        largest = float(expected.peaks.max())
    iou_pair = expected.scores["iou_predictions"], outputs["iou_predictions"]
    common, joint = _areas(candidate, reference)
    values = {
        "mask_iou_min": float(_share(common, joint, bounds.forgiven_pixels).min()),
        "mask_iou_case": float(_share(common.sum(), joint.sum())),
        "logit_error": error,
        "logit_error_relative": error / largest,
        "iou_prediction_error": _largest_error(*iou_pair),
        "best_mask_changes": float(best_mask_changes(*iou_pair, bounds.iou_prediction_error)),
    }
    if spec.object_score:
        score_pair = expected.scores["object_score_logits"], outputs["object_score_logits"]
        values["object_score_error"] = _largest_error(*score_pair)
        values["object_score_flips"] = float(sign_flips(*score_pair, bounds.object_score_error))
    if spec.object_pointer:
        clear = np.abs(expected.scores["object_score_logits"][:, 0]) > bounds.object_score_error
        pointer_pair = expected.scores["object_pointers"], outputs["object_pointers"]
        values["object_pointer_error"] = relative_error(*(pointers[clear] for pointers in pointer_pair))
    return CaseMetrics(
        values=values,
        mask_iou=tuple(float(iou) for iou in _share(common, joint).ravel()),
        pixels=candidate.size,
        flipped=int((joint - common).sum()),
        undecided=int(expected.undecided.sum()),
        prompts=tuple(prompts or [(0, row) for row in range(len(logits))]),
    )


def mask_iou(a: BoolArray, b: BoolArray, forgiven_pixels: float = 0) -> FloatArray:
    """Divide common area by joint area; two empty masks agree. Shapes: (..., H*W) x 2 -> (...).

    Up to `forgiven_pixels` on which a mask pair differs count as common.
    """
    return _share(*_areas(a, b), forgiven_pixels)


def _areas(a: BoolArray, b: BoolArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.count_nonzero(a & b, axis=-1), np.count_nonzero(a | b, axis=-1)


def _share(common: NDArray[np.int64], joint: NDArray[np.int64], forgiven_pixels: float = 0) -> FloatArray:
    common = common + np.minimum(joint - common, forgiven_pixels)
    return np.where(joint == 0, 1.0, common / np.maximum(joint, 1))


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


def relative_error(reference: FloatArray, candidate: FloatArray) -> float:
    """Return the largest error over the largest value; 0 of nothing, and beyond any bound where all should be 0."""
    if not reference.size:
        return 0.0
    return _largest_error(reference, candidate) / max(float(np.abs(reference).max()), TINY)


def _largest_error(reference: FloatArray, candidate: FloatArray) -> float:
    return float(np.abs(candidate.astype(np.float64) - reference).max())
