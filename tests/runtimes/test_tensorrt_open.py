"""Opening an engine: what is not trusted, not whole or not of this machine is refused before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engine_toys import built_toy, toy_artifact
from engine_toys import home as home
from fake_gpu import FakeDevice

from samx.artifacts import trust
from samx.artifacts.commit import seal
from samx.artifacts.manifest import Manifest
from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, UnavailableError, UsageError
from samx.formats.tensorrt.stamp import Gpu
from samx.runtimes.tensorrt import runtime as tensorrt

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def built(tmp_path: Path) -> Artifact:
    """A real artifact with a real engine."""
    return Artifact.open(built_toy(tmp_path / "toy"))


def test_without_a_gpu_the_device_is_unavailable(built: Artifact) -> None:
    with pytest.raises(UnavailableError, match="no NVIDIA driver is here") as caught:
        tensorrt.open_artifact(built)
    assert caught.value.exit_code == 5
    assert tensorrt.devices() == []


def test_another_device_or_threads_are_refused(built: Artifact) -> None:
    with pytest.raises(UnavailableError, match="found 'cpu', expected cuda"):
        tensorrt.open_artifact(built, device="cpu")
    with pytest.raises(UsageError, match="found --threads 2"):
        tensorrt.open_artifact(built, threads=2)


def test_an_artifact_that_is_not_finished_says_how(tmp_path: Path) -> None:
    path = toy_artifact(tmp_path / "toy")
    with pytest.raises(ArtifactError, match=f"has no engine yet. Build it on the device: samx build {path}"):
        tensorrt.open_artifact(Artifact.open(path))


def test_an_engine_of_somebody_else_is_not_loaded(built: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    trust.trust_file().unlink()
    monkeypatch.setattr(tensorrt, "load_engine", lambda *arguments: pytest.fail("an untrusted engine was loaded"))
    with pytest.raises(ArtifactError, match="neither built nor named by this user"):
        tensorrt.open_artifact(built)


def reseal(path: Path) -> Artifact:
    manifest = Manifest.from_bytes((path / "manifest.json").read_bytes(), "toy")
    seal(path, manifest, {name: entry.role for name, entry in manifest.files.items()})
    return Artifact.open(path)


def on_a_toy_gpu(monkeypatch: pytest.MonkeyPatch, capability: str = "8.9") -> None:
    """Let everything but the engine's own deserialisation find a GPU."""
    device = FakeDevice()
    device.gpu = Gpu("Toy GPU", capability, "CUDA 13.0")
    monkeypatch.setattr(tensorrt, "shared_device", lambda: device)


def test_a_tampered_engine_is_not_loaded(built: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_toy_gpu(monkeypatch)
    monkeypatch.setattr(tensorrt, "load_engine", lambda *arguments: pytest.fail("a tampered engine was loaded"))
    engine = built.path / "decoder.engine"
    data = bytearray(engine.read_bytes())
    data[-1] ^= 1
    engine.write_bytes(data)
    with pytest.raises(ArtifactError, match="was altered"):  # after it was opened: the bytes themselves are hashed
        tensorrt.open_artifact(built)
    with pytest.raises(ArtifactError, match="neither built nor named by this user"):  # a manifest that agrees with it
        tensorrt.open_artifact(reseal(built.path))


@pytest.mark.parametrize(
    ("edit", "capability", "words"),
    [
        ({"machine": {"version": "1.6.0"}}, "8.9", "built with TensorRT for RTX 1.6.0, here is 1.7"),
        ({}, "7.5", "compiled for Ampere and later"),
        ({"engine_sha256": "0" * 64}, "8.9", "stamped for another engine or graph"),
        ({"onnx_sha256": "0" * 64}, "8.9", "stamped for another engine or graph"),
    ],
)
def test_an_engine_of_another_machine_says_how_to_build_it(
    built: Artifact, edit: dict[str, Any], capability: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_toy_gpu(monkeypatch, capability)
    stamp = json.loads((built.path / "engine.json").read_bytes())
    stamp["machine"] |= edit.get("machine", {})
    stamp |= {key: value for key, value in edit.items() if key != "machine"}
    (built.path / "engine.json").write_text(json.dumps(stamp))
    with pytest.raises(ArtifactError, match=f"{words}.*samx build {built.path}"):
        tensorrt.open_artifact(reseal(built.path))


def test_on_a_gpu_the_engine_itself_is_asked(built: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_toy_gpu(monkeypatch)
    with pytest.raises(UnavailableError, match="TensorRT for RTX finds no usable GPU"):  # the real library, no driver
        tensorrt.open_artifact(built)
