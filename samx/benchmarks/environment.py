"""The circumstances of a measurement: processor, what else it was doing, libraries."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from samx.validators.environment import environment

LIBRARIES = ("onnxruntime", "torch", "onnx", "segment-anything")
# Instruction sets that a matrix product's speed hangs on, as /proc/cpuinfo names them.
ISA_FLAGS = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
CPUINFO = Path("/proc/cpuinfo")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
BUSY_LOAD = 0.5  # load average per usable CPU, before measuring, above which the numbers deserve a warning


def benchmark_environment() -> dict[str, str]:
    """Describe this machine and its state, in words."""
    return {
        **environment(),
        "isa": " ".join(isa()) or "unknown",
        "governor": _read(GOVERNOR).strip() or "unknown",
        "cpus_usable": str(usable_cpus()),
        "load_1min": "unknown" if (load := load_1min()) is None else f"{load:.2f}",
        **{library: _version(library) for library in LIBRARIES},
    }


def isa() -> list[str]:
    """Name the relevant instruction sets this processor has, where Linux tells it."""
    lines = [line for line in _read(CPUINFO).splitlines() if line.startswith(("flags", "Features"))]
    present = set(lines[0].partition(":")[2].split()) if lines else set()
    return [flag for flag in ISA_FLAGS if flag in present]


def usable_cpus() -> int:
    """Count the CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_1min() -> float | None:
    """Give the load average over the last minute, where the system keeps one."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def busy(facts: Mapping[str, str]) -> bool:
    """Tell whether something else was running when the environment was read."""
    if facts["load_1min"] == "unknown":
        return False
    return float(facts["load_1min"]) > BUSY_LOAD * int(facts["cpus_usable"])


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # not Linux, or a virtual machine without it
        return ""


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
