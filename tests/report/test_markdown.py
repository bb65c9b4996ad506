"""The comment says what matters, and nobody's text becomes its markup."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from report_toys import bench_report, device, many_devices, slower

from samx.benchmarks.report.baseline import compare
from samx.benchmarks.report.markdown import markdown
from samx.benchmarks.report.runs import Run
from samx.benchmarks.results import BenchReport

BASE = Run("baseline", Path("base.json"), bench_report(seed=2))


def run(report: BenchReport, key: str = "A") -> Run:
    return Run(key, Path("new.json"), report)


def test_the_table_has_every_artifact_with_its_proof_and_place() -> None:
    text = markdown([run(report, key) for key, report in zip("ABCD", many_devices(), strict=True)], None)
    rows = [
        line for line in text.splitlines() if line.startswith(("| A", "| B", "| C", "| D")) and "prompts" not in line
    ]
    cells = [row for row in rows if "on cpu" in row]
    assert len(cells) == 7
    assert all(any(agreement in row for agreement in ("1.0000", "0.9991", "0.9874")) for row in cells)
    assert "**throttled** the GPU's clocks were held down" in text
    assert "**partial** the run ended before its end" in text


def test_a_regression_stands_at_the_top() -> None:
    found = compare((new := run(slower(bench_report(seed=1), 1.2)),), BASE)
    text = markdown([new], found)
    assert text.splitlines()[2].startswith("**2 of 20 results became slower than the baseline")
    assert "| slower |" in text
    assert "too few samples" in text


def test_doubtful_changes_say_why() -> None:
    hot = slower(bench_report(where=device(flags=["macOS recorded a thermal warning"])), 1.2)
    found = compare((new := run(hot),), BASE)
    assert "doubtful: this run: macOS recorded a thermal warning" in markdown([new], found)


def test_names_are_no_markup_and_mention_nobody() -> None:
    report = bench_report({"fp32": 11.0})
    record = replace(report.subjects[0], target="<b>|@you `x`")
    text = markdown([run(replace(report, subjects=(record,)))], None)
    assert "\\<b\\>\\|@\u200byou \\`x\\`" in text
    assert "<b>" not in text


def test_tables_are_whole() -> None:
    text = markdown([run(bench_report(compared=True))], compare((run(slower(bench_report(seed=1), 1.2)),), BASE))
    tables = [block.splitlines() for block in re.split(r"\n\n+", text) if block.startswith("| ")]
    assert len(tables) == 3
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
