"""The monitor reads beside a run, flags what casts doubt on it, and never breaks it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from device_recordings import Recording
from fake_nvml import RTX, FakeNvml

from samx.devices import monitor as module
from samx.devices.adapter import Adapter, Reading, Readings, unread
from samx.devices.cpu import CpuAdapter
from samx.devices.jetson import JetsonAdapter
from samx.devices.monitor import Monitor
from samx.devices.nvidia import NvidiaAdapter

NEVER_S = 60.0  # an interval in which the thread takes no sample of its own
SECOND = 1_000_000_000


class Clock:
    """A clock that moves by a step whenever it is read."""

    def __init__(self, step_ns: int = 0) -> None:
        self.now, self.step_ns = 0, step_ns

    def __call__(self) -> int:
        self.now += self.step_ns
        return self.now


class FakeAdapter(Adapter):
    """A device that draws 5 W, unless told otherwise."""

    def __init__(self, kind: str = "fake", read: Callable[[], Readings] | None = None) -> None:
        self.kind, self.asked = kind, 0
        self._read = read or (lambda: {"power": Reading(5.0, "W")})

    def name(self) -> str:
        return f"a {self.kind}"

    def facts(self) -> Readings:
        return {"power_scope": Reading(f"all of the {self.kind}")}

    def sample(self) -> Readings:
        self.asked += 1
        return self._read()

    def throttled(self, samples: Sequence[Readings]) -> list[str]:
        return []


def ticking(clock: Clock, monitor: Monitor, seconds: int) -> None:
    """Let a monitor sample once a second."""
    for _ in range(seconds):
        clock.now += SECOND
        monitor.sample()


def failing_after(samples: int, cause: Exception) -> Callable[[], Readings]:
    """Make a device that is gone after some samples."""
    left = iter(range(samples))

    def read() -> Readings:
        if next(left, None) is None:
            raise cause
        return {"power": Reading(5.0, "W")}

    return read


def test_reads_before_and_after_and_between() -> None:
    adapter = FakeAdapter()
    with Monitor([adapter], NEVER_S) as monitor:
        assert monitor.before == {"fake": {"power": Reading(5.0, "W")}}
        assert monitor.after == {}
        monitor.sample()
    assert monitor.after == monitor.before
    assert adapter.asked == len(monitor.samples) == 3


def test_a_thread_samples_by_itself_and_ends_with_the_run() -> None:
    enough = threading.Event()
    taken: list[str] = []

    def read() -> Readings:
        taken.append(threading.current_thread().name)
        if taken.count("samx-monitor") >= 3:
            enough.set()
        return {}

    with Monitor([FakeAdapter(read=read)], 0.001):
        assert enough.wait(10)
    assert taken[0] == taken[-1] == threading.current_thread().name  # before and after
    assert [thread for thread in threading.enumerate() if thread.name == "samx-monitor"] == []


def test_samples_carry_the_time_of_their_middle() -> None:
    clock = Clock(step_ns=100)
    with Monitor([FakeAdapter()], NEVER_S, clock) as monitor:
        pass
    assert [at for at, _ in monitor.samples] == [150, 350]
    assert monitor.cost() == Reading(0.1, "us")


def test_an_exception_of_the_run_passes_and_the_after_is_read() -> None:
    with pytest.raises(KeyboardInterrupt), Monitor([FakeAdapter()], NEVER_S) as monitor:
        raise KeyboardInterrupt
    assert monitor.after["fake"]["power"] == Reading(5.0, "W")


@pytest.mark.parametrize("cause", [RuntimeError("GPU is lost"), OSError(19, "No such device"), ValueError()])
def test_a_device_that_vanishes_is_flagged_and_not_asked_again(cause: Exception) -> None:
    lost, well = FakeAdapter("lost", failing_after(2, cause)), FakeAdapter("well")
    with Monitor([lost, well], NEVER_S) as monitor:
        for _ in range(5):
            monitor.sample()
    reason = str(cause) or "ValueError"
    assert lost.asked == 3
    assert well.asked == 7
    assert monitor.after["lost"] == {"error": unread(reason)}
    assert monitor.after["well"]["power"].value == 5.0
    assert monitor.flags() == [f"lost stopped answering: {reason}"]


def test_a_gpu_that_falls_off_its_bus_during_a_run(tmp_path: Path) -> None:
    library = FakeNvml(RTX)
    with Monitor([NvidiaAdapter(library, {})], NEVER_S) as monitor:
        library.gpus[0]["nvmlDeviceGetClockInfo"] = "GpuIsLost"
        monitor.sample()
    assert monitor.flags() == [
        "nvidia stopped answering: the GPU no longer answers: found GPU is lost. See what nvidia-smi says."
    ]
    assert monitor.to_json()["devices"]["nvidia"]["name"] == "NVIDIA GeForce RTX 4090"


def test_a_device_that_is_gone_from_the_start() -> None:
    class Gone(FakeAdapter):
        def facts(self) -> Readings:
            raise RuntimeError("no answer")

    with Monitor([Gone()], NEVER_S) as monitor:
        pass
    assert monitor.flags() == ["fake stopped answering: no answer"]
    assert monitor.to_json()["devices"]["fake"]["name"] == "unknown"
    assert monitor.energy_mj(0, 1).reason == "fake: has no power reading"


def test_a_driver_that_hangs_does_not_hold_the_program_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_S", 0.05)
    hung, release = threading.Event(), threading.Event()

    def read() -> Readings:
        if threading.current_thread().name == "samx-monitor":
            hung.set()
            release.wait(30)
        return {}

    with Monitor([FakeAdapter(read=read)], 0.001) as monitor:
        assert hung.wait(10)
    assert monitor.after == {}
    assert monitor.flags() == ["a device did not answer for 0.05 s at the end of the run"]
    release.set()


def test_energy_of_an_interval() -> None:
    clock = Clock()
    with Monitor([FakeAdapter()], 1.0, clock) as monitor:
        ticking(clock, monitor, 6)
        assert monitor.energy_mj(SECOND, 5 * SECOND).value == pytest.approx(20e3)
        few = monitor.energy_mj(SECOND, 2 * SECOND)
    assert few.reason == "fake: 2 samples of power lie in the interval, at least 3 are needed"


def test_energy_comes_from_the_first_device_that_tells_it() -> None:
    clock = Clock()
    silent = FakeAdapter("silent", lambda: {"power": unread("Not Supported", "W")})
    with Monitor([silent, FakeAdapter("module")], 1.0, clock) as monitor:
        ticking(clock, monitor, 4)
    assert monitor.energy_mj(0, 4 * SECOND).value == pytest.approx(20e3)


def test_without_power_every_device_says_why() -> None:
    clock = Clock()
    silent = FakeAdapter("gpu", lambda: {"power": unread("Not Supported", "W")})
    with Monitor([silent, FakeAdapter("cpu", dict)], 1.0, clock) as monitor:
        ticking(clock, monitor, 4)
    assert monitor.energy_mj(0, 4 * SECOND) == unread("gpu: Not Supported; cpu: has no power reading", "mJ")


def test_a_device_that_vanished_gives_no_energy_for_what_came_after() -> None:
    clock = Clock()
    lost = FakeAdapter("lost", failing_after(5, RuntimeError("gone")))
    with Monitor([lost], 1.0, clock) as monitor:
        ticking(clock, monitor, 20)
    assert monitor.energy_mj(0, 4 * SECOND).value == pytest.approx(20e3)
    assert monitor.energy_mj(0, 20 * SECOND).value is None


def test_no_device_at_all() -> None:
    with Monitor([], NEVER_S) as monitor:
        pass
    assert monitor.energy_mj(0, 1) == unread("no device was watched", "mJ")
    assert (monitor.flags(), monitor.to_json()["devices"]) == ([], {})


def test_a_busy_machine_and_its_governor_are_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samx.devices.cpu.usable_cpus", lambda: 3)
    recording = Recording("laptop-x86", tmp_path)
    with Monitor([CpuAdapter(recording.root, recording.run)], NEVER_S) as monitor:
        recording.write("/proc/loadavg", "0.00 0.00 0.00 1/1 1")  # what counts is what it did before
    assert monitor.flags() == [
        "the machine was busy before the run: load 3.50 on 3 usable CPUs",
        "information: the processor's clocks are governed by powersave, not performance",
    ]


def test_a_quiet_machine_with_steady_clocks_has_no_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samx.devices.cpu.usable_cpus", lambda: 8)
    recording = Recording("laptop-x86", tmp_path)
    for policy in (0, 2, 3):
        recording.write(f"/sys/devices/system/cpu/cpufreq/policy{policy}/scaling_governor", "performance")
    with Monitor([CpuAdapter(recording.root, recording.run)], NEVER_S) as monitor:
        pass
    assert monitor.flags() == []


def test_throttling_during_the_run_is_flagged(tmp_path: Path) -> None:
    recording = Recording("orin-nano-jetpack6", tmp_path)
    with Monitor([JetsonAdapter(recording.root, recording.run)], NEVER_S) as monitor:
        recording.write("/sys/class/thermal/cooling_device2/cur_state", "1")
        monitor.sample()
        recording.write("/sys/class/thermal/cooling_device2/cur_state", "0")
    assert monitor.flags() == ["gpu-throttle-alert was cooled by slower clocks in 1 of 3 samples"]


def test_json_is_plain_and_whole(tmp_path: Path) -> None:
    recording = Recording("orin-nano-jetpack6", tmp_path)
    board, processor = JetsonAdapter(recording.root, recording.run), CpuAdapter(recording.root, measured=False)
    with Monitor([board, processor], NEVER_S, Clock(step_ns=1000)) as monitor:
        pass
    data = json.loads(json.dumps(monitor.to_json(), allow_nan=False))
    assert list(data["devices"]) == ["jetson", "cpu"]
    device = data["devices"]["jetson"]
    assert set(device) == {"name", "facts", "before", "after"}
    assert device["facts"]["release"] == {"value": "L4T 36.4.3", "unit": None, "reason": None}
    assert device["before"]["temperature_cv0-thermal"]["reason"] == "/sys/class/thermal/thermal_zone2/temp is not there"
    assert [sample["time_ns"] for sample in data["samples"]] == [1500, 3500]
    assert data["samples"][0]["readings"]["jetson"]["events_oc3"] == 37
    assert "temperature_cv0-thermal" not in data["samples"][0]["readings"]["jetson"]
    assert data["sampling"] == {"interval_s": NEVER_S, "cost": {"value": 1.0, "unit": "us", "reason": None}}


def test_the_clock_is_the_one_that_measures() -> None:
    with Monitor([FakeAdapter()], NEVER_S) as monitor:
        now = time.perf_counter_ns()
    assert monitor.samples[0][0] <= now <= monitor.samples[-1][0]
