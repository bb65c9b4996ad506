"""A Mac: commands run rarely, the thermal pressure is asked for cheaply, and power needs root."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
from device_recordings import Recording

from samx.devices.adapter import CommandError, Reading
from samx.devices.apple import AppleAdapter, thermal_pressure

PMSET = "/usr/bin/pmset -g therm"
POWERMETRICS = "/usr/bin/powermetrics --samplers cpu_power,thermal -i 200 -n 1"
SECOND = 1_000_000_000


class Clock:
    """A clock that stands until it is moved."""

    now = 0

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def macbook(tmp_path: Path) -> Recording:
    return Recording("mac-m2", tmp_path)


def apple(
    recording: Recording, level: int | None = 0, *, root_user: bool = False, clock: Clock | None = None
) -> AppleAdapter:
    return AppleAdapter(recording.run, root_user=root_user, pressure=lambda: level, clock=clock or Clock())


def test_facts(macbook: Recording) -> None:
    adapter = apple(macbook)
    facts = {name: reading.value for name, reading in adapter.facts().items()}
    assert adapter.name() == "Apple M2"
    assert (facts["model"], facts["chip"], facts["macos"], facts["memory"]) == ("Mac14,2", "Apple M2", "15.5", 16384)
    assert (facts["performance_cores"], facts["efficiency_cores"]) == ("4", "4")
    assert adapter.facts()["power_scope"].reason == "powermetrics may be run by root only"


def test_an_ordinary_user_sees_no_power(macbook: Recording) -> None:
    sample = apple(macbook).sample()
    assert sample["power"].reason == "powermetrics may be run by root only"
    assert sample["thermal_pressure"] == Reading("nominal")
    assert sample["thermal_warning"] == Reading("none")
    assert sample["speed_limit"].reason == "pmset names no such limit, as on Apple silicon"
    assert POWERMETRICS not in macbook.asked


def test_root_sees_power(macbook: Recording) -> None:
    adapter = apple(macbook, root_user=True)
    sample = adapter.sample()
    assert sample["power"].value == pytest.approx(2.172)
    assert sample["power_ane"].value == pytest.approx(1.323)
    assert (sample["power_cpu"].value, sample["power_gpu"].value) == pytest.approx((0.823, 0.026))
    assert "estimated by powermetrics" in str(adapter.facts()["power_scope"].value)


def test_commands_run_less_often_than_samples(macbook: Recording) -> None:
    clock = Clock()
    adapter = apple(macbook, root_user=True, clock=clock)
    for fifth in range(51):  # 10 s
        clock.now = fifth * SECOND // 5
        adapter.sample()
    assert macbook.asked.count(PMSET) == 3
    assert macbook.asked.count(POWERMETRICS) == 11


def test_thermal_pressure_is_flagged(macbook: Recording) -> None:
    cool, warm, hot = (apple(macbook, level).sample() for level in (0, 1, 2))
    flags = apple(macbook).throttled([cool, warm, hot, hot])
    assert flags == ["macOS reported thermal pressure (moderate, heavy) in 3 of 4 samples"]
    assert apple(macbook).throttled([cool, cool]) == apple(macbook).throttled([]) == []


def test_a_lowered_speed_limit_is_flagged(tmp_path: Path) -> None:
    adapter = apple(Recording("mac-intel-throttled", tmp_path), None)
    sample = adapter.sample()
    assert (sample["speed_limit"], sample["scheduler_limit"]) == (Reading(62.0, "%"), Reading(100.0, "%"))
    assert sample["thermal_pressure"].reason == "macOS does not tell its thermal pressure"
    assert adapter.throttled([sample]) == ["macOS lowered the speed limit to 62 %"]


def test_a_thermal_warning_is_flagged(macbook: Recording) -> None:
    macbook.answer(PMSET, "Thermal Warning Level = 2\n")
    adapter = apple(macbook)
    assert adapter.throttled([adapter.sample()]) == ["macOS recorded a thermal warning (level 2)"]


def test_commands_that_fail_cost_their_readings_alone(macbook: Recording) -> None:
    def refuse(*words: str) -> str:
        raise CommandError(f"{words[0]} cannot be run: Operation not permitted")

    adapter = AppleAdapter(refuse, root_user=True, pressure=lambda: 1, clock=Clock())
    sample, facts = adapter.sample(), adapter.facts()
    assert adapter.name() == "unknown"
    assert sample["thermal_pressure"] == Reading("moderate")
    assert sample["speed_limit"].reason == "/usr/bin/pmset cannot be run: Operation not permitted"
    assert sample["power"].reason == "/usr/bin/powermetrics cannot be run: Operation not permitted"
    assert facts["model"].reason == "sysctl does not tell hw.model"
    assert facts["macos"].reason == "/usr/bin/sw_vers cannot be run: Operation not permitted"


@pytest.mark.parametrize("text", ["", "\0\1", "Combined Power (CPU + GPU + ANE): lots mW\n", "unable to get power"])
def test_garbage_is_no_power(macbook: Recording, text: str) -> None:
    macbook.answer(POWERMETRICS, text)
    macbook.answer(PMSET, text)
    sample = apple(macbook, root_user=True).sample()
    assert sample["power"].reason == "powermetrics printed no combined power"
    assert sample["thermal_warning"].reason == "pmset tells no thermal warning level"


def test_an_unknown_level_of_pressure_is_shown_and_flagged(macbook: Recording) -> None:
    adapter = apple(macbook, 9)
    assert adapter.throttled([adapter.sample()]) == ["macOS reported thermal pressure (level 9) in 1 of 1 samples"]


class FakeSystem:
    """The two calls of macOS's notification library, as notify.h declares them."""

    def __init__(self, register: int = 0, state: int = 0, level: int = 2) -> None:
        self.codes, self.level = (register, state), level
        self.asked = b""

    def notify_register_check(self, name: bytes, token: Any) -> int:
        self.asked = name
        ctypes.cast(token, ctypes.POINTER(ctypes.c_int))[0] = 7
        return self.codes[0]

    def notify_get_state(self, token: ctypes.c_int, state: Any) -> int:
        assert token.value == 7
        ctypes.cast(state, ctypes.POINTER(ctypes.c_uint64))[0] = self.level
        return self.codes[1]


def test_the_thermal_pressure_comes_from_the_notification_library() -> None:
    system = FakeSystem()
    ask = thermal_pressure(lambda path: system)
    assert ask() == 2
    assert system.asked == b"com.apple.system.thermalpressurelevel"


@pytest.mark.parametrize("system", [FakeSystem(register=1), FakeSystem(state=1), object()])
def test_a_library_that_refuses_gives_none(system: object) -> None:
    assert thermal_pressure(lambda path: system)() is None


def test_elsewhere_there_is_no_such_library() -> None:
    def missing(path: str) -> Any:
        raise OSError(f"{path}: cannot open shared object file")

    assert thermal_pressure(missing)() is None
