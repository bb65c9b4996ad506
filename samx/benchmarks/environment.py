"""What surrounds a measurement: the machine, libraries, memory."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from samx.devices import cpu
from samx.devices.adapter import Reading, unread
from samx.validators.report import environment

LIBRARIES = ("onnxruntime", "torch", "onnx", "segment-anything", "samexporter", "sam2", "transformers")
STATUS = Path("/proc/self/status")
PEAK = "VmHWM"  # of this program alone: getrusage on Linux keeps the peak of the process that started it
KIB = 1024


def benchmark_environment(more: Sequence[str] = ()) -> dict[str, str]:
    """Describe this machine and its libraries, in words; telemetry tells what its devices are, and how they fare."""
    versions = {library: _version(library) for library in (*LIBRARIES, *more)}
    return {**environment(), "cpus_usable": str(cpu.usable_cpus()), **versions}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def peak_bytes(platform: str = sys.platform, status: Path = STATUS) -> Reading:
    """Read the most memory that this process has held."""
    if platform == "darwin":
        import resource

        return Reading(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "bytes")
    try:
        found = re.search(rf"^{PEAK}:\s*(\d+) ", status.read_text(), re.MULTILINE)
    except OSError as cause:
        return unread(f"{status} cannot be read: {cause.strerror}", "bytes")
    return Reading(int(found[1]) * KIB, "bytes") if found else unread(f"{status} has no {PEAK}", "bytes")
