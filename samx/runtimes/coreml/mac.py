"""What kind of Mac this is, if it is one."""

from __future__ import annotations

import platform
import re
import subprocess
from types import ModuleType

from samx.errors import UnavailableError

PLAN_MACOS, MULTIFUNCTION_MACOS = (14, 4), (15, 0)  # the first that make compute plans; that have several functions
SYSCTL = "/usr/sbin/sysctl"


def is_mac() -> bool:
    """Tell whether Core ML can be here."""
    return platform.system() == "Darwin"


def macos_version() -> tuple[int, ...]:
    """Read the version of macOS; none elsewhere."""
    return tuple(int(number) for number in re.findall(r"\d+", platform.mac_ver()[0]))


def require_macos(what: str, minimum: tuple[int, ...], instead: str) -> None:
    """Check that this is a Mac, and new enough.

    Raises: UnavailableError saying what there is instead.
    """
    version = ".".join(map(str, minimum))
    if not is_mac():
        raise UnavailableError(f"{what} needs a Mac", found=platform.system(), expected=f"macOS {version}", fix=instead)
    if macos_version() < minimum:
        found = f"macOS {platform.mac_ver()[0]}"
        raise UnavailableError(f"{what} needs a newer macOS", found=found, expected=f"{version} or newer", fix=instead)


def chip() -> str:
    """Name the processor, as the system does."""
    try:
        words = [SYSCTL, "-n", "machdep.cpu.brand_string"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def machine_facts(library: ModuleType) -> dict[str, str]:
    """Say what a plan or a run holds for."""
    return {"chip": chip(), "macos": platform.mac_ver()[0] or "unknown", "coremltools": str(library.__version__)}
