"""The circumstances are read from the system, or are unknown; never guessed."""

from __future__ import annotations

import sys
from pathlib import Path

from samx.benchmarks import environment
from samx.devices import cpu
from samx.devices.adapter import Tree


def test_names_the_machine_and_the_libraries() -> None:
    facts = environment.benchmark_environment()
    assert {"cpu", "isa", "governor", "cpus_usable", "load_1min", "onnxruntime", "torch", "numpy"} <= set(facts)
    assert int(facts["cpus_usable"]) >= 1


def test_the_processor_is_described_by_what_the_system_tells(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nflags\t\t: fpu avx2 fma avx512f sse\n")
    (tmp_path / "proc/loadavg").write_text("0.25 0.10 0.05 1/100 42\n")
    facts = environment.benchmark_environment(Tree(tmp_path))
    assert facts["isa"] == "avx2 fma avx512f"
    assert sys.platform == "darwin" or facts["load_1min"] == "0.25"


def test_unknown_stays_unknown(tmp_path: Path) -> None:
    facts = environment.benchmark_environment(Tree(tmp_path))
    assert (facts["isa"], facts["governor"]) == ("unknown", "unknown")
    assert sys.platform == "darwin" or facts["load_1min"] == "unknown"


def test_a_busy_machine_is_called_busy() -> None:
    assert cpu.busy(1.5, 2)
    assert not cpu.busy(0.9, 2)
