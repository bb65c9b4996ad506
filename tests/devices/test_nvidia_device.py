"""An NVIDIA GPU: every question has an answer or a reason, and reasons for slow clocks become sentences."""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
from typing import Any

import pytest
from fake_nvml import CONSTANTS, ERRORS, JETSON, RTX, FakeNvml

from samx.devices import nvidia
from samx.devices.adapter import Reading
from samx.devices.nvidia import NvidiaAdapter
from samx.errors import MissingExtraError, UnavailableError

REASONS_NOW = "nvmlDeviceGetCurrentClocksEventReasons"

NO_SLOWDOWN = {
    "nvmlClocksEventReasonGpuIdle",
    "nvmlClocksEventReasonApplicationsClocksSetting",
    "nvmlClocksEventReasonDisplayClockSetting",
}


def gpu(library: FakeNvml, **environment: str) -> NvidiaAdapter:
    return NvidiaAdapter(library, environment)


def used_names() -> set[str]:
    """Collect every name of the library that the adapter uses."""
    queries = [*nvidia.FACTS.values(), *nvidia.SAMPLE.values()]
    constants = {query.constant for query in queries if query.constant}
    functions = {query.function for query in queries} | set(nvidia.REASON_FUNCTIONS)
    chosen = {"nvmlInit", "nvmlShutdown", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID",
              "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", "NVMLError"}  # fmt: skip
    return functions | constants | chosen | set(nvidia.LOST) | set(nvidia.REASONS)


def test_every_name_exists_in_the_real_library() -> None:
    library = importlib.import_module(nvidia.LIBRARY)
    assert [name for name in sorted(used_names()) if not hasattr(library, name)] == []


def test_every_name_in_the_adapters_source_is_checked() -> None:
    """The list above is written by hand; the names in the source are not."""

    tree = ast.parse(inspect.getsource(nvidia))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in names if name.startswith(("nvml", "NVML"))} <= used_names()


def test_the_stand_in_has_the_real_librarys_constants() -> None:
    library = importlib.import_module(nvidia.LIBRARY)
    assert {name: getattr(library, name) for name in CONSTANTS} == CONSTANTS
    assert all(issubclass(getattr(library, f"NVMLError_{name}"), library.NVMLError) for name in ERRORS)


def test_reasons_share_no_bit_in_the_real_library() -> None:
    library = importlib.import_module(nvidia.LIBRARY)
    assert sum(getattr(library, name) for name in nvidia.REASONS) == library.nvmlClocksThrottleReasonAll


def test_facts_of_a_desktop_gpu() -> None:
    adapter = gpu(FakeNvml(RTX))
    facts = {name: reading.value for name, reading in adapter.facts().items()}
    assert adapter.name() == "NVIDIA GeForce RTX 4090"
    assert facts["driver"] == "580.95.05"
    assert facts["cuda"] == "13.0"
    assert (facts["memory"], facts["power_limit"]) == (24 * 1024, 450)
    assert (facts["clock_sm_limit"], facts["clock_memory_limit"]) == (3105, 10501)
    assert (facts["persistence_mode"], facts["choice"]) == ("on", "GPU 0 of 1")
    assert facts["power_scope"] == "GPU board by NVML"


def test_sample_of_a_desktop_gpu() -> None:
    sample = gpu(FakeNvml(RTX)).sample()
    assert sample["power"] == Reading(212.5, "W")
    assert sample["energy"] == Reading(7000.0, "J")
    assert sample["clock_sm"] == Reading(2520, "MHz")
    assert sample["clock_memory"] == Reading(10251, "MHz")
    assert sample["temperature"] == Reading(64, "C")
    assert sample["utilisation"] == Reading(97, "%")
    assert sample["memory_used"] == Reading(2048, "MiB")
    assert sample["throttle_reasons"] == Reading("none")


def test_what_a_gpu_does_not_support_is_null_with_the_reason() -> None:
    facts = gpu(FakeNvml(RTX)).facts()
    assert facts["mig_mode"].reason == "nvmlDeviceGetMigMode: Not Supported"
    assert facts["clock_sm_set"].reason == "nvmlDeviceGetApplicationsClock: Not Supported"


def test_mig_mode_is_the_current_one() -> None:
    assert gpu(FakeNvml({**RTX, "nvmlDeviceGetMigMode": [1, 0]})).facts()["mig_mode"] == Reading("on")


def test_a_jetson_answers_who_it_is_and_nothing_else() -> None:
    adapter = gpu(FakeNvml(JETSON))
    facts, sample = adapter.facts(), adapter.sample()
    assert adapter.name() == "Orin (nvgpu)"
    assert {name for name, reading in facts.items() if reading.value is not None} == {"gpu", "choice"}
    assert all(str(reading.reason).endswith(": Not Supported") for reading in sample.values())
    assert adapter.throttled([sample, sample]) == []


