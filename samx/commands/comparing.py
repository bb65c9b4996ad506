"""Ratios between artifacts that were measured in turns."""

from __future__ import annotations

from collections.abc import Sequence

from samx.benchmarks.interleave import Samples
from samx.benchmarks.results import Comparison, Result
from samx.benchmarks.summary import RATIO_SAMPLES, speedup

# Post-processing is the same code for every artifact.
COMPARED = ("import", "load", "first_call", "steady", "transfer")


def comparisons(results: Sequence[Result], names: Sequence[str]) -> tuple[list[Comparison], list[str]]:
    """Compare every artifact with the first, and say where there were too few rounds for an interval."""
    baseline, ratios, too_few = names[0], [], []
    first = {(entry.scenario, entry.phase): entry for entry in results if entry.subject == baseline}
    for entry in results:
        base = first.get((entry.scenario, entry.phase))
        if base is None or entry.subject == baseline or entry.phase not in COMPARED:
            continue
        if min(len(base.samples_ns), len(entry.samples_ns)) >= RATIO_SAMPLES:
            ratios.append(_comparison(base, entry))
        else:
            too_few.append(
                f"too few rounds to compare {entry.subject} in {entry.scenario}, {entry.phase}: "
                f"{len(entry.samples_ns)} of at least {RATIO_SAMPLES}"
            )
    return ratios, too_few


def _comparison(base: Result, entry: Result) -> Comparison:
    ratio = speedup(_samples(base), _samples(entry))
    named = (entry.scenario, entry.phase, base.subject, entry.subject)
    return Comparison(*named, ratio.value, ratio.low, ratio.high)


def _samples(result: Result) -> Samples:
    return Samples(result.subject, max(result.prompts, 1), result.samples_ns)
