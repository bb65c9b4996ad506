"""A report is read back as it was written, and anything else is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_toys import toy_report, toy_result

from samx.benchmarks.results import BenchReport
from samx.errors import ArtifactError, WriteError

Document = dict[str, Any]


def document() -> Document:
    found: Document = json.loads(toy_report().to_bytes())
    return found


def refusal(change: Callable[[Document], object]) -> str:
    """Change a good report and give the line that refuses it."""
    damaged = document()
    change(damaged)
    with pytest.raises(ArtifactError) as caught:
        BenchReport.from_bytes(json.dumps(damaged).encode(), "report")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 6
    return str(caught.value)


def test_comes_back_as_it_was_written(tmp_path: Path) -> None:
    report = toy_report()
    report.save(tmp_path / "report.json")
    assert BenchReport.load(tmp_path / "report.json") == report
    assert BenchReport.from_bytes(report.to_bytes(), "report") == report


def test_says_what_the_samples_say() -> None:
    first = document()["results"][0]
    assert first["samples_ns"] == [20_000_000, 22_000_000, 24_000_000]
    assert (first["summary"]["median_ms"], first["summary"]["p90_ms"], first["summary"]["p99_ms"]) == (22, None, None)
    assert first["prompts_per_second"] == pytest.approx(3 / 0.066)
    assert (document()["format"], document()["schema_version"]) == ("samx-benchmark-report", 2)


def test_throughput_is_that_of_all_calls_and_not_of_the_median() -> None:
    slow_tail = toy_result(times_ms=[10] * 9 + [910], prompts=8)
    assert slow_tail.summary.median_ms == 10
    assert slow_tail.prompts_per_second == 80
    assert toy_result(prompts=0, points=()).prompts_per_second is None


@pytest.mark.parametrize("version", [0, 1, 3, "2", 2.0, True, None])
def test_other_schema_versions_are_refused(version: object) -> None:
    assert "another format" in refusal(lambda data: data.update(schema_version=version))


def test_other_formats_and_fields_are_refused() -> None:
    assert "another format" in refusal(lambda data: data.update(format="samx-parity-report"))
    assert "unknown surprise" in refusal(lambda data: data.update(surprise=1))
    assert "no device" in refusal(lambda data: data.pop("device"))
    assert "no summary" in refusal(lambda data: data["results"][0].pop("summary"))


@pytest.mark.parametrize("cut", [0, 1, 100, -2])
def test_truncated_json_is_refused(cut: int) -> None:
    with pytest.raises(ArtifactError, match="report is not valid JSON"):
        BenchReport.from_bytes(toy_report().to_bytes()[:cut], "report")


def test_nan_is_refused() -> None:
    assert "not valid JSON" in refusal(lambda data: data.update(seconds=float("nan")))
    assert "not valid JSON" in refusal(lambda data: data["ratios"][0].update(high=float("inf")))
    with pytest.raises(ValueError, match="not JSON compliant"):
        toy_report(seconds=float("nan")).to_bytes()


@pytest.mark.parametrize("sample", [0, -5, 1.5, "7", None, True])
def test_samples_that_are_no_times_are_refused(sample: object) -> None:
    assert "samples_ns 1 " in refusal(lambda data: data["results"][0]["samples_ns"].__setitem__(1, sample))


def test_a_summary_that_the_samples_deny_is_refused() -> None:
    def of(name: str, value: object) -> Callable[[Document], object]:
        return lambda data: data["results"][0]["summary"].update({name: value})

    assert "summary: median_ms: the file contradicts itself" in refusal(of("median_ms", 2.2))
    assert "summary: p90_ms: the file contradicts itself" in refusal(of("p90_ms", 24.0))
    assert "summary: unstable: the file contradicts itself" in refusal(of("unstable", True))
    assert "prompts_per_second: the file contradicts itself" in refusal(
        lambda data: data["results"][0].update(prompts_per_second=1e6)
    )
    assert "flags: the file contradicts itself" in refusal(lambda data: data["results"][0].update(flags=["noisy"]))
    assert "summary: count: the file contradicts itself" in refusal(
        lambda data: data["results"][0]["samples_ns"].append(99)
    )


def test_a_ratio_that_the_samples_deny_is_refused() -> None:
    assert "deny the ratio" in refusal(lambda data: data["ratios"][0].update(value=3.0))
    assert "deny the ratio" in refusal(lambda data: data["ratios"][0].update(low=2.2))
    assert "two results" in refusal(lambda data: data["ratios"][0].update(scenario="box"))


def test_a_subject_without_passed_parity_is_refused() -> None:
    def parity(**values: object) -> Callable[[Document], object]:
        return lambda data: data["subjects"][1]["parity"].update(values)

    assert "did not pass" in refusal(parity(verdict="failed"))
    assert "did not pass" in refusal(parity(cases=0))
    assert "did not pass" in refusal(parity(metrics={}))
    assert "wrong type" in refusal(lambda data: data["subjects"][1].update(parity=None))


def test_results_belong_to_one_subject_and_come_once() -> None:
    assert "does not describe" in refusal(lambda data: data["results"][1].update(subject="c"))
    assert "twice" in refusal(lambda data: data["results"][1].update(subject="a"))
    assert "twice" in refusal(lambda data: data["subjects"][1].update(name="a"))
    assert "unknown phase" in refusal(lambda data: data["results"][0].update(phase="warm"))


def test_only_a_partial_report_may_be_empty() -> None:
    def empty(data: Document) -> None:
        data.update(results=[], ratios=[])

    assert "holds no result" in refusal(empty)
    assert BenchReport.from_bytes(toy_report(results=(), ratios=(), partial="stopped").to_bytes(), "report").partial


def test_what_could_not_be_read_has_a_reason_and_nothing_else_has() -> None:
    def before(**values: object) -> Callable[[Document], object]:
        return lambda data: data["device"]["kinds"]["cpu"]["before"]["power"].update(values)

    assert "is no reading" in refusal(before(value=None))
    assert "is no reading" in refusal(before(reason="and yet"))
    assert "is no reading" in refusal(before(value=[1]))
    assert "is no reading" in refusal(lambda data: data["results"][0]["energy_mj"].update(reason=None))
    assert "readings: cpu: x has the wrong type" in refusal(
        lambda data: data["device"]["samples"][0]["readings"]["cpu"].update(x=None)
    )


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        BenchReport.load(tmp_path / "missing.json")
    with pytest.raises(WriteError):
        toy_report().save(tmp_path / "no" / "folder" / "report.json")


def test_finds_a_result() -> None:
    report = toy_report()
    assert report.find("b", "click") is report.results[1]
    assert report.find("b", "click", "transfer") is None
