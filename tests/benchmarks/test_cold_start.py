"""A fresh process measures each step once, reports in one line, and its failure is a line too."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_artifacts import opener, toy_artifact, zeros
from bench_toys import MS, TimedSession
from fake_candidates import FakeClock

from samx.artifacts.store import Artifact
from samx.benchmarks import cold_start, processes
from samx.benchmarks.cold_start import main, start
from samx.benchmarks.processes import MARK
from samx.errors import SamxError

POINTS = {"point_coords": np.zeros((1, 2, 2), np.float32), "point_labels": np.array([[1, -1]], np.float32)}


def feed_file(path: Path, artifact: Path) -> Path:
    image = zeros(Artifact.open(artifact).manifest.spec)
    np.savez(path, **image, **POINTS)  # type: ignore[arg-type]
    return path


def asked(artifact: Path, feed: Path, calls: int = 0) -> str:
    words = {"artifact": str(artifact), "feed": str(feed), "device": "cpu", "threads": None, "calls": calls}
    return json.dumps(words)


def test_steps_are_timed_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact, clock = toy_artifact(tmp_path / "toy"), FakeClock()
    session = TimedSession(clock, "a", 20, Artifact.open(artifact).manifest.spec)

    def slow_import(reference: str) -> object:
        clock.now_ns += 300 * MS
        return opener(session, lambda: setattr(clock, "now_ns", clock.now_ns + 200 * MS))

    monkeypatch.setattr(cold_start, "load", slow_import)
    assert main(asked(artifact, feed_file(tmp_path / "feed.npz", artifact), 2), clock) == 0
    line = capsys.readouterr().out.strip()
    assert line.startswith(MARK)
    found = json.loads(line.removeprefix(MARK))
    assert (found["import_ns"], found["load_ns"]) == (300 * MS, 200 * MS)
    assert (found["first_call_ns"], found["calls_ns"]) == (25 * MS, [20 * MS] * 2)  # the first with its image
    assert found["peak"]["value"] > 2**20


def test_an_artifact_that_cannot_be_opened_is_a_line_and_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = toy_artifact(tmp_path / "toy")
    (artifact / "decoder.onnx").write_bytes(b"altered")
    assert main(asked(artifact, feed_file(tmp_path / "feed.npz", toy_artifact(tmp_path / "other")))) == 6
    captured = capsys.readouterr()
    assert "decoder.onnx has another size" in captured.err
    assert MARK not in captured.out


GOOD = {"import_ns": 1, "load_ns": 2, "first_call_ns": 3, "calls_ns": [4], "peak": {"value": 5}}


def started(monkeypatch: pytest.MonkeyPatch, program: str) -> dict[str, Any]:
    """Let a program of one line stand in for the child."""
    monkeypatch.setattr(cold_start, "CHILD", (sys.executable, "-c", program))
    return start(Path("toy"), "cpu", 3, POINTS, 0)


def test_what_a_library_prints_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    report = MARK + json.dumps(GOOD)
    found = started(monkeypatch, f"import sys; print('hello'); print({report!r}); sys.stderr.write('warning')")
    assert found == GOOD


def test_the_child_gets_the_prompts_device_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys, json, numpy\n"
        "asked = json.loads(sys.argv[1])\n"
        "assert (asked['device'], asked['threads'], asked['calls']) == ('cpu', 3, 0), asked\n"
        "feed = numpy.load(asked['feed'])\n"
        f"assert sorted(feed.files) == ['point_coords', 'point_labels']\nprint({MARK + json.dumps(GOOD)!r})"
    )
    assert started(monkeypatch, program)["load_ns"] == 2


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; print('cannot open', file=sys.stderr); sys.exit(6)", "exit code 6; its last words: cannot open"),
        ("pass", "exit code 0"),
        ("import os; os.abort()", "exit code -6"),
        (f"print('{MARK}1'); print('{MARK}2')", "exit code 0"),
        (f"print('{MARK}{{}}')", "its report has other fields"),
        (f"import sys; print({MARK + json.dumps(GOOD)!r}); sys.exit(1)", "exit code 1"),
    ],
)
def test_a_child_that_does_not_report_is_refused(monkeypatch: pytest.MonkeyPatch, program: str, words: str) -> None:
    with pytest.raises(SamxError, match=words):
        started(monkeypatch, program)


def test_a_child_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TIMEOUT_S", 0.2)
    with pytest.raises(SamxError, match=r"did not finish in 0\.2 s"):
        started(monkeypatch, "import time; time.sleep(60)")


def test_the_peak_is_that_of_this_program_alone(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("VmPeak:\t  999 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 1 kB\n")
    assert processes.peak_bytes("linux", status).value == 2 * 2**20
    status.write_text("Name: x\n")
    assert processes.peak_bytes("linux", status).reason == f"{status} has no VmHWM"
    assert "cannot be read" in str(processes.peak_bytes("linux", tmp_path / "missing").reason)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_does_not_come_from_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    held = np.ones(2**27 // 8)  # 128 MiB that a child inherits in getrusage
    program = (
        "import json\nfrom samx.benchmarks.processes import peak_bytes\n"
        f"print({MARK!r} + json.dumps({{**{GOOD!r}, 'peak': peak_bytes().to_json()}}))"
    )
    assert started(monkeypatch, program)["peak"]["value"] < held.nbytes
