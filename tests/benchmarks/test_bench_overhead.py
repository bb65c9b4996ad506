"""Time is read in one place; everything else is handed a clock."""

from __future__ import annotations

import ast
from pathlib import Path
from statistics import median
from time import process_time_ns

import pytest
from fake_candidates import FakeClock

import samx.commands.bench
from samx import benchmarks
from samx.benchmarks.interleave import Candidate, Clock, Effort, Sampling, step_ns

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


def cost_us(clock: Clock, calls: int) -> tuple[float, float]:
    """Time calls that do nothing. Units: microseconds inside the timed span, and of a call in all."""
    nothing = Candidate("nothing", 1, lambda argument: argument, lambda number: number)
    sampling = Sampling([nothing], Effort(0, least=calls, wanted=calls, warm_up_s=0), clock)
    sampling.run()
    return median(sampling.samples[0].call_ns) / 1e3, (sampling.end_ns - sampling.start_ns) / 1e3 / calls


def test_the_loop_reads_the_clock_twice_a_call_and_once_a_round() -> None:
    fake = FakeClock()

    def ticking() -> int:
        fake.now_ns += 500
        return fake.now_ns

    counted, whole = cost_us(ticking, 100)
    assert counted == 0.5
    assert whole == pytest.approx(1.5)


def test_a_call_costs_less_than_20_microseconds() -> None:
    """In time of the processor: what else runs on the machine is not the harness."""
    assert min(cost_us(process_time_ns, 500)[1] for _ in range(20)) < 20
