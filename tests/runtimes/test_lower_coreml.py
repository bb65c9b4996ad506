"""What a Mac adds to an artifact while it is exported: compute plans, as evidence `lowered`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from coreml_toys import MANY, artifact, run_on
from fake_mac import FakeMac, pretend
from fake_mac import fake_mac as fake_mac

from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, UnavailableError
from samx.runtimes.coreml.compute_plan import PLAN_FILE, lower


@pytest.fixture
def directory(tmp_path: Path) -> Artifact:
    return artifact(tmp_path / "artifact", MANY)


def test_every_function_is_compiled_and_planned(directory: Artifact, fake_mac: FakeMac) -> None:
    run_on(fake_mac, directory)
    steps: list[str] = []
    lowered = lower(directory.path, directory.manifest, steps.append)
    report = json.loads((directory.path / PLAN_FILE).read_text())
    assert [plan["function"] for plan in report["plans"]] == list(MANY)
    assert report["level"] == "lowered"
    assert report["residency"] == {f"decoder.mlpackage/{name}": 0.5 for name in MANY}
    assert len(steps) == len(MANY)
    assert lowered.evidence.level == "lowered"
    assert lowered.evidence.device == "Apple M4, macOS 15.1"
    assert lowered.opened
    assert dict(lowered.files) == {PLAN_FILE: "compute_plan"}


def test_nothing_is_claimed_off_a_mac(directory: Artifact) -> None:
    with pytest.raises(UnavailableError, match="needs a Mac"):
        lower(directory.path, directory.manifest)
    assert not (directory.path / PLAN_FILE).exists()


def test_a_mac_that_cannot_run_the_functions_compiles_nothing(
    directory: Artifact, fake_mac: FakeMac, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "14.5")
    with pytest.raises(UnavailableError, match="several functions needs a newer macOS"):
        lower(directory.path, directory.manifest)
    assert not (directory.path / PLAN_FILE).exists()
    assert fake_mac.log == []


def test_what_core_ml_does_not_compile_is_no_evidence(directory: Artifact, fake_mac: FakeMac) -> None:
    run_on(fake_mac, directory)
    fake_mac.fault = RuntimeError("compiler says no")
    with pytest.raises(ArtifactError, match="compiler says no"):
        lower(directory.path, directory.manifest)
    assert not (directory.path / PLAN_FILE).exists()
