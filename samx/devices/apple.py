"""A Mac: which one, and whether heat holds it back. What ran on its Neural Engine is told by the compute plan."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from samx.devices.adapter import Adapter, CommandError, Reading, Readings, Run, answer, numbers, run, texts, unread

SW_VERS, PMSET = ("/usr/bin/sw_vers", "-productVersion"), ("/usr/bin/pmset", "-g", "therm")
POWERMETRICS = ("/usr/bin/powermetrics", "--samplers", "cpu_power,thermal", "-i", "200", "-n", "1")
# These commands take milliseconds of a processor, so they run less often than samples are taken.
PMSET_PERIOD_NS, POWERMETRICS_PERIOD_NS = 5_000_000_000, 1_000_000_000
LIMITS = {"CPU_Speed_Limit": "speed_limit", "CPU_Scheduler_Limit": "scheduler_limit"}
FULL_SPEED = 100.0
NO_WARNING = "No thermal warning level has been recorded"
POWERS = {"CPU": "power_cpu", "GPU": "power_gpu", "ANE": "power_ane", "Combined": "power"}
SCOPE = "processor, GPU and Neural Engine, estimated by powermetrics"
NEEDS_ROOT = "powermetrics may be run by root only"
SYSCTL = ("/usr/sbin/sysctl", "hw", "machdep.cpu", "kern.hv_vmm_present")
# Instruction sets as sysctl names them -> as Linux does.
FEATURES = {
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.fma": "fma",
    "hw.optional.avx512f": "avx512f",
}
LIBRARY = "/usr/lib/libSystem.B.dylib"
# OSThermalNotification.h: the name of the state, and its values on a Mac.
PRESSURE = b"com.apple.system.thermalpressurelevel"
LEVELS = ("nominal", "moderate", "heavy", "trapping", "sleeping")

Pressure = Callable[[], int | None]


class AppleAdapter(Adapter):
    """Read a Mac through its commands, and its thermal pressure through its C library."""

    kind = "apple"

    def __init__(
        self, run: Run = run, *, root_user: bool = False, pressure: Pressure | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:  # fmt: skip
        self._run, self._root_user, self._clock = run, root_user, clock
        self._pressure = thermal_pressure() if pressure is None else pressure
        self._sysctl = sysctls(run)
        self._due: dict[tuple[str, ...], int] = {}

    def name(self) -> str:
        """Return the chip's name."""
        return self._sysctl.get("machdep.cpu.brand_string") or "unknown"

    def facts(self) -> Readings:
        """Read model, chip, memory and system."""
        return {
            "model": self._fact("hw.model"),
            "chip": self._fact("machdep.cpu.brand_string"),
            "memory": mac_memory(self._sysctl),
            "performance_cores": self._fact("hw.perflevel0.physicalcpu"),
            "efficiency_cores": self._fact("hw.perflevel1.physicalcpu"),
            "macos": answer(self._run, SW_VERS, str.strip),
            "power_scope": Reading(SCOPE) if self._root_user else unread(NEEDS_ROOT),
        }

    def sample(self) -> Readings:
        """Read the thermal pressure; now and then what pmset and powermetrics say."""
        found = {"thermal_pressure": self._thermal_pressure()}
        if self._is_due(PMSET, PMSET_PERIOD_NS):
            found |= self._limits()
        if not self._root_user:
            return found | {"power": unread(NEEDS_ROOT, "W")}
        return found | (self._powers() if self._is_due(POWERMETRICS, POWERMETRICS_PERIOD_NS) else {})

    def throttled(self, samples: Sequence[Readings]) -> list[str]:
        """Return whether macOS reported thermal pressure or lowered its limits."""
        return [*_pressure_words(samples), *_limit_words(samples), *_warning_words(samples)]

    def _fact(self, name: str) -> Reading:
        value = self._sysctl.get(name)
        return Reading(value) if value else unread(f"sysctl does not tell {name}")

    def _is_due(self, command: tuple[str, ...], period_ns: int) -> bool:
        now = self._clock()
        due = now >= self._due.get(command, now)
        if due:
            self._due[command] = now + period_ns
        return due

    def _thermal_pressure(self) -> Reading:
        level = self._pressure()
        if level is None:
            return unread("macOS does not tell its thermal pressure")
        return Reading(LEVELS[level] if level < len(LEVELS) else f"level {level}")

    def _limits(self) -> dict[str, Reading]:
        names = (*LIMITS.values(), "thermal_warning")
        try:
            text = self._run(*PMSET)
        except CommandError as cause:
            return dict.fromkeys(names, unread(str(cause)))
        known = {
            LIMITS[key]: Reading(float(value), "%")
            for key, value in re.findall(r"(\w+)\s*=\s*(\d+)", text)
            if key in LIMITS
        }
        missing = {name: unread("pmset names no such limit, as on Apple silicon", "%") for name in LIMITS.values()}
        return missing | known | {"thermal_warning": _warning(text)}

    def _powers(self) -> dict[str, Reading]:
        try:
            text = self._run(*POWERMETRICS)
        except CommandError as cause:
            return {"power": unread(str(cause), "W")}
        found = re.findall(r"^(CPU|GPU|ANE|Combined) Power[^:\n]*:\s*(\d+) ?mW", text, re.MULTILINE)
        powers = {POWERS[name]: Reading(int(value) / 1e3, "W") for name, value in found}
        return {"power": unread("powermetrics printed no combined power", "W")} | powers


