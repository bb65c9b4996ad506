"""Measure several callables in turns, so that whatever disturbs the machine disturbs all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

WARM_UP_ROUNDS = 3  # the first call plans memory, the second fills caches
MIN_ROUNDS = 10  # as trtexec: at least 10 timed iterations, however slow
SEED = 0


@dataclass(frozen=True)
class Candidate:
    """Name something to measure: what it is called with in each round, and how many prompts a call decodes."""

    name: str
    prompts: int
    call: Callable[[Any], Any]
    inputs: Callable[[int], Any]  # round number -> argument of call; its time is not counted


@dataclass(frozen=True)
class Samples:
    """Hold every timed call of one candidate, in the order of the rounds."""

    name: str
    prompts: int
    call_ns: tuple[int, ...]

    @property
    def prompt_ms(self) -> list[float]:
        """Give the time per prompt of each call."""
        return [ns / self.prompts / 1e6 for ns in self.call_ns]


def measure(
    candidates: Sequence[Candidate], seconds: float, *, warm_up_rounds: int = WARM_UP_ROUNDS,
    min_rounds: int = MIN_ROUNDS, clock: Callable[[], int] = time.perf_counter_ns,
) -> list[Samples]:  # fmt: skip
    """Call each candidate once a round, in a shuffled order, until `seconds` per candidate were timed."""
    order = Random(SEED)  # shuffled, because a call also pays for the caches that its predecessor left
    found: dict[str, list[int]] = {candidate.name: [] for candidate in candidates}
    budget_ns, spent_ns, number = seconds * 1e9 * len(candidates), 0, 0
    with _no_garbage_collection():
        while number < warm_up_rounds + min_rounds or spent_ns < budget_ns:
            for candidate in order.sample(candidates, len(candidates)):
                elapsed = _time(candidate, number, clock)
                if number >= warm_up_rounds:
                    found[candidate.name].append(elapsed)
                    spent_ns += elapsed
            number += 1
    return [Samples(candidate.name, candidate.prompts, tuple(found[candidate.name])) for candidate in candidates]


def _time(candidate: Candidate, number: int, clock: Callable[[], int]) -> int:
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
