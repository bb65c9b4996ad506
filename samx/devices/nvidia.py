"""An NVIDIA GPU, through NVIDIA's management library: clocks, power, heat, and why the clocks are what they are.

Source: the NVML API reference (units; power of Ampere and later is a mean over a second; energy counts from when the
driver was loaded).
"""

from __future__ import annotations

import os
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from samx.devices.adapter import Adapter, Reading, Readings, Value, texts, unread
from samx.errors import UnavailableError
from samx.extras import require

LIBRARY, EXTRA, PURPOSE = "pynvml", "nvidia", "reading a GPU's clocks, power and heat"
VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
SCOPE = "GPU board by NVML"
REMEDY = "See what nvidia-smi says."


# Errors that mean that the GPU is gone; all others mean that one question has no answer.
LOST = ("NVMLError_GpuIsLost", "NVMLError_Uninitialized", "NVMLError_DriverNotLoaded", "NVMLError_ResetRequired")


def _same(value: Any) -> Any:
    return value


def _milli(value: Any) -> Value:
    return float(value) / 1e3


def _mib(value: Any) -> Value:
    return int(value) // 2**20


def _switch(value: Any) -> Value:
    return "on" if value else "off"


@dataclass(frozen=True)
class Query:
    """How one value is asked for: function, conversion of the answer, unit, constant after the handle."""

    function: str
    convert: Callable[[Any], Value] = _same
    unit: str | None = None
    constant: str | None = None
    of_device: bool = True


