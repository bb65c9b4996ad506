"""What a kit's runner asks: the stored parity cases with PyTorch's answers, and the prompts whose decoding is timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts.manifest import Manifest
from samx.benchmarks.interleave import Effort
from samx.benchmarks.scenarios import BY_NAME, Scenario, Workload
from samx.benchmarks.summary import (
    DRIFT_SAMPLES,
    HALVES_ERROR,
    NOISY_SPREAD,
    P90_SAMPLES,
    P99_SAMPLES,
    SURE,
    UNSTABLE_DRIFT,
)
from samx.devices.cpu import BUSY_LOAD
from samx.validators.arrays import stored_form
from samx.validators.metrics import AT_LEAST, LOW_PERCENTILE, Expected, bounds_for
from samx.validators.suite import ParitySuite

SCENARIOS: tuple[Scenario, ...] = (BY_NAME["click"], BY_NAME["batch8"])
ROUNDS = 64  # of prompts that differ; then they come again
SEED = 0
SECONDS, QUICK_SECONDS = 3.0, 1.0
PROMPTS = ("point_coords", "point_labels")  # of a scenario; mask prompts are zeros

Arrays = dict[str, NDArray[Any]]


def parity_arrays(suite: ParitySuite) -> Arrays:
    """Give images, cases and answers: inputs as they are kept in an artifact, thresholded masks as bits."""
    arrays: Arrays = {"pixels": suite.expected[0].pixels}
    for i, image in enumerate(suite.images):
        arrays |= {f"image{i}.{name}": stored_form(name, value) for name, value in image.items()}
    for i, (case, expected) in enumerate(zip(suite.cases, suite.expected, strict=True)):
        arrays |= {f"case{i}.in.{name}": stored_form(name, value) for name, value in case.prompts.items()}
        arrays |= {f"case{i}.out.{name}": value for name, value in _answer(expected)}
    return arrays


def parity_rules(manifest: Manifest, suite: ParitySuite) -> dict[str, Any]:
    """Say how answers are judged: the gate's own bounds and constants."""
    return {
        "bounds": asdict(bounds_for(manifest.precision, manifest.options)),
        "at_least": list(AT_LEAST),
        "low_percentile": LOW_PERCENTILE,
        "mask_threshold": manifest.spec.mask_threshold,
        "suite": {
            "cases": len(suite.cases), "images": len(suite.images), "image_source": suite.image_source,
            "reference": suite.reference, "form": "stored",
        },
        "cases": [{"name": case.name, "image": case.image} for case in suite.cases],
    }  # fmt: skip


def prompt_arrays(questions: Workload) -> Arrays:
    """Give every scenario's prompts, round by round. Shapes: (ROUNDS, N, P, 2), (ROUNDS, N, P)."""
    arrays: Arrays = {}
    for scenario in SCENARIOS:
        feeds = [questions.feed(scenario, number) for number in range(ROUNDS)]
        arrays |= {f"{scenario.name}.{name}": np.stack([feed[name] for feed in feeds]) for name in PROMPTS}
    return arrays


def latency_rules() -> dict[str, Any]:
    """Say how long is measured, and what makes a number doubtful: the harness's own constants."""
    efforts: dict[str, Effort] = {scenario.name: scenario.effort(SECONDS) for scenario in SCENARIOS}
    return {
        "efforts": {name: asdict(effort) for name, effort in efforts.items()},
        "quick_seconds": QUICK_SECONDS,
        "busy_load": BUSY_LOAD,
        "summary": {
            "p90": P90_SAMPLES, "p99": P99_SAMPLES, "noisy": NOISY_SPREAD, "unstable": UNSTABLE_DRIFT, "sure": SURE,
            "halves_error": HALVES_ERROR, "drift_samples": DRIFT_SAMPLES,
        },
    }  # fmt: skip


def _answer(expected: Expected) -> Iterator[tuple[str, NDArray[Any]]]:
    yield "logits", expected.logits
    yield "above", np.packbits(expected.above, axis=-1)
    yield "undecided", np.packbits(expected.undecided, axis=-1)
    yield from expected.scores.items()
