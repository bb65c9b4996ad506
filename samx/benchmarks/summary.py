"""What raw samples say: percentiles where they are honest, spread, drift, ratios with their uncertainty, sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.benchmarks.interleave import Candidate, Effort, Samples, measure
from samx.models.session import Feed

# Fewest samples that bound a percentile. Source: MLPerf's early-stopping rule.
P90_SAMPLES, P99_SAMPLES = 64, 662
# IQR / median above which a measurement is called noisy. Source: torch.utils.benchmark.
NOISY_SPREAD = 0.1
# Halves of a measurement that differ by more than this, and by more than chance allows, are called unstable. Fewer
# samples say nothing about chance.
UNSTABLE_DRIFT, SURE, DRIFT_SAMPLES = 0.05, 3.0, 8
# Standard error of the difference of two halves' medians, as a multiple of IQR / sqrt(all samples); normal samples.
HALVES_ERROR = 1.86
RESAMPLES = 2000  # moves the interval's ends by less than a hundredth
CONFIDENCE = 0.95
RATIO_SAMPLES = 6  # fewest whose whole range holds the median with that confidence: 1 - 2 / 2**6
# Between two runs. Calls that follow each other are alike (clocks, heat, neighbours): whole stretches are resampled.
CHANGE_CONFIDENCE = 0.99
CHANGE_SAMPLES = 8  # as above: 1 - 2 / 2**8
BLOCKS = 32
BINS = 128  # of the sorted samples; what is finer moves an interval by less than a hundredth of their spread
MOST_ALIKE = 0.99
SEED = 0
EVEN = 0.05  # ratios this close to 1 are within what repeated measurements differ by

Times = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """What calls took."""

    count: int
    median_ms: float
    iqr_ms: float
    p90_ms: float | None  # None: too few samples to say
    p99_ms: float | None
    spread: float  # IQR over median; where the input changes in a cycle, around each input's own median
    drift: float  # how much slower the second half was than the first; 0.1 is 10 %
    unstable: bool  # the drift is more than chance

    @property
    def noisy(self) -> bool:
        """Return whether the middle half of the samples lies too far apart to trust the median."""
        return not self.spread <= NOISY_SPREAD


@dataclass(frozen=True)
class Ratio:
    """A ratio of times, with the ends of its confidence interval."""

    value: float
    low: float
    high: float


def summarize(samples: Samples) -> Summary:
    """Reduce raw samples to the time per prompt."""
    return describe(samples.prompt_ms)


def describe(times_ms: Sequence[float], cycle: int = 1) -> Summary:
    """Reduce times to what a table shows; call i had the input i modulo `cycle`.

    Only spread and drift look at the cycle: inputs of different size are no noise.
    """
    times = np.array(times_ms, np.float64)
    even = times if cycle == 1 else levelled(times, levels(times, cycle)) * np.median(times)
    drift, unstable = _drift(even)
    return Summary(
        count=len(times),
        median_ms=float(np.median(times)),
        iqr_ms=_iqr(times),
        p90_ms=_percentile(times, 90, P90_SAMPLES),
        p99_ms=_percentile(times, 99, P99_SAMPLES),
        spread=_iqr(even) / float(np.median(even)),
        drift=drift,
        unstable=unstable,
    )


def speedup(baseline: Samples, candidate: Samples) -> Ratio:
    """Divide the medians, baseline by candidate.

    The interval comes from resampling whole rounds, so that a disturbance that hit both does not widen it.
    """
    base, mine = np.array(baseline.prompt_ms), np.array(candidate.prompt_ms)
    rounds = np.random.default_rng(SEED).integers(0, len(base), (RESAMPLES, len(base)))
    ratios = np.median(base[rounds], axis=1) / np.median(mine[rounds], axis=1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(ratios, (tail, 100 - tail))
    return Ratio(float(np.median(base) / np.median(mine)), float(low), float(high))


def time_ratio(base_ns: Sequence[int], new_ns: Sequence[int], cycle: int = 1) -> Ratio:
    """Divide what a call takes now by what it took before; call i had the input i modulo `cycle`.

    Where calls hang together for so long that too few independent stretches are left, the interval reaches over
    everything that was measured.
    """
    inputs = levels(np.array(base_ns, np.float64), cycle)
    base, new = (levelled(np.array(samples, np.float64), inputs) for samples in (base_ns, new_ns))
    value, counts = float(np.median(new) / np.median(base)), (_blocks(base), _blocks(new))
    if min(counts) < CHANGE_SAMPLES:
        return Ratio(value, float(new.min() / base.max()), float(new.max() / base.min()))
    random = np.random.default_rng(SEED)
    found = _resampled_medians(new, counts[1], random) / _resampled_medians(base, counts[0], random)
    low, high = np.quantile(found, ((1 - CHANGE_CONFIDENCE) / 2, (1 + CHANGE_CONFIDENCE) / 2))
    return Ratio(value, float(low), float(high))


def _blocks(times: Times) -> int:
    """Count the stretches of calls that can be taken to be independent of each other.

    A call counts for (1 - r) / (1 + r) independent ones, r being how much it is like the one before it.
    """
    ranks = np.argsort(np.argsort(times, kind="stable")).astype(np.float64)  # a single slow call must not decide
    alike = min(float(np.corrcoef(ranks[:-1], ranks[1:])[0, 1]), MOST_ALIKE)
    length = max(round((1 + alike) / (1 - alike)), 1) if np.ptp(times) > 0 else 1
    return min(BLOCKS, len(times) // length)


def _resampled_medians(times: Times, blocks: int, random: np.random.Generator) -> Times:
    """Draw blocks with replacement, one fewer than there are, and take the median of all that they hold.

    One fewer, because a block differs from the mean of all blocks less than from the truth.
    """
    order = np.argsort(times, kind="stable")
    block = (np.arange(len(times)) * blocks // len(times))[order]
    bins = min(BINS, len(times))
    held = np.zeros((blocks, bins))
    np.add.at(held, (block, np.arange(len(times)) * bins // len(times)), 1)
    drawn = random.multinomial(blocks - 1, np.full(blocks, 1 / blocks), RESAMPLES)
    below = drawn.astype(np.float64) @ np.cumsum(held, axis=1)
    middle = np.argmax(2 * below >= below[:, -1:], axis=1)
    return np.asarray(times[order][(middle * 2 + 1) * len(times) // (2 * bins)])


def counted(count: int, what: str) -> str:
    """Return how many there are of something, in words."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def speed_facts(
    prompts: int, threads: int, calls: int, float_ms: float, int8_ms: float, float_bytes: int, int8_bytes: int
) -> dict[str, Any]:
    """Return INT8 against float on this machine as plain data, with a sentence that says which is faster here.

    `calls` are those of each; the ratio is INT8's time over float's. Units: ms a prompt, medians.
    """
    ratio = int8_ms / float_ms
    verdict = "as fast as" if abs(ratio - 1) <= EVEN else "SLOWER than" if ratio > 1 else "faster than"
    sentence = (
        f"INT8 is {verdict} float here: {int8_ms:.2f} against {float_ms:.2f} ms a prompt ({ratio:.2f} of the time, "
        f"{counted(prompts, 'prompt')} a call, {counted(threads, 'thread')}); "
        f"its files are {int8_bytes / float_bytes:.0%} of the size."
    )
    return {
        "prompts": prompts, "threads": threads, "calls": calls, "float_ms": float_ms, "int8_ms": int8_ms,
        "float_bytes": float_bytes, "int8_bytes": int8_bytes, "ratio": ratio, "sentence": sentence,
    }  # fmt: skip


