"""The most memory that this process has held."""

from __future__ import annotations

import sys
from pathlib import Path

from samx.devices.adapter import Reading, unread

STATUS = Path("/proc/self/status")
PEAK = "VmHWM:"  # of this program alone: getrusage on Linux keeps the peak of the process that started it
KIB = 1024


def peak_bytes(platform: str = sys.platform, status: Path = STATUS) -> Reading:
    """Read the peak of resident memory."""
    if platform == "darwin":
        import resource

        return Reading(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "bytes")
    try:
        lines = status.read_text().splitlines()
    except OSError as cause:
        return unread(f"{status} cannot be read: {cause.strerror}", "bytes")
    words = [line.split() for line in lines if line.startswith(PEAK)]
    if not words or len(words[0]) < 2 or not words[0][1].isdigit():
        return unread(f"{status} has no {PEAK.rstrip(':')}", "bytes")
    return Reading(int(words[0][1]) * KIB, "bytes")
