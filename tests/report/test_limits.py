"""How near the limits: what the page says and draws of it, and what it leaves out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_toys import bench_report

from samx.benchmarks.report.page import page
from samx.benchmarks.report.pictures import pictures
from samx.benchmarks.report.runs import Run
from samx.benchmarks.report.tables import Limit, limits, unknown_limits
from samx.benchmarks.results import BenchReport, Need, Roofline

ADDS, BYTES = 11_000_000, 2_000_000
REPORT = bench_report({"fp32": 22.0, "int8": 11.0}, noise=0.0)
A, B = (subject.name for subject in REPORT.subjects)


def reading(value: float | None, unit: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "reason": None if value else "peaks are measured on processors only"}


def run(*needs: Need, products: float | None = 2e9, copies: float | None = 1e9) -> Run:
    line = Roofline(1, reading(products, "multiply-adds/s"), reading(copies, "bytes/s"), needs)
    return Run("A", Path("a.json"), replace(REPORT, rooflines=(line,)))


def found(one: Run) -> list[Limit]:
    return limits(one, one.report.rooflines[0])


def test_what_was_reached_is_a_share_of_the_roof() -> None:
    one = run(Need(B, "click", ADDS, BYTES))
    ((entry, adds_per_byte, adds_per_s, words),) = found(one)
    took_ms = one.report.find(B, "click").summary.median_ms  # type: ignore[union-attr]  # it is there
    assert entry.subject.name == B
    assert adds_per_s == pytest.approx(ADDS / took_ms * 1e3)
    assert adds_per_byte == pytest.approx(5.5)
    share = 100 * 5.5 / took_ms  # the products' peak would need 5.5 ms
    assert f"11.0 million a prompt, {adds_per_s / 1e9:.2f} G/s, {share:.1f}" in words


def test_the_picture_shows_both_limits_and_every_call() -> None:
    (picture,) = pictures([run(Need(A, "click", ADDS, BYTES), Need(B, "click", ADDS, BYTES))], ())["roofs"]
    assert "2.00 G/s" in picture["svg"]
    assert "1.00 GB/s" in picture["svg"]
    assert [meaning[:1] for _, meaning in picture["legend"]] == ["1", "2"]
    assert "1 thread" in picture["title"]


def test_unknown_peaks_are_said_and_not_drawn() -> None:
    gone = run(Need(A, "click", ADDS, BYTES), copies=None)
    assert pictures([gone], ())["roofs"] == []
    assert unknown_limits([gone]) == [("peaks of A", "peaks are measured on processors only")]
    assert "processors only" in page([gone], None)


def test_a_report_without_a_roofline_has_no_such_section() -> None:
    plain: BenchReport = REPORT
    assert 'id="limits"' not in page([Run("A", Path("a.json"), plain)], None)
    assert 'id="limits"' in page([run(Need(B, "click", ADDS, BYTES))], None)


def test_a_scenario_without_a_steady_time_is_left_out() -> None:
    assert found(run(Need(B, "refine", ADDS, BYTES))) == []
