"""Nothing is timed that does not compute the same: candidates against the peer, before the clock runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from samx.benchmarks.interleave import Candidate
from samx.errors import ParityError
from samx.models.session import Feed, FloatArray

OUTPUTS = ("low_res_masks", "iou_predictions")
# Two float32 graphs of the same algebra; logits reach about 30. The first is the parity gate's bound for float32.
MAX_ERROR = {"low_res_masks": 1e-3, "iou_predictions": 1e-4}

# What a candidate's call returns: for each graph run, its outputs in the order of OUTPUTS.
Parts = Sequence[Sequence[FloatArray]]


@dataclass(frozen=True)
class Agreement:
    """Hold the largest differences from the peer's outputs."""

    candidate: str
    prompts: int
    logit_error: float
    iou_error: float


def check_agreement(candidates: Sequence[Candidate], peer: Callable[[Feed], Parts]) -> list[Agreement]:
    """Compare every candidate with the peer, which gets the same prompts one at a time.

    Raises: ParityError when one differs by more than MAX_ERROR, in shape, or is not finite.
    """
    return [_compare(candidate, peer) for candidate in candidates]


def _compare(candidate: Candidate, peer: Callable[[Feed], Parts]) -> Agreement:
    feed: Feed = candidate.inputs(0)
    expected = join([part for row in one_by_one(feed) for part in peer(row)])
    found = join(candidate.call(feed))
    errors = [output_error(candidate.name, *pair) for pair in zip(OUTPUTS, expected, found, strict=True)]
    return Agreement(candidate.name, len(expected[0]), *errors)


def one_by_one(feed: Feed) -> list[Feed]:
    """Split N prompts into N feeds of one."""
    count = len(next(iter(feed.values())))
    return [{name: value[i : i + 1] for name, value in feed.items()} for i in range(count)]


def join(parts: Parts) -> list[FloatArray]:
    """Put the outputs of several runs together. Shapes: -> (N, M, S, S), (N, M)."""
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def output_error(candidate: str, output: str, expected: FloatArray, found: FloatArray) -> float:
    """Give the largest difference.

    Raises: ParityError when it is more than MAX_ERROR, when shapes differ, or when one is not finite.
    """
    bound = MAX_ERROR[output]
    if found.shape != expected.shape:
        raise ParityError(f"{candidate}: {output} has another shape", found=found.shape, expected=expected.shape)
    error = float(np.abs(found - expected).max())
    if not error <= bound:  # NaN is no agreement either
        raise ParityError(
            f"{candidate}: {output} differs from the peer's", found=f"{error:.3g}", expected=f"at most {bound:g}",
            fix="Nothing was measured. Export again; if it stays, please report it.",
        )  # fmt: skip
    return error
