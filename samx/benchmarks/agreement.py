"""Nothing is timed that does not compute the same: candidates against the peer, before the clock runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from samx.benchmarks.interleave import Candidate
from samx.errors import ParityError
from samx.models.session import Feed, FloatArray

OUTPUTS = ("low_res_masks", "iou_predictions")
# Two float32 graphs of the same algebra; logits reach about 30. The first is the parity gate's bound for float32.
MAX_ERROR = {"low_res_masks": 1e-3, "iou_predictions": 1e-4}

# What a candidate's call returns: for each graph run, its outputs in the order of OUTPUTS.
Parts = Sequence[Sequence[FloatArray]]


def check_agreement(candidates: Sequence[Candidate], peer: Callable[[Feed], Parts]) -> list[dict[str, Any]]:
    """Compare every candidate with the peer, which gets the same prompts one at a time; return the largest differences.

    Raises: ParityError when one differs by more than MAX_ERROR, in shape, or is not finite.
    """
    found = []
    for candidate in candidates:
        feed: Feed = candidate.inputs(0)
        expected = join([part for row in one_by_one(feed) for part in peer(row)])
        logits, iou = output_errors(candidate.name, expected, join(candidate.call(feed)))
        entry = {"candidate": candidate.name, "prompts": len(expected[0]), "logit_error": logits, "iou_error": iou}
        found.append(entry)
    return found


def one_by_one(feed: Feed) -> list[Feed]:
    """Split N prompts into N feeds of one."""
    count = len(next(iter(feed.values())))
    return [{name: value[i : i + 1] for name, value in feed.items()} for i in range(count)]


def join(parts: Parts) -> list[FloatArray]:
    """Put the outputs of several runs together. Shapes: -> (N, M, S, S), (N, M)."""
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def output_errors(candidate: str, expected: Sequence[FloatArray], found: Sequence[FloatArray]) -> list[float]:
    """Return the largest difference of each output.

    Raises: ParityError when it is more than MAX_ERROR, when shapes differ, or when one is not finite.
    """
    return [_error(candidate, *pair) for pair in zip(OUTPUTS, expected, found, strict=True)]


def _error(candidate: str, output: str, expected: FloatArray, found: FloatArray) -> float:
    if found.shape != expected.shape:
        raise ParityError(f"{candidate}: {output} has another shape", found=found.shape, expected=expected.shape)
    error = float(np.abs(found - expected).max())
    if not error <= MAX_ERROR[output]:  # NaN is no agreement either
        raise ParityError(
            f"{candidate}: {output} differs from the peer's", found=f"{error:.3g}",
            expected=f"at most {MAX_ERROR[output]:g}",
            fix="Nothing was measured. Export again; if it stays, please report it.",
        )  # fmt: skip
    return error
