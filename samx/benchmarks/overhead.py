"""Measure what the harness itself costs: calls that do nothing, in the loop that times everything else.

python -m samx.benchmarks.overhead
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from statistics import median

from samx.benchmarks.clock import Clock, now_ns, step_ns
from samx.benchmarks.interleave import Candidate, Effort, Sampling

CALLS = 20_000
BOUND_US = 20.0


@dataclass(frozen=True)
class Overhead:
    """Hold what a call costs beyond its own work. Units: microseconds."""

    counted_us: float  # inside the timed span: what every sample is too long by
    loop_us: float  # in all, the samples' bookkeeping included
    step_us: float  # of the clock


def overhead(clock: Clock = now_ns, calls: int = CALLS) -> Overhead:
    """Time calls that do nothing."""
    nothing = Candidate("nothing", 1, lambda argument: argument, lambda number: number)
    sampling = Sampling([nothing], Effort(0, least=calls, wanted=calls, warm_up_s=0), clock)
    sampling.run()
    spent_us = (sampling.end_ns - sampling.start_ns) / 1e3
    return Overhead(median(sampling.samples[0].call_ns) / 1e3, spent_us / calls, step_ns(clock) / 1e3)


def main() -> int:
    """Print the cost; the exit code is 1 when it is above the bound."""
    found = overhead()
    print(f"a call costs {found.loop_us:.2f} us in the loop (bound {BOUND_US:g}), {found.counted_us:.3f} us of it are "  # noqa: T201
          f"counted; the clock steps by {found.step_us:.3f} us")  # fmt: skip
    return int(found.loop_us > BOUND_US)


if __name__ == "__main__":
    sys.exit(main())
