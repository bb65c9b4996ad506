"""Candidates take turns, the warm-up does not count, and nothing but the call is timed."""

from __future__ import annotations

import gc

import pytest
from fake_candidates import FakeClock

from samx.benchmarks.interleave import Candidate, measure
from samx.benchmarks.summary import by_name


def test_every_round_calls_everyone_once_in_changing_order() -> None:
    clock = FakeClock()
    names = ["a", "b", "c"]
    measure([clock.candidate(name, 5) for name in names], 0, warm_up_rounds=2, min_rounds=20, clock=clock)
    rounds = [clock.calls[i : i + 3] for i in range(0, len(clock.calls), 3)]
    assert len(rounds) == 22
    assert all(sorted(name for name, _ in turn) == names for turn in rounds)
    assert all({number for _, number in turn} == {i} for i, turn in enumerate(rounds))  # inputs change every round
    assert len({tuple(name for name, _ in turn) for turn in rounds}) > 2


def test_warm_up_is_not_counted() -> None:
    clock = FakeClock()
    slow_start = clock.candidate("a", 5, first_ns=1_000_000)
    (found,) = measure([slow_start], 0, warm_up_rounds=1, min_rounds=4, clock=clock)
    assert found.call_ns == (5, 5, 5, 5)
    (cold,) = measure(
        [FakeClock.candidate(other := FakeClock(), "a", 5, first_ns=10)], 0, warm_up_rounds=0, min_rounds=2, clock=other
    )
    assert cold.call_ns == (15, 5)


def test_only_the_call_is_timed() -> None:
    clock = FakeClock()
    found = measure([clock.candidate("a", 5, prepare_ns=900)], 0, min_rounds=3, clock=clock)
    assert found[0].call_ns == (5, 5, 5)


def test_measures_until_the_seconds_are_spent() -> None:
    clock = FakeClock()
    slow, quick = clock.candidate("slow", 300_000_000), clock.candidate("quick", 100_000_000)
    found = by_name(measure([slow, quick], 2.0, min_rounds=1, clock=clock))
    assert len(found["slow"].call_ns) == len(found["quick"].call_ns) == 10  # 2 s each = 4 s, at 0.4 s a round


def test_time_per_prompt() -> None:
    clock = FakeClock()
    (found,) = measure([clock.candidate("a", 32_000_000, prompts=16)], 0, min_rounds=2, clock=clock)
    assert found.prompt_ms == [2.0, 2.0]


def test_collector_is_off_while_measuring_and_back_on_after_a_failure() -> None:
    seen: list[bool] = []

    def fail(_: int) -> None:
        seen.append(gc.isenabled())
        raise RuntimeError("broken candidate")

    with pytest.raises(RuntimeError, match="broken candidate"):
        measure([Candidate("a", 1, fail, lambda number: number)], 0)
    assert seen == [False]
    assert gc.isenabled()
