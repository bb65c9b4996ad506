"""Opening Core ML artifacts: the Mac, its devices and its system, and what Core ML refuses."""

from __future__ import annotations

import inspect
from pathlib import Path

import coremltools as ct
import pytest
from coreml_toys import MANY, artifact, check, image, placed, prompts, run_on
from coreml_toys import many as many
from coreml_toys import runtime as runtime
from coreml_toys import single as single
from coremltools.models import compute_device, model
from fake_mac import FakeMac, pretend
from fake_mac import fake_mac as fake_mac

from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, SamxError, UnavailableError, UsageError
from samx.runtimes.coreml import runtime as coreml
from samx.runtimes.coreml.runtime import MUST, UNITS, CoreMLRuntime, devices, open_artifact
from samx.runtimes.mil import runtime as mil


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (["CPU", "GPU", "ANE"], ["cpu+ane", "cpu+gpu", "all", "coreml-cpu"]),
        (["CPU", "GPU"], ["cpu+gpu", "all", "coreml-cpu"]),  # a virtual machine
        (["CPU"], ["all", "coreml-cpu"]),
    ],
)
def test_the_devices_are_those_of_the_mac(there: list[str], expected: list[str], fake_mac: FakeMac) -> None:
    fake_mac.devices = there
    assert devices() == expected


@pytest.mark.parametrize("fault", [RuntimeError("MLComputeDevice is only available on macOS >= 14.0"), None])
def test_a_mac_that_cannot_tell_has_no_device(
    fault: Exception | None, fake_mac: FakeMac, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_mac.fault = fault
    if fault is None:
        monkeypatch.setattr(compute_device, "_MLModelProxy", None)
    assert devices() == []


def test_elsewhere_there_is_no_device_and_no_prediction(many: Artifact) -> None:
    assert devices() == []
    with pytest.raises(
        UnavailableError, match=r"needs a Mac: found Linux.*'samx validate DIR' \(device cpu\)"
    ) as caught:
        open_artifact(many)
    assert caught.value.exit_code == 5


def test_a_mac_without_a_neural_engine_says_what_it_has(fake_mac: FakeMac, many: Artifact) -> None:
    fake_mac.devices = ["CPU"]
    with pytest.raises(UnavailableError, match="this Mac has no 'cpu\\+ane': found all, coreml-cpu"):
        open_artifact(many)


@pytest.mark.parametrize(
    ("version", "functions", "words"),
    [
        ("14.7", MANY, "several functions needs a newer macOS: found macOS 14.7, expected 15.0 or newer.*--ios 16"),
        ("14.3", {"main": 4}, "needs a newer macOS: found macOS 14.3, expected 14.4 or newer"),
    ],
)
def test_an_older_macos_is_named(
    version: str, functions: dict[str, int], words: str, monkeypatch: pytest.MonkeyPatch, many: Artifact,
    single: Artifact, fake_mac: FakeMac,
) -> None:  # fmt: skip
    pretend(monkeypatch, version)
    with pytest.raises(UnavailableError, match=words):
        open_artifact(single if set(functions) == {"main"} else many)


def test_one_function_runs_on_an_older_macos(
    monkeypatch: pytest.MonkeyPatch, single: Artifact, fake_mac: FakeMac
) -> None:
    pretend(monkeypatch, "14.4")
    run_on(fake_mac, single)
    opened = open_artifact(single)
    opened.set_image(image())
    assert placed(opened, 3).honoured


def test_other_devices_and_threads_are_refused(many: Artifact) -> None:
    with pytest.raises(UnavailableError, match=r"no such compute units: found 'cuda', expected cpu\+ane or"):
        open_artifact(many, "cuda")
    with pytest.raises(UsageError, match="Core ML takes no number of threads: found --threads 2"):
        open_artifact(many, threads=2)


def test_a_package_that_core_ml_refuses_is_said(runtime: CoreMLRuntime, fake_mac: FakeMac) -> None:
    fake_mac.fault = RuntimeError("planted: error compiling model")
    with pytest.raises(ArtifactError, match=r"Core ML does not load function points_1: found .*planted"):
        runtime.decode(prompts(1, 1))


def test_a_package_that_is_too_new_for_the_system_is_said(runtime: CoreMLRuntime, fake_mac: FakeMac) -> None:
    fake_mac.newest = 8  # iOS 17: coremltools leaves such a model unloaded without a word
    with pytest.raises(ArtifactError, match=r"does not load function points_1.*update macOS"):
        runtime.decode(prompts(1, 1))


def test_a_prediction_that_fails_is_said_and_does_not_stay(runtime: CoreMLRuntime, fake_mac: FakeMac) -> None:
    runtime.decode(prompts(1, 1))
    fake_mac.fault = RuntimeError("planted: no memory")
    with pytest.raises(SamxError, match="Core ML does not run function points_1: found planted: no memory"):
        runtime.decode(prompts(1, 1))
    fake_mac.fault = None
    check(runtime.decode(prompts(1, 1)), image(), prompts(1, 1))


def test_an_artifact_without_fixed_shapes_is_refused(fake_mac: FakeMac, tmp_path: Path) -> None:
    found = artifact(tmp_path / "loose", {"points_1": 1}, slots=False)
    with pytest.raises(ArtifactError, match="has no fixed number of prompts"):
        open_artifact(found)


def test_a_package_with_other_functions_than_the_manifest_says_is_refused(fake_mac: FakeMac, tmp_path: Path) -> None:
    found = artifact(tmp_path / "odd", {"points_1": 1, "points_2": 2}, functions={"points_1": 1, "points_3": 2})
    with pytest.raises(ArtifactError, match="no function of this name: found points_3"):
        open_artifact(found)


def test_another_contract_is_refused(fake_mac: FakeMac, tmp_path: Path) -> None:
    for contract, words in (
        ("google", "found 'google', expected samx or apple"),
        ("apple", "found sam1, expected sam2"),
    ):
        found = artifact(tmp_path / contract, {"points_1": 1}, contract=contract)
        with pytest.raises(ArtifactError, match=words):
            open_artifact(found)


def test_what_is_asked_of_the_library_is_there() -> None:
    names = set(inspect.signature(model.MLModel.__init__).parameters)
    assert {"model", "compute_units", "function_name"} <= names
    assert list(inspect.signature(model.MLModel.predict).parameters)[:2] == ["self", "data"]
    assert {"predict", "get_compiled_model_path"} <= set(vars(model.MLModel))
    assert "get_all_compute_devices" in vars(compute_device.MLComputeDevice)
    assert set(UNITS.values()) == set(ct.ComputeUnit.__members__)
    assert set(MUST) < set(UNITS)
    assert ct.models.MLModel is model.MLModel


def test_the_evaluators_device_is_none_of_core_mls() -> None:
    assert mil.DEVICE not in UNITS
    assert coreml.FALLBACK == mil.DEVICE  # what the gate names when the processor that was asked for stood idle