FACTS = {
    "gpu": Query("nvmlDeviceGetName"),
    "driver": Query("nvmlSystemGetDriverVersion", of_device=False),
    "cuda": Query("nvmlSystemGetCudaDriverVersion_v2", lambda n: f"{n // 1000}.{n % 1000 // 10}", of_device=False),
    "memory": Query("nvmlDeviceGetMemoryInfo", lambda info: _mib(info.total), "MiB"),
    "power_limit": Query("nvmlDeviceGetEnforcedPowerLimit", _milli, "W"),
    "clock_sm_limit": Query("nvmlDeviceGetMaxClockInfo", unit="MHz", constant="NVML_CLOCK_SM"),
    "clock_memory_limit": Query("nvmlDeviceGetMaxClockInfo", unit="MHz", constant="NVML_CLOCK_MEM"),
    "clock_sm_set": Query("nvmlDeviceGetApplicationsClock", unit="MHz", constant="NVML_CLOCK_SM"),
    "clock_memory_set": Query("nvmlDeviceGetApplicationsClock", unit="MHz", constant="NVML_CLOCK_MEM"),
    "persistence_mode": Query("nvmlDeviceGetPersistenceMode", _switch),
    "mig_mode": Query("nvmlDeviceGetMigMode", lambda modes: _switch(modes[0])),
}
SAMPLE = {
    "clock_sm": Query("nvmlDeviceGetClockInfo", unit="MHz", constant="NVML_CLOCK_SM"),
    "clock_memory": Query("nvmlDeviceGetClockInfo", unit="MHz", constant="NVML_CLOCK_MEM"),
    "power": Query("nvmlDeviceGetPowerUsage", _milli, "W"),
    "energy": Query("nvmlDeviceGetTotalEnergyConsumption", _milli, "J"),
    "temperature": Query("nvmlDeviceGetTemperature", unit="C", constant="NVML_TEMPERATURE_GPU"),
    "utilisation": Query("nvmlDeviceGetUtilizationRates", lambda rates: rates.gpu, "%"),
    "memory_used": Query("nvmlDeviceGetMemoryInfo", lambda info: _mib(info.used), "MiB"),
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


class NvidiaAdapter(Adapter):
    """Read the GPU that CUDA calls the first one.

    Raises: MissingExtraError without the library; UnavailableError without a driver or a GPU that CUDA may use.
    """

    kind = "nvidia"

    def __init__(self, nvml: ModuleType | None = None, environment: Mapping[str, str] = os.environ) -> None:
        self._nvml = require(LIBRARY, EXTRA, PURPOSE) if nvml is None else nvml
        try:
            self._nvml.nvmlInit()
            weakref.finalize(self, self._nvml.nvmlShutdown)
            self._handle, self._choice = _choose(self._nvml, environment)
        except self._nvml.NVMLError as cause:
            raise UnavailableError("no NVIDIA GPU can be read", found=cause, fix=REMEDY) from cause

    def name(self) -> str:
        """Return the GPU's name."""
        return str(ask(self._nvml, self._handle, FACTS["gpu"]).value or "unknown")

    def facts(self) -> Readings:
        """Read model, driver, memory, limits and modes."""
        found = {name: ask(self._nvml, self._handle, query) for name, query in FACTS.items()}
        power = ask(self._nvml, self._handle, SAMPLE["power"])
        scope = unread(power.reason) if power.value is None else Reading(SCOPE)
        return {**found, "choice": self._choice, "power_scope": scope}

    def sample(self) -> Readings:
        """Read clocks, power, heat, use, and why the clocks are what they are."""
        found = {name: ask(self._nvml, self._handle, query) for name, query in SAMPLE.items()}
        return {**found, "throttle_reasons": reasons(self._nvml, self._handle)}

    def throttled(self, samples: Sequence[Readings]) -> list[str]:
        """Return what held the clocks down, and how often."""
        found = texts(samples, "throttle_reasons")
        counts = Counter(word for text in found for word in text.split(SEPARATOR))
        return [
            f"the GPU's clocks were held down in {counts[word]} of {len(found)} samples: {word}"
            for word in SLOWING
            if counts[word]
        ]


def _choose(nvml: ModuleType, environment: Mapping[str, str]) -> tuple[object, Reading]:
    """Return the GPU that CUDA calls the first, and how sure that is."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    visible = environment.get(VISIBLE)
    wanted = "0" if visible is None else visible.split(",")[0].strip()
    if wanted.isdigit() and int(wanted) < len(handles):
        return handles[int(wanted)], _sure(nvml, handles, environment, f"GPU {wanted} of {len(handles)}")
    if wanted.startswith("MIG-"):
        part = nvml.nvmlDeviceGetHandleByUUID(wanted)
        return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part), Reading(f"the whole GPU around {wanted}")
    named = [handle for handle in handles if wanted and nvml.nvmlDeviceGetUUID(handle).startswith(wanted)]
    if len(named) != 1:
        found = f"{len(handles)} GPUs" if visible is None else f"{len(handles)} GPUs and {VISIBLE}={visible}"
        raise UnavailableError("no GPU is here that CUDA may use", found=found, fix=REMEDY)
    return named[0], Reading(wanted)


def _sure(nvml: ModuleType, handles: Sequence[object], environment: Mapping[str, str], words: str) -> Reading:
    """CUDA counts the fastest GPU first unless it is told to count as this library does."""
    alike = len({nvml.nvmlDeviceGetName(handle) for handle in handles}) == 1
    if alike or environment.get(ORDER) == "PCI_BUS_ID":
        return Reading(words)
    return unread(f"{words} is assumed: CUDA may count these different GPUs in another order; set {ORDER}=PCI_BUS_ID")


def ask(nvml: ModuleType, handle: object, query: Query) -> Reading:
    """Ask one question; what the GPU does not answer is a reading without a value.

    Raises: UnavailableError when the GPU is gone.
    """
    arguments = [handle] if query.of_device else []
    arguments += [getattr(nvml, query.constant)] if query.constant else []
    try:
        return Reading(query.convert(getattr(nvml, query.function)(*arguments)), query.unit)
    except tuple(getattr(nvml, name) for name in LOST) as cause:
        raise UnavailableError("the GPU no longer answers", found=cause, fix=REMEDY) from cause
    except nvml.NVMLError as cause:
        return unread(f"{query.function}: {cause}", query.unit)


def reasons(nvml: ModuleType, handle: object) -> Reading:
    """Ask why the clocks are below their highest, in words.

    Raises: UnavailableError when the GPU is gone.
    """
    first, older = (Query(function, lambda mask: in_words(nvml, int(mask))) for function in REASON_FUNCTIONS)
    found = ask(nvml, handle, first)
    return found if found.value is not None else ask(nvml, handle, older)


def in_words(nvml: ModuleType, mask: int) -> str:
    """Return a mask of reasons in words."""
    masks = {words: getattr(nvml, name, 0) for name, (words, _) in REASONS.items()}
    found = [words for words, bit in masks.items() if mask & bit]
    unknown = mask & ~sum(masks.values())
    found += [f"unknown reason {unknown:#x}"] if unknown else []
    return SEPARATOR.join(found) or NO_REASON