def _warning(text: str) -> Reading:
    if NO_WARNING in text:
        return Reading("none")
    level = re.search(r"thermal warning level\D*(\d+)", text, re.IGNORECASE)
    return Reading(f"level {level[1]}") if level else unread("pmset tells no thermal warning level")


def _pressure_words(samples: Sequence[Readings]) -> list[str]:
    found = texts(samples, "thermal_pressure")
    raised = [level for level in found if level not in ("None", LEVELS[0])]
    levels = ", ".join(dict.fromkeys(raised))
    return [f"macOS reported thermal pressure ({levels}) in {len(raised)} of {len(found)} samples"] if raised else []


def _limit_words(samples: Sequence[Readings]) -> list[str]:
    lowest = {name: min(numbers(samples, name), default=FULL_SPEED) for name in LIMITS.values()}
    lowered = {name.replace("_", " "): value for name, value in lowest.items() if value < FULL_SPEED}
    return [f"macOS lowered the {name} to {value:g} %" for name, value in lowered.items()]


def _warning_words(samples: Sequence[Readings]) -> list[str]:
    raised = [
        level
        for level in dict.fromkeys(texts(samples, "thermal_warning"))
        if level.startswith("level") and level != "level 0"
    ]
    return [f"macOS recorded a thermal warning ({', '.join(raised)})"] if raised else []


def sysctls(run: Run) -> dict[str, str]:
    """Read what sysctl tells about the hardware; nothing where it does not work."""
    try:
        pairs = (line.partition(":") for line in run(*SYSCTL).splitlines())
    except CommandError:
        return {}
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def mac_isa(facts: Mapping[str, str]) -> list[str]:
    """List the relevant instruction sets, as Linux would."""
    return [flag for name, flag in FEATURES.items() if facts.get(name) == "1"]


def mac_memory(facts: Mapping[str, str]) -> Reading:
    """Return how much memory a Mac has."""
    size = facts.get("hw.memsize", "")
    if not size.isdigit():
        return unread("sysctl does not tell hw.memsize", "MiB")
    return Reading(int(size) // 2**20, "MiB")


def thermal_pressure(open_library: Callable[[str], Any] = ctypes.CDLL) -> Pressure:
    """Make a function that asks for the thermal pressure, without root and without a process of its own."""
    try:
        library = open_library(LIBRARY)
        token = ctypes.c_int()
        refused = library.notify_register_check(PRESSURE, ctypes.byref(token)) != 0
    except (OSError, AttributeError):  # not a Mac
        return lambda: None

    def ask() -> int | None:
        state = ctypes.c_uint64()
        failed = refused or library.notify_get_state(token, ctypes.byref(state)) != 0
        return None if failed else state.value

    return ask
