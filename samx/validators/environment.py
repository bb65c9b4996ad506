"""The machine and libraries a report was made with."""

from __future__ import annotations

import os
import platform

import numpy as np

import samx
from samx.devices import cpu
from samx.devices.files import Tree


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
    return str(cpu.model(Tree()).value or platform.processor() or "unknown")
