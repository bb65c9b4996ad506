"""The demo artifact, measured for real: every quick scenario, in a run that Ctrl-C ends, and from beginning to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from samx.benchmarks.harness import INTERRUPTED
from samx.benchmarks.results import BenchReport
from samx.commands.bench import bench

pytestmark = pytest.mark.slow
PROGRAM = """
import sys
from pathlib import Path
from samx.commands.bench import bench
bench([Path(sys.argv[1])], seconds=60, scenarios=["click"], output=Path(sys.argv[2]),
      progress=lambda text, *place: print(text, flush=True))
"""


def test_quick_measures_its_scenarios(demo_artifact: Path, tmp_path: Path) -> None:
    report = bench([demo_artifact, demo_artifact], quick=True, output=tmp_path / "report.json")
    assert report.partial is None
    assert BenchReport.load(tmp_path / "report.json") == report
    assert {result.scenario for result in report.results} == {"click", "box", "batch8", "cold"}
    assert all(ratio.low < 1.2 and ratio.high > 0.8 for ratio in report.ratios)  # the same artifact, in turns


def test_a_fresh_process_knows_its_memory(demo_artifact: Path) -> None:
    (result,) = bench([demo_artifact], scenarios=["memory"]).results
    assert result.peak_bytes is not None
    assert 2**27 < result.peak_bytes["value"] < 2**31


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_leaves_a_marked_report(demo_artifact: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-c", PROGRAM, str(demo_artifact), str(report)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if "click, steady" in line:
                break
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(2)
        os.kill(child.pid, signal.SIGINT)
        child.stdout.read()
        assert child.wait(60) == 0
    found = BenchReport.load(report)
    assert found.partial == f"{INTERRUPTED}, in click, steady"
