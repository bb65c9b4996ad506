"""samx build on a device with a GPU, as far as a stand-in for TensorRT can show it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from engine_toys import home as home
from engine_toys import toy_artifact

from samx.artifacts.store import Artifact
from samx.commands.build import build
from samx.errors import ArtifactError, SamxError, UnavailableError
from samx.exporters.tensorrt import build as engines_build
from samx.exporters.tensorrt import lower as engines
from samx.exporters.tensorrt.child import build_here
from samx.formats.tensorrt.engine import Understood
from samx.formats.tensorrt.library import library_of
from samx.formats.tensorrt.stamp import Gpu, find_gpu

pytestmark = pytest.mark.usefixtures("home")
ORIN = Gpu("Toy GPU", "8.7", "CUDA 12.6")


def content(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in sorted(path.iterdir())}


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for a device: TensorRT is the RTX library under another name, the GPU a toy that opens every engine."""
    rtx = library_of("trt-rtx").open()
    module = ModuleType("tensorrt")
    module.__dict__.update({**rtx.__dict__, "__version__": "10.3.0"})
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(engines, "find_gpu", lambda: ORIN)
    monkeypatch.setattr(engines, "load_engine", lambda *arguments: (None, SimpleNamespace()))
    monkeypatch.setattr(engines, "build_apart", build_here)  # a process of its own would find the real library
    monkeypatch.setattr(engines, "check_engine", lambda *arguments: Understood((), (), ()))
    return toy_artifact(tmp_path / "jetson", "trt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the stand-in's timing cache is one in name only
def test_a_tensorrt_engine_is_stamped_with_its_machine(jetson: Path, home: Path) -> None:
    build(jetson)
    manifest = Artifact.open(jetson).manifest
    stamp = json.loads((jetson / "engine.json").read_bytes())
    report = json.loads((jetson / "lowering.json").read_bytes())
    assert stamp["machine"] | {"os": ""} == {
        "version": "10.3.0", "os": "", "gpu": "Toy GPU", "compute_capability": "8.7", "driver": "CUDA 12.6",
    }  # fmt: skip
    assert manifest.evidence[0].device == "Toy GPU"
    assert report["timing_cache"] == "new"
    assert len(list((home / "cache" / "samx" / "timing").iterdir())) == 1
    assert report["engine"]["reason"] is None
    build(jetson, force=True)
    assert json.loads((jetson / "lowering.json").read_bytes())["timing_cache"] == "kept"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_new_driver_builds_a_tensorrt_engine_anew(jetson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(jetson)
    assert not build(jetson)["built"]
    monkeypatch.setattr(engines, "find_gpu", lambda: replace(ORIN, driver="CUDA 12.8"))
    assert build(jetson)["reasons"] == ("built for driver CUDA 12.6, here is CUDA 12.8",)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_without_its_gpu_nothing_is_built(jetson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(jetson)
    monkeypatch.setattr(engines, "find_gpu", find_gpu)
    with pytest.raises(UnavailableError, match="no NVIDIA driver is here") as caught:
        build(jetson)
    assert caught.value.exit_code == 5
    assert content(jetson) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_engine_that_does_not_open_on_its_own_gpu_is_not_kept(jetson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(jetson)

    def refuse(*arguments: object) -> None:
        raise ArtifactError("TensorRT 10.3.0 refuses the engine", found="planted")

    monkeypatch.setattr(engines, "load_engine", refuse)
    with pytest.raises(SamxError, match="planted"):
        build(jetson)
    assert content(jetson) == before


def test_an_rtx_engine_need_not_open_on_the_gpu_that_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_gpu", lambda: ORIN)
    path = toy_artifact(tmp_path / "toy")
    build(path)  # a server's GPU, which TensorRT for RTX does not know, or here: no driver at all
    report = json.loads((path / "lowering.json").read_bytes())
    assert report["engine"]["read_back"] is None
    assert "does not open on this GPU" in report["engine"]["reason"]
    assert report["gpu"] is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_warning_of_tensorrt_is_shown_and_kept(jetson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the comparison on the device that judges; a version of TensorRT may warn of what is as it should be."""
    build_really = engines_build._built

    def warn(*arguments: Any) -> Any:
        arguments[-1].append(("WARNING", "Running layernorm in FP16 may cause overflow"))
        return build_really(*arguments)

    monkeypatch.setattr(engines_build, "_built", warn)
    result = build(jetson)
    assert result["warnings"] == ("precision: Running layernorm in FP16 may cause overflow",)
    assert b"Running layernorm" in (jetson / "lowering.json").read_bytes()
