"""What kind of Mac this is, if it is one, what its processors are called, and whether it is new enough."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Collection, Mapping
from types import ModuleType

from samx.errors import UnavailableError
from samx.formats.coreml.functions import SINGLE_FUNCTION

PLAN_MACOS, MULTIFUNCTION_MACOS = (14, 4), (15, 0)  # the first that make compute plans; that have several functions
SYSCTL = "/usr/sbin/sysctl"
INSTEAD = "'samx validate DIR' (device cpu) evaluates the saved program here."
ENGINE, GPU, CPU = "ANE", "GPU", "CPU"
DEVICES = (ENGINE, GPU, CPU)
CLASSES: Mapping[str, str] = {
    "MLNeuralEngineComputeDevice": ENGINE,
    "MLGPUComputeDevice": GPU,
    "MLCPUComputeDevice": CPU,
}


def is_mac() -> bool:
    """Tell whether Core ML can be here."""
    return platform.system() == "Darwin"


def require_macos(what: str, minimum: tuple[int, ...], instead: str) -> None:
    """Check that this is a Mac, and new enough.

    Raises: UnavailableError saying what there is instead.
    """
    version, found = ".".join(map(str, minimum)), platform.mac_ver()[0]
    if not is_mac():
        raise UnavailableError(f"{what} needs a Mac", found=platform.system(), expected=f"macOS {version}", fix=instead)
    if tuple(map(int, re.findall(r"\d+", found))) < minimum:
        raise UnavailableError(
            f"{what} needs a newer macOS", found=f"macOS {found}", expected=f"{version} or newer", fix=instead
        )


def require_prediction(functions: Collection[str]) -> None:
    """Check that Core ML can run a package with these functions here.

    Raises: UnavailableError.
    """
    require_macos("a prediction by Core ML", PLAN_MACOS, INSTEAD)
    if set(functions) != {SINGLE_FUNCTION}:
        require_macos("a package of several functions", MULTIFUNCTION_MACOS, f"Export with --ios 16. {INSTEAD}")


def chip() -> str:
    """Name the processor, as the system does."""
    try:
        words = [SYSCTL, "-n", "machdep.cpu.brand_string"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def device_word(device: object) -> str:
    """Name a compute device by its class; coremltools has three."""
    return CLASSES.get(type(device).__name__, "unknown")


def machine_facts(library: ModuleType) -> dict[str, str]:
    """Return what a plan or a run holds for."""
    return {"chip": chip(), "macos": platform.mac_ver()[0] or "unknown", "coremltools": str(library.__version__)}
