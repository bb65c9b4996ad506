"""Say what this machine can do with samx: backends, versions, what is missing and how to get it."""

from __future__ import annotations

import importlib.util
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import samx
from samx.errors import UnavailableError
from samx.registry import BACKENDS, Backend, load

EXPORT_LIBRARIES = ("torch", "safetensors", "onnx", "onnxscript", "onnxsim")

ELSEWHERE = "exports can be made and compared here, and run elsewhere"


@dataclass(frozen=True)
class Ability:
    """Say whether something works here, with which versions, and if not why and what to install."""

    name: str
    available: bool
    versions: dict[str, str]
    reason: str | None = None
    fix: str | None = None
    devices: tuple[str, ...] = ()


def doctor() -> dict[str, Any]:
    """Look at the machine without loading a model."""
    return {
        "samx": samx.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "abilities": [asdict(ability) for ability in (export_ability(), *map(run_ability, BACKENDS))],
    }


def export_ability() -> Ability:
    """Check what exporting needs."""
    return _ability("export", EXPORT_LIBRARIES, "export")


def run_ability(entry: Backend) -> Ability:
    """Check what running one backend needs, and which devices it finds."""
    ability = _ability(f"run {entry.target} ({entry.title})", (entry.library,), entry.extra)
    if not ability.available:
        return ability
    try:
        devices = tuple(load(entry.devices)())
    except UnavailableError as cause:
        return Ability(ability.name, False, ability.versions, cause.what, cause.fix)
    except ImportError as cause:  # installed, but for another Python or system
        fix = f"Reinstall it: pip install --force-reinstall 'samx[{entry.extra}]'"
        return Ability(ability.name, False, ability.versions, f"{entry.library} does not load: {cause}", fix)
    if not devices:
        here = "engines can be built here and run elsewhere" if entry.compiles_anywhere else ELSEWHERE
        return Ability(ability.name, False, ability.versions, "no device of this machine runs it", here)
    return Ability(ability.name, True, ability.versions, devices=devices)


def _ability(name: str, libraries: tuple[str, ...], extra: str) -> Ability:
    versions = {library: found for library in libraries if (found := _version(library))}
    missing = [library for library in libraries if library not in versions]
    if missing:
        return Ability(name, False, versions, f"not installed: {', '.join(missing)}", f"pip install 'samx[{extra}]'")
    return Ability(name, True, versions)


def _version(library: str) -> str | None:
    if importlib.util.find_spec(library) is None:
        return None
    try:
        return version(library)
    except PackageNotFoundError:  # onnxruntime and TensorRT come in several distributions, one module
        return _module_version(library)


def _module_version(library: str) -> str:
    try:
        module = sys.modules.get(library) or importlib.import_module(library)
    except (ImportError, OSError):  # run_ability says why
        return "unknown"
    return str(getattr(module, "__version__", "unknown"))
