"""What a Mac tells about itself, through its own commands and one call of its C library."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from samx.devices.commands import CommandError, Run

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


def sysctls(run: Run) -> dict[str, str]:
    """Read what sysctl tells about the hardware; nothing where it does not work."""
    try:
        pairs = (line.partition(":") for line in run(*SYSCTL).splitlines())
    except CommandError:
        return {}
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def mac_isa(facts: dict[str, str]) -> list[str]:
    """Name the relevant instruction sets, as Linux would."""
    return [flag for name, flag in FEATURES.items() if facts.get(name) == "1"]


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
