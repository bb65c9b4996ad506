"""The processor: what Linux and macOS tell of it, and what takes its time away."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from device_recordings import Recording, deny

from samx.devices.adapter import Reading, Readings, Tree
from samx.devices.cpu import CpuAdapter, busy, cpu_numbers, governor, virtual_machine

ENERGY = "/sys/class/powercap/intel-rapl:0/energy_uj"
STOPS = "/sys/fs/cgroup/user.slice/user-1000.slice/run.scope/cpu.stat"


@pytest.fixture
def laptop(tmp_path: Path) -> Recording:
    return Recording("laptop-x86", tmp_path)


def cpu(recording: Recording, *, measured: bool = True) -> CpuAdapter:
    """Open a processor whose clock moves on by a second with each sample."""
    ticks = count(0, 1_000_000_000)
    return CpuAdapter(recording.root, recording.run, measured=measured, clock=lambda: next(ticks))


def values(readings: Readings) -> dict[str, object]:
    return {name: reading.value for name, reading in readings.items()}


def test_facts_of_a_laptop(laptop: Recording) -> None:
    adapter = cpu(laptop)
    facts = values(adapter.facts())
    assert adapter.name() == "12th Gen Intel(R) Core(TM) i7-1260P"
    assert facts["isa"] == "avx2 fma"
    assert facts["governor"] == "powersave"
    assert facts["clock_limit"] == 4700
    assert facts["affinity"] == "0,2-3"
    assert facts["cpu_limit"] == 1.5  # the tightest of the groups around the process, not its own
    assert facts["memory"] == 15700
    assert facts["virtual_machine"] is False
    assert facts["power_scope"] == "processor packages by RAPL, without memory"


def test_sample_of_a_laptop(laptop: Recording) -> None:
    sample = values(cpu(laptop).sample())
    assert (sample["clock_min"], sample["clock_mean"], sample["clock_max"]) == (400, 1100, 2100)  # of CPUs 0, 2 and 3
    assert (sample["load_1min"], sample["temperature"]) == (3.5, 61)
    assert (sample["heat_stops"], sample["quota_stops"], sample["stolen_time"]) == (12, 2, 0)
    assert sample["energy"] == 0


def test_energy_counts_from_the_first_sample_and_power_is_its_pace(laptop: Recording) -> None:
    adapter = cpu(laptop)
    first = adapter.sample()
    laptop.write(ENERGY, str(261_000_000_000 + 15_000_000))
    second = adapter.sample()
    assert first["power"].reason == "the first reading of an energy counter has no power yet"
    assert second["energy"].value == pytest.approx(15.0)
    assert second["power"].value == pytest.approx(15.0)
    assert (second["energy"].unit, second["power"].unit) == ("J", "W")


def test_energy_goes_on_where_the_counter_begins_anew(laptop: Recording) -> None:
    adapter = cpu(laptop)
    adapter.sample()
    laptop.write(ENERGY, "1000000")
    assert adapter.sample()["energy"].value == pytest.approx(262143.32885 - 261000 + 1)


def test_only_packages_count_once(laptop: Recording) -> None:
    """Cores lie inside the package, psys around it, and the mmio interface shows the package a second time."""
    adapter = cpu(laptop)
    adapter.sample()
    for path in ("intel-rapl:0:0", "intel-rapl:1", "intel-rapl-mmio:0"):
        laptop.write(f"/sys/class/powercap/{path}/energy_uj", "100000000000")
    assert adapter.sample()["energy"].value == 0


def test_energy_for_root_only_says_so(laptop: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    deny(monkeypatch, "energy_uj")
    adapter = cpu(laptop)
    reason = f"{ENERGY} may be read by root only"
    assert adapter.sample()["energy"].reason == adapter.sample()["power"].reason == reason
    assert adapter.facts()["power_scope"].reason == reason


def test_the_processors_energy_is_not_taken_for_another_devices(laptop: Recording) -> None:
    adapter = cpu(laptop, measured=False)
    assert adapter.sample()["energy"].reason == "not read while another device is measured"
    assert adapter.sample()["power"].value is None
    assert adapter.facts()["power_scope"].value is None


def test_nothing_is_flagged_on_a_quiet_processor(laptop: Recording) -> None:
    adapter = cpu(laptop)
    assert adapter.throttled([adapter.sample(), adapter.sample()]) == []
    assert adapter.throttled([]) == []


def test_heat_and_limits_are_flagged(laptop: Recording) -> None:
    adapter = cpu(laptop)
    before = adapter.sample()
    laptop.write("/sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count", "15")
    laptop.write(STOPS, "nr_periods 9\nnr_throttled 6\n")
    laptop.write("/proc/stat", "cpu  1000 0 500 90000 10 0 5 25 0 0\n")
    assert adapter.throttled([before, adapter.sample()]) == [
        "the processor was slowed down for its heat 3 times",
        "the CPU limit of this container stopped the process 4 times",
        "other virtual machines were given the processors for 0.25 s",
    ]


def test_a_moment_of_stolen_time_is_no_flag(laptop: Recording) -> None:
    adapter = cpu(laptop)
    before = adapter.sample()
    laptop.write("/proc/stat", "cpu  1000 0 500 90000 10 0 5 5 0 0\n")
    assert adapter.throttled([before, adapter.sample()]) == []


def test_a_virtual_machine_shows_little_and_says_so(tmp_path: Path) -> None:
    recording = Recording("virtual-machine", tmp_path)
    adapter = cpu(recording)
    facts, sample = adapter.facts(), adapter.sample()
    assert facts["virtual_machine"] == Reading(True)
    assert facts["isa"] == Reading("avx2 fma avx512f avx512_vnni")
    assert facts["cpu_limit"] == Reading(0.5, "CPUs")  # of old-style control groups
    assert facts["governor"].reason == "this system does not show who chooses the processor's clocks"
    assert sample["energy"].reason == "this machine shows no RAPL counters in /sys/class/powercap"
    assert sample["temperature"].reason == "no sensor of the processor is known here"
    assert sample["clock_mean"].reason == "this system does not show the processor's clocks"
    assert (sample["quota_stops"].value, sample["stolen_time"].value) == (5, 42)


def test_cores_of_a_jetson(tmp_path: Path) -> None:
    adapter = cpu(Recording("orin-nano-jetpack6", tmp_path))
    facts, sample = adapter.facts(), adapter.sample()
    assert adapter.name() == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (facts["isa"].value, facts["governor"].value) == ("asimd asimddp", "schedutil")
    assert facts["virtual_machine"] == Reading(False)
    assert (sample["clock_min"].value, sample["clock_max"].value) == (960, 1728)
    assert sample["temperature"].value == pytest.approx(47.312)


def test_a_mac_is_read_through_sysctl(tmp_path: Path) -> None:
    recording = Recording("mac-m2", tmp_path)
    adapter = CpuAdapter(recording.root, recording.run, is_mac=True)
    facts = adapter.facts()
    assert adapter.name() == "Apple M2"
    assert facts["isa"] == Reading("asimd asimddp i8mm bf16")
    assert facts["memory"] == Reading(16384, "MiB")
    assert facts["virtual_machine"] == Reading(False)
    assert isinstance(adapter.sample()["load_1min"].value, float)


def test_nothing_at_all_is_no_error(tmp_path: Path) -> None:
    adapter = CpuAdapter(tmp_path)
    here = {"cpus_usable", "cpu_limit"}  # what the interpreter tells, and the absence of a limit
    readings = {**adapter.facts(), **adapter.sample()}
    assert adapter.name() == "unknown"
    assert {name for name, reading in readings.items() if reading.value is not None} == here
    assert all(str(tmp_path) not in str(reading.reason) for reading in readings.values())


@pytest.mark.parametrize(
    ("path", "garbage"),
    [
        ("/proc/cpuinfo", "\0\1\2"), ("/proc/stat", "cpu  x"), ("/proc/loadavg", "nan"), ("/proc/meminfo", "MemTotal:"),
        ("/proc/meminfo", "MemTotal: lots kB"), ("/proc/self/status", "Cpus_allowed_list:\tall\n"),
        ("/proc/self/cgroup", "::"), ("/sys/fs/cgroup/user.slice/cpu.max", "1 2 3"),
        ("/sys/fs/cgroup/user.slice/cpu.max", "1 0"), (STOPS, "nr_throttled many"), (ENERGY, "?"),
        ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "<unknown>"),
        ("/sys/class/hwmon/hwmon5/temp1_input", ""),
    ],
)  # fmt: skip
def test_garbage_costs_one_reading_and_no_more(laptop: Recording, path: str, garbage: str) -> None:
    whole = len(cpu(laptop).facts()) + len(cpu(laptop).sample())
    laptop.write(path, garbage)
    adapter = cpu(laptop)
    readings = {**adapter.facts(), **adapter.sample()}
    assert len(readings) == whole
    assert adapter.throttled([adapter.sample(), adapter.sample()]) == []


@pytest.mark.parametrize(("ranges", "cpus"), [("0", [0]), ("0-3", [0, 1, 2, 3]), ("0,2-3,8", [0, 2, 3, 8])])
def test_lists_of_cpus(ranges: str, cpus: list[int]) -> None:
    assert cpu_numbers(ranges) == cpus


@pytest.mark.parametrize(
    ("path", "text"),
    [("/sys/class/dmi/id/sys_vendor", "QEMU"), ("/sys/class/dmi/id/product_name", "Google Compute Engine"),
     ("/proc/device-tree/hypervisor/compatible", "linux,kvm")],
)  # fmt: skip
def test_virtual_machines_without_x86_flags(tmp_path: Path, path: str, text: str) -> None:
    file = tmp_path / path.lstrip("/")
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert virtual_machine(Tree(tmp_path)) == Reading(True)


def test_governors_that_differ_are_all_named(laptop: Recording) -> None:
    laptop.write("/sys/devices/system/cpu/cpufreq/policy3/scaling_governor", "performance")
    assert governor(Tree(laptop.root)).value == "performance, powersave"


def test_busy_is_a_load_per_usable_cpu() -> None:
    assert busy(1.1, 2)
    assert not busy(0.9, 2)