@pytest.mark.parametrize(
    ("name", "words"), [(name, words) for name, (words, _) in nvidia.REASONS.items() if name not in NO_SLOWDOWN]
)
def test_each_slowdown_becomes_a_sentence(name: str, words: str) -> None:
    library = FakeNvml(RTX)
    adapter = gpu(library)
    quiet = adapter.sample()
    library.gpus[0][REASONS_NOW] = CONSTANTS[name]
    slow = adapter.sample()
    assert slow["throttle_reasons"] == Reading(words)
    assert adapter.throttled([quiet, slow, slow]) == [f"the GPU's clocks were held down in 2 of 3 samples: {words}"]


@pytest.mark.parametrize("name", sorted(NO_SLOWDOWN))
def test_idle_and_chosen_clocks_are_no_throttling(name: str) -> None:
    adapter = gpu(FakeNvml({**RTX, REASONS_NOW: CONSTANTS[name]}))
    assert adapter.throttled([adapter.sample()]) == []


def test_several_reasons_at_once_and_unknown_ones() -> None:
    adapter = gpu(FakeNvml({**RTX, REASONS_NOW: 4 | 32 | 2**20}))
    sample = adapter.sample()
    assert sample["throttle_reasons"] == Reading("power limit; heat, by software; unknown reason 0x100000")
    assert len(adapter.throttled([sample])) == 2


def test_an_older_driver_is_asked_by_the_older_name() -> None:
    older = {**RTX, REASONS_NOW: "FunctionNotFound", "nvmlDeviceGetCurrentClocksThrottleReasons": 64}
    assert gpu(FakeNvml(older)).sample()["throttle_reasons"] == Reading("heat, by hardware")


@pytest.mark.parametrize("error", ["GpuIsLost", "Uninitialized", "DriverNotLoaded", "ResetRequired"])
def test_a_gpu_that_vanishes_is_an_error(error: str) -> None:
    library = FakeNvml(RTX)
    adapter = gpu(library)
    library.gpus[0]["nvmlDeviceGetPowerUsage"] = error
    with pytest.raises(UnavailableError, match=f"the GPU no longer answers: found {ERRORS[error]}"):
        adapter.sample()


def test_without_a_driver_or_a_gpu_there_is_no_adapter() -> None:
    with pytest.raises(UnavailableError, match="NVML Shared Library Not Found"):
        gpu(FakeNvml())


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("samx.extras.importlib.import_module", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'samx\[nvidia\]'"):
        NvidiaAdapter()


OTHER = {**RTX, "nvmlDeviceGetName": "NVIDIA RTX A2000", "nvmlDeviceGetUUID": "GPU-11112222-0000"}


@pytest.mark.parametrize(
    ("visible", "name", "choice"),
    [
        ("1", "NVIDIA RTX A2000", "GPU 1 of 2"),
        ("1,0", "NVIDIA RTX A2000", "GPU 1 of 2"),
        ("GPU-1111", "NVIDIA RTX A2000", "GPU-1111"),
        (RTX["nvmlDeviceGetUUID"], "NVIDIA GeForce RTX 4090", RTX["nvmlDeviceGetUUID"]),
        ("MIG-77", "NVIDIA RTX A2000", "the whole GPU around MIG-77"),
    ],
)
def test_the_gpu_is_the_one_that_cuda_uses(visible: str, name: str, choice: str) -> None:
    adapter = gpu(FakeNvml(RTX, OTHER), CUDA_VISIBLE_DEVICES=visible, CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert (adapter.name(), adapter.facts()["choice"]) == (name, Reading(choice))


@pytest.mark.parametrize("visible", ["", "-1", "7", "GPU-none", "GPU-"])
def test_a_gpu_that_cuda_may_not_use_is_not_read(visible: str) -> None:
    with pytest.raises(UnavailableError, match=f"found 2 GPUs and CUDA_VISIBLE_DEVICES={visible}"):
        gpu(FakeNvml(RTX, OTHER), CUDA_VISIBLE_DEVICES=visible)


def test_a_guess_among_different_gpus_is_called_one() -> None:
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in str(gpu(FakeNvml(RTX, OTHER)).facts()["choice"].reason)
    assert gpu(FakeNvml(RTX, RTX)).facts()["choice"] == Reading("GPU 0 of 2")


def test_the_library_is_closed_with_the_adapter() -> None:
    library = FakeNvml(RTX)
    adapter = gpu(library)
    del adapter
    gc.collect()
    assert library.shut == 1
