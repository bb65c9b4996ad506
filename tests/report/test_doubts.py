"""Flags of devices are sorted by what they mean, and one that nobody knows is taken seriously."""

from __future__ import annotations

import pytest
from report_toys import bench_report, device

from samx.benchmarks.report.runs import doubts, sort_flag
from samx.devices import cpu, jetson, nvidia

COUNTED = {**cpu.SENTENCES, **jetson.SENTENCES}


@pytest.mark.parametrize("name", sorted(set(COUNTED) - {"stolen_time"}))
def test_what_counters_say_is_throttling(name: str) -> None:
    assert sort_flag(COUNTED[name][1].format(by=3))["kind"] == "throttled"


@pytest.mark.parametrize("reason", nvidia.SLOWING)
def test_what_holds_a_gpu_down_is_throttling(reason: str) -> None:
    assert sort_flag(f"the GPU's clocks were held down in 3 of 9 samples: {reason}")["kind"] == "throttled"


@pytest.mark.parametrize(
    ("flag", "kind", "excuses"),
    [
        ("gpu-cooling was cooled by slower clocks in 2 of 9 samples", "throttled", True),
        ("macOS reported thermal pressure (fair) in 2 of 9 samples", "throttled", True),
        ("macOS lowered the cpu speed limit to 80 %", "throttled", True),
        ("macOS recorded a thermal warning (level 1)", "throttled", True),
        ("the machine was busy before the run: load 7.21 on 2 usable CPUs", "busy", True),
        (COUNTED["stolen_time"][1].format(by=0.4), "busy", False),
        ("nvidia stopped answering: the GPU no longer answers", "lost", True),
        ("a device did not answer for 5 s at the end of the run", "lost", True),
        ("information: the processor's clocks are governed by powersave, not performance", "information", False),
        ("the moon was full", "doubtful", True),
    ],
)
def test_a_flag_is_sorted(flag: str, kind: str, excuses: bool) -> None:
    found = sort_flag(flag)
    assert (found["kind"], found["excuses"]) == (kind, excuses)
    assert found["text"] == flag.removeprefix("information: ")


def test_the_gravest_doubts_come_first_and_noise_is_found_in_the_results() -> None:
    flags = ["information: noted", "the machine was busy before the run: load 2", "macOS recorded a thermal warning"]
    report = bench_report(noise=0.2, partial="stopped", where=device(flags=flags), flags=("different checkpoints",))
    kinds = [doubt["kind"] for doubt in doubts(report)]
    assert kinds[:2] == ["partial", "busy"]
    assert {"throttled", "note", "noisy"} <= set(kinds)
    assert kinds[-1] == "information"


def test_a_quiet_run_raises_no_doubt() -> None:
    report = bench_report({"fp32": 11.0}, noise=0.01, flags=())
    assert [doubt for doubt in doubts(report) if doubt["kind"] != "unstable"] == []
