"""The runner warms up, samples and summarises by the rules of `samx bench`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from samx.kits.questions import PROMPTS, QUICK_SECONDS, ROUNDS, SCENARIOS, latency_rules, prompt_arrays
from samx.kits.runner import latency

from samx.benchmarks.interleave import Effort
from samx.benchmarks.results import Result
from samx.benchmarks.scenarios import Workload
from samx.benchmarks.summary import describe
from samx.commands import bench
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec

RULES = latency_rules()["summary"]
RANDOM = np.random.default_rng(3)
SAMPLES: dict[str, list[int]] = {
    "one": [5_000_000],
    "two": [5_000_000, 7_000_000],
    "steady": RANDOM.normal(8e6, 1e5, 70).astype(int).tolist(),
    "enough for a p99": RANDOM.normal(8e6, 1e5, 700).astype(int).tolist(),
    "noisy": RANDOM.normal(8e6, 2e6, 63).astype(int).tolist(),
    "drifting": (RANDOM.normal(8e6, 1e5, 100) * np.linspace(1, 1.5, 100)).astype(int).tolist(),
    "faster and faster": (RANDOM.normal(8e6, 1e5, 101) * np.linspace(1.5, 1, 101)).astype(int).tolist(),
}


def blank(**changes: Any) -> dict[str, Any]:
    row = {"warm_up_calls": 0, "warm_up_ns": 0, "start_ns": 0, "end_ns": 0, "samples_ns": [], "prompts": 1}
    return {**row, **changes}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_summary_is_the_harness_s_to_the_last_digit(name: str) -> None:
    energy = {"value": None, "unit": "mJ", "reason": "no"}
    result = Result("toy", "batch8", "steady", 8, (2,), 3, 1, 0, 1, tuple(SAMPLES[name]), energy, None)
    found = latency.with_summary(RULES, blank(prompts=8, samples_ns=SAMPLES[name]))
    assert found["summary"] == asdict(describe([ns / 1e6 for ns in SAMPLES[name]]))
    assert (found["prompts_per_second"], found["flags"]) == (result.prompts_per_second, result.flags)


def test_the_samples_show_every_kind_of_flag() -> None:
    flags = {name: latency.with_summary(RULES, blank(samples_ns=samples))["flags"] for name, samples in SAMPLES.items()}
    assert "noisy" in flags["noisy"]
    assert "unstable" in flags["drifting"]
    assert "unstable" in flags["faster and faster"]
    assert flags["steady"] == []


@pytest.mark.parametrize("effort", [scenario.effort(3.0) for scenario in SCENARIOS])
def test_enough_is_what_the_harness_calls_enough(effort: Effort) -> None:
    calls, spent = (0, 1, effort.least - 1, effort.least, 63, 64, 1000), (0, int(2.9e9), int(3e9), int(5.9e9), int(6e9))
    for seconds, count, ns in product((0.5, 3.0), calls, spent):
        expected = replace(effort, seconds=seconds).enough(count, ns)
        assert latency.enough(asdict(effort), seconds, count, ns) is expected, (seconds, count, ns)


def test_quick_is_what_samx_bench_calls_quick() -> None:
    assert QUICK_SECONDS == latency_rules()["quick_seconds"] == bench.QUICK_SECONDS


def ticking(step: int) -> Iterator[int]:
    return iter(range(0, 10**15, step))


def test_the_warm_up_is_not_among_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = ticking(10_000_000), list[int]()  # each reading is 10 ms later
    monkeypatch.setattr(latency, "now", lambda: next(clock))
    row = blank()
    effort = asdict(Effort(1.0, 10, 64))
    latency.time_calls(asked.append, [0, 1, 2], effort, 0.5, row)
    assert (row["warm_up_calls"], row["warm_up_ns"]) == (20, 200_000_000)  # 0.2 s
    assert row["samples_ns"] == [10_000_000] * 64
    assert asked == [i % 3 for i in range(20)] + [i % 3 for i in range(64)]
    assert row["end_ns"] > row["start_ns"] > 0


class Toy:
    """Take images, and stop at a call."""

    def __init__(self, stop_at: int, error: BaseException) -> None:
        self.stop_at, self.error, self.calls = stop_at, error, 0

    def set_image(self, image: Any) -> None:
        """Take it."""

    def decode(self, feed: Any) -> None:
        """Count."""
        self.calls += 1
        if self.calls == self.stop_at:
            raise self.error


def toy_kit(spec: DecoderSpec) -> Any:
    questions = Workload(spec, (), "none", 0)
    arrays = {"prompts.npz": prompt_arrays(questions), "parity.npz": {}}
    tensors = {"prompts": {tensor.name: list(tensor.shape) for tensor in spec.prompt_inputs}}
    return SimpleNamespace(arrays=arrays.__getitem__, says={"tensors": tensors, "latency": latency_rules()})


@pytest.mark.parametrize(
    ("error", "words"),
    [(KeyboardInterrupt(), "stopped by the user (Ctrl-C), in click"),
     (RuntimeError("the GPU\nfell off"), "lost in click: RuntimeError: the GPU fell off")],
)  # fmt: skip
def test_what_was_measured_stays_when_a_call_breaks_it_off(error: BaseException, words: str, monkeypatch: Any) -> None:
    clock = ticking(100_000_000)
    monkeypatch.setattr(latency, "now", lambda: next(clock))
    rows = [blank(scenario="click"), blank(scenario="batch8", prompts=8)]
    decoder: Any = Toy(10, error)
    assert latency.measure(toy_kit(sam1_spec()), decoder, 3.0, rows) == words
    assert (rows[0]["warm_up_calls"], len(rows[0]["samples_ns"])) == (3, 6)
    assert rows[1]["samples_ns"] == []


@pytest.mark.parametrize("spec", [sam1_spec(), sam2_spec(), sam1_spec(image_size=64, mask_input=True)])
def test_the_prompts_are_those_of_the_harness(spec: DecoderSpec) -> None:
    questions, kit = Workload(spec, (), "none", 0), toy_kit(spec)
    from samx.kits.runner.parity import part_of

    for scenario in SCENARIOS:
        found = list(latency.rounds(kit, part_of(kit.arrays("prompts.npz"), f"{scenario.name}.")))
        assert len(found) == ROUNDS
        for number in (0, 1, ROUNDS - 1):
            expected = questions.feed(scenario, number)
            assert set(found[number]) == set(expected) >= set(PROMPTS)
            assert all(np.array_equal(found[number][name], value) for name, value in expected.items())


def test_the_machine_part_needs_no_such_files(tmp_path: Path) -> None:
    from samx.kits.runner.machine import reading

    found = reading("MHz", str(tmp_path / "clock"), r"(\d+)", 1e-3)
    assert found["value"] is None
    assert found["reason"] == f"{tmp_path / 'clock'}: No such file or directory"
