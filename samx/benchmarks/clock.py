"""The one place that reads time. Whatever measures takes a clock as an argument, so that a test can hand it another."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

Clock = Callable[[], int]  # gives nanoseconds from a start that does not matter, and never goes back

now_ns: Clock = time.perf_counter_ns
CLOCK_NAME = "perf_counter_ns"
READS = 1000


def step_ns(clock: Clock = now_ns) -> int:
    """Find the smallest step that two readings, one after the other, show; 0 when the clock stands."""
    readings = [clock() for _ in range(READS)]
    return min((later - earlier for earlier, later in pairwise(readings) if later > earlier), default=0)
