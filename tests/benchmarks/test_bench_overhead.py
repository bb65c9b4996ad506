"""Time is read in one place; everything else is handed a clock."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from fake_candidates import FakeClock

import samx.commands.bench
from samx import benchmarks
from samx.benchmarks import harness
from samx.benchmarks.interleave import step_ns

FOLDER = Path(benchmarks.__file__).parent
LIBRARY = Path(samx.commands.bench.__file__)


def reads_time(source: str) -> bool:
    """Tell whether a module imports time or timeit, whatever it calls them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return bool(names & {"time", "timeit"})


@pytest.mark.parametrize("path", [*sorted(FOLDER.rglob("*.py")), LIBRARY], ids=lambda path: path.stem)
def test_only_the_clock_reads_time(path: Path) -> None:
    assert reads_time(path.read_text()) is (path.name == "interleave.py")


@pytest.mark.parametrize("source", ["import time", "def f():\n    from time import sleep", "import timeit as t"])
def test_a_planted_reading_is_found(source: str) -> None:
    assert reads_time(source)


def test_the_step_of_a_clock_is_its_smallest() -> None:
    readings = iter([0, 0, 0, 100, 100, 140, 240] + [240] * 2000)
    assert step_ns(lambda: next(readings)) == 40
    assert step_ns(lambda: 7) == 0
    assert step_ns() > 0


def test_overhead_tells_the_loop_from_what_is_counted() -> None:
    fake = FakeClock()

    def ticking() -> int:
        fake.now_ns += 500
        return fake.now_ns

    counted_us, loop_us, step_us = harness.overhead(ticking, calls=100)
    assert counted_us == 0.5
    assert loop_us == pytest.approx(1.5)  # two readings a call, one a round
    assert step_us == 0.5


def test_the_program_tells_its_bound(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "overhead", lambda: (0.1, 3.0, 0.04))
    assert harness.main() == 0
    assert "3.00 us in the loop (bound 20)" in capsys.readouterr().out
    monkeypatch.setattr(harness, "overhead", lambda: (0.1, 20.1, 0.04))
    assert harness.main() == 1
