"""The machine and libraries a report was made with."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import samx

CPU_NAME_KEYS = ("model name", "Model", "Hardware")  # of /proc/cpuinfo on x86 and on ARM boards


def environment() -> dict[str, str]:
    """Describe this machine in words."""
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cpu_count": str(os.cpu_count() or "unknown"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "samx": samx.__version__,
    }


def cpu_name() -> str:
    """Give the processor's marketing name where the system tells it."""
    found = _cpu_facts()
    names = [found[key] for key in CPU_NAME_KEYS if found.get(key)]
    return names[0] if names else platform.processor() or "unknown"


def _cpu_facts() -> Mapping[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}