def compare_speed(
    runs: Mapping[str, Callable[[Feed], Any]], feed: Feed, sizes: Mapping[str, int], *, threads: int,
    seconds: float = 2.0,
) -> dict[str, Any]:  # fmt: skip
    """Measure the runs 'float' and 'int8' in turns on the same prompts; `sizes` are their files' in bytes."""
    prompts = len(feed["point_coords"])
    candidates = [Candidate(name, prompts, runs[name], lambda _: feed) for name in ("float", "int8")]
    floating, int8 = measure(candidates, Effort(seconds))
    float_ms, int8_ms = (summarize(entry).median_ms for entry in (floating, int8))
    return speed_facts(prompts, threads, len(int8.call_ns), float_ms, int8_ms, sizes["float"], sizes["int8"])


def _iqr(times: Times) -> float:
    low, high = np.percentile(times, (25, 75))
    return float(high - low)


def _percentile(times: Times, percent: int, least: int) -> float | None:
    return float(np.percentile(times, percent)) if len(times) >= least else None


def levels(times: Times, cycle: int) -> Times:
    """Return the median of each input of the cycle, so that inputs of different size are no noise."""
    return np.array([np.median(times[i::cycle]) for i in range(min(cycle, len(times)))])


def levelled(times: Times, inputs: Times) -> Times:
    """Divide times by what their inputs take."""
    return np.asarray(times / inputs[np.arange(len(times)) % len(inputs)])


def _drift(times: Times) -> tuple[float, bool]:
    """Compare the medians of the two halves, and tell whether they differ by more than chance."""
    half = len(times) // 2
    if len(times) < DRIFT_SAMPLES:
        return 0.0, False
    first, second = times[:half], times[-half:]
    change = float(np.median(second) - np.median(first))
    chance = SURE * HALVES_ERROR * (_iqr(first) + _iqr(second)) / 2 / sqrt(len(times))
    drift = change / float(np.median(first))
    return drift, abs(drift) > UNSTABLE_DRIFT and abs(change) > chance
