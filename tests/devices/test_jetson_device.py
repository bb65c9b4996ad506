"""A Jetson: boards name their supplies, GPUs and alarms differently, and root alone sees some of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from device_recordings import Recording, deny

from samx.devices import jetson as sensors
from samx.devices.adapter import Reading
from samx.devices.jetson import JetsonAdapter
from samx.errors import UnavailableError

MONITOR = "/sys/class/hwmon/hwmon1"
EVENTS = "/sys/class/hwmon/hwmon3"


@pytest.fixture
def nano(tmp_path: Path) -> Recording:
    return Recording("orin-nano-jetpack6", tmp_path)


def jetson(recording: Recording) -> JetsonAdapter:
    return JetsonAdapter(recording.root, recording.run)


def test_facts_of_an_orin_nano(nano: Recording) -> None:
    adapter = jetson(nano)
    facts = adapter.facts()
    assert adapter.name() == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert facts["release"] == Reading("L4T 36.4.3")
    assert facts["power_mode"] == Reading("25W (mode 1)")
    assert facts["power_scope"] == Reading("module input VDD_IN")
    assert facts["gpu_governor"] == Reading("nvhost_podgov")
    assert (facts["clock_gpu_lowest"].value, facts["clock_gpu_limit"].value) == pytest.approx((306, 1020))
    assert "as a root user" in str(facts["jetson_clocks"].reason)


def test_sample_of_an_orin_nano(nano: Recording) -> None:
    sample = jetson(nano).sample()
    assert sample["power"].value == pytest.approx(4.984 * 1.856)
    assert sample["power_VDD_CPU_GPU_CV"].value == pytest.approx(4.976 * 0.512)
    assert {name for name in sample if name.startswith("power_")} == {
        "power_VDD_IN",
        "power_VDD_CPU_GPU_CV",
        "power_VDD_SOC",
    }
    assert sample["clock_gpu"].value == pytest.approx(306)
    assert sample["utilisation"].value == pytest.approx(43.7)
    assert sample["temperature"].value == sample["temperature_tj-thermal"].value == pytest.approx(47.312)
    assert sample["temperature_cv0-thermal"].reason == "/sys/class/thermal/thermal_zone2/temp is not there"
    assert (sample["cooling"], sample["events_oc3"]) == (Reading("none"), Reading(37, "times"))


def test_supplies_of_an_agx_orin_are_added_without_the_one_that_another_feeds(tmp_path: Path) -> None:
    adapter = jetson(Recording("agx-orin-jetpack6", tmp_path))
    sample = adapter.sample()
    assert sample["power"].value == pytest.approx(19.712 * 0.5 + 19.712 * 0.25 + 5.0)
    assert sample["power_VDDQ_VDD2_1V8AO"].value == pytest.approx(4.968 * 0.2)
    assert adapter.facts()["power_scope"] == Reading("module: VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0")
    assert "power_NC" not in sample


def test_a_container_without_the_release_file_is_still_a_jetson(tmp_path: Path) -> None:
    facts = jetson(Recording("agx-orin-jetpack6", tmp_path)).facts()
    assert facts["release"].reason == "/etc/nv_tegra_release is not there"
    assert str(facts["jetson_clocks"].value).startswith("SOC family:tegra234 Machine:NVIDIA Jetson AGX Orin")
    assert "\n" not in str(facts["jetson_clocks"].value)


def test_a_hot_xavier_nx(tmp_path: Path) -> None:
    adapter = jetson(Recording("xavier-nx-jetpack5", tmp_path))
    facts, sample = adapter.facts(), adapter.sample()
    assert (facts["release"].value, facts["power_mode"].value) == ("L4T 35.4.1", "MODE_15W_6CORE (mode 2)")
    assert sample["power"].value == pytest.approx(4.944 * 2.4)
    assert sample["temperature"].value == 96.5
    assert sample["clock_gpu"].value == pytest.approx(803.25)
    assert sample["events_oc1"].reason == "this release shows no event counters (soctherm_oc)"
    assert adapter.throttled([sample, sample]) == ["thermal-cpufreq-0 was cooled by slower clocks in 2 of 2 samples"]


def test_a_cool_jetson_is_not_throttled(nano: Recording) -> None:
    """Its fan turns, and its event counter is not zero: it counts since the start of the system."""
    adapter = jetson(nano)
    assert adapter.throttled([adapter.sample(), adapter.sample()]) == []


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("oc1", "the supply's voltage fell too low 179 times"),
        ("oc2", "the mean current was too high 179 times"),
        ("oc3", "the current was too high 142 times"),
    ],
)
def test_events_during_the_run_are_flagged(nano: Recording, file: str, sentence: str) -> None:
    adapter = jetson(nano)
    before = adapter.sample()
    nano.write(f"{EVENTS}/{file}_event_cnt", "179")
    (flag,) = adapter.throttled([before, adapter.sample()])
    assert flag.startswith(sentence)


def test_alarms_are_flagged(nano: Recording) -> None:
    adapter = jetson(nano)
    before = adapter.sample()
    nano.write("/sys/class/thermal/cooling_device2/cur_state", "1")
    nano.write("/sys/class/thermal/cooling_device10/cur_state", "1")
    hot = adapter.sample()
    assert hot["cooling"] == Reading("gpu-throttle-alert, hot-surface-alert")
    assert adapter.throttled([before, hot, hot]) == [
        "gpu-throttle-alert was cooled by slower clocks in 2 of 3 samples",
        "hot-surface-alert was cooled by slower clocks in 2 of 3 samples",
    ]


@pytest.mark.parametrize(
    ("labels", "scope"),
    [
        (["POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"], "module input POM_5V_IN"),
        (["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"], "module: VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0"),
        (["GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"], "module: GPU + CPU + SOC + CV + VDDRQ + SYS5V"),
    ],
)
def test_other_boards_totals(labels: list[str], scope: str) -> None:
    assert sensors.rail_scope(labels) == Reading(scope)


def test_supplies_that_no_row_knows_are_not_added(nano: Recording) -> None:
    nano.write(f"{MONITOR}/in1_label", "VDD_NEW")
    adapter = jetson(nano)
    reason = "which of this board's supplies make up the total is not known: VDD_NEW, VDD_CPU_GPU_CV, VDD_SOC"
    assert adapter.sample()["power"].reason == adapter.facts()["power_scope"].reason == reason
    assert adapter.sample()["power_VDD_NEW"].value == pytest.approx(4.984 * 1.856)


def test_a_total_lacks_no_part(tmp_path: Path) -> None:
    recording = Recording("agx-orin-jetpack6", tmp_path)
    recording.remove("/sys/class/hwmon/hwmon3/curr2_input")
    sample = jetson(recording).sample()
    assert sample["power"].reason == "/sys/class/hwmon/hwmon3/curr2_input is not there"
    assert sample["power_VDD_GPU_SOC"].value == pytest.approx(9.856)


def test_supplies_for_root_only_say_so(nano: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    deny(monkeypatch, "curr1_input")
    assert jetson(nano).sample()["power"].reason == f"{MONITOR}/curr1_input may be read by root only"


@pytest.mark.parametrize(
    "name", ["17000000.gpu", "17000000.ga10b", "17000000.gv11b", "57000000.gpu", "gpu.0", "gpu-gpc-0"]
)
def test_the_gpu_is_found_by_its_names(tmp_path: Path, name: str) -> None:
    recording = Recording("virtual-machine", tmp_path)
    recording.write("/etc/nv_tegra_release", "# R36 (release), REVISION: 4.3")
    recording.write(f"/sys/class/devfreq/{name}/cur_freq", "918000000")
    recording.write("/sys/class/devfreq/15340000.vic/cur_freq", "1")
    assert jetson(recording).sample()["clock_gpu"].value == pytest.approx(918)


def test_a_bare_jetson_reads_nothing_and_says_why(tmp_path: Path) -> None:
    recording = Recording("virtual-machine", tmp_path)
    recording.write("/etc/nv_tegra_release", "something else")
    adapter = jetson(recording)
    readings = {**adapter.facts(), **adapter.sample()}
    assert adapter.name() == "Jetson"
    assert {name for name, reading in readings.items() if reading.value is not None} == set()
    assert readings["release"].reason == "/etc/nv_tegra_release holds something else: 'something else'"
    assert readings["power_mode"].reason == "nvpmodel cannot be run: No such file or directory"
    assert readings["power"].reason == sensors.NO_MONITOR
    assert readings["clock_gpu"].reason == "no GPU is shown in /sys/class/devfreq"
    assert readings["temperature"].reason == "no thermal zone can be read"
    assert adapter.throttled([adapter.sample(), adapter.sample()]) == []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"{MONITOR}/in1_input", "power"),
        ("/sys/class/devfreq/17000000.gpu/cur_freq", "clock_gpu"),
        ("/sys/class/devfreq/17000000.gpu/device/load", "utilisation"),
        (f"{EVENTS}/oc3_event_cnt", "events_oc3"),
        ("/sys/class/thermal/thermal_zone8/temp", "temperature_tj-thermal"),
    ],
)
def test_garbage_costs_one_reading_and_no_more(nano: Recording, path: str, name: str) -> None:
    nano.write(path, "<error>")
    sample = jetson(nano).sample()
    assert f"{path} holds something else" in str(sample[name].reason)
    assert sample["power_VDD_SOC"].value is not None


def test_a_power_mode_in_other_words_is_null(nano: Recording) -> None:
    nano.answer("nvpmodel -q", "NVPM ERROR: optMask is 1, no request for power mode\n")
    assert jetson(nano).facts()["power_mode"].reason == "nvpmodel -q printed something else"


def test_commands_run_for_facts_alone(nano: Recording) -> None:
    adapter = jetson(nano)
    adapter.sample()
    assert nano.asked == []
    adapter.facts()
    assert nano.asked == ["nvpmodel -q", "jetson_clocks --show"]


def test_another_machine_is_no_jetson(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="this machine is no Jetson"):
        jetson(Recording("laptop-x86", tmp_path))
