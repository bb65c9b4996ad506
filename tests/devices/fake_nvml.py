"""A stand-in for NVIDIA's management library: its names, none of its code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

GIB = 2**30
RTX: Mapping[str, Any] = {
    "nvmlDeviceGetName": "NVIDIA GeForce RTX 4090",
    "nvmlDeviceGetUUID": "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
    "nvmlSystemGetDriverVersion": "580.95.05",
    "nvmlSystemGetCudaDriverVersion_v2": 13000,
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24 * GIB, used=2 * GIB, free=22 * GIB),
    "nvmlDeviceGetEnforcedPowerLimit": 450_000,
    "nvmlDeviceGetMaxClockInfo": {1: 3105, 2: 10501},
    "nvmlDeviceGetApplicationsClock": None,  # not on GeForce
    "nvmlDeviceGetPersistenceMode": 1,
    "nvmlDeviceGetMigMode": None,
    "nvmlDeviceGetClockInfo": {1: 2520, 2: 10251},
    "nvmlDeviceGetPowerUsage": 212_500,
    "nvmlDeviceGetTotalEnergyConsumption": 7_000_000,
    "nvmlDeviceGetTemperature": {0: 64},
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97, memory=31),
    "nvmlDeviceGetCurrentClocksEventReasons": 0,
    "nvmlDeviceGetCurrentClocksThrottleReasons": 0,
}
# A Jetson's library answers who it is, and nothing else.
JETSON: Mapping[str, Any] = {**dict.fromkeys(RTX), "nvmlDeviceGetName": "Orin (nvgpu)", "nvmlDeviceGetUUID": "GPU-orin"}
ERRORS = {
    "NotSupported": "Not Supported",
    "FunctionNotFound": "Function Not Found",
    "LibraryNotFound": "NVML Shared Library Not Found",
    "GpuIsLost": "GPU is lost",
    "Uninitialized": "Uninitialized",
    "DriverNotLoaded": "Driver Not Loaded",
    "ResetRequired": "GPU requires restart",
}
CONSTANTS = {
    "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0,
    "nvmlClocksEventReasonGpuIdle": 1, "nvmlClocksEventReasonApplicationsClocksSetting": 2,
    "nvmlClocksEventReasonSwPowerCap": 4, "nvmlClocksEventReasonHwSlowdown": 8, "nvmlClocksEventReasonSyncBoost": 16,
    "nvmlClocksEventReasonSwThermalSlowdown": 32, "nvmlClocksEventReasonHwThermalSlowdown": 64,
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": 128, "nvmlClocksEventReasonDisplayClockSetting": 256,
    "nvmlClocksThrottleReasonBoardLimit": 512, "nvmlClocksThrottleReasonReliability": 1024,
}  # fmt: skip


class FakeNvml(ModuleType):
    """Answer from tables, one for each GPU; None stands for Not Supported, an error's name for that error."""

    def __init__(self, *gpus: Mapping[str, Any]) -> None:
        super().__init__("pynvml")
        self.gpus = [dict(gpu) for gpu in gpus]
        self.shut = 0
        base = type("NVMLError", (Exception,), {})
        self.errors = {name: type(f"NVMLError_{name}", (base,), {}) for name in ERRORS}
        names = {f"NVMLError_{name}": error for name, error in self.errors.items()}
        for name, value in {"NVMLError": base, **names, **CONSTANTS}.items():
            setattr(self, name, value)
        for function in RTX:
            setattr(self, function, self._answering(function))

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.gpus:
            self.fail("LibraryNotFound")

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.shut += 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, part: str) -> int:  # noqa: N802
        return len(self.gpus) - 1

    def fail(self, name: str) -> None:
        """Raise one of the library's errors."""
        raise self.errors[name](ERRORS[name])

    def _answering(self, function: str) -> Callable[..., Any]:
        def answer(handle: int = 0, constant: int | None = None) -> Any:
            value = self.gpus[handle][function]
            if value is None or (isinstance(value, str) and value in self.errors):
                self.fail(value or "NotSupported")
            return value[constant] if isinstance(value, dict) else value

        return answer
