"""The roofline: what calls need beside what the machine reaches, and what is left out of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_artifacts import ROLES, SMALL, ConeSession, toy_parity, toy_suite
from bench_toys import toy_report, toy_result, toy_subject

from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.artifacts.store import Artifact
from samx.benchmarks import roofline as measuring
from samx.benchmarks.operations import count
from samx.benchmarks.results import BenchReport, Need, Roofline
from samx.benchmarks.roofline import Peaks, copy_rate, peaks, product_rate, rooflines
from samx.benchmarks.scenarios import Workload
from samx.benchmarks.subjects import Subject
from samx.errors import ArtifactError, SamxError

PEAKS = {"threads": 2, "multiply_adds_per_s": 1e9, "bytes_per_s": 1e10}
GOOD = {"form": "absorbed", "cached": False, "split": False, "slots": False}


@pytest.fixture
def subject(tmp_path: Path) -> Callable[[dict[str, Any]], Subject]:
    def make(options: dict[str, Any]) -> Subject:
        with staging(tmp_path / "toy", overwrite=False) as directory:
            (directory / "decoder.onnx").write_bytes(b"no model")
            toy_suite(SMALL).save(directory / "parity_cases.npz")
            toy_parity(SMALL).save(directory / "parity_report.json")
            entry = CheckpointEntry("toy", "toy", "7" * 64, 3)
            seal(directory, Manifest("onnx", "fp32", SMALL, entry, options), ROLES)
        described = replace(toy_subject("toy"), form=options["form"], options=options)
        return Subject(ConeSession(SMALL), described, Artifact.open(tmp_path / "toy"))

    return make


def found(subject: Subject, scenario: str = "batch8", device: str = "cpu", measure: Any = lambda _: PEAKS) -> Any:
    one = toy_result("toy", scenario=scenario, prompts=8 if scenario == "batch8" else 1, points=(2,))
    workload = Workload(SMALL, toy_suite(SMALL).images, "toy", 0)
    return next(iter(rooflines([subject], workload, [one], device, 2, measure)), None)


def test_a_call_needs_its_products_and_its_bytes_once(subject: Callable[[dict[str, Any]], Subject]) -> None:
    line = found(subject(GOOD))
    of_image, of_prompt, _ = count(SMALL, "absorbed", 2, cached=False)
    image = SMALL.width * SMALL.grid**2 * 4
    masks = 8 * SMALL.masks_out * SMALL.mask_size**2 * 4
    assert line.needs == (Need("toy", "batch8", of_image + 8 * of_prompt, len(b"no model") + image + masks),)
    assert (line.threads, line.multiply_adds_per_s["value"], line.bytes_per_s["value"]) == (2, 1e9, 1e10)


def test_the_image_is_worked_on_where_it_is_new_only(subject: Callable[[dict[str, Any]], Subject]) -> None:
    kept = subject({**GOOD, "form": "low_rank", "cached": True, "split": True})
    of_image, of_prompt, _ = count(SMALL, "low_rank", 2, cached=True)
    assert found(kept).needs[0].multiply_adds == 8 * of_prompt
    assert found(kept, "image").needs[0].multiply_adds == of_image + of_prompt


@pytest.mark.parametrize(
    ("options", "scenario"),
    [
        ({**GOOD, "form": "heads"}, "batch8"), ({**GOOD, "slots": True}, "batch8"), ({"form": "absorbed"}, "batch8"),
        (GOOD, "refine"), (GOOD, "cold"),
    ],
)  # fmt: skip
def test_what_is_not_counted_has_no_roof(
    subject: Callable[[dict[str, Any]], Subject], options: dict[str, Any], scenario: str
) -> None:
    def never(threads: int | None) -> Peaks:
        raise AssertionError("nothing to set beside it")

    assert found(subject(options), scenario, measure=never) is None


def test_a_gpu_has_no_measured_peak_and_says_why(subject: Callable[[dict[str, Any]], Subject]) -> None:
    line = found(subject(GOOD), device="cuda", measure=None)
    assert line.bytes_per_s["value"] is None
    assert "processors only" in line.bytes_per_s["reason"]
    assert line.share(line.needs[0], 1.0) is None


def test_peaks_that_fail_do_not_lose_the_report(subject: Callable[[dict[str, Any]], Subject]) -> None:
    def failing(threads: int | None) -> Peaks:
        raise SamxError("a fresh process gave no measurement")

    line = found(subject(GOOD), measure=failing)
    assert line.needs
    assert "no measurement" in line.multiply_adds_per_s["reason"]


def test_the_share_is_the_higher_of_both_needs() -> None:
    line = Roofline(1, {"value": 1e9}, {"value": 1e9}, ())
    assert line.share(Need("toy", "click", 1_000_000, 3_000_000), 6.0) == pytest.approx(0.5)
    assert line.share(Need("toy", "click", 6_000_000, 3_000_000), 6.0) == pytest.approx(1.0)


def test_the_best_try_counts() -> None:
    ticks = iter([0, 0, 3_000_000, 3_000_000, 4_000_000, 4_000_000, 6_000_000])
    assert product_rate(lambda: next(ticks), 0.006, side=100) == pytest.approx(100**3 / 1e-3)


def test_a_copy_is_read_and_written() -> None:
    now = iter(range(0, 10**12, 10**6))
    assert copy_rate(2, lambda: next(now), 0.001, size=4000) == pytest.approx(2 * 4000 / 1e-3)


def test_peaks_come_from_a_process_with_as_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def report_of(command: list[str], fields: list[str], variables: dict[str, str]) -> dict[str, Any]:
        asked.update(variables, command=command)
        return {"threads": 3, "multiply_adds_per_s": 1.0, "bytes_per_s": 2.0}

    monkeypatch.setattr(measuring, "report_of", report_of)
    assert peaks(3) == {"threads": 3, "multiply_adds_per_s": 1.0, "bytes_per_s": 2.0}
    assert asked["command"][-1:] == ["3"]
    assert {asked[name] for name in measuring.THREAD_VARIABLES} == {"3"}


def test_the_program_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import samx.benchmarks.roofline as p; p.product_rate = lambda: 1.0; p.copy_rate = lambda n: n * 2.0"
    monkeypatch.setattr(measuring, "CHILD", (sys.executable, "-c", f"import sys; {program}; p.main(int(sys.argv[1]))"))
    assert peaks(2) == {"threads": 2, "multiply_adds_per_s": 1.0, "bytes_per_s": 4.0}


def test_a_report_keeps_its_roofline(tmp_path: Path) -> None:
    reading = {"value": 1.5, "unit": "bytes/s", "reason": None}
    first = toy_report().subjects[0].name
    report = replace(toy_report(), rooflines=(Roofline(None, reading, reading, (Need(first, "click", 3, 4),)),))
    report.save(tmp_path / "report.json")
    assert BenchReport.load(tmp_path / "report.json") == report


def test_a_roofline_of_nobody_is_refused() -> None:
    reading = {"value": 1.5, "unit": "bytes/s", "reason": None}
    report = replace(toy_report(), rooflines=(Roofline(None, reading, reading, (Need("nobody", "click", 3, 4),)),))
    with pytest.raises(ArtifactError, match="nobody"):
        BenchReport.from_bytes(report.to_bytes(), "report")


def test_counts_below_zero_are_refused() -> None:
    reading = {"value": 1.5, "unit": "bytes/s", "reason": None}
    first = toy_report().subjects[0].name
    body = replace(
        toy_report(), rooflines=(Roofline(None, reading, reading, (Need(first, "click", -3, 4),)),)
    ).to_json()
    with pytest.raises(ArtifactError, match="multiply_adds"):
        BenchReport.from_bytes(json.dumps(body).encode(), "report")


def test_products_are_of_the_size_that_is_counted() -> None:
    assert np.isfinite(product_rate(seconds=0.001, side=64))
