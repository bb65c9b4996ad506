"""samx build finishes an artifact on the device, whole or not at all, and does nothing where nothing is to be done."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from engine_toys import MODEL, SPEC, built_toy, toy_artifact, toy_onnx, toy_plan
from engine_toys import home as home

import samx.commands.build as finishing
from samx.artifacts import trust as trusted
from samx.artifacts.commit import seal
from samx.artifacts.manifest import Evidence, Manifest
from samx.artifacts.store import Artifact
from samx.commands.build import build, trust
from samx.errors import ArtifactError, UnavailableError, UsageError
from samx.formats.tensorrt.library import library_of

pytestmark = pytest.mark.usefixtures("home")
NOW = "2026-01-01T00:00:00+00:00"


def content(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in sorted(path.iterdir())}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return toy_artifact(tmp_path / "toy")


@pytest.fixture
def built(tmp_path: Path) -> Path:
    return built_toy(tmp_path / "toy")


def reseal(path: Path, manifest: Manifest, more: Mapping[str, str] = {}) -> None:
    roles = {name: entry.role for name, entry in manifest.files.items()}
    seal(path, manifest, {**roles, **more})


def test_an_engine_is_built_into_the_artifact(path: Path) -> None:
    steps: list[str] = []
    before = content(path)
    result = build(path, progress=lambda text, *_: steps.append(text))
    artifact = Artifact.open(path)
    assert result["built"]
    assert "there was none" in result["summary"]
    assert {"decoder.engine", "engine.json", "lowering.json"} == set(artifact.manifest.files) - set(before)
    assert {name: content(path)[name] for name in before if name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }
    (evidence,) = artifact.manifest.evidence
    assert (evidence.level, evidence.report, evidence.passed) == ("lowered", "lowering.json", True)
    assert evidence.runtime.startswith("TensorRT for RTX 1.7")
    assert evidence.device == "none, compiled for ampere_plus"
    assert artifact.manifest.tools["tensorrt_rtx"].startswith("1.7")
    assert any("Building the TensorRT for RTX" in step for step in steps)


def test_the_report_claims_no_more_than_lowered(path: Path) -> None:
    build(path)
    report = json.loads((path / "lowering.json").read_bytes())
    assert report["level"] == "lowered"
    assert "nothing was run" in report["shows"]
    assert report["engine"] == {"read_back": None, "reason": "an engine is opened on a GPU only, and none is here"}
    assert report["log"]["messages"] == []
    assert report["engine_bytes"] == (path / "decoder.engine").stat().st_size
    assert report["memory"]["scratch_bytes"] is not None
    assert report["network"]["profiles"][0]["point_labels"] == [[1, 1], [2, 2], [4, 3]]


def test_an_engine_that_belongs_here_is_left_alone(built: Path) -> None:
    before = content(built)
    result = build(built)
    assert not result["built"]
    assert result["summary"] == f"{built} is up to date"
    assert content(built) == before


def test_force_builds_anew(built: Path) -> None:
    assert build(built, force=True)["reasons"] == ("asked for",)


def edit_stamp(path: Path, **machine: str) -> None:
    stamp = json.loads((path / "engine.json").read_bytes())
    stamp["machine"].update(machine)
    (path / "engine.json").write_text(json.dumps(stamp))
    reseal(path, Artifact(path, Manifest.from_bytes((path / "manifest.json").read_bytes(), "toy")).manifest)


def test_an_engine_of_another_version_is_built_anew(built: Path) -> None:
    edit_stamp(built, version="1.6.0.1")
    result = build(built)
    assert result["reasons"] == (
        f"built with TensorRT for RTX 1.6.0.1, here is {library_of('trt-rtx').start().version}",
    )
    assert not build(built)["built"]


def test_a_stamp_that_cannot_be_read_is_no_stamp(built: Path) -> None:
    (built / "engine.json").write_text("{}")
    reseal(built, Manifest.from_bytes((built / "manifest.json").read_bytes(), "toy"))
    assert "has another format" in build(built)["reasons"][0]


def test_an_engine_of_somebody_else_is_built_anew(built: Path) -> None:
    trusted.trust_file().unlink()
    assert build(built)["reasons"] == ("it was not built or named by this user",)


def test_a_stamp_of_another_engine_is_seen(built: Path) -> None:
    (built / "decoder.engine").write_bytes(b"another engine")
    reseal(built, Manifest.from_bytes((built / "manifest.json").read_bytes(), "toy"))
    assert "its stamp is of another engine" in build(built)["reasons"]


def test_what_an_older_engine_showed_is_dropped_and_the_rest_is_kept(tmp_path: Path) -> None:
    def reports(directory: Path) -> Mapping[str, str]:
        (directory / "graph.json").write_text("{}")
        return {"graph.json": "parity_report"}

    path = toy_artifact(tmp_path / "toy", more=reports)
    graph = Evidence("graph", "graph.json", True, "onnxruntime", "cpu", NOW)
    reseal(path, replace(Artifact.open(path).manifest, evidence=(graph,)))
    build(path)
    manifest = Artifact.open(path).manifest
    (path / "device.json").write_text("{}")
    device = Evidence("device", "device.json", True, "tensorrt_rtx", "Toy GPU", NOW)
    reseal(path, replace(manifest, evidence=(*manifest.evidence, device)), {"device.json": "device_report"})
    build(path, force=True)
    after = Artifact.open(path).manifest
    assert [entry.level for entry in after.evidence] == ["graph", "lowered"]
    assert "device.json" not in after.files
    assert "graph.json" in after.files


@pytest.mark.parametrize("error", [ArtifactError("planted"), UnavailableError("planted"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_the_artifact_as_it_was(
    error: BaseException, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(built)

    def fail(directory: Path, *arguments: object) -> None:
        (directory / "decoder.engine").write_bytes(b"half")
        raise error

    monkeypatch.setattr(finishing, "lower", fail)
    with pytest.raises(type(error)):
        build(built, force=True)
    assert content(built) == before
    assert [entry.name for entry in built.parent.iterdir() if "toy" in entry.name] == ["toy"]


def test_another_graph_than_planned_is_refused(tmp_path: Path) -> None:
    path = toy_artifact(tmp_path / "toy", data=toy_onnx() + b"\x00", plan=toy_plan())
    with pytest.raises(ArtifactError, match="is not the file that was planned for: found sha256"):
        build(path)


def test_an_altered_graph_is_refused(path: Path) -> None:
    (path / MODEL).write_bytes(b"altered")
    with pytest.raises(ArtifactError, match="another size"):
        build(path)


@pytest.mark.parametrize("act", [build, trust])
def test_a_target_without_engines_is_refused(act: object, demo_artifact: Path) -> None:
    assert callable(act)
    with pytest.raises(UsageError, match="no engine to build: found target 'onnx', expected trt or trt-rtx"):
        act(demo_artifact)


def test_a_plan_for_another_target_or_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is for another target: found trt, expected trt-rtx"):
        build(toy_artifact(tmp_path / "a", plan=toy_plan("trt")))
    with pytest.raises(ArtifactError, match="other tensors than the manifest's decoder"):
        build(toy_artifact(tmp_path / "b", spec=replace(SPEC, masks="single")))


def test_an_engine_is_trusted_after_its_hash_was_shown(built: Path) -> None:
    trusted.trust_file().unlink()
    shown: list[str] = []
    result = trust(built, progress=lambda text, *_: shown.append(text))
    assert shown == [f"{built / 'decoder.engine'} has sha256 {result['sha256']}"]
    assert trusted.is_trusted(result["sha256"])
    assert not build(built)["built"]


def test_only_an_engine_that_is_there_and_whole_is_trusted(path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no engine yet"):
        trust(path)
    build(path)
    trusted.trust_file().unlink()
    (path / "decoder.engine").write_bytes(b"tampered")
    with pytest.raises(ArtifactError, match="another size"):
        trust(path)
    assert not trusted.trust_file().exists()


CHILD = """
import sys
for library in ("torch", "onnx", "onnxruntime", "safetensors"):
    sys.modules[library] = None
from pathlib import Path
from samx.commands.build import build
print(build(Path(sys.argv[1]))["built"])
"""


def test_building_needs_numpy_and_the_library_alone(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.strip() == "True", done.stderr


def test_a_copy_elsewhere_is_the_same_artifact(built: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(built, tmp_path / "copy"))
    assert not build(copy)["built"]
    assert content(copy) == content(built)
