"""A child process that does not report as agreed has shown nothing."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_child import TARGET, keys
from toy_sessions import SPECS, ToySession

from samx.artifacts.commit import seal, staging
from samx.artifacts.manifest import CheckpointEntry, Manifest
from samx.errors import ParityError
from samx.validators.cases import parity_cases
from samx.validators.child import gate_in_child
from samx.validators.report import ParityReport
from samx.validators.suite import ParitySuite

CHILD = Path(__file__).with_name("fake_child.py")
CHECKPOINT = CheckpointEntry("toy", "sam1", "0" * 64, 1)
ROLES = {"answers.npz": "decoder", "cases.npz": "parity_cases"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reference = ToySession(SPECS["sam1"])
    suite = ParitySuite.build(reference, cases=parity_cases(reference.spec)[:3])
    target = tmp_path_factory.mktemp("child") / "toy"
    with staging(target, overwrite=False) as directory:
        (directory / "answers.npz").write_bytes(_answers(reference, suite))
        suite.save(directory / "cases.npz")
        seal(directory, Manifest(TARGET, "fp32", reference.spec, CHECKPOINT), ROLES)
    return target


def _answers(session: ToySession, suite: ParitySuite) -> bytes:
    arrays = {}
    for case in suite.cases:
        image = suite.images[case.image]
        session.set_image(image)
        outputs = session.decode(case.prompts)
        for i, key in enumerate(keys(image, case.prompts)):
            arrays.update({f"{key}.{name}": value[i] for name, value in outputs.items()})
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def gate(artifact: Path, behaviour: str, timeout_s: float = 60, device: str = "cpu") -> ParityReport:
    command = (sys.executable, str(CHILD), behaviour)
    return gate_in_child(artifact, level="graph", device=device, timeout_s=timeout_s, command=command)


def test_honest_child_passes(artifact: Path) -> None:
    report = gate(artifact, "honest")
    assert report.passed
    assert len(report.cases) == report.suite["cases"] > 3
    assert report.suite["form"] == "stored"


def test_a_seed_repeats_a_run(artifact: Path) -> None:
    first = gate(artifact, "honest")
    command = (sys.executable, str(CHILD), "honest")
    again = gate_in_child(artifact, level="graph", seed=first.suite["seed"], command=command)
    other = gate_in_child(artifact, level="graph", seed=first.suite["seed"] + 1, command=command)
    assert [case.name for case in again.cases] == [case.name for case in first.cases]
    assert [case.name for case in other.cases] != [case.name for case in first.cases]
    longer = gate_in_child(artifact, level="graph", calls=50, command=command)
    assert longer.suite["calls_with_other_threads"] == 50


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [("wrong", "mask_iou_min"), ("fallback", "ran 1 operations on cpu"), ("raise", "driver says no")],
)
def test_failed_gate_is_a_failed_report(artifact: Path, behaviour: str, said: str) -> None:
    report = gate(artifact, behaviour, device="npu")
    assert not report.passed
    assert said in " ".join(report.all_failures())


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("segv", "killed by SIGSEGV"),
        ("segv after", "killed by SIGSEGV"),
        ("kill", "killed by SIGKILL"),
        ("abort", "killed by SIGABRT"),
        ("exit 0 early", "exit code 0, but it left no report"),
        ("exit 3 early", "exit code 3, but it left no report"),
        ("sys.exit", "exit code 0, but it left no report"),
        ("no report", "exit code 0, but it left no report"),
        ("crash before", "library missing"),
        ("stale", "belongs to another run"),
        ("truncated", "not valid JSON"),
        ("empty", "not valid JSON"),
        ("forged verdict", "contradicts itself"),
        ("exit 0 though failed", "exit code 0, but its report says failed"),
        ("exit 3 though passed", "exit code 3, but its report says passed"),
        ("exit 1 though passed", "exit code 1"),
    ],
)
def test_anything_else_is_no_verdict(artifact: Path, behaviour: str, said: str) -> None:
    with pytest.raises(ParityError, match="gave no verdict") as caught:
        gate(artifact, behaviour)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hanging_child_is_stopped(artifact: Path) -> None:
    with pytest.raises(ParityError, match="did not finish in time"):
        gate(artifact, "hang", timeout_s=3)


def test_real_child_without_a_backend(artifact: Path) -> None:
    with pytest.raises(ParityError, match=r"exit code 2; its last words: unknown export target: found 'fake'"):
        gate_in_child(artifact, level="graph")


def test_altered_artifact_is_not_judged(artifact: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", *ROLES):
        (tmp_path / name).write_bytes((artifact / name).read_bytes())
    with (tmp_path / "answers.npz").open("r+b") as file:
        file.write(b"XX")
    with pytest.raises(ParityError, match=r"exit code 6; .* was altered"):
        gate(tmp_path, "honest")


def test_suite_from_another_file(artifact: Path, tmp_path: Path) -> None:
    command = (sys.executable, str(CHILD), "honest")
    copy = tmp_path / "cases.npz"
    copy.write_bytes((artifact / "cases.npz").read_bytes())
    assert gate_in_child(artifact, level="graph", suite=copy, threads=1, command=command).passed
    with pytest.raises(ParityError, match=r"parity suite .* does not exist"):
        gate_in_child(artifact, level="graph", suite=tmp_path / "absent", command=command)
