"""Measure several callables in turns, so that whatever disturbs the machine disturbs all of them.

The one place that reads time. Whatever measures takes a clock as an argument, so that a test can hand it another.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

SEED = 0
Clock = Callable[[], int]  # nanoseconds from a start that does not matter; never goes back

now_ns: Clock = time.perf_counter_ns
CLOCK_NAME = "perf_counter_ns"
STEP_READS = 1000


def step_ns(clock: Clock = now_ns) -> int:
    """Return the smallest step that two readings, one after the other, show; 0 when the clock stands."""
    readings = [clock() for _ in range(STEP_READS)]
    return min((later - earlier for earlier, later in pairwise(readings) if later > earlier), default=0)


@dataclass(frozen=True)
class Effort:
    """How long to warm up and to measure each candidate; time and count both have to be reached."""

    seconds: float
    least: int = 10  # timed calls, however slow. Source: trtexec
    wanted: int = 64  # timed calls, as long as they fit in twice the seconds: a p90 needs them
    warm_up_s: float = 0.2  # clocks rise, kernels compile. Source: trtexec
    warm_up_calls: int = 3  # the first call plans memory, the second fills caches

    def enough(self, calls: int, spent_ns: int) -> bool:
        """Return whether a candidate was measured for long enough."""
        asked = calls >= self.least and spent_ns >= self.seconds * 1e9
        return asked and (calls >= self.wanted or spent_ns >= 2 * self.seconds * 1e9)

    def warm(self, calls: int, spent_ns: int) -> bool:
        """Return whether a candidate was warmed up for long enough."""
        return calls >= self.warm_up_calls and spent_ns >= self.warm_up_s * 1e9


@dataclass(frozen=True)
class Candidate:
    """Something to measure: what it is called with in each round, and how many prompts a call decodes."""

    name: str
    prompts: int
    call: Callable[[Any], Any]
    inputs: Callable[[int], Any]  # round number -> argument of call; its time is not counted


@dataclass(frozen=True)
class Samples:
    """Every timed call of one candidate, in the order of the rounds."""

    name: str
    prompts: int
    call_ns: tuple[int, ...]

    @property
    def prompt_ms(self) -> list[float]:
        """Return the time per prompt of each call."""
        return [ns / self.prompts / 1e6 for ns in self.call_ns]


class Sampling:
    """Call each candidate once a round, in a shuffled order. What was measured stays when a call breaks it off."""

    def __init__(
        self, candidates: Sequence[Candidate], effort: Effort, clock: Clock = now_ns, seed: int = SEED
    ) -> None:
        self._candidates, self._effort, self._clock = candidates, effort, clock
        self._order = Random(seed)  # shuffled, because a call also pays for the caches that its predecessor left
        self._warm_up = {candidate.name: [0, 0] for candidate in candidates}  # calls, ns
        self._spent_ns = dict.fromkeys(self._warm_up, 0)
        self._found: dict[str, list[int]] = {name: [] for name in self._warm_up}
        self.start_ns = self.end_ns = 0  # of the timed rounds, on the clock

    def run(self) -> None:
        """Warm up, then measure. Rounds are numbered from 0 in both, so that inputs do not hang on the warm-up."""
        with _no_garbage_collection():
            number = 0
            while not all(self._effort.warm(*spent) for spent in self._warm_up.values()):
                for name, elapsed in self._round(number).items():
                    self._warm_up[name] = [number + 1, self._warm_up[name][1] + elapsed]
                number += 1
            self.start_ns = self.end_ns = self._clock()
            number = 0
            while not all(self._effort.enough(number, spent) for spent in self._spent_ns.values()):
                for name, elapsed in self._round(number).items():
                    self._found[name].append(elapsed)
                    self._spent_ns[name] += elapsed
                self.end_ns = self._clock()
                number += 1

    @property
    def samples(self) -> list[Samples]:
        """Return the timed calls of all finished rounds."""
        return [Samples(entry.name, entry.prompts, tuple(self._found[entry.name])) for entry in self._candidates]

    def forget(self) -> None:
        """Drop what was measured, because it is measured again."""
        self._found = {name: [] for name in self._found}

    def warm_up(self, name: str) -> tuple[int, int]:
        """Return the calls and nanoseconds of a candidate's warm-up."""
        calls, spent_ns = self._warm_up[name]
        return calls, spent_ns

    def _round(self, number: int) -> dict[str, int]:
        order = self._order.sample(self._candidates, len(self._candidates))
        return {candidate.name: _time(candidate, number, self._clock) for candidate in order}


def measure(candidates: Sequence[Candidate], effort: Effort, clock: Clock = now_ns) -> list[Samples]:
    """Measure candidates in turns until each had its time and its calls."""
    sampling = Sampling(candidates, effort, clock)
    sampling.run()
    return sampling.samples


def _time(candidate: Candidate, number: int, clock: Clock) -> int:
    argument = candidate.inputs(number)
    start = clock()
    result = candidate.call(argument)
    elapsed = clock() - start
    del result  # freed after the clock was read
    return elapsed


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep the collector out of the timed calls."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
