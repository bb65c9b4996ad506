"""What ends a run early: Ctrl-C, a device that is lost. What was measured stays, and the reason is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_toys import TimedSession, calls_alone, cold_start, harness, pair
from fake_candidates import FakeClock

from samx.benchmarks.harness import INTERRUPTED
from samx.benchmarks.scenarios import BY_NAME, SCENARIOS
from samx.errors import UnavailableError
from samx.models.session import Feed


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyboardInterrupt(), f"{INTERRUPTED}, in box, steady"),
        (UnavailableError("cannot run a CUDA graph", found="unknown error (CUDA error 999)"), "UnavailableError"),
        (RuntimeError("device\nlost"), "ended by an error in box, steady: RuntimeError: device lost"),
    ],
)
def test_what_was_measured_stays_when_the_run_ends_early(error: BaseException, words: str) -> None:
    slow, quick = pair()
    run = harness([slow, quick])
    so_far: list[int] = []

    def fail(call: int) -> BaseException | None:
        in_box = any(result.scenario == "click" for result in run.results)
        so_far.extend([call] * in_box)
        return error if len(so_far) == 30 else None  # the probe, 20 calls of warm-up, 8 rounds

    slow.fails = fail
    run.run(calls_alone("click", "box", "batch8"))
    assert run.partial is not None
    assert words in run.partial
    counts = {(r.subject, r.scenario): len(r.samples_ns) for r in run.results if r.phase == "steady"}
    assert counts["slow", "box"] == counts["quick", "box"] == 8  # finished rounds only
    assert counts["slow", "click"] >= 10
    assert not any(scenario == "batch8" for _, scenario in counts)
    assert any("box of slow broke off after" in flag for flag in run.flags)
    assert run.placements["slow"].operations == {"cpu": 7}


def test_nothing_measured_is_partial_too() -> None:
    session = TimedSession(FakeClock(), "a")
    session.fails = lambda call: RuntimeError("gone")
    run = harness([session])
    run.run(SCENARIOS)
    assert run.results == []
    assert run.partial == "ended by an error in click of a: RuntimeError: gone"


def test_cold_starts_before_an_interruption_are_kept() -> None:
    starts: list[int] = []

    def starter(artifact: Path, device: str, threads: int | None, feed: Feed, calls: int) -> dict[str, Any]:
        starts.append(calls)
        if len(starts) == 3:
            raise KeyboardInterrupt
        return cold_start(artifact, device, threads, feed, calls)

    run = harness([TimedSession(FakeClock(), "a")], starter=starter)
    run.run([BY_NAME["cold"]])
    assert run.partial is not None
    assert [len(result.samples_ns) for result in run.results] == [2, 2, 2]
