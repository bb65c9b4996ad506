"""An NVIDIA GPU, through NVIDIA's management library: clocks, power, heat, and why the clocks are what they are."""

from __future__ import annotations

import os
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from types import ModuleType

from samx.devices import nvml as tables
from samx.devices.reading import Reading, Readings, unread
from samx.errors import UnavailableError
from samx.extras import require

LIBRARY, EXTRA, PURPOSE = "pynvml", "nvidia", "reading a GPU's clocks, power and heat"
VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
SCOPE = "GPU board by NVML"
REMEDY = "See what nvidia-smi says."


class NvidiaAdapter:
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
        """Name the GPU as its maker does."""
        return str(tables.ask(self._nvml, self._handle, tables.FACTS["gpu"]).value or "unknown")

    def facts(self) -> Readings:
        """Read model, driver, memory, limits and modes."""
        found = {name: tables.ask(self._nvml, self._handle, query) for name, query in tables.FACTS.items()}
        power = tables.ask(self._nvml, self._handle, tables.SAMPLE["power"])
        scope = unread(str(power.reason)) if power.value is None else Reading(SCOPE)
        return {**found, "choice": self._choice, "power_scope": scope}

    def sample(self) -> Readings:
        """Read clocks, power, heat, use, and why the clocks are what they are."""
        found = {name: tables.ask(self._nvml, self._handle, query) for name, query in tables.SAMPLE.items()}
        return {**found, "throttle_reasons": tables.reasons(self._nvml, self._handle)}

    def throttled(self, samples: Sequence[Readings]) -> list[str]:
        """Say what held the clocks down, and how often."""
        found = [str(sample["throttle_reasons"].value) for sample in samples if "throttle_reasons" in sample]
        counts = Counter(word for text in found for word in text.split(tables.SEPARATOR))
        return [
            f"the GPU's clocks were held down in {counts[word]} of {len(found)} samples: {word}"
            for word in tables.SLOWING
            if counts[word]
        ]


def _choose(nvml: ModuleType, environment: Mapping[str, str]) -> tuple[object, Reading]:
    """Find the GPU that CUDA calls the first, and say how sure that is."""
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
