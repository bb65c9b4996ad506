"""Candidates take turns, the warm-up does not count, and nothing but the call is timed."""

from __future__ import annotations

import gc

import pytest
from fake_candidates import FakeClock

from samx.benchmarks.interleave import Candidate, Effort, Sampling, measure


def effort(*, seconds: float = 0, least: int = 10, warm_up_calls: int = 3, warm_up_s: float = 0) -> Effort:
    return Effort(seconds, least, wanted=least, warm_up_s=warm_up_s, warm_up_calls=warm_up_calls)


def test_every_round_calls_everyone_once_in_changing_order() -> None:
    clock = FakeClock()
    names = ["a", "b", "c"]
    measure([clock.candidate(name, 5) for name in names], effort(least=20, warm_up_calls=2), clock)
    rounds = [clock.calls[i : i + 3] for i in range(0, len(clock.calls), 3)]
    assert len(rounds) == 22
    assert all(sorted(name for name, _ in turn) == names for turn in rounds)
    numbers = [0, 1, *range(20)]  # of the warm-up, then of the timed rounds: inputs change every round
    assert [{number for _, number in turn} for turn in rounds] == [{number} for number in numbers]
    assert len({tuple(name for name, _ in turn) for turn in rounds}) > 2


def test_warm_up_is_not_counted() -> None:
    clock = FakeClock()
    slow_start = clock.candidate("a", 5, first_ns=1_000_000)
    (found,) = measure([slow_start], effort(least=4, warm_up_calls=1), clock)
    assert found.call_ns == (5, 5, 5, 5)
    other = FakeClock()
    (cold,) = measure([other.candidate("a", 5, first_ns=10)], effort(least=2, warm_up_calls=0), other)
    assert cold.call_ns == (15, 5)


def test_only_the_call_is_timed() -> None:
    clock = FakeClock()
    found = measure([clock.candidate("a", 5, prepare_ns=900)], effort(least=3), clock)
    assert found[0].call_ns == (5, 5, 5)


def test_measures_until_the_seconds_are_spent() -> None:
    clock = FakeClock()
    slow, quick = clock.candidate("slow", 300_000_000), clock.candidate("quick", 100_000_000)
    found = measure([slow, quick], effort(seconds=2.0, least=1), clock)
    assert [len(entry.call_ns) for entry in found] == [20, 20]  # 2 s of the quick one


def test_time_per_prompt() -> None:
    clock = FakeClock()
    (found,) = measure([clock.candidate("a", 32_000_000, prompts=16)], effort(least=2), clock)
    assert found.prompt_ms == [2.0, 2.0]


def test_collector_is_off_while_measuring_and_back_on_after_a_failure() -> None:
    seen: list[bool] = []

    def fail(_: int) -> None:
        seen.append(gc.isenabled())
        raise RuntimeError("broken candidate")

    with pytest.raises(RuntimeError, match="broken candidate"):
        measure([Candidate("a", 1, fail, lambda number: number)], effort())
    assert seen == [False]
    assert gc.isenabled()


def test_warm_up_goes_by_time_and_by_count() -> None:
    clock = FakeClock()
    by_time = Sampling([clock.candidate("a", 50_000_000)], effort(least=1, warm_up_s=0.2), clock)
    by_time.run()
    assert by_time.warm_up("a") == (4, 200_000_000)
    by_count = Sampling([clock.candidate("a", 150_000_000)], effort(least=1, warm_up_s=0.2), clock)
    by_count.run()
    assert by_count.warm_up("a") == (3, 450_000_000)


@pytest.mark.parametrize(("call_ms", "calls"), [(10, 300), (60, 64), (120, 50), (250, 24), (700, 10)])
def test_short_calls_are_repeated_until_a_p90_is_honest(call_ms: int, calls: int) -> None:
    clock = FakeClock()
    (found,) = measure([clock.candidate("a", call_ms * 1_000_000)], Effort(3.0), clock)
    assert len(found.call_ns) == calls


def test_what_was_measured_before_a_failure_stays_and_the_broken_round_does_not_count() -> None:
    clock = FakeClock()
    steady = clock.candidate("steady", 5)

    def fail_later(number: int) -> None:
        if number == 7:
            raise KeyboardInterrupt

    sampling = Sampling([steady, Candidate("broken", 1, fail_later, lambda number: number)], effort(), clock)
    with pytest.raises(KeyboardInterrupt):
        sampling.run()
    assert [len(entry.call_ns) for entry in sampling.samples] == [7, 7]
    assert sampling.start_ns < sampling.end_ns


def test_the_same_seed_gives_the_same_order() -> None:
    orders = []
    for _ in range(2):
        clock = FakeClock()
        Sampling([clock.candidate(name, 5) for name in "abc"], effort(), clock, seed=4).run()
        orders.append([name for name, _ in clock.calls])
    assert orders[0] == orders[1]
