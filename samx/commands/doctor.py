"""Find what this machine can do with samx: backends, versions, what is missing and how to get it."""

from __future__ import annotations

import importlib.util
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import samx
from samx import registry
from samx.errors import UnavailableError, how_to_install
from samx.extras import EXPORT, EXPORT_LIBRARIES
from samx.registry import Backend, load

ELSEWHERE = "exports can be made and compared here, and run elsewhere"

# Whether something works here: name, available, versions of its libraries, and if not the reason and the fix; devices.
Ability = dict[str, Any]


def doctor() -> dict[str, Any]:
    """Look at the machine without loading a model."""
    return {
        "samx": samx.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "abilities": [
            _ability("export", (*EXPORT_LIBRARIES, "onnxscript", "onnxsim"), EXPORT),
            *map(run_ability, registry.BACKENDS),
        ],
    }


def run_ability(entry: Backend) -> Ability:
    """Check what running one backend needs, and which devices it finds."""
    ability = _ability(f"run {entry.target} ({entry.title})", (entry.library,), entry.extra)
    if not ability["available"]:
        return ability
    try:
        devices = tuple(load(entry.devices)())
    except UnavailableError as cause:
        return _without(ability, cause.what, cause.fix)
    except ImportError as cause:  # installed, but for another Python or system
        fix = f"Install it again. {how_to_install(entry.library, entry.extra)}"
        return _without(ability, f"{entry.library} does not load: {cause}", fix)
    if not devices:
        here = "engines can be built here and run elsewhere" if entry.compiles_anywhere else ELSEWHERE
        return _without(ability, "no device of this machine runs it", here)
    return {**ability, "devices": devices}


def _ability(name: str, libraries: tuple[str, ...], extra: str) -> Ability:
    versions = {library: found for library in libraries if (found := _version(library))}
    missing = ", ".join(library for library in libraries if library not in versions)
    ability: Ability = {
        "name": name, "available": True, "versions": versions, "reason": None, "fix": None, "devices": (),
    }  # fmt: skip
    if not missing:
        return ability
    return _without(ability, f"not installed: {missing}", how_to_install(missing, extra))


def _without(ability: Ability, reason: str, fix: str | None) -> Ability:
    return {**ability, "available": False, "reason": reason, "fix": fix}


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
