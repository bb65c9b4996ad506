"""Adapters are found by what is there, in the order in which their power counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from device_recordings import NAMES, RECORDED, Recording
from fake_nvml import JETSON, RTX, FakeNvml

from samx.devices.adapter import Adapter
from samx.devices.monitor import Monitor, adapters
from samx.devices.nvidia import NvidiaAdapter
from samx.errors import MissingExtraError

MACS = ("mac-m2", "mac-intel-throttled")


def adapters_of(
    device: str, name: str, root: Path, *gpus: Mapping[str, Any], nvidia: Callable[[], Adapter] | None = None
) -> list[Adapter]:
    """Find the adapters of a recorded machine with stand-ins for GPUs."""
    recording = Recording(name, root)
    system = "Darwin" if name in MACS else "Linux"
    nvidia = nvidia or (lambda: NvidiaAdapter(FakeNvml(*gpus), {}))
    return adapters(device, recording.root, recording.run, system, nvidia)


@pytest.mark.parametrize(
    ("name", "device", "kinds"),
    [
        ("laptop-x86", "cpu", ["cpu"]),
        ("virtual-machine", "cpu", ["cpu"]),
        ("orin-nano-jetpack6", "cpu", ["jetson", "cpu"]),
        ("orin-nano-jetpack6", "cuda", ["jetson", "cpu"]),
        ("agx-orin-jetpack6", "cuda", ["jetson", "cpu"]),
        ("mac-m2", "cpu+ane", ["apple", "cpu"]),
        ("mac-m2", "cpu", ["apple", "cpu"]),
    ],
)
def test_what_is_found_without_nvml(name: str, device: str, kinds: list[str], tmp_path: Path) -> None:
    assert [adapter.kind for adapter in adapters_of(device, name, tmp_path)] == kinds


def test_a_gpu_is_read_where_it_is_measured(tmp_path: Path) -> None:
    assert [adapter.kind for adapter in adapters_of("cuda", "laptop-x86", tmp_path, RTX)] == ["nvidia", "cpu"]
    assert [adapter.kind for adapter in adapters_of("cuda:0", "laptop-x86", tmp_path, RTX)] == ["nvidia", "cpu"]
    assert [adapter.kind for adapter in adapters_of("cpu", "laptop-x86", tmp_path, RTX)] == ["cpu"]


def test_a_jetsons_supplies_stand_in_for_its_silent_nvml(tmp_path: Path) -> None:
    found = adapters_of("cuda", "orin-nano-jetpack6", tmp_path, JETSON)
    assert [adapter.kind for adapter in found] == ["nvidia", "jetson", "cpu"]
    ticks = iter(range(0, 10**12, 10**8))
    with Monitor(found, 60.0, lambda: next(ticks)) as monitor:
        monitor.sample()
    energy = monitor.energy_mj(0, 5 * 10**8)
    assert energy.value == pytest.approx(4.984 * 1.856 * 0.5 * 1e3)


def test_a_measured_gpu_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    def missing() -> NvidiaAdapter:
        raise MissingExtraError("pynvml", "nvidia", "reading a GPU's clocks, power and heat")

    found = adapters_of("cuda", "laptop-x86", tmp_path, nvidia=missing)
    assert [adapter.kind for adapter in found] == ["nvidia", "cpu"]
    with Monitor(found, 60.0) as monitor:
        pass
    assert "pip install 'samx[nvidia]'" in str(monitor.before["nvidia"]["power"].reason)
    assert "nvidia: reading a GPU's clocks" in str(monitor.energy_mj(0, 1).reason)
    assert found[0].throttled([]) == []


def test_the_processors_energy_counts_only_where_it_is_measured(tmp_path: Path) -> None:
    (cpu,) = adapters_of("cpu", "laptop-x86", tmp_path)
    assert cpu.sample()["energy"].value == 0
    assert adapters_of("cuda", "laptop-x86", tmp_path)[-1].sample()["energy"].value is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", ["cpu", "cuda", "cpu+ane"])
def test_every_recorded_device_can_be_watched(name: str, device: str, tmp_path: Path) -> None:
    with Monitor(adapters_of(device, name, tmp_path), 60.0) as monitor:
        monitor.sample()
    data = monitor.to_json()
    readings = [
        found
        for part in data["devices"].values()
        for key in ("facts", "before", "after")
        for found in part[key].values()
    ]
    assert readings
    assert all((found["value"] is None) == bool(found["reason"]) for found in readings)
    assert all(str(tmp_path) not in str(found["reason"]) for found in readings)
    assert [flag for flag in monitor.flags() if "stopped answering" in flag] == []


def test_this_machine_can_be_watched() -> None:
    with Monitor(adapters("cpu"), 60.0) as monitor:
        pass
    assert monitor.before["cpu"]["load_1min"].unit == "processes"


def test_recordings_are_called_what_they_are() -> None:
    assert "made by hand" in (RECORDED / "README.md").read_text(encoding="utf-8")
    assert len(NAMES) >= 6
