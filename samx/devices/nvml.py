"""What is asked of NVIDIA's management library, as tables.

Source: the NVML API reference (units; power of Ampere and later is a mean over a second; energy counts from when the
driver was loaded).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from samx.devices.reading import Reading, Value, unread
from samx.errors import UnavailableError

# Errors that mean that the GPU is gone; all others mean that one question has no answer.
LOST = ("NVMLError_GpuIsLost", "NVMLError_Uninitialized", "NVMLError_DriverNotLoaded", "NVMLError_ResetRequired")


def _same(value: Any) -> Value:
    return value


def _milli(value: Any) -> Value:
    return float(value) / 1e3


def _mib(value: Any) -> Value:
    return int(value) // 2**20


def _switch(value: Any) -> Value:
    return "on" if value else "off"


def _cuda(value: Any) -> Value:
    return f"{value // 1000}.{value % 1000 // 10}"


@dataclass(frozen=True)
class Query:
    """Say how one value is asked for: function, constant after the handle, field of the answer, conversion, unit."""

    function: str
    convert: Callable[[Any], Value] = _same
    unit: str | None = None
    constant: str | None = None
    take: Callable[[Any], Any] = _same
    of_device: bool = True


FACTS = {
    "gpu": Query("nvmlDeviceGetName"),
    "driver": Query("nvmlSystemGetDriverVersion", of_device=False),
    "cuda": Query("nvmlSystemGetCudaDriverVersion_v2", _cuda, of_device=False),
    "memory": Query("nvmlDeviceGetMemoryInfo", _mib, "MiB", take=lambda info: info.total),
    "power_limit": Query("nvmlDeviceGetEnforcedPowerLimit", _milli, "W"),
    "clock_sm_limit": Query("nvmlDeviceGetMaxClockInfo", unit="MHz", constant="NVML_CLOCK_SM"),
    "clock_memory_limit": Query("nvmlDeviceGetMaxClockInfo", unit="MHz", constant="NVML_CLOCK_MEM"),
    "clock_sm_set": Query("nvmlDeviceGetApplicationsClock", unit="MHz", constant="NVML_CLOCK_SM"),
    "clock_memory_set": Query("nvmlDeviceGetApplicationsClock", unit="MHz", constant="NVML_CLOCK_MEM"),
    "persistence_mode": Query("nvmlDeviceGetPersistenceMode", _switch),
    "mig_mode": Query("nvmlDeviceGetMigMode", _switch, take=lambda modes: modes[0]),
}
SAMPLE = {
    "clock_sm": Query("nvmlDeviceGetClockInfo", unit="MHz", constant="NVML_CLOCK_SM"),
    "clock_memory": Query("nvmlDeviceGetClockInfo", unit="MHz", constant="NVML_CLOCK_MEM"),
    "power": Query("nvmlDeviceGetPowerUsage", _milli, "W"),
    "energy": Query("nvmlDeviceGetTotalEnergyConsumption", _milli, "J"),
    "temperature": Query("nvmlDeviceGetTemperature", unit="C", constant="NVML_TEMPERATURE_GPU"),
    "utilisation": Query("nvmlDeviceGetUtilizationRates", unit="%", take=lambda rates: rates.gpu),
    "memory_used": Query("nvmlDeviceGetMemoryInfo", _mib, "MiB", take=lambda info: info.used),
}
# Drivers before 535 know the reasons under their older name only.
REASON_FUNCTIONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
# Why clocks are below their highest -> in words, and whether that slows a measurement down unasked.
REASONS = {
    "nvmlClocksEventReasonGpuIdle": ("idle", False),
    "nvmlClocksEventReasonApplicationsClocksSetting": ("clocks set by a user", False),
    "nvmlClocksEventReasonDisplayClockSetting": ("clocks set for the display", False),
    "nvmlClocksEventReasonSwPowerCap": ("power limit", True),
    "nvmlClocksEventReasonHwSlowdown": ("hardware slowdown", True),
    "nvmlClocksEventReasonHwThermalSlowdown": ("heat, by hardware", True),
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": ("power brake, by hardware", True),
    "nvmlClocksEventReasonSwThermalSlowdown": ("heat, by software", True),
    "nvmlClocksEventReasonSyncBoost": ("held to the clock of another GPU", True),
    "nvmlClocksThrottleReasonBoardLimit": ("limit of the board", True),
    "nvmlClocksThrottleReasonReliability": ("reliability limit", True),
}
SLOWING = tuple(words for words, slows in REASONS.values() if slows)
SEPARATOR = "; "
NO_REASON = "none"


def ask(nvml: ModuleType, handle: object, query: Query) -> Reading:
    """Ask one question; what the GPU does not answer is a reading without a value.

    Raises: UnavailableError when the GPU is gone.
    """
    arguments = [handle] if query.of_device else []
    arguments += [getattr(nvml, query.constant)] if query.constant else []
    try:
        return Reading(query.convert(query.take(getattr(nvml, query.function)(*arguments))), query.unit)
    except _errors(nvml, LOST) as cause:
        raise UnavailableError("the GPU no longer answers", found=cause, fix="See what nvidia-smi says.") from cause
    except _errors(nvml, ("NVMLError",)) as cause:
        return unread(f"{query.function}: {cause}", query.unit)


def _errors(nvml: ModuleType, names: Sequence[str]) -> tuple[type[Exception], ...]:
    return tuple(getattr(nvml, name) for name in names)


def reasons(nvml: ModuleType, handle: object) -> Reading:
    """Ask why the clocks are below their highest, in words.

    Raises: UnavailableError when the GPU is gone.
    """

    def convert(mask: Any) -> Value:
        return in_words(nvml, int(mask))

    asked = [Query(function, convert) for function in REASON_FUNCTIONS]
    first = ask(nvml, handle, asked[0])
    return first if first.value is not None else ask(nvml, handle, asked[1])


def in_words(nvml: ModuleType, mask: int) -> str:
    """Put a mask of reasons into words."""
    masks = {words: getattr(nvml, name, 0) for name, (words, _) in REASONS.items()}
    found = [words for words, bit in masks.items() if mask & bit]
    unknown = mask & ~sum(masks.values())
    found += [f"unknown reason {unknown:#x}"] if unknown else []
    return SEPARATOR.join(found) or NO_REASON
